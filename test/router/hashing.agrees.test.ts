// Promise: block and sequence hashes are XXH3-64 as published and as Dynamo computes them, chained as documented from any
// block on, and the native hasher and its hash-wasm twin give the same words for every prompt, seed and media.
import { readFileSync } from 'node:fs';
import { xxhash3 } from 'hash-wasm';
import t from 'tap';
import { type BlockHasher, createHashers } from '#millrace/router/hashing/block-hasher.js';
import { DEFAULT_SEEDS, type Hash64, identitySeeds } from '#millrace/router/hashing/seeds.js';
import { Xxh3 } from '#millrace/router/hashing/xxh3.js';
import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';

const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const addon = loadAddon();
const ZERO: Hash64 = { low: 0, high: 0 };
const kinds = addon === null ? [null] : [null, addon];

const toBigInts = (words: Uint32Array): bigint[] =>
  Array.from(
    { length: words.length / 2 },
    (_, i) => (BigInt(words[i * 2 + 1]!) << 32n) | BigInt(words[i * 2]!),
  );
const toHash64 = (value: bigint): Hash64 => ({
  low: Number(value & 0xffff_ffffn),
  high: Number(value >> 32n),
});

function hashAll(
  hasher: BlockHasher,
  ids: Uint32Array,
  blockSize: number,
  media: Uint32Array | null = null,
): bigint[] {
  const out = new Uint32Array(Math.floor(ids.length / blockSize) * 2);
  t.equal(hasher.hash(ids, blockSize, media, out), out.length / 2);
  return toBigInts(out);
}

