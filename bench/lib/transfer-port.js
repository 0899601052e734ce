/**
 * What a transfer port costs, as rows of the same form as bench/transfer.js: an agent of this thread with a port, and a thread
 * that posts through it. `face: 'port'` tells them from those of the agent's own thread, whose posting is the yardstick.
 */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { createAgent } from '#millrace/transfer/index.js';
import { median } from './report.js';

const POSTS = 64;

/** Microseconds of JavaScript for `Plan.post` on the agent's thread. */
async function agentPostUs(plan, rounds) {
  const times = [];
  for (let round = 0; round < rounds * 4; round++) {
    const posts = [];
    const startNs = process.hrtime.bigint();
    for (let i = 0; i < POSTS; i++) posts.push(plan.post());
    if (round >= rounds * 2) times.push(Number(process.hrtime.bigint() - startNs) / POSTS / 1000);
    await Promise.all(posts);
  }
  return median(times);
}

/** Median microseconds from the engine's completion to the event loop of the agent's thread. */
async function agentCompletionUs(plan, transfers) {
  const times = [];
  for (let i = 0; i < transfers; i++) {
    const { doneNs } = await plan.post();
    times.push((Number(process.hrtime.bigint()) - doneNs) / 1000);
  }
  return median(times);
}

/**
 * Median microseconds to wake a thread on this machine, by blocking waits and nothing else: half of a round trip. What no way
 * to an event loop can be faster than.
 */
async function wakeFloorUs(trips) {
  const words = new Int32Array(new SharedArrayBuffer(128));
  const thread = new Worker(new URL('./ring-echo.js', import.meta.url), {
    workerData: { mode: 'floor', words, trips },
  });
  const ended = once(thread, 'exit');
  await once(thread, 'message');
  const times = [];
  for (let trip = 1; trip <= trips; trip++) {
    const startMs = performance.now();
    Atomics.store(words, 0, trip);
    Atomics.notify(words, 0);
    while (Atomics.load(words, 16) !== trip) Atomics.wait(words, 16, trip - 1);
    times.push((performance.now() - startMs) * 500);
  }
  await ended;
  return median(times);
}

/**
 * One row: two agents of this process joined by `transport`, and a thread with a port of one of them.
 * @param {{transport: string, blockBytes: number, blocks: number, rounds: number, transfers: number}} options
 */
export async function portRow({ transport, blockBytes, blocks, rounds, transfers }) {
  const near = createAgent({ transports: [transport] });
  const far = createAgent({ transports: [transport] });
  const layout = { kind: 'opaque', blockBytes };
  const pool = near.createPool({ layout, blocks });
  const remote = far.createPool({ layout, blocks });
  far.connect(near.metadata());
  const peer = near.connect(far.metadata());
  const plan = peer.plan({
    direction: 'write',
    local: { pool, blocks: [0] },
    remote: { pool: remote.id, blocks: [0] },
  });
  const yardstickPostUs = await agentPostUs(plan, rounds);
  const yardstickCompletionUs = await agentCompletionUs(plan, transfers);
  const port = near.createPort({ entries: 256, blocksMax: Math.min(POSTS * blocks, 1_048_576) });
  const { description } = port;
  const thread = new Worker(new URL('./transfer-port-thread.js', import.meta.url), {
    workerData: { description, peer: peer.id, pool: pool.id, remote: remote.id, blocks, rounds, transfers },
  });
  const failed = once(thread, 'error').then(([error]) => Promise.reject(error));
  const [row] = await Promise.race([failed, once(thread, 'message')]);
  failed.catch(() => undefined);
  await thread.terminate();
  await near.close();
  await far.close();
  return {
    transport,
    op: 'write',
    memory: 'pool',
    face: 'port',
    blockBytes,
    blocks,
    reader: 'unknown',
    ...row,
    yardstick: 'Plan.post of one block on the thread of the agent',
    yardstickPostUs,
    yardstickCompletionUs,
    wakeFloorUs: await wakeFloorUs(transfers),
  };
}
