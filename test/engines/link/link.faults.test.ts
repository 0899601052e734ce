// Promise: whatever a peer sends, cuts off or withholds, each stream ends once and only with what whole frames said.
import t, { type Test } from 'tap';
import { LinkWriter } from '#millrace/engines/link/frame-writer.js';
import type { LinkClient } from '#millrace/engines/link/link-client.js';
import {
  encodeEventsHead,
  encodeFail,
  encodeHead,
  encodeOpening,
} from '#millrace/engines/link/link-messages.js';
import { LINK_FLAG, LINK_KIND, LINK_LIMITS, STEP_BYTES_MAX } from '#millrace/engines/link/link-protocol.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import {
  ask,
  DONE,
  idsFrame,
  Recorded,
  SSE,
  signal,
  startEngine,
  startPlane,
  startWorker,
} from './link-fixture.js';
import { linkRaw, listenRaw, type RawPeer } from './raw-peer.js';

const HEAD = encodeHead(200, { 'content-type': 'text/event-stream', 'set-cookie': ['a', 'b'] });
const ENGINE = 'http://127.0.0.1:1';

/** A plane with a raw worker side. */
async function rawWorker(t: Test, clock?: ManualClock): Promise<{ link: LinkClient; peer: RawPeer }> {
  const plane = await startPlane(t, clock === undefined ? {} : { clock });
  const peer = await linkRaw(t, plane.address);
  return { link: await plane.linked, peer };
}

/** A worker side with a raw plane. */
async function rawPlane(t: Test, origin = ENGINE, clock?: ManualClock): Promise<RawPeer> {
  const linked = signal<RawPeer>();
  const up = signal<void>();
  const address = await listenRaw(t, peer => linked.set(peer));
  startWorker(t, address, origin, {
    ...(clock === undefined ? {} : { clock }),
    onEventsWanted: () => up.set(),
  });
  await up.done;
  return linked.done;
}

const open = (peer: RawPeer, stream: number, bodyBytes = 0): void =>
  peer.send(
    LINK_KIND.open,
    stream,
    encodeOpening({ method: 'POST', path: '/', head: [], bodyBytes }),
    LINK_FLAG.rows,
  );

t.test('a connection cut after any byte of an answer: only whole frames count', async t => {
  const plane = await startPlane(t);
  const whole = new LinkWriter();
  const ids = Uint32Array.of(1, 2, 3, 4);
  const script = (writer: LinkWriter): void => {
    writer.frame(LINK_KIND.head, 0, 1, [HEAD]);
    writer.entry(1, 0, 0, ids, 0, 3);
    writer.entry(1, 1, 2, ids, 3, 1);
    writer.frame(LINK_KIND.data, 0, 1, [Buffer.from(DONE)]);
    writer.frame(LINK_KIND.end, 0, 1, []);
  };
  script(whole);
  const bytes = whole.take()!;
  // Header and payload of each frame; the bytes that fill up to the next one are not waited for by its reader.
  const headEnd = 16 + Math.ceil(HEAD.length / 4) * 4;
  const stepEnd = headEnd + 16 + 8 + 12 + 8 + 4;
  const dataEnd = stepEnd + 16 + Math.ceil(DONE.length / 4) * 4;
  for (let cut = 0; cut <= bytes.length; cut++) {
    const peer = await linkRaw(t, plane.address);
    const link = plane.server.links[0]!;
    const recorded = new Recorded();
    link.send(ask(), recorded);
    await peer.until(LINK_KIND.open);
    script(peer.writer);
    peer.socket.end(peer.writer.take()!.subarray(0, cut));
    await recorded.over;
    const expected = {
      status: cut < headEnd ? 0 : 200,
      ids: cut < stepEnd ? [] : [[1, 2, 3], [4]],
      text: cut < dataEnd ? '' : DONE,
      ends: 1,
      fault: cut < bytes.length ? { kind: 'reset' } : null,
    };
    t.match(recorded, expected, `after ${cut} of ${bytes.length} bytes`);
    if (cut < stepEnd) t.same(recorded.ids, [], 'no id of a STEP that was cut');
    peer.socket.destroy();
    await peer.closed;
  }
});

