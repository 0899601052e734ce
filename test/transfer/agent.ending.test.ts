// Promise: a transfer settles once, however it ends, and only when its bytes are quiet: by a signal, a deadline, the loss of
// its peer, or the end of its agent or thread. An idle agent holds no process, and many threads may load and
// leave, 20 at once: 60, or 200 in the long run.
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { createAgent, type Layout, type Plan, type TransferError } from '#millrace/transfer/index.js';
import { codeOf, needs, needsAddon, type TwoAgents, twoAgents } from './two-agents.js';

const BLOCK_BYTES = 4 * 1024 * 1024;
const LARGE: Layout = { kind: 'opaque', blockBytes: BLOCK_BYTES };
const QUEUE = 64;
const THREADS = process.env.MILLRACE_TEST_LONG === '1' ? 200 : 60;
const THREADS_AT_ONCE = 20;
t.setTimeout(120_000);

/** A plan that moves 4 MiB, so that many of them keep the agent at work while a test ends the last. */
const largePlan = (agents: TwoAgents): Plan =>
  agents.peer.plan({
    direction: 'write',
    local: { pool: agents.nearPool, blocks: [0] },
    remote: { pool: agents.farPool.id, blocks: [0] },
  });

t.test('a signal', needsAddon, async t => {
  const agents = twoAgents('memory', LARGE, 1);
  t.teardown(() => agents.close());
  const plan = largePlan(agents);
  const reason = new Error('the client left');
  t.equal(await codeOf(plan.post({ signal: AbortSignal.abort(reason) })), 'CANCELLED', 'before it began');
  t.equal(agents.near.inFlight, 0);
  const queue = Array.from({ length: QUEUE }, () => plan.post());
  const controller = new AbortController();
  const aborted = plan.post({ signal: controller.signal });
  controller.abort(reason);
  const error = await aborted.catch((error: TransferError) => error);
  t.match(error, { code: 'CANCELLED', cause: reason });
  await Promise.all(queue);
  t.equal(agents.near.inFlight, 0);
});

t.test('a deadline', needsAddon, async t => {
  const agents = twoAgents('memory', LARGE, 1);
  t.teardown(() => agents.close());
  const plan = largePlan(agents);
  const queue = Array.from({ length: QUEUE }, () => plan.post());
  t.equal(await codeOf(plan.post({ deadlineMs: 1, priority: 255 })), 'DEADLINE');
  await Promise.all(queue);
});

t.test('too many at once is an answer', needsAddon, async t => {
  const near = createAgent({ transports: ['memory'], operationsMax: 2 });
  const pool = near.createPool({ layout: LARGE, blocks: 2 });
  const peer = near.connect(near.metadata());
  t.teardown(() => near.close());
  const plan = peer.plan({
    direction: 'write',
    local: { pool, blocks: [0] },
    remote: { pool: pool.id, blocks: [1] },
  });
  const codes = await Promise.all([plan, plan, plan].map(plan => codeOf(plan.post())));
  t.same(codes, ['OK', 'OK', 'FULL']);
  t.equal(await codeOf(plan.post()), 'OK', 'there is room again');
});

// The engine may be done with a queue before the other side ends, where this process waits for its processor.
const ROUNDS = 20;

t.test('the end of an agent with transfers in flight', needsAddon, async t => {
  const settled: string[] = [];
  for (let round = 0; round < ROUNDS && !settled.includes('CANCELLED'); round++) {
    settled.length = 0;
    const agents = twoAgents('memory', LARGE, 1);
    const plan = largePlan(agents);
    const posts = Array.from({ length: QUEUE }, () => codeOf(plan.post()).then(code => settled.push(code)));
    await agents.near.close();
    t.equal(settled.length, QUEUE, 'all have settled when close is done');
    await Promise.all(posts);
    t.ok(settled.every(code => code === 'OK' || code === 'CANCELLED'));
    t.equal(agents.nearBytes.length, 0, 'no view over its memory is left');
    t.equal(await codeOf(plan.post()), 'CLOSED');
    t.throws(() => agents.near.metadata(), { code: 'CLOSED' });
    await agents.close();
  }
  t.ok(settled.includes('CANCELLED'), 'one was in flight');
});

t.test('the end of the peer', needsAddon, async t => {
  for (let round = 0; round < ROUNDS; round++) {
    const agents = twoAgents('memory', LARGE, 1);
    const plan = largePlan(agents);
    const lost = once(agents.near, 'peerLost');
    const posts = Array.from({ length: QUEUE }, () => codeOf(plan.post()));
    await agents.far.close();
    const codes = new Set(await Promise.all(posts));
    t.equal((await lost)[0], agents.peer);
    t.equal(await codeOf(plan.post()), 'PEER_LOST');
    await agents.close();
    codes.delete('OK');
    if (codes.size === 0) continue;
    t.same([...codes], ['PEER_LOST'], `in round ${round}`);
    return;
  }
  t.fail('no transfer was in flight when the peer ended');
});

t.test('a listener that throws takes no event from the others', needsAddon, async t => {
  const agents = twoAgents('memory', LARGE, 1);
  t.teardown(() => agents.close());
  const unexpected = process.listeners('uncaughtException');
  process.removeAllListeners('uncaughtException');
  const caught = once(process, 'uncaughtException');
  t.teardown(() => {
    for (const listener of unexpected) process.on('uncaughtException', listener);
  });
  agents.far.once('notification', () => {
    throw new Error('of the listener');
  });
  const plan = largePlan(agents);
  await plan.post({ notification: new Uint8Array(1) });
  const next = once(agents.far, 'notification');
  t.match(await caught, [{ message: 'of the listener' }]);
  await plan.post({ notification: new Uint8Array(2) });
  t.equal((await next)[0].bytes.length, 2);
});

/** What the process has open that a thread could leave behind. */
const open = (): number[] => ['fd', 'task'].map(kind => readdirSync(`/proc/self/${kind}`).length);

t.test('threads come and go', { ...needsAddon, timeout: 120_000 }, async t => {
  const url = new URL('./agent-thread.js', import.meta.url);
  const transports = (['memory', 'shm', 'tcp'] as const).filter(name => needs(name).skip === undefined);
  const run = async (index: number): Promise<string> => {
    const thread = new Worker(url, {
      workerData: { index, transports: [transports[index % transports.length]] },
    });
    const failed = new Promise<never>((_, reject) => thread.once('error', reject));
    const exited = once(thread, 'exit');
    const said = await Promise.race([failed, once(thread, 'message')]);
    // A third ends by itself, a third is terminated at work, a third while its transfers are in flight.
    if (Math.floor(index / 3) % 3 !== 0) await thread.terminate();
    await exited;
    return said[0];
  };
  let next = 0;
  const answers: string[] = [];
  const line = async (): Promise<void> => {
    while (next < THREADS) answers.push(await run(next++));
  };
  // What the runtime itself opens for threads stays.
  await run(0);
  const before = open();
  await Promise.all(Array.from({ length: THREADS_AT_ONCE }, line));
  t.same(answers, Array(THREADS).fill('at work'));
  t.same(open(), before, 'descriptors and threads');
});