/** The hash of one block by itself. */
function blockHash(
  hasher: BlockHasher,
  ids: Uint32Array,
  from: number,
  size: number,
  media: Uint32Array | null,
): bigint {
  const out = new Uint32Array(2);
  hasher.hashAfter(null, ids, from, 1, size, media, out);
  return toBigInts(out)[0]!;
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

/** A prompt that Dynamo's own library has hashed, see the file's `source`; 64-bit values as decimal text. */
interface DynamoCase {
  firstId: number;
  step: number;
  ids: number;
  blockSize: number;
  adapter: string;
  salt: string;
  /** Media hashes by block. */
  media: string[][];
  blockHashes: string[];
  sequenceHashes: string[];
}
const { cases: dynamoCases } = JSON.parse(readFileSync('test/router/dynamo-block-hashes.json', 'utf8')) as {
  cases: DynamoCase[];
};

const entriesOf = (media: string[][]): Uint32Array =>
  Uint32Array.from(
    media.flatMap((hashes, block) =>
      hashes.flatMap(hash => {
        const { low, high } = toHash64(BigInt(hash));
        return [block, low, high];
      }),
    ),
  );

for (const kind of kinds) {
  const name = kind === null ? 'wasm' : 'native';
  const hasherOf = async (block: Hash64, chain: Hash64): Promise<BlockHasher> =>
    (await createHashers(kind, { block, chain })).of('', '');

  t.test(`${name}: block hashes are the published XXH3-64 values`, async t => {
    for (const [bytes, unseeded, seeded] of PUBLISHED) {
      const ids = sanityIds(bytes / 4);
      for (const [seedValue, wanted] of [
        [0n, unseeded],
        [0x9e3779b185ebca8dn, seeded],
      ] as const) {
        const hasher = await hasherOf(toHash64(seedValue), ZERO);
        t.equal(hashAll(hasher, ids, ids.length)[0], wanted, `${bytes} bytes, seed ${seedValue}`);
      }
    }
  });

  t.test(`${name}: adapter, salt, media and chain are as Dynamo's`, async t => {
    const hashers = await createHashers(kind);
    t.ok(dynamoCases.length > 20);
    for (const wanted of dynamoCases) {
      const { firstId, step, blockSize, adapter, salt } = wanted;
      const ids = Uint32Array.from({ length: wanted.ids }, (_, i) => (firstId + i * step) % 2 ** 32);
      const hasher = hashers.of(adapter, salt);
      const label = `${wanted.ids} ids, ${blockSize} a block, '${adapter}' '${salt}', ${wanted.media.length} with media`;
      const blocks = wanted.blockHashes.map((_, i) =>
        String(blockHash(hasher, ids, i * blockSize, blockSize, entriesOf([wanted.media[i] ?? []]))),
      );
      t.same(blocks, wanted.blockHashes, label);
      t.same(
        hashAll(hasher, ids, blockSize, entriesOf(wanted.media)).map(String),
        wanted.sequenceHashes,
        label,
      );
    }
  });

  t.test(`${name}: sequence hashes chain as documented, from any block on`, async t => {
    const chain = { low: 42, high: 7 };
    const hasher = await hasherOf(DEFAULT_SEEDS.block, chain);
    const ids = sanityIds(50);
    const sequence = hashAll(hasher, ids, 16);
    t.equal(sequence[0], blockHash(hasher, ids, 0, 16, null));
    for (let i = 1; i < sequence.length; i++) {
      const link = new BigUint64Array([sequence[i - 1]!, blockHash(hasher, ids, i * 16, 16, null)]);
      t.equal(sequence[i], BigInt(`0x${await xxhash3(new Uint8Array(link.buffer), chain.low, chain.high)}`));
      const rest = new Uint32Array((3 - i) * 2);
      hasher.hashAfter(toHash64(sequence[i - 1]!), ids, i * 16, 3 - i, 16, null, rest);
      t.same(toBigInts(rest), sequence.slice(i), `after block ${i - 1}`);
    }
  });

  t.test(`${name}: only complete blocks are hashed, the rest of the output is left alone`, async t => {
    const hasher = await hasherOf(ZERO, ZERO);
    const out = new Uint32Array(8).fill(9);
    t.equal(hasher.hash(sanityIds(11), 4, null, out), 2);
    t.same(Array.from(out.subarray(4)), [9, 9, 9, 9]);
    t.equal(hasher.hash(sanityIds(3), 4, null, new Uint32Array(0)), 0);
  });

  t.test(`${name}: refuses what is out of range by name`, async t => {
    const hasher = await hasherOf(ZERO, ZERO);
    const ids = sanityIds(8);
    const out = new Uint32Array(4);
    for (const blockSize of [0, -1, 1.5, 2 ** 32, Number.NaN]) {
      t.throws(() => hasher.hash(ids, blockSize, null, out), { name: 'RangeError', message: /^blockSize/ });
    }
    const refused = (field: string, call: () => void): unknown =>
      t.throws(call, { name: 'RangeError', message: new RegExp(`^${field} `) }, field);
    refused('sequenceHashesOut', () => hasher.hash(ids, 4, null, new Uint32Array(3)));
    refused('from', () => hasher.hashAfter(null, ids, 9, 0, 4, null, out));
    refused('from', () => hasher.hashAfter(null, ids, -1, 1, 4, null, out));
    refused('blocks', () => hasher.hashAfter(null, ids, 5, 1, 4, null, out));
    refused('blocks', () => hasher.hashAfter(null, ids, 0, 1.5, 4, null, out));
    refused('media', () => hasher.hash(ids, 4, Uint32Array.of(0, 1), out));
    refused('media', () => hasher.hash(ids, 4, Uint32Array.of(1, 5, 5, 0, 5, 5), out));
  });
}

function randomMedia(random: Random, blocks: number): Uint32Array {
  const word = (): number => randomInteger(random, 2 ** 32);
  const entries = Array.from({ length: randomInteger(random, 5) }, () => randomInteger(random, blocks + 2));
  return Uint32Array.from(entries.sort((a, b) => a - b).flatMap(block => [block, word(), word()]));
}

t.test(
  'native and wasm agree',
  addon === null ? { skip: `no addon: ${addonStatus().reason}` } : {},
  async t => {
    t.comment(`SEED=${seed}`);
    const random = seededRandom(seed);
    const word = (): number => randomInteger(random, 2 ** 32);
    for (let i = 0; i < 100; i++) {
      const seeds = { block: { low: word(), high: word() }, chain: { low: word(), high: word() } };
      const identity = ['', 'a', 'lora-é'][randomInteger(random, 3)]!;
      const native = (await createHashers(addon, seeds)).of(identity, 'salt');
      const wasm = (await createHashers(null, seeds)).of(identity, 'salt');
      const blockSize = 1 + randomInteger(random, random() < 0.2 ? 600 : 70);
      // A view in the middle of a buffer: the hash must start at its first id.
      const ids = Uint32Array.from({ length: 3 + randomInteger(random, 1500) }, word).subarray(3);
      const from = randomInteger(random, ids.length + 1);
      const blocks = Math.floor((ids.length - from) / blockSize);
      const media = random() < 0.3 ? null : randomMedia(random, blocks);
      const parent = random() < 0.5 ? null : { low: word(), high: word() };
      const [a, b] = [new Uint32Array(blocks * 2), new Uint32Array(blocks * 2)];
      native.hashAfter(parent, ids, from, blocks, blockSize, media, a);
      wasm.hashAfter(parent, ids, from, blocks, blockSize, media, b);
      if (a.join() !== b.join()) return t.fail(`case ${i}`, { blockSize, from, length: ids.length });
    }
    t.pass('100 prompts');
  },
);

t.test('adapter and salt move the block seed by their hashes, modulo 2^64', async t => {
  const xxh3 = await Xxh3.create([]);
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
  t.same(identitySeeds(xxh3, base, '', ''), base);
  t.same(identitySeeds(xxh3, base, 'sql-lora', '').block, expected(adapter));
  t.same(identitySeeds(xxh3, base, '', 'tenant-7').block, expected(salt));
  t.same(identitySeeds(xxh3, base, 'sql-lora', 'tenant-7'), {
    block: expected(adapter, salt),
    chain: base.chain,
  });
});

t.test('hashers are kept by adapter and salt, the ones used last', async t => {
  const hashers = await createHashers(null);
  const [first, second] = [hashers.of('ab', 'c'), hashers.of('a', 'bc')];
  t.not(first, second, 'where the adapter ends counts');
  for (let i = 0; i < 1023; i++) {
    hashers.of('', `salt ${i}`);
    t.equal(hashers.of('ab', 'c'), first);
  }
  t.not(hashers.of('a', 'bc'), second, 'the one not used for longest is made anew');
});
