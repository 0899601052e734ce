// Promise: frames and payloads come out as they went in, however the bytes are cut; a cut frame never comes out.
import { strict as assert } from 'node:assert';
import fc from 'fast-check';
import t from 'tap';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { LinkReader, payloadOf } from '#millrace/engines/link/frame-reader.js';
import { LinkWriter } from '#millrace/engines/link/frame-writer.js';
import {
  decodeEvents,
  decodeHead,
  decodeOpening,
  decodeRegistration,
  EVENTS_HEAD_BYTES,
  encodeEventsHead,
  encodeHead,
  encodeOpening,
  encodeRegistration,
} from '#millrace/engines/link/link-messages.js';
import { FINISH_CODES, LINK_KIND } from '#millrace/engines/link/link-protocol.js';
import { entryFinish, NOT_AN_ENTRY, RowBatch } from '#millrace/engines/link/link-rows.js';
import { openSseStream } from '#millrace/engines/stream-decoder.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { DONE, idsFrame, Recorded, WORKER } from './link-fixture.js';

const seed = Number(process.env.SEED ?? Math.trunc(performance.now() * 1000) % 2 ** 31);
t.comment(`SEED=${seed}`);

t.test('random frames and entries, cut at random places, against a list', async t => {
  const random = seededRandom(seed);
  for (let round = 0; round < 60; round++) {
    const writer = new LinkWriter();
    const reader = new LinkReader(1 << 20);
    const expected: string[] = [];
    const got: string[] = [];
    const bytes: Uint8Array[] = [];
    let entryBytes = 0;
    let stepBytes = 0;
    for (let at = 0; at < 60; at++) {
      if (random() < 0.5) {
        const size = random() < 0.05 ? randomInteger(random, 400_000) : randomInteger(random, 50);
        const payload = Buffer.alloc(size, at);
        writer.frame(20 + at, at, at + 1, [payload.subarray(0, size >> 1), payload.subarray(size >> 1)]);
        expected.push(`${20 + at} ${at} ${at + 1} ${payload.toString('base64')}`);
      } else {
        const ids = Uint32Array.from({ length: randomInteger(random, 5) }, () =>
          randomInteger(random, 2 ** 32),
        );
        const [stream, choice] = [at >> 2, randomInteger(random, 2)];
        const finish = random() < 0.3 ? randomInteger(random, FINISH_CODES.length) : 0;
        const bytes = writer.entry(stream, choice, finish, ids, 0, ids.length);
        entryBytes += bytes;
        expected.push(
          ...Array.from(ids, id => `${stream} ${choice} ${id}`),
          `${stream} ${choice} ends ${finish}`,
        );
      }
      if (random() < 0.2) bytes.push(writer.take() ?? new Uint8Array(0));
    }
    bytes.push(writer.take() ?? new Uint8Array(0));
    const all = Buffer.concat(bytes);
    for (let at = 0; at < all.length; ) {
      const size = 1 + randomInteger(random, random() < 0.5 ? 20 : 100_000);
      const problem = reader.push(all.subarray(at, at + size), frame => {
        const { kind, flags, stream, view, words } = frame;
        if (kind !== LINK_KIND.step) {
          got.push(`${kind} ${flags} ${stream} ${Buffer.from(payloadOf(frame)).toString('base64')}`);
          return;
        }
        stepBytes += frame.end - frame.start;
        for (let entry = frame.start; entry < frame.end; ) {
          const count = view.getUint16(entry + 6, true);
          const from = (entry >> 2) + 2;
          const ids = words.subarray(from, from + count);
          const name = `${view.getUint32(entry, true)} ${view.getUint8(entry + 4)}`;
          got.push(...Array.from(ids, id => `${name} ${id}`), `${name} ends ${view.getUint8(entry + 5)}`);
          entry += 8 + count * 4;
        }
      });
      if (problem !== null) t.fail(problem);
      at += size;
    }
    // An entry that goes on says nothing of its end: those that were joined are as one.
    const plain = (said: readonly string[]): string[] => said.filter(line => !line.endsWith('ends 0'));
    t.same(plain(got), plain(expected));
    t.equal(stepBytes, entryBytes, 'what an entry is said to take is what it takes');
  }
});

t.test('a frame that is cut at any byte is not told', async t => {
  const writer = new LinkWriter();
  writer.frame(7, 0, 0, [Buffer.from('whole')]);
  writer.frame(8, 0, 0, [Buffer.from('second')]);
  const bytes = writer.take()!;
  for (let cut = 0; cut <= bytes.length; cut++) {
    const kinds: number[] = [];
    new LinkReader(100).push(bytes.subarray(0, cut), ({ kind }) => kinds.push(kind));
    t.same(kinds, cut < 24 ? [] : cut < 48 ? [7] : [7, 8], `at ${cut}`);
  }
});

