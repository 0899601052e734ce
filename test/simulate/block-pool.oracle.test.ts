// Promise: the block pool does what a naive model does, and no interleaving leaks, double-frees or misorders a block.

import t from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { BlockPool } from '#millrace/simulate/block-pool.js';

const seed = Number(process.env.SEED ?? 20_260_101);
t.comment(`SEED=${seed}`);

interface Copy {
  key: number | null;
  refs: number;
}

/** The rules as plain lists: a block is an object, the pool a set of them. */
class NaivePool {
  readonly inactive: Copy[] = [];
  readonly cached: Copy[] = [];
  private held = 0;

  constructor(readonly capacity: number) {}

  get free(): number {
    return this.capacity - this.held - this.inactive.length;
  }

  match(keys: number[]): Copy[] {
    const hits: Copy[] = [];
    for (const key of keys) {
      const copy = this.cached.find(one => one.key === key);
      if (copy === undefined) break;
      hits.push(copy);
    }
    return hits;
  }

  reserve(hits: Copy[], fresh: number): Copy[] | null {
    const revived = hits.filter(copy => copy.refs === 0);
    if (fresh > this.free + this.inactive.length - revived.length) return null;
    for (const copy of hits) {
      if (copy.refs++ > 0) continue;
      this.inactive.splice(this.inactive.indexOf(copy), 1);
      this.held++;
    }
    while (this.free < fresh) this.cached.splice(this.cached.indexOf(this.inactive.shift()!), 1);
    this.held += fresh;
    return [...hits, ...Array.from({ length: fresh }, () => ({ key: null, refs: 1 }))];
  }

  publish(copy: Copy, key: number): void {
    if (copy.key !== null) return;
    copy.key = key;
    this.cached.push(copy);
  }

  release(blocks: Copy[]): void {
    for (const copy of [...blocks].reverse()) {
      if (--copy.refs > 0) continue;
      this.held--;
      if (copy.key !== null) this.inactive.push(copy);
    }
  }
}

interface Lease {
  keys: number[];
  blocks: number[];
  copies: Copy[];
  published: number;
}

function compare(pool: BlockPool, naive: NaivePool, leases: Lease[]): string | null {
  const snapshot = pool.snapshot();
  const refs = new Map<number, number>();
  for (const lease of leases) for (const block of lease.blocks) refs.set(block, (refs.get(block) ?? 0) + 1);
  for (const [block, state] of snapshot.blocks)
    if (state.refs !== (refs.get(block) ?? 0)) return `block ${block} has ${state.refs} references`;
  for (const block of refs.keys()) if (!snapshot.blocks.has(block)) return `held block ${block} is free`;
  if (pool.active !== refs.size) return `active ${pool.active}, held ${refs.size}`;
  if (pool.free + pool.active + snapshot.inactive.length !== pool.capacity) return 'capacity does not add up';
  if (pool.free !== naive.free) return `free ${pool.free}, naive ${naive.free}`;
  const order = snapshot.inactive.map(block => snapshot.blocks.get(block)!.key).join();
  if (order !== naive.inactive.map(copy => copy.key).join()) return 'eviction order differs';
  let copies = 0;
  for (const list of snapshot.copies.values()) copies += list.length;
  return copies === naive.cached.length ? null : `cached ${copies}, naive ${naive.cached.length}`;
}

t.test('random interleavings against the naive pool', async t => {
  const random = seededRandom(seed);
  let evictions = 0;
  let refusals = 0;
  let reused = 0;
  for (let round = 0; round < 150; round++) {
    const capacity = 1 + randomInteger(random, 24);
    const pool = new BlockPool(capacity);
    const naive = new NaivePool(capacity);
    const leases: Lease[] = [];
    const families = 1 + randomInteger(random, 4);
    for (let step = 0; step < 120; step++) {
      const what = random();
      if (what < 0.45 || leases.length === 0) {
        const family = randomInteger(random, families);
        const keys = Array.from({ length: 1 + randomInteger(random, 8) }, (_, at) => family * 100 + at);
        const hits: number[] = [];
        pool.match(keys, hits);
        const naiveHits = naive.match(keys);
        const fresh = keys.length - hits.length + randomInteger(random, 2);
        const blocks: number[] = [];
        const evicted = Math.max(0, fresh - naive.free);
        const copies = naive.reserve(naiveHits, fresh);
        const ok = pool.reserve(hits, fresh, blocks);
        if (ok !== (copies !== null)) t.fail(`round ${round} step ${step}: reserve gave ${ok}`);
        if (copies !== null) {
          leases.push({ keys, blocks, copies, published: hits.length });
          evictions += evicted;
          reused += hits.length;
        } else refusals++;
      } else if (what < 0.75) {
        const lease = leases[randomInteger(random, leases.length)]!;
        const at = lease.published;
        if (at < lease.keys.length) {
          pool.publish(lease.blocks[at]!, lease.keys[at]!);
          naive.publish(lease.copies[at]!, lease.keys[at]!);
          lease.published++;
        }
      } else {
        const [lease] = leases.splice(randomInteger(random, leases.length), 1);
        naive.release(lease!.copies);
        pool.release(lease!.blocks);
        if (lease!.blocks.length > 0) t.fail(`round ${round} step ${step}: blocks were kept`);
      }
      const difference = compare(pool, naive, leases);
      if (difference !== null) t.fail(`round ${round} step ${step}: ${difference}`);
    }
    for (const lease of leases.splice(0)) {
      naive.release(lease.copies);
      pool.release(lease.blocks);
    }
    if (pool.active !== 0) t.fail(`round ${round}: ${pool.active} blocks leaked`);
  }
  t.ok(evictions > 100 && refusals > 100 && reused > 100, `${evictions} ${refusals} ${reused}`);
});
