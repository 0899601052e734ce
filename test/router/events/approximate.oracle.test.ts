// Promise: a worker without KV events is taken to hold exactly the prompts that were routed to it: the blocks used last
// that fit in its memory, or those used within the time to live; never a block without its ancestors.
import t from 'tap';
import { ApproximateResidency } from '#millrace/router/events/approximate.js';
import type { PrefixIndexReader, PrefixIndexWriter } from '#millrace/router/index/contract.js';
import { createSimpleIndex } from '#millrace/router/index/simple-index.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`seed ${SEED}`);
const TTL_MS = 500;
/** Blocks of each holder's memory; null: not known. The last holder is never added. */
const TOTALS = [1, 7, 60, 2000, null] as const;
const UNKNOWN = TOTALS.length;

/** Blocks of a prompt by name, first block first; a name stands for its whole prefix. */
function drawPrompt(random: () => number): number[] {
  const family = randomInteger(random, 4);
  const turn = randomInteger(random, 12);
  const split = randomInteger(random, 30);
  return Array.from({ length: randomInteger(random, 80) }, (_, at) =>
    at < split ? family * 1000 + at : 10_000 + ((family * 16 + turn) * 40 + split) * 100 + at,
  );
}
const hashesOf = (names: readonly number[]): Uint32Array =>
  Uint32Array.from(names.flatMap(name => [Math.imul(name, 0x9e3779b1) >>> 0, name]));

/** What each holder has, newest first, with the time of use: by the plainest means. */
class Model {
  readonly #held = TOTALS.map((): { name: number; usedMs: number }[] => []);

  route(holder: number, names: readonly number[], nowMs: number): void {
    const used = new Set(names);
    const others = this.#held[holder]!.filter(({ name }) => !used.has(name));
    const all = [...names.map(name => ({ name, usedMs: nowMs })), ...others];
    this.#held[holder] = all.slice(0, TOTALS[holder] ?? all.length);
  }

  tend(nowMs: number): void {
    for (const [holder, total] of TOTALS.entries())
      if (total === null)
        this.#held[holder] = this.#held[holder]!.filter(({ usedMs }) => usedMs > nowMs - TTL_MS);
  }

  empty(holder: number): void {
    this.#held[holder] = [];
  }

  depth(holder: number, names: readonly number[]): number {
    const held = new Set(this.#held[holder]!.map(({ name }) => name));
    const missing = names.findIndex(name => !held.has(name));
    return missing < 0 ? names.length : missing;
  }
}

const HOLDERS = Uint32Array.from({ length: TOTALS.length + 1 }, (_, holder) => holder);
function depthsOf(index: PrefixIndexReader, hashes: Uint32Array): Uint32Array {
  const depths = new Uint32Array(2 * HOLDERS.length);
  index.lookup(hashes, hashes.length / 2, HOLDERS, HOLDERS.length, depths);
  return depths.subarray(HOLDERS.length);
}
const makeAll = (index: PrefixIndexWriter) => {
  const approximate = new ApproximateResidency({ writer: index, random: seededRandom(SEED), ttlMs: TTL_MS });
  for (const [holder, total] of TOTALS.entries()) approximate.add(holder, total);
  return approximate;
};

t.test('random traffic against the model', async t => {
  const random = seededRandom(SEED);
  const index = createSimpleIndex({ blocksMax: 1_000_000, predictionsMax: 1 });
  const approximate = makeAll(index);
  const model = new Model();
  const wrong: string[] = [];
  let found = 0;
  let nowMs = 0;
  for (let step = 0; step < 6000; step += 1) {
    nowMs += randomInteger(random, 20);
    const slot = randomInteger(random, HOLDERS.length);
    const names = drawPrompt(random);
    const hashes = hashesOf(names);
    const kind = random();
    approximate.tend(nowMs);
    model.tend(nowMs);
    if (kind < 0.002 && slot < UNKNOWN) {
      if (kind < 0.001) approximate.remove(slot);
      approximate.add(slot, TOTALS[slot]!);
      model.empty(slot);
    } else if (kind < 0.7) {
      const cachedBlocks = randomInteger(random, names.length + 1);
      const prompt = { slot, generation: 1, hashes, blocks: names.length, cachedBlocks, expiresMs: nowMs };
      approximate.route(prompt, nowMs);
      if (slot < UNKNOWN) model.route(slot, names, nowMs);
    }
    const asked = kind < 0.9 ? names : drawPrompt(random);
    for (const [holder, depth] of depthsOf(index, hashesOf(asked)).entries()) {
      const naive = holder === UNKNOWN ? 0 : model.depth(holder, asked);
      if (naive > 0 && naive < asked.length) found += 1;
      if (depth !== naive) wrong.push(`step ${step} holder ${holder}: ${depth}, model ${naive}`);
    }
  }
  t.same(wrong.slice(0, 5), []);
  t.ok(found > 100, `${found} prompts were held in part`);
  const { blocks, orphans, unknownRemovals, parentConflicts } = index.stats();
  t.match(
    { orphans, unknownRemovals, parentConflicts },
    { orphans: 0, unknownRemovals: 0, parentConflicts: 0 },
  );
  t.ok(blocks > 100, `${blocks} blocks`);
  for (const [holder] of TOTALS.entries()) approximate.remove(holder);
  while (index.sweep(1000));
  t.equal(index.stats().blocks, 0);
});

t.test('blocks that the index dropped at its cap come back with the next prompt', async t => {
  const random = seededRandom(SEED);
  const index = createSimpleIndex({ blocksMax: 300, predictionsMax: 1 });
  const approximate = makeAll(index);
  let lost = 0;
  for (let step = 0; step < 3000; step += 1) {
    const names = drawPrompt(random);
    const hashes = hashesOf(names);
    const slot = 3;
    const cachedBlocks = depthsOf(index, hashes)[slot]!;
    const prompt = { slot, generation: 1, hashes, blocks: names.length, cachedBlocks, expiresMs: 0 };
    approximate.route(prompt, 0);
    if (depthsOf(index, hashes)[slot] !== names.length) t.fail(`step ${step}`);
    if (index.stats().evicted > 0) lost += 1;
  }
  t.ok(lost > 1000 && index.stats().blocks <= 300, `${index.stats().blocks} blocks`);
});

t.test('a time to live that is not positive is a mistake', async t => {
  const writer = createSimpleIndex({ blocksMax: 2, predictionsMax: 0 });
  t.throws(() => new ApproximateResidency({ writer, random: Math.random, ttlMs: 0 }), /ttlMs is positive/);
  const approximate = new ApproximateResidency({ writer, random: () => 0 });
  t.throws(() => approximate.add(0, 0), /totalBlocks is positive/);
});