t.test('payloads: whatever is encoded is decoded, and every shorter piece of it is refused', async t => {
  const text = fc.string({ unit: 'binary', maxLength: 20 });
  const header = fc.tuple(fc.constantFrom('content-type', 'set-cookie', '__proto__', 'x'), text);
  fc.assert(
    fc.property(text, fc.array(header, { maxLength: 4 }), fc.nat(), (path, head, bodyBytes) => {
      const wellFormed = (value: string): string => Buffer.from(value).toString();
      const opening = { method: 'POST', path, head, bodyBytes };
      const bytes = encodeOpening(opening);
      const expected = {
        ...opening,
        path: wellFormed(path),
        head: head.map(([name, value]) => [name, wellFormed(value)]),
      };
      t.same(decodeOpening(bytes), expected);
      for (let cut = 0; cut < bytes.length; cut++)
        assert.throws(() => decodeOpening(bytes.subarray(0, cut)), { name: 'RecordError' });
    }),
    { numRuns: 30, seed },
  );
  const registration = { worker: WORKER, bodyWindowBytes: 5 };
  t.same(decodeRegistration(encodeRegistration(registration)), registration);
  const noOrigin = { ...registration, worker: { ...WORKER, url: 'http://a/path' } };
  t.throws(() => decodeRegistration(encodeRegistration(noOrigin)), {
    message: /REGISTER\.url: is no origin/,
  });
  const noId = { ...registration, worker: { ...WORKER, id: '' } };
  t.throws(() => decodeRegistration(encodeRegistration(noId)), { message: /REGISTER\.id/ });
  const answer = decodeHead(
    encodeHead(204, { 'content-type': 'a/b', 'set-cookie': ['1', '2'], gone: undefined }),
  );
  t.match(answer, { status: 204, contentType: 'a/b', headers: { 'set-cookie': ['1', '2'] } });
  const head = encodeEventsHead(3, 2 ** 40);
  t.equal(head.length, EVENTS_HEAD_BYTES);
  t.match(decodeEvents(Buffer.concat([head, Buffer.from('batch')])), {
    rank: 3,
    sequence: 2 ** 40,
    batch: Buffer.from('batch'),
  });
});

t.test('rows and entries: an entry says of a row what the row says, and all else stays bytes', async t => {
  const choiceFrame = (rest: string): string => `data: {"choices":[{"index":0,${rest}}]}\n\n`;
  const plain = [
    idsFrame([1, 2]),
    idsFrame([], 255),
    idsFrame([4_294_967_295], 3, 'tool_calls'),
    idsFrame([5], 0, 'abort'),
  ];
  const others = [
    idsFrame([1], 256),
    idsFrame([1], 0, 'repetition'),
    choiceFrame('"text":"no ids","finish_reason":null'),
    choiceFrame('"token_ids":[1],"logprobs":{"tokens":[]}'),
    'data: {"choices":[{"index":0,"token_ids":[1]},{"index":1,"token_ids":[2]}]}\n\n',
    'data: {"choices":[{"index":0,"token_ids":[1]}],"usage":{"prompt_tokens":1}}\n\n',
    'data: {"choices":[]}\n\n',
    'data: {"error":{"message":"x"}}\n\n',
    ': comment\n\n',
    DONE,
  ];
  const decoder = openSseStream(createFrameScanner(null), {
    firstFrameBytesMax: 1 << 20,
    frameBytesMax: 1 << 20,
  });
  const direct = new Recorded();
  const linked = new Recorded();
  const rows = new RowBatch();
  let entries = 0;
  let bytes = 0;
  decoder.push(Buffer.from([...plain, ...others].join('')), batch => {
    rows.clear(batch.ids);
    for (let row = 0; row < batch.count; row++) {
      const finish = entryFinish(batch, row);
      if (finish === NOT_AN_ENTRY) {
        bytes++;
        continue;
      }
      entries++;
      const at = 4 + row * 24;
      rows.add(batch.table[at + 3]!, finish, batch.table[at + 4]!, batch.table[at + 5]!);
    }
    direct.onRows({ ...batch, count: plain.length });
    linked.onRows(rows.batch);
  });
  t.equal(entries, plain.length);
  t.equal(bytes, others.length);
  t.same(linked.ids, direct.ids);
  t.same(linked.finish, direct.finish);
  t.equal(linked.linkIds, 4);
});
