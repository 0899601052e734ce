// Promise: block and sequence hashes are XXH3-64 as published, chained as documented, and the native hasher and its
// hash-wasm twin give the same words for every prompt and seed.
import { xxhash3 } from 'hash-wasm';
import t from 'tap';
import { type BlockHasher, createHasher } from '#millrace/router/hashing/block-hasher.js';
import { DEFAULT_SEEDS, type Hash64, identitySeeds } from '#millrace/router/hashing/seeds.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const addon = loadAddon();
const ZERO: Hash64 = { low: 0, high: 0 };
const kinds = addon === null ? [null] : [null, addon];

const toBigInt = (words: Uint32Array, index: number): bigint =>
  (BigInt(words[index * 2 + 1]!) << 32n) | BigInt(words[index * 2]!);
const toHash64 = (value: bigint): Hash64 => ({
  low: Number(value & 0xffff_ffffn),
  high: Number(value >> 32n),
});

function hashAll(
  hasher: BlockHasher,
  ids: Uint32Array,
  blockSize: number,
): { block: bigint[]; sequence: bigint[] } {
  const blocks = Math.floor(ids.length / blockSize);
  const block = new Uint32Array(blocks * 2);
  const sequence = new Uint32Array(blocks * 2);
  t.equal(hasher.hash(ids, blockSize, block, sequence), blocks);
  const values = (words: Uint32Array): bigint[] =>
    Array.from({ length: blocks }, (_, i) => toBigInt(words, i));
  return { block: values(block), sequence: values(sequence) };
}

/** The input bytes of xxHash's own self-test (cli/xsum_sanity_check.c), as token ids. */
function sanityIds(count: number): Uint32Array {
  const bytes = new Uint8Array(count * 4);
  let state = 2654435761n;
  for (let i = 0; i < bytes.length; i++) {
    bytes[i] = Number(state >> 56n);
    state = BigInt.asUintN(64, state * 11400714785074694797n);
  }
  return new Uint32Array(bytes.buffer);
}

// Lengths in bytes with the results for seed 0 and for the self-test's seed 0x9e3779b185ebca8d, from the same file.
const PUBLISHED: readonly [number, bigint, bigint][] = [
  [12, 0xa713daf0dfbb77e7n, 0xe7303e1b2336de0en],
  [24, 0xa3fe70bf9d3510ebn, 0x850e80fc35bdd690n],
  [48, 0x397da259ecba1f11n, 0xadc2cbaa44acc616n],
  [80, 0xbcdefbbb2c47c90an, 0xc6dd0cb699532e73n],
  [512, 0x617e49599013cb6bn, 0x3ce457de14c27708n],
  [2048, 0xdd59e2c3a5f038e0n, 0x66f81670669ababcn],
  [2240, 0x6e73a90539cf2948n, 0x757ba8487d1b5247n],
];

