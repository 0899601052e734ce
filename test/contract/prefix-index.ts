/**
 * What every prefix index does, as one suite: each implementation runs it (prefix-index.test.ts). Hashes are small words
 * here; random trees and races are in test/router/index.*.test.ts.
 */
import type t from 'tap';
import { type PrefixIndexReader, type PrefixIndexWriter, TIER } from '#millrace/router/index/contract.js';

type Tap = typeof t;

/** An index with room for some thousand blocks and its prediction ring for 64. */
export interface IndexUnderTest {
  readonly writer: PrefixIndexWriter;
  readonly reader: PrefixIndexReader;
}

/** A chain of `count` blocks that no other `name` shares. */
const chain = (name: number, count: number): Uint32Array =>
  Uint32Array.from({ length: count * 2 }, (_, at) => (at % 2 === 0 ? (at >> 1) + 1 : name));
const at = (hashes: Uint32Array, block: number): { low: number; high: number } => ({
  low: hashes[block * 2]!,
  high: hashes[block * 2 + 1]!,
});
const engineNames = (hashes: Uint32Array): Uint32Array =>
  Uint32Array.from({ length: hashes.length * 2 }, (_, word) =>
    word % 4 < 2 ? hashes[(word >> 2) * 2 + (word % 4)]! : 9,
  );

/** Depths over all tiers, then those on the device. */
function depthsOf({ reader }: IndexUnderTest, hashes: Uint32Array, ...holders: number[]): number[] {
  const out = new Uint32Array(holders.length * 2);
  reader.lookup(hashes, hashes.length / 2, Uint32Array.from(holders), holders.length, out);
  return Array.from(out);
}