t.test('a worker side that breaks the protocol: the link closes and its streams fail', async t => {
  const word = (value: number): Buffer => Buffer.from(Uint32Array.of(value).buffer);
  const entry = (stream: number, count: number, ids: number, finish = 0): Buffer => {
    const bytes = Buffer.alloc(8 + ids * 4);
    bytes.writeUInt32LE(stream);
    bytes[5] = finish;
    bytes.writeUInt16LE(count, 6);
    return bytes;
  };
  const cases: [string, (peer: RawPeer) => void, RegExp][] = [
    ['unknown stream', peer => peer.send(LINK_KIND.head, 9, HEAD), /stream 9 is not open/],
    [
      'unknown stream in a STEP',
      peer => peer.send(LINK_KIND.step, 0, entry(9, 1, 1)),
      /stream 9 is not open/,
    ],
    [
      'stream that ended',
      peer => {
        peer.send(LINK_KIND.head, 1, HEAD);
        peer.send(LINK_KIND.end, 1);
        peer.send(LINK_KIND.end, 1);
      },
      /stream 1 is not open/,
    ],
    ['rows before the head', peer => peer.send(LINK_KIND.step, 0, entry(1, 1, 1)), /before its head/],
    ['end before the head', peer => peer.send(LINK_KIND.end, 1), /ended before it began/],
    [
      'two heads',
      peer => {
        peer.send(LINK_KIND.head, 1, HEAD);
        peer.send(LINK_KIND.head, 1, HEAD);
      },
      /began twice/,
    ],
    ['ids beyond the STEP', peer => peer.send(LINK_KIND.step, 0, entry(1, 2, 1)), /do not fill it/],
    ['half an entry', peer => peer.send(LINK_KIND.step, 0, Buffer.alloc(4)), /do not fill it/],
    ['finish code', peer => peer.send(LINK_KIND.step, 0, entry(1, 0, 0, 99)), /do not fill it/],
    ['long head', peer => peer.send(LINK_KIND.head, 1, Buffer.alloc(300_000)), /kind 16 with 300000 bytes/],
    ['short credit', peer => peer.send(LINK_KIND.credit, 1, Buffer.alloc(2)), /CREDIT that is no word/],
    ['bad head', peer => peer.send(LINK_KIND.head, 1, HEAD.subarray(0, 9)), /HEAD\.headers/],
    ['bad fail', peer => peer.send(LINK_KIND.fail, 1, Buffer.from([77, 0, 0, 0, 0])), /FAIL\.fail/],
    ['bad health', peer => peer.send(LINK_KIND.health, 0, Buffer.alloc(3)), /HEALTH\./],
    [
      'events out of order',
      peer => peer.send(LINK_KIND.events, 0, encodeEventsHead(0, 5)),
      /out of order at 5/,
    ],
    ['pong to nothing', peer => peer.send(LINK_KIND.pong, 0, word(1)), /heartbeat that was not sent/],
    [
      'critical kind',
      peer => peer.send(200, 0, word(1), LINK_FLAG.critical),
      /kind 200, which must be understood/,
    ],
    [
      'credit overrun',
      peer => {
        peer.send(LINK_KIND.head, 1, HEAD);
        for (let sent = 0; sent <= LINK_LIMITS.answerWindowBytes; sent += STEP_BYTES_MAX)
          peer.send(LINK_KIND.data, 1, Buffer.alloc(STEP_BYTES_MAX, 'x'));
      },
      /more than it had credit for/,
    ],
    [
      'frame too long',
      peer => {
        const header = Buffer.alloc(16);
        header.writeUInt32LE(LINK_LIMITS.frameBytesMax + 1);
        header.writeUInt32LE(2, 12);
        peer.socket.write(header);
      },
      /a frame of \d+ bytes; 17825792 are allowed/,
    ],
    [
      'frame repeated',
      peer => {
        peer.writer.frame(LINK_KIND.goaway, 0, 0, []);
        const bytes = peer.writer.take()!;
        peer.socket.write(Buffer.concat([bytes, bytes]));
      },
      /frame 2 came where frame 3 was due/,
    ],
  ];
  for (const [name, speak, message] of cases) {
    const { link, peer } = await rawWorker(t);
    const recorded = new Recorded();
    // Paused: what is told at once must not hide what is not taken.
    link.send({ ...ask(), wantsRows: false }, recorded).pause();
    await peer.until(LINK_KIND.open);
    speak(peer);
    await peer.closed;
    t.match(peer.refusal, { kind: 'protocol', message }, name);
    t.notOk(link.isAccepting, name);
  }
});

