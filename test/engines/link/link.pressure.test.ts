// Promise: a slow reader slows its engine and holds no more than its window; events, health and leaving are told in order.
import type { ServerResponse } from 'node:http';
import t from 'tap';
import type { EngineHealth } from '#millrace/engines/link/contract.js';
import { encodeOpening } from '#millrace/engines/link/link-messages.js';
import { LINK_FLAG, LINK_KIND, STEP_BYTES_MAX } from '#millrace/engines/link/link-protocol.js';
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

const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve));

/** Writes `piece` until the socket takes no more, or `total` bytes are written; then `end`. */
function pour(
  response: ServerResponse,
  piece: string,
  total: number,
  end: string,
  count: { bytes: number },
): void {
  while (count.bytes < total) {
    count.bytes += piece.length;
    if (!response.write(piece)) {
      response.once('drain', () => pour(response, piece, total, end, count));
      return;
    }
  }
  response.end(end);
}

t.test(
  'a paused call: nothing is told, the engine is stuck, the other streams go on; then every id comes',
  async t => {
    const written = { bytes: 0 };
    const frames = 120_000;
    const piece = Array.from({ length: 100 }, (_, at) => idsFrame([at])).join('');
    const origin = await startEngine(t, (request, response) => {
      response.writeHead(200, SSE);
      if (request.url === '/slow') pour(response, piece, (piece.length * frames) / 100, DONE, written);
      else response.end(idsFrame([5]) + DONE);
    });
    const plane = await startPlane(t);
    startWorker(t, plane.address, origin);
    const link = await plane.linked;
    const begun = signal<void>();
    let seen = -1;
    const slow = new Recorded(() => {
      if (seen >= 0) return;
      seen = slow.ids[0]!.length;
      call.pause();
      begun.set();
    });
    const call = link.send(ask('/slow'), slow);
    await begun.done;
    for (let trip = 0; trip < 40; trip++) {
      const other = new Recorded();
      link.send(ask('/other'), other);
      await other.over;
      t.same(other.ids, [[5]]);
    }
    t.equal(slow.ids[0]!.length, seen, 'nothing was told meanwhile');
    t.ok(written.bytes < (piece.length * frames) / 100, `the engine is stuck after ${written.bytes} bytes`);
    call.resume();
    call.pause();
    call.resume();
    await slow.over;
    t.equal(slow.fault, null);
    t.equal(slow.ids[0]!.length, frames);
    t.ok(
      slow.ids[0]!.every((id, at) => id === at % 100),
      'in order',
    );
  },
);

t.test('without credit nothing is sent; with it, exactly as much as it allows, rows whole', async t => {
  const linked = signal<RawPeer>();
  const address = await listenRaw(t, peer => linked.set(peer), [STEP_BYTES_MAX]);
  const bytes = 'b'.repeat(3 * STEP_BYTES_MAX);
  const perFrame = 8 + 50 * 4;
  const rows = Math.floor(STEP_BYTES_MAX / perFrame);
  const origin = await startEngine(t, (request, response) => {
    response.writeHead(200, request.url === '/bytes' ? {} : SSE);
    const ids = Array.from({ length: 50 }, (_, at) => at);
    // Of one choice they would share an entry.
    const frames = Array.from({ length: rows + 3 }, (_, at) => idsFrame(ids, at % 2));
    response.end(request.url === '/bytes' ? bytes : frames.join('') + DONE);
  });
  startWorker(t, address, origin);
  const peer = await linked.done;
  const open = (stream: number, path: string): void =>
    peer.send(
      LINK_KIND.open,
      stream,
      encodeOpening({ method: 'GET', path, head: [], bodyBytes: 0 }),
      LINK_FLAG.rows,
    );
  const sent = (stream: number): number =>
    peer.got
      .filter(one => one.kind === LINK_KIND.data && one.stream === stream)
      .reduce((sum, one) => sum + one.payload.length, 0);
  const steps = (): number =>
    peer.got.filter(one => one.kind === LINK_KIND.step).reduce((sum, one) => sum + one.payload.length, 0);
  open(1, '/bytes');
  open(2, '/rows');
  // Streams that need no credit show that the worker side has had every chance to send more.
  for (let stream = 3; stream < 40; stream++) {
    open(stream, '/bytes');
    peer.send(LINK_KIND.cancel, stream);
  }
  while (
    peer.got.filter(one => one.kind === LINK_KIND.fail).length < 37 ||
    sent(1) < STEP_BYTES_MAX ||
    steps() < rows * perFrame
  )
    await turn();
  for (let trip = 0; trip < 50; trip++) await turn();
  t.equal(sent(1), STEP_BYTES_MAX);
  t.equal(steps(), rows * perFrame, 'a row does not begin without credit for all of it');
  peer.writer.word(LINK_KIND.credit, 1, 100);
  peer.writer.word(LINK_KIND.credit, 1, 3 * STEP_BYTES_MAX);
  peer.writer.word(LINK_KIND.credit, 2, STEP_BYTES_MAX);
  peer.flush();
  while (peer.got.filter(one => one.kind === LINK_KIND.end).length < 2) await turn();
  t.equal(sent(1), bytes.length);
  t.equal(steps(), (rows + 3) * perFrame);
  t.equal(sent(2), DONE.length);
});

