// Promise: the engine's allocator and the table of its registered memory agree at every step, and no block that a peer is in is
// handed out again before the peer has left it.
import t, { type Test } from 'tap';
import { ManualClock } from '#millrace/runtime/clock.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { BlockPool } from '#millrace/simulate/block-pool.js';
import { KvMemory } from '#millrace/simulate/disagg/kv-memory.js';
import { createAgent, type Lease, type Peer } from '#millrace/transfer/index.js';
import { needsAddon } from '../transfer/two-agents.js';
import { until } from './disagg-probe.js';

const seed = Number(process.env.SEED ?? 20_261_125);
t.comment(`SEED=${seed}`);

interface Setup {
  readonly memory: KvMemory;
  readonly clock: ManualClock;
  /** Somebody who may read and write here. */
  readonly peer: Peer;
}

function setUp(t: Test, blocks: number): Setup {
  const clock = new ManualClock();
  const transports = ['memory'] as const;
  const memory = KvMemory.open({ blocks, blockSize: 4, seed: 0, host: '127.0.0.1', clock, transports });
  const other = createAgent({ transports });
  // Idle agents hold no process.
  const alive = setInterval(() => {}, 60_000);
  t.teardown(async () => {
    clearInterval(alive);
    await memory.close();
    await other.close();
  });
  const peer = memory.agent.connect(other.metadata());
  other.connect(memory.agent.metadata());
  return { memory, clock, peer };
}

/** The peer writes to a block from now on; the lease's end asks it to stop, and it answers in its own time. */
const enter = ({ memory, peer }: Setup, block: number): Lease =>
  memory.pool.lease([block], { ttlMs: 60_000, peer });

t.test('in quarantine until the last has left, then free, and told', needsAddon, async t => {
  const setup = setUp(t, 4);
  const { memory, clock } = setup;
  const blocks: number[] = [];
  memory.take(4, blocks);
  const [first] = memory.generationsOf([2]);
  const inside = enter(setup, 2);
  memory.give(blocks);
  t.equal(memory.free, 3);
  t.equal(memory.stats().blocks.quarantine, 1);
  const again: number[] = [];
  memory.take(3, again);
  t.same(again.sort(), [0, 1, 3]);
  let told = 0;
  memory.onRoom = () => told++;
  clock.advance(20);
  t.equal(told, 1, 'who waits for room looks again');
  inside.release();
  await until(() => memory.free === 1);
  memory.take(1, again);
  t.equal(again[3], 2);
  t.not(memory.generationsOf([2])[0], first, 'under another generation');
});

t.test('a lease makes blocks ready and keeps them; its end is told once', needsAddon, async t => {
  const { memory, peer } = setUp(t, 4);
  const blocks: number[] = [];
  memory.take(3, blocks);
  t.match(memory.stats().blocks, { free: 1, filling: 3, ready: 0, pinned: 0 });
  let ends = 0;
  const lease = memory.lease(blocks.slice(0, 2), peer, 60_000, () => ends++);
  const second = memory.lease(blocks, peer, 1, () => ends++);
  t.match(memory.stats(), { blocks: { filling: 0, ready: 3, pinned: 3 }, leases: 2 });
  t.throws(() => memory.give(blocks), 'pinned blocks are not given back');
  await until(() => ends === 1);
  t.equal(memory.endLease(second), false, 'its time was over');
  t.equal(memory.endLease(lease), true);
  t.equal(memory.endLease(lease), false);
  t.match(memory.stats(), { blocks: { ready: 3, pinned: 0 }, leases: 0 });
  memory.clear();
  t.match(memory.stats().blocks, { free: 4, ready: 0 });
  t.equal(ends, 1);
});

t.test('random engines with random peers', needsAddon, async t => {
  const random = seededRandom(seed);
  const capacity = 20;
  const setup = setUp(t, capacity);
  const { memory } = setup;
  const pool = new BlockPool(capacity, null, memory);
  const held: { blocks: number[]; keys: number[]; published: number }[] = [];
  const inside = new Map<number, Lease>();
  const seen = { refused: 0, quarantined: 0, passedOver: 0 };
  const reserve = (step: number): void => {
    const family = randomInteger(random, 5);
    const keys = Array.from({ length: 1 + randomInteger(random, 6) }, (_, at) => family * 100 + at);
    const hits: number[] = [];
    pool.match(keys, hits);
    const blocks: number[] = [];
    const { quarantine } = memory.stats().blocks;
    if (!pool.reserve(hits, keys.length - hits.length, blocks)) {
      seen.refused++;
      if (blocks.length > 0) t.fail(`step ${step}: refused, and yet ${blocks.length} blocks`);
      return;
    }
    if (quarantine! > 0) seen.passedOver++;
    const strange = blocks.slice(hits.length).find(block => inside.has(block));
    if (strange !== undefined) t.fail(`step ${step}: block ${strange} was handed out with a peer in it`);
    held.push({ blocks, keys, published: hits.length });
  };
  for (let step = 0; step < 1500; step++) {
    const what = random();
    const one = held[randomInteger(random, held.length || 1)];
    if (what < 0.4 || one === undefined) reserve(step);
    else if (what < 0.65) {
      if (one.published < one.keys.length)
        pool.publish(one.blocks[one.published]!, one.keys[one.published++]!);
    } else if (what < 0.75) {
      const block = one.blocks.at(-1)!;
      if (!inside.has(block) && inside.size < 6) inside.set(block, enter(setup, block));
    } else if (what < 0.97) {
      held.splice(held.indexOf(one), 1);
      pool.release(one.blocks);
    } else if (inside.size > 0) {
      const [block, lease] = [...inside][randomInteger(random, inside.size)]!;
      const before = memory.stats().blocks.quarantine!;
      const isLeft = pool.snapshot().blocks.has(block);
      lease.release();
      if (!isLeft) await until(() => memory.stats().blocks.quarantine! < before);
      inside.delete(block);
    }
    const { free, filling, ready, quarantine } = memory.stats().blocks;
    seen.quarantined = Math.max(seen.quarantined, quarantine!);
    const used = pool.snapshot().blocks.size;
    if (filling! + ready! !== used || free! + used + quarantine! !== capacity)
      t.fail(`step ${step}: ${JSON.stringify({ free, filling, ready, quarantine, used })}`);
  }
  for (const lease of inside.values()) lease.release();
  for (const { blocks } of held) pool.release(blocks);
  t.equal(pool.active, 0);
  t.equal(pool.reset(), true);
  await until(() => memory.stats().blocks.free === capacity);
  t.ok(seen.refused > 20 && seen.quarantined > 1 && seen.passedOver > 20, JSON.stringify(seen));
});