t.test('a plane that breaks the protocol is cut off; a stream number is never used twice', async t => {
  const origin = await startEngine(t, (_request, response) => response.writeHead(200, SSE).end(DONE));
  const cases: [string, (peer: RawPeer) => void | Promise<void>, RegExp][] = [
    [
      'replayed',
      async peer => {
        open(peer, 5);
        await peer.until(LINK_KIND.end);
        open(peer, 5);
      },
      /stream 5 was opened before/,
    ],
    [
      'lower',
      peer => {
        open(peer, 5);
        open(peer, 4);
      },
      /stream 4 was opened before; the last one was 5/,
    ],
    ['number 0', peer => open(peer, 0), /stream 0 was opened before/],
    ['cancel of an unknown one', peer => peer.send(LINK_KIND.cancel, 3), /stream 3 is not open/],
    [
      'body overrun',
      peer => {
        open(peer, 1, 10);
        peer.send(LINK_KIND.body, 1, Buffer.alloc(11));
      },
      /more body than it announced/,
    ],
    ['long OPEN', peer => peer.send(LINK_KIND.open, 1, Buffer.alloc(262_145)), /OPEN with 262145 bytes/],
    ['bad OPEN', peer => peer.send(LINK_KIND.open, 1, Buffer.alloc(5)), /OPEN\./],
    [
      'short credit',
      peer => {
        open(peer, 1, 10);
        peer.send(LINK_KIND.credit, 1);
      },
      /CREDIT that is no word/,
    ],
    ['critical kind', peer => peer.send(99, 0, Buffer.alloc(0), LINK_FLAG.critical), /kind 99/],
  ];
  for (const [name, speak, message] of cases) {
    const peer = await rawPlane(t, origin);
    await speak(peer);
    await peer.closed;
    t.match(peer.refusal, { kind: 'protocol', message }, name);
  }
  const peer = await rawPlane(t, origin);
  peer.send(99, 0, Buffer.alloc(40));
  open(peer, 1, LINK_LIMITS.bodyBytesMax + 1);
  t.match((await peer.until(LINK_KIND.fail)).payload.toString('latin1'), /a body of 4194305 bytes/);
  open(peer, 2);
  t.equal(
    (await peer.until(LINK_KIND.end)).stream,
    2,
    'a kind that need not be known is skipped, and the link goes on',
  );
});

t.test('half-open: no answer to a heartbeat closes the link, on both sides', async t => {
  const clock = new ManualClock();
  const { link, peer } = await rawWorker(t, clock);
  const recorded = new Recorded();
  link.send(ask(), recorded);
  clock.advance(LINK_LIMITS.pingPeriodMs + LINK_LIMITS.pongDeadlineMs - 1);
  t.equal(recorded.ends, 0);
  clock.advance(1);
  await recorded.over;
  t.match(recorded.fault, { kind: 'reset' });
  await peer.closed;
  t.match(peer.refusal, { kind: 'heartbeat' });
  const plane = await rawPlane(t, ENGINE, clock);
  clock.advance(LINK_LIMITS.pingPeriodMs + LINK_LIMITS.pongDeadlineMs);
  await plane.closed;
  t.match(plane.refusal, { kind: 'heartbeat' });
});

t.test(
  'random bytes, and valid frames with a few bytes changed, never do more than close the link',
  async t => {
    const seed = Number(process.env.SEED ?? Math.trunc(performance.now() * 1000) % 2 ** 31);
    t.comment(`SEED=${seed}`);
    const random = seededRandom(seed);
    const plane = await startPlane(t);
    const origin = await startEngine(t, (_request, response) =>
      response.writeHead(200, SSE).end(idsFrame([1]) + DONE),
    );
    let refused = 0;
    for (let round = 0; round < 150; round++) {
      const peer = round % 3 === 2 ? await rawPlane(t, origin) : await linkRaw(t, plane.address);
      const recorded = new Recorded();
      if (round % 3 !== 2) plane.server.links[0]!.send(ask(), recorded);
      const { writer } = peer;
      for (let frame = 0; frame < 6; frame++) {
        const kind = [8, 9, 10, 11, 16, 17, 18, 19, 20, 24, 25, 32, 33, 34][randomInteger(random, 14)]!;
        const payload = [
          HEAD,
          encodeFail('reset', 'x'),
          Buffer.alloc(randomInteger(random, 60)),
          encodeEventsHead(0, 0),
        ];
        writer.frame(kind, randomInteger(random, 4), randomInteger(random, 3), [
          payload[randomInteger(random, 4)]!,
        ]);
      }
      const bytes = Buffer.from(writer.take()!);
      const changes = round % 2 === 0 ? randomInteger(random, 4) : bytes.length;
      for (let change = 0; change < changes; change++)
        bytes[randomInteger(random, bytes.length)] = randomInteger(random, 256);
      peer.socket.end(bytes);
      await peer.closed;
      if (peer.refusal !== null) refused++;
      if (round % 3 !== 2) {
        await recorded.over;
        t.equal(recorded.ends, 1);
      }
    }
    t.ok(refused > 30, `${refused} of 150 were refused`);
    const peer = await linkRaw(t, plane.address);
    t.notOk(peer.socket.closed, 'the plane still admits workers');
  },
);
