// Promise: threads that have no agent move blocks through ports of one, each as its model says, while others of them are
// terminated at any moment; what those had in flight ends, and nothing of them stays.
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { type AgentPort, createAgent } from '#millrace/transfer/index.js';
import type { PortThreadData } from './port-thread.js';
import { needsAddon } from './two-agents.js';

const isLong = process.env.MILLRACE_TEST_LONG === '1';
const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const BLOCK_BYTES = 4096;
const BLOCKS = 16;
const THREAD = new URL('./port-thread.js', import.meta.url);

/** An agent with a peer and pools with `threads` ranges of blocks, and how a thread is started on one of them. */
function stage(threads: number, operationsMax: number, maySpin: boolean) {
  const near = createAgent({ transports: ['memory'], operationsMax });
  const far = createAgent({ transports: ['memory'] });
  const layout = { kind: 'opaque', blockBytes: BLOCK_BYTES } as const;
  const nearPool = near.createPool({ layout, blocks: threads * BLOCKS });
  const farPool = far.createPool({ layout, blocks: threads * BLOCKS });
  far.connect(near.metadata());
  const peer = near.connect(far.metadata());
  // Idle agents do not hold the process.
  const alive = setInterval(() => undefined, 60_000);
  const ended = new Set<AgentPort>();
  near.on('portEnded', port => ended.add(port));
  return {
    near,
    start(range: number, seed: number, rounds: number) {
      const port = near.createPort({ entries: 16, blocksMax: 64 });
      const workerData: PortThreadData = {
        description: port.description,
        seed,
        rounds,
        peer: peer.id,
        nearPool: nearPool.id,
        farPool: farPool.id,
        firstBlock: range * BLOCKS,
        blocks: BLOCKS,
        blockBytes: BLOCK_BYTES,
        maySpin,
      };
      return { port, thread: new Worker(THREAD, { workerData }) };
    },
    async portEnd(port: AgentPort) {
      while (!ended.has(port)) await once(near, 'portEnded');
    },
    async close() {
      clearInterval(alive);
      // BUSY if a transfer were left.
      nearPool.close();
      farPool.close();
      await near.close();
      await far.close();
    },
  };
}

type Stage = ReturnType<typeof stage>;

/** Runs one thread to its end, or terminates it after so many of its messages. Returns what it said last. */
async function live(at: Stage, range: number, seed: number, rounds: number, messagesMax: number) {
  const { port, thread } = at.start(range, seed, rounds);
  const failed = new Promise<never>((_, reject) => thread.once('error', reject));
  const exited = once(thread, 'exit');
  let said = '';
  let messages = 0;
  const enough = new Promise<void>(resolve =>
    thread.on('message', (message: string) => {
      said = message;
      if (++messages === messagesMax) resolve();
    }),
  );
  await Promise.race([failed, exited, enough]);
  if (messages >= messagesMax) await thread.terminate();
  await exited;
  failed.catch(() => undefined);
  await at.portEnd(port);
  return said;
}

t.test('threads with models, some of them terminated', needsAddon, async t => {
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  const [ranges, lives, rounds] = isLong ? [4, 100, 60] : [3, 3, 12];
  // Few operations: those of the terminated must come back.
  const at = stage(ranges, 64, true);
  let terminated = 0;
  const range = async (index: number) => {
    for (let life = 0; life < lives; life++) {
      const messagesMax = random() < 0.6 ? 1 + randomInteger(random, rounds) : Number.POSITIVE_INFINITY;
      const said = await live(at, index, randomInteger(random, 2 ** 31), rounds, messagesMax);
      if (Number.isFinite(messagesMax)) terminated++;
      else t.equal(said, 'done', `range ${index}, life ${life}`);
    }
  };
  await Promise.all(Array.from({ length: ranges }, (_, index) => range(index)));
  t.comment(`${terminated} threads were terminated`);
  t.equal(at.near.stats().transfersActive, 0);
  await at.close();
});

t.test('20 threads on one agent', needsAddon, async t => {
  t.comment(`SEED=${seed}`);
  const at = stage(20, 1024, false);
  const said = await Promise.all(
    Array.from({ length: 20 }, (_, i) =>
      live(at, i, (seed + i) % 2 ** 31, 3, i % 4 === 3 ? 2 : Number.POSITIVE_INFINITY),
    ),
  );
  for (const [i, last] of said.entries()) if (i % 4 !== 3) t.equal(last, 'done');
  await at.close();
});
