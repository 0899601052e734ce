// Promise: calls arrive at the other end in order and whole; over the bound a holder is cleared, never left half told.
import { once } from 'node:events';
import { MessageChannel } from 'node:worker_threads';
import t, { type Test } from 'tap';
import type { IndexSink } from '#millrace/router/events/contract.js';
import { PostingSink, receiveSink } from '#millrace/router/events/posting-sink.js';
import { FACTS } from './applied.js';

const WAITING_BYTES_MAX = 256 * 1024;

/** Two joined ends; `calls` is what arrived. */
function setUp(t: Test) {
  const { port1, port2 } = new MessageChannel();
  t.teardown(() => port1.close());
  const calls: unknown[][] = [];
  let onTend = (): void => undefined;
  const target: IndexSink = {
    addHolder: (...args) => calls.push(['addHolder', ...args]),
    removeHolder: (...args) => calls.push(['removeHolder', ...args]),
    clear: (...args) => calls.push(['clear', ...args]),
    apply: (holder, payload) => calls.push(['apply', holder, payload.length, payload[0]]),
    route: ({ hashes, ...rest }) => calls.push(['route', { hashes: [...hashes], ...rest }]),
    tend: nowMs => {
      calls.push(['tend', nowMs]);
      onTend();
    },
  };
  receiveSink(port2, target);
  const warnings: unknown[] = [];
  const log = { warn: (_: string, fields: unknown) => warnings.push(fields) };
  const sink = new PostingSink({ port: port1, waitingBytesMax: WAITING_BYTES_MAX, log });
  /** Posts a tend, and resolves when it has been carried out. */
  const arrived = (): Promise<void> => {
    const promise = new Promise<void>(resolve => {
      onTend = resolve;
    });
    sink.tend(0);
    return promise;
  };
  return { sink, calls, warnings, arrived, port1 };
}

t.test('each call arrives, with copies of its bytes', async t => {
  const { sink, calls, arrived } = setUp(t);
  const pool = Buffer.alloc(64, 1);
  const hashes = Uint32Array.of(1, 2, 3, 4, 5, 6);
  sink.addHolder(1, FACTS);
  sink.apply(1, pool.subarray(8, 24));
  sink.route({ slot: 1, generation: 3, hashes, blocks: 2, cachedBlocks: 1, expiresMs: 9 });
  pool.fill(2);
  hashes.fill(0);
  sink.clear(1);
  sink.clear(1);
  sink.apply(2, pool);
  sink.removeHolder(1);
  sink.apply(1, pool);
  sink.removeHolder(1);
  await arrived();
  t.same(calls, [
    ['addHolder', 1, FACTS],
    ['apply', 1, 16, 1],
    ['route', { slot: 1, generation: 3, hashes: [1, 2, 3, 4], blocks: 2, cachedBlocks: 1, expiresMs: 9 }],
    ['clear', 1],
    ['removeHolder', 1],
    ['tend', 0],
  ]);
});

t.test('a receiver that is behind loses whole holders, not single batches', async t => {
  const { sink, calls, warnings, arrived, port1 } = setUp(t);
  const batch = new Uint8Array(8 * 1024);
  sink.addHolder(1, FACTS);
  sink.addHolder(2, FACTS);
  sink.apply(2, batch);
  let posted = 1;
  for (; sink.droppedBatches === 0; posted += 1) sink.apply(1, batch);
  posted -= 1;
  t.ok(posted * batch.length <= WAITING_BYTES_MAX && posted > 24, `${posted} batches were taken`);
  for (let i = 0; i < 1000; i += 1) sink.apply(1, batch);
  sink.tend(5);
  const hashes = new Uint32Array(8 * 1024);
  sink.route({ slot: 2, generation: 3, hashes, blocks: 4096, cachedBlocks: 0, expiresMs: 9 });
  t.equal(sink.droppedBatches, 1001);
  t.same(warnings, [{ worker: 'http://w', holder: 1, waitingBytesMax: WAITING_BYTES_MAX }]);

  await once(port1, 'message');
  sink.apply(1, batch);
  await arrived();
  t.equal(sink.droppedBatches, 1001, 'there is room again');
  t.same(
    calls.slice(2).map(([call, holder]) => `${call} ${holder}`),
    ['apply 2', ...Array(posted - 1).fill('apply 1'), 'clear 1', 'tend 5', 'apply 1', 'tend 0'],
  );
});

t.test('any amount passes when the receiver keeps up', async t => {
  const { sink, calls, port1 } = setUp(t);
  sink.addHolder(1, FACTS);
  for (let round = 0; round < 60; round += 1) {
    const acknowledged = once(port1, 'message');
    for (let i = 0; i < 7; i += 1) sink.apply(1, new Uint8Array(10_000));
    await acknowledged;
  }
  t.equal(sink.droppedBatches, 0);
  t.equal(calls.filter(([call]) => call === 'apply').length, 420);
});
