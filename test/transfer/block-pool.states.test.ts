// Promise: the block table says who has which block: reserve, fill, commit, match, pin and release in lists, a block in
// flight is not handed out, and a lease that ends tells its owner. (The table itself is tested in C++ against a model.)
import { once } from 'node:events';
import t from 'tap';
import { type BlockSet, createAgent, type Layout } from '#millrace/transfer/index.js';
import { codeOf, needsAddon, twoAgents } from './two-agents.js';

const LAYOUT: Layout = { kind: 'opaque', blockBytes: 1024 };
const BLOCKS = 8;

function taken(set: BlockSet | 'full'): BlockSet {
  if (set === 'full') throw new Error('the table is full');
  return set;
}

t.test('the states of blocks', needsAddon, async t => {
  const agent = createAgent({ transports: ['memory'] });
  t.teardown(() => agent.close());
  const table = agent.createPool({ layout: LAYOUT, blocks: BLOCKS, blockTable: true }).table!;
  const set = taken(table.reserve(3, 7));
  t.equal(table.stats().reserved, 3);
  table.fill(set.blocks);
  const [a, b, c] = [...set.blocks] as [number, number, number];
  const outcomes = table.commit([
    { block: a, hashLow: 1, hashHigh: 9 },
    { block: b, hashLow: 2, hashHigh: 9, parent: a },
    { block: c, hashLow: 2, hashHigh: 9, parent: a },
  ]);
  t.same(outcomes, [
    { code: 'OK', existing: null },
    { code: 'OK', existing: null },
    { code: 'BUSY', existing: b },
  ]);
  const found = table.match(Uint32Array.of(1, 9, 2, 9, 3, 9));
  t.same([...found.blocks], [a, b]);
  t.same([...found.generations], [...set.generations.subarray(0, 2)]);
  table.pin(found);
  t.equal(table.stats().pinned, 2);
  t.equal(table.reserve(BLOCKS), 'full', 'pinned blocks are not evicted');
  t.same(table.release(found), ['BUSY', 'BUSY']);
  t.same(table.unpin(found), ['OK', 'OK']);
  t.throws(() => table.pin({ blocks: found.blocks, generations: Uint32Array.of(1, 99) }), { code: 'STALE' });
  t.equal(table.stats().pinned, 0, 'all or none');
  t.same(table.release({ blocks: [c] as never, generations: [set.generations[2]!] as never }), ['OK']);
  const all = taken(table.reserve(BLOCKS));
  t.equal(all.blocks.length, BLOCKS);
  t.equal(table.stats().evictions, 2);
  for (const [call, field] of [
    [() => table.reserve(0), /^count /],
    [() => table.reserve(1, -1), /^tenant /],
    [() => table.fill([]), /^blocks\.length /],
    [() => table.match(new Uint32Array(3)), /^hashes /],
    [() => table.pin(all, 0), /^forMs /],
    [() => table.commit([{ block: BLOCKS, hashLow: 0, hashHigh: 0 }]), /^contents\[0\]\.block /],
  ] as const)
    t.throws(call, { code: 'INVALID', message: field });
});

t.test('writes go only into blocks that were reserved for them', needsAddon, async t => {
  const agents = twoAgents('memory', LAYOUT, BLOCKS, LAYOUT, true);
  t.teardown(() => agents.close());
  const set = taken(agents.farPool.table!.reserve(2));
  const post = (generations?: Uint32Array): Promise<string> =>
    codeOf(
      agents.peer
        .plan({
          direction: 'write',
          local: { pool: agents.nearPool, blocks: [0, 1] },
          remote: { pool: agents.farPool.id, blocks: set.blocks, ...(generations && { generations }) },
        })
        .post(),
    );
  t.equal(await post(), 'INVALID', 'no generations');
  t.equal(await post(set.generations.map(one => one + 1)), 'STALE');
  t.equal(await post(set.generations), 'OK');
  t.same(agents.farPool.table!.release(set), ['OK', 'OK']);
  t.equal(await post(set.generations), 'STALE', 'the blocks were given up');
});

t.test('a lease that nobody renews ends and says so', needsAddon, async t => {
  const agents = twoAgents('memory', LAYOUT, BLOCKS, LAYOUT, true);
  t.teardown(() => agents.close());
  const table = agents.farPool.table!;
  const set = taken(table.reserve(1));
  table.fill(set.blocks);
  table.commit([{ block: set.blocks[0]!, hashLow: 1, hashHigh: 0 }]);
  const lease = agents.farPool.lease(set.blocks, { ttlMs: 20 });
  t.equal(table.stats().pinned, 1);
  t.throws(() => agents.farPool.close(), { code: 'BUSY' });
  const [ended, why] = await once(agents.far, 'leaseExpired');
  t.equal(ended, lease);
  t.equal(why, 'DEADLINE');
  t.equal(table.stats().pinned, 0, 'it has been released');
  lease.release();
  agents.farPool.close();
});