for (const kind of kinds) {
  const name = kind === null ? 'wasm' : 'native';

  t.test(`${name}: block hashes are the published XXH3-64 values`, async t => {
    for (const [bytes, unseeded, seeded] of PUBLISHED) {
      const ids = sanityIds(bytes / 4);
      for (const [seedValue, wanted] of [
        [0n, unseeded],
        [0x9e3779b185ebca8dn, seeded],
      ] as const) {
        const hasher = await createHasher(kind, { block: toHash64(seedValue), chain: ZERO });
        t.equal(hashAll(hasher, ids, ids.length).block[0], wanted, `${bytes} bytes, seed ${seedValue}`);
      }
    }
  });

  t.test(`${name}: sequence hashes chain as documented`, async t => {
    const chain = { low: 42, high: 7 };
    const hasher = await createHasher(kind, { block: DEFAULT_SEEDS.block, chain });
    const { block, sequence } = hashAll(hasher, sanityIds(50), 16);
    t.equal(sequence[0], block[0]);
    for (let i = 1; i < block.length; i++) {
      const link = new BigUint64Array([sequence[i - 1]!, block[i]!]);
      t.equal(sequence[i], BigInt(`0x${await xxhash3(new Uint8Array(link.buffer), chain.low, chain.high)}`));
    }
  });

  t.test(`${name}: only complete blocks are hashed, the rest of the outputs is left alone`, async t => {
    const hasher = await createHasher(kind, DEFAULT_SEEDS);
    const block = new Uint32Array(8).fill(9);
    const sequence = new Uint32Array(8).fill(9);
    t.equal(hasher.hash(sanityIds(11), 4, block, sequence), 2);
    t.same(
      [Array.from(block.subarray(4)), Array.from(sequence.subarray(4))],
      [
        [9, 9, 9, 9],
        [9, 9, 9, 9],
      ],
    );
    t.equal(hasher.hash(sanityIds(3), 4, new Uint32Array(0), new Uint32Array(0)), 0);
  });

  t.test(`${name}: refuses a wrong block size and small outputs by name`, async t => {
    const hasher = await createHasher(kind, DEFAULT_SEEDS);
    const ids = sanityIds(8);
    const enough = new Uint32Array(4);
    for (const blockSize of [0, -1, 1.5, 2 ** 32, Number.NaN]) {
      t.throws(() => hasher.hash(ids, blockSize, enough, enough), {
        name: 'RangeError',
        message: /blockSize/,
      });
    }
    const small = new Uint32Array(3);
    t.throws(() => hasher.hash(ids, 4, small, enough), { name: 'RangeError', message: /blockHashesOut/ });
    t.throws(() => hasher.hash(ids, 4, enough, small), { name: 'RangeError', message: /sequenceHashesOut/ });
  });
}

t.test('native and wasm agree', addon === null ? { skip: 'the addon is not built here' } : {}, async t => {
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  const word = (): number => Math.floor(random() * 2 ** 32);
  for (let i = 0; i < 100; i++) {
    const seeds = { block: { low: word(), high: word() }, chain: { low: word(), high: word() } };
    const native = await createHasher(addon, seeds);
    const wasm = await createHasher(null, seeds);
    const blockSize = 1 + randomInteger(random, random() < 0.2 ? 600 : 70);
    // A view in the middle of a buffer: the hash must start at its first id.
    const ids = Uint32Array.from({ length: 3 + randomInteger(random, 1500) }, word).subarray(3);
    const [a, b] = [hashAll(native, ids, blockSize), hashAll(wasm, ids, blockSize)];
    if (a.block.join() !== b.block.join() || a.sequence.join() !== b.sequence.join()) {
      return t.fail(`case ${i}`, { blockSize, length: ids.length });
    }
  }
  t.pass('100 prompts');
});

t.test('adapter and salt move the block seed by their hashes, modulo 2^64', async t => {
  const hash = async (text: string, seedLow: number): Promise<bigint> =>
    BigInt(`0x${await xxhash3(text, seedLow, 0)}`);
  const adapter = await hash('sql-lora', 0);
  const salt = await hash('tenant-7', 1);
  const base = { block: { low: 0xffff_fff0, high: 0xffff_ffff }, chain: { low: 5, high: 0 } };
  const start = 0xffff_ffff_ffff_fff0n;
  const expected = (...parts: bigint[]): Hash64 =>
    toHash64(
      BigInt.asUintN(
        64,
        parts.reduce((a, b) => a + b, start),
      ),
    );
  t.same(await identitySeeds(base, '', ''), base);
  t.same((await identitySeeds(base, 'sql-lora', '')).block, expected(adapter));
  t.same((await identitySeeds(base, '', 'tenant-7')).block, expected(salt));
  t.same(await identitySeeds(base, 'sql-lora', 'tenant-7'), {
    block: expected(adapter, salt),
    chain: base.chain,
  });
  t.equal(await hash('', 0), 0x2d06800538d394c2n, 'the published hash of nothing');
});