/** Runs the suite over indexes that `make` gives, each new and empty. */
export function prefixIndexContract(t: Tap, make: () => IndexUnderTest): void {
  t.test('holders: known once, depth 0 when not known', async t => {
    const index = make();
    const { writer } = index;
    t.equal(writer.addHolder(4095), true);
    t.equal(writer.addHolder(4095), false);
    t.equal(writer.store(3, null, chain(1, 2), 2, TIER.device, null), 0, 'a holder that was not added');
    t.equal(writer.stats().unknownHolders, 1);
    t.equal(writer.store(4095, null, chain(1, 2), 2, TIER.device, null), 2);
    t.same(depthsOf(index, chain(1, 3), 3, 4095), [0, 2, 0, 2]);
    t.equal(writer.removeHolder(4095), true);
    t.equal(writer.removeHolder(4095), false);
    t.same(depthsOf(index, chain(1, 3), 4095), [0, 0], 'at once');
    writer.addHolder(4095);
    t.same(depthsOf(index, chain(1, 3), 4095), [0, 0], 'and nothing comes back with it');
    while (writer.sweep(100));
    t.equal(writer.stats().blocks, 0, 'a sweep gives the memory back');
  });

  t.test('holes, orphans, tiers', async t => {
    const index = make();
    const { writer } = index;
    const hashes = chain(1, 10);
    writer.addHolder(1);
    writer.addHolder(2);
    writer.store(1, null, hashes, 10, TIER.device, null);
    t.equal(writer.remove(1, hashes.subarray(8), 1, TIER.device), 1);
    t.same(depthsOf(index, hashes, 1), [4, 4], 'a hole ends the depth');
    writer.store(1, at(hashes, 3), hashes.subarray(8), 1, TIER.host, null);
    t.same(depthsOf(index, hashes, 1), [10, 4], 'filled from a lower tier');
    t.equal(writer.store(2, at(hashes, 4), hashes.subarray(10), 5, TIER.device, null), 5);
    t.equal(writer.stats().orphans, 1);
    t.same(depthsOf(index, hashes, 2, 1), [0, 10, 0, 4], 'an orphan does not count');
    writer.store(2, null, hashes, 5, TIER.disk, null);
    t.same(depthsOf(index, hashes, 2), [10, 0], 'until its ancestors come');
    t.equal(writer.remove(2, chain(7, 1), 1, TIER.device), 0);
    t.equal(writer.remove(2, hashes, 1, TIER.device), 0);
    t.equal(writer.stats().unknownRemovals, 2);
    writer.store(2, null, hashes, 2, TIER.disk, null);
    t.equal(writer.stats().duplicates, 2);
  });

  t.test('a block that is its own ancestor, or has two parents, is not stored', async t => {
    const index = make();
    const { writer } = index;
    const hashes = chain(1, 4);
    writer.addHolder(1);
    t.equal(writer.store(1, at(hashes, 0), hashes, 1, TIER.device, null), 0);
    writer.store(1, null, hashes, 4, TIER.device, null);
    t.equal(writer.store(1, at(hashes, 0), hashes.subarray(6), 1, TIER.device, null), 0);
    t.equal(writer.store(1, at(hashes, 3), hashes, 1, TIER.device, null), 0);
    t.equal(writer.stats().parentConflicts, 3);
    t.same(depthsOf(index, hashes, 1), [4, 4]);
  });

  t.test('engine hashes', async t => {
    const index = make();
    const { writer } = index;
    const hashes = chain(1, 4);
    const names = engineNames(hashes);
    const found = new Uint32Array(8);
    writer.addHolder(1);
    writer.addHolder(2);
    writer.store(1, null, hashes, 4, TIER.device, names);
    t.equal(writer.translate(1, names, 4, found), 4);
    t.same(found, hashes);
    t.equal(writer.translate(2, names, 4, found), 0, 'each holder has its own');
    t.equal(writer.removeEngine(1, names.subarray(12), 1, TIER.device), 1);
    t.equal(writer.translate(1, names, 4, found), 3);
    t.same(depthsOf(index, hashes, 1), [3, 3]);
    t.equal(writer.stats().engineHashes, 3);
    writer.clear(1);
    t.equal(writer.translate(1, names, 4, found), 0);
  });

  t.test('predictions count until they are confirmed or due', async t => {
    const index = make();
    const { writer } = index;
    const hashes = chain(1, 6);
    writer.addHolder(1);
    writer.store(1, null, hashes, 2, TIER.device, null);
    t.equal(writer.predict(1, hashes, 2, 6, 1000), 4);
    t.same(depthsOf(index, hashes, 1), [6, 6]);
    writer.store(1, at(hashes, 1), hashes.subarray(4), 2, TIER.device, null);
    writer.expire(999);
    t.same(depthsOf(index, hashes, 1), [6, 6]);
    writer.expire(1000);
    t.same(depthsOf(index, hashes, 1), [4, 4]);
    t.equal(writer.predict(1, hashes, 0, 6, 2000), 6);
    t.equal(writer.predict(1, hashes, 0, 6, 3000), 6);
    writer.expire(2000);
    t.same(depthsOf(index, hashes, 1), [6, 6], 'the later one holds');
    writer.expire(3000);
    t.equal(writer.stats().predictions, 0);
    t.equal(writer.predict(1, chain(2, 100), 0, 100, 4000), 64, 'no more than there is room for');
  });

  t.test('at the cap the oldest unshared chains go, from their ends', async t => {
    const index = make();
    const { writer } = index;
    const { blocksMax } = writer.stats();
    writer.addHolder(1);
    writer.addHolder(2);
    for (const holder of [1, 2]) writer.store(holder, null, chain(1, 10), 10, TIER.device, null);
    const chains = Math.ceil(blocksMax / 10) + 20;
    for (let name = 2; name < chains; name += 1) {
      t.equal(writer.store(1, null, chain(name, 10), 10, TIER.device, null) === 10, true);
    }
    const { blocks, evicted, refused } = writer.stats();
    t.equal(refused, 0);
    t.ok(blocks <= blocksMax && evicted >= 100, `${blocks} of ${blocksMax} blocks, ${evicted} evicted`);
    t.same(depthsOf(index, chain(chains - 1, 10), 1), [10, 10], 'the youngest is whole');
    t.same(depthsOf(index, chain(2, 10), 1), [0, 0], 'the oldest is gone');
    t.ok(depthsOf(index, chain(1, 10), 2)[0]! > 0, 'a shared prefix stays, though it is older');
  });
}