t.test(
  'a plane that does not read: the worker side stops taking from its engine, and goes on after',
  async t => {
    const linked = signal<RawPeer>();
    const up = signal<void>();
    const lost: number[] = [];
    const address = await listenRaw(t, peer => linked.set(peer), [1 << 30]);
    const total = 64 << 20;
    const written = { bytes: 0 };
    const origin = await startEngine(t, (_request, response) => {
      response.writeHead(200, {});
      pour(response, 'x'.repeat(1 << 16), total, '', written);
    });
    const wanted = (): void => {
      lost.push(1);
      up.set();
    };
    const limits = { sendQueueBytesMax: 1 << 16, eventQueueBytesMax: 1 << 20 };
    const { link } = startWorker(t, address, origin, { limits, onEventsWanted: wanted });
    const peer = await linked.done;
    await up.done;
    for (const rank of [0, 1]) link.sendEvents(rank, Buffer.from('first'));
    await peer.until(LINK_KIND.events);
    peer.socket.pause();
    peer.send(LINK_KIND.open, 1, encodeOpening({ method: 'GET', path: '/', head: [], bodyBytes: 0 }));
    let before = -1;
    for (let still = 0; still < 200; still = written.bytes === before && before > 0 ? still + 1 : 0) {
      before = written.bytes;
      await turn();
    }
    t.ok(written.bytes < total, `the engine is stuck after ${written.bytes} of ${total} bytes`);
    for (let batch = 0; batch < 40; batch++) link.sendEvents(batch % 2, Buffer.alloc(1 << 16, 'e'));
    peer.socket.resume();
    await peer.until(LINK_KIND.end);
    t.same(lost, [1, 1], 'events are wanted anew, once, when the plane has caught up');
    const events = peer.got.filter(one => one.kind === LINK_KIND.events).map(one => one.payload);
    t.ok(events.length < 44, `${events.length} of 42 batches and 2 clears were sent`);
    t.same(
      events.slice(-2).map(one => [one.readUInt32LE(0), one.length]),
      [
        [0, 12],
        [1, 12],
      ],
      'the last thing said of each rank is that it is void',
    );
    link.sendEvents(1, Buffer.from('anew'));
    while (!peer.got.at(-1)!.payload.toString('latin1').endsWith('anew')) await turn();
    t.equal(link.streams, 0);
  },
);

t.test('events and health: in order, per rank, and the health again after a reconnection', async t => {
  const got = signal<void>();
  const plane = await startPlane(t, {
    onHealth: () => {
      if (plane.healths.length === 3) got.set();
    },
  });
  const health: EngineHealth = {
    state: 'ready',
    running: 3,
    waiting: null,
    kvUsage: 0.25,
    canaryMs: null,
    canaryFailures: 2,
  };
  let ups = 0;
  const { link } = startWorker(t, plane.address, 'http://127.0.0.1:1', {
    onEventsWanted: () => {
      link.sendEvents(1, Buffer.from(`up ${++ups}`));
      link.sendEvents(0, null);
      link.sendEvents(1, Buffer.from('b'));
      if (ups === 1) {
        link.sendHealth(health);
        link.sendHealth({ ...health, state: 'down', kvUsage: null });
        setImmediate(() => setImmediate(() => link.renew()));
      }
    },
  });
  link.sendEvents(0, Buffer.from('before it is up'));
  await got.done;
  t.same(plane.healths, [
    health,
    { ...health, state: 'down', kvUsage: null },
    { ...health, state: 'down', kvUsage: null },
  ]);
  while (plane.events.length < 6) await turn();
  const once = (up: number): unknown[] => [
    [1, `up ${up}`],
    [0, null],
    [1, 'b'],
  ];
  t.same(plane.events, [...once(1), ...once(2)]);
  t.equal(ups, 2);
});

t.test('drain: the plane sends nothing new there, what runs ends, then the link closes', async t => {
  const waiting: ServerResponse[] = [];
  const asked = signal<void>();
  const origin = await startEngine(t, (_request, response) => {
    response.writeHead(200, SSE);
    response.write(idsFrame([1]));
    waiting.push(response);
    asked.set();
  });
  const plane = await startPlane(t);
  const { link: workerLink } = startWorker(t, plane.address, origin);
  const link = await plane.linked;
  const running = new Recorded();
  link.send(ask(), running);
  await asked.done;
  const drained = workerLink.drain(60_000);
  while (link.isAccepting) await turn();
  const late = new Recorded();
  link.send(ask(), late);
  await late.over;
  t.match(late.fault, { kind: 'unreachable' });
  waiting[0]!.end(idsFrame([2]) + DONE);
  t.equal(await drained, 0);
  await running.over;
  t.match(running, { ids: [[1, 2]], fault: null });
  t.match(await plane.unlinked, { kind: 'closed' });
});

t.test('a peer that asks and does not read is cut off', async t => {
  const limits = { sendQueueBytesMax: 1 << 16, unsentBytesMax: 1 << 20 };
  const plane = await startPlane(t, { limits });
  const peer = await linkRaw(t, plane.address);
  const link = await plane.linked;
  peer.socket.pause();
  let isOpen = true;
  const unlinked = plane.unlinked.then(fault => {
    isOpen = false;
    return fault;
  });
  while (isOpen) {
    peer.send(LINK_KIND.ping, 0, Buffer.alloc(1 << 16));
    await turn();
  }
  t.match(await unlinked, { kind: 'closed', message: /leaves 1048576 bytes unread/ });
  t.notOk(link.isAccepting);
});
