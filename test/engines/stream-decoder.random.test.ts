/** Promise: whatever the frames and however they are cut, the decoder hands on each frame once, whole and in order. */
import t from 'tap';
import { rowStart } from '#millrace/engines/event-rows.js';
import { FRAME } from '#millrace/engines/frame-descriptor.js';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { openSseStream } from '#millrace/engines/stream-decoder.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 1e9);
const ROUNDS = process.env.MILLRACE_TEST_LONG === '1' ? 20_000 : 150;

interface Made {
  readonly text: string;
  readonly ids: readonly number[];
}

function makeFrame(random: Random): Made {
  const kind = randomInteger(random, 10);
  if (kind === 0) return { text: ': ping\n\n', ids: [] };
  const ids = Array.from({ length: randomInteger(random, kind === 1 ? 500 : 4) }, () =>
    randomInteger(random, 2 ** 32),
  );
  const filler = 'é"\\\n{]'.repeat(randomInteger(random, kind === 2 ? 12_000 : 6));
  const choice = { index: 0, text: filler, token_ids: ids };
  return { text: `data: ${JSON.stringify({ choices: [choice] })}\n\n`, ids };
}

function cut(random: Random, bytes: Uint8Array): Uint8Array[] {
  // Down to single bytes, but no more than some thousand pieces of a long stream.
  const longest = 1 + (bytes.length >> 11) + randomInteger(random, 2 ** (1 + randomInteger(random, 14)));
  const pieces: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; ) {
    const size = randomInteger(random, longest + 1);
    pieces.push(bytes.slice(at, at + size));
    at += size;
  }
  return pieces;
}

const addon = loadAddon();
const scanners = [createFrameScanner(null), ...(addon === null ? [] : [createFrameScanner(addon)])];

t.test(`random streams, SEED=${SEED}`, t => {
  const random = seededRandom(SEED);
  for (let round = 0; round < ROUNDS; round++) {
    const made = Array.from({ length: 1 + randomInteger(random, 30) }, () => makeFrame(random));
    const limit = randomInteger(random, 3) === 0 ? 60 + randomInteger(random, 3000) : 1 << 20;
    const tooLong = made.findIndex(({ text }) => Buffer.byteLength(text) > limit);
    const expected =
      tooLong === -1 ? [...made, { text: 'data: [DONE]\n\n', ids: [] }] : made.slice(0, tooLong);
    const bytes = Buffer.from(`${made.map(({ text }) => text).join('')}data: [DONE]\n\n`);
    for (const scanner of scanners) {
      const stream = openSseStream(scanner, { firstFrameBytesMax: limit, frameBytesMax: limit });
      const got: Made[] = [];
      let fault: string | null = null;
      for (const piece of cut(random, bytes)) {
        fault = stream.push(piece, batch => {
          for (let row = 0; row < batch.count; row++) {
            const word = (name: keyof typeof FRAME): number => batch.table[rowStart(row) + FRAME[name]]!;
            got.push({
              text: Buffer.from(batch.bytes.subarray(word('start'), word('end'))).toString('utf8'),
              ids: [...batch.ids.subarray(word('idsFirst'), word('idsFirst') + word('idsCount'))],
            });
          }
        });
        if (fault !== null) break;
      }
      const result = { got, fault, end: fault === null ? stream.end() : null };
      const wanted = { got: expected, fault: tooLong === -1 ? null : 'frameTooLong', end: null };
      if (JSON.stringify(result) !== JSON.stringify(wanted)) {
        t.same(result, wanted, `round ${round}`);
        return t.end();
      }
    }
  }
  t.pass(`${ROUNDS} streams on ${scanners.length} scanners`);
  t.end();
});

t.test('a stream’s tail outlives other streams of the same scanner', t => {
  const scanner = createFrameScanner(null);
  const streams = Array.from({ length: 5 }, () =>
    openSseStream(scanner, { firstFrameBytesMax: 1000, frameBytesMax: 1000 }),
  );
  const got: string[][] = streams.map(() => []);
  const lent = new Uint8Array(1);
  const frames = streams.map((_, index) => Buffer.from(`data: {"stream":${index}}\n\ndata: [DONE]\n\n`));
  for (let at = 0; at < frames[0]!.length; at++) {
    for (const [index, stream] of streams.entries()) {
      lent[0] = frames[index]![at]!;
      stream.push(lent, batch =>
        got[index]!.push(
          Buffer.from(batch.bytes.subarray(0, batch.table[rowStart(0) + FRAME.end])).toString(),
        ),
      );
    }
  }
  t.same(
    got,
    streams.map((_, index) => [`data: {"stream":${index}}\n\n`, 'data: [DONE]\n\n']),
  );
  t.same(
    streams.map(stream => stream.end()),
    [null, null, null, null, null],
  );
  t.end();
});
