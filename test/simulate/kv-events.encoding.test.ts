// Promise: batches of KV events are vLLM's and SGLang's to the byte, in every form, and tell exactly what the pool holds.

import { Unpackr } from 'msgpackr';
import t from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { EngineCore } from '#millrace/simulate/engine-core.js';
import { resolveEngineSettings } from '#millrace/simulate/engine-settings.js';
import type { EngineSequence } from '#millrace/simulate/sequence.js';
import { digestPrompt } from '#millrace/simulate/token-source.js';
import { KvEventEncoder, type KvEventFormat } from '#millrace/simulate/vllm/kv-event-encoder.js';

const SEED = Number(process.env.SEED ?? 20_260_301);
t.comment(`SEED=${SEED}`);

const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: 'bigint' });
const FIRST = 3;
const SECOND = 2 ** 40 + 8;
/** Hashes of the two keys under the seed below, the way integers show them, and the front of their digests. */
const H1 = 'e77c5d039be4bda9';
const H2 = '7daa737784d2069a';
const DIGEST1 = `6ec149cbd99f45dc030f62c417aadcceb1dbbdac92595a29${H1}`;
const DIGEST2 = `81f0047539b013ecd95465c5c3804cf595433219644bd0e4${H2}`;

const encoderOf = (format: Partial<KvEventFormat>): KvEventEncoder =>
  new KvEventEncoder({
    form: 'array',
    hashes: 'int',
    blockSize: 2,
    hashSeed: [0x01234567, 0x89abcdef],
    ...format,
  });

const text = (value: string): string =>
  (0xa0 + value.length).toString(16) + Buffer.from(value, 'latin1').toString('hex');
/** Ids 1, 200, 300 and 70000, in the four widths that they need. */
const IDS = ['01ccc8', 'cd012cce00011170'] as const;
/** An array of three: 1600 seconds, and so many events. */
const HEAD = '93cb4099000000000000';

/** One batch: a store of two blocks, the removal of the first, and a reset. */
function batchOf(encoder: KvEventEncoder): string {
  const ids = [1, 200, 300, 70_000];
  encoder.stored({ keys: [FIRST, SECOND], cacheSalt: 'ab', tokenAt: at => ids[at]! }, 0, 2);
  encoder.removed(FIRST);
  encoder.cleared();
  return encoder.takeBatch(1_600_000)!.toString('hex');
}

t.test('the array form, with hashes of each kind', async t => {
  const expected = (first: string, second: string): string =>
    [
      `${HEAD}93`,
      `99${text('BlockStored')}92${first}${second}c094${IDS.join('')}02c0${text('GPU')}c09291${text('ab')}c0`,
      `93${text('BlockRemoved')}91${first}${text('GPU')}`,
      `91${text('AllBlocksCleared')}`,
      '00',
    ].join('');
  t.equal(batchOf(encoderOf({})), expected(`cf${H1}`, `cf${H2}`));
  t.equal(batchOf(encoderOf({ hashes: 'signed' })), expected(`d3${H1}`, `cf${H2}`), 'only one is negative');
  t.equal(batchOf(encoderOf({ hashes: 'bytes' })), expected(`c420${DIGEST1}`, `c420${DIGEST2}`));
});

t.test('the map form names its fields and the cache group', async t => {
  const stored = [
    `8b${text('type')}${text('BlockStored')}`,
    `${text('block_hashes')}92cf${H1}cf${H2}`,
    `${text('parent_block_hash')}c0`,
    `${text('token_ids')}94${IDS.join('')}`,
    `${text('block_size')}02`,
    `${text('lora_id')}c0`,
    `${text('medium')}${text('GPU')}`,
    `${text('lora_name')}c0`,
    `${text('extra_keys')}9291${text('ab')}c0`,
    `${text('group_idx')}00`,
    `${text('kv_cache_spec_kind')}${text('full_attention')}`,
  ].join('');
  const removed = [
    `84${text('type')}${text('BlockRemoved')}`,
    `${text('block_hashes')}91cf${H1}${text('medium')}${text('GPU')}${text('group_idx')}00`,
  ].join('');
  const cleared = `81${text('type')}${text('AllBlocksCleared')}`;
  t.equal(batchOf(encoderOf({ form: 'map' })), `${HEAD}93${stored}${removed}${cleared}00`);
});

t.test("SGLang's form stores each page by itself, chained to the one before", async t => {
  const stored = (hash: string, parent: string, ids: string): string =>
    `97${text('BlockStored')}91${hash}${parent}92${ids}02c0${text('GPU')}`;
  t.equal(
    batchOf(encoderOf({ form: 'sglang', hashes: 'signed' })),
    [
      `${HEAD}94`,
      stored(`d3${H1}`, 'c0', IDS[0]),
      stored(`cf${H2}`, `d3${H1}`, IDS[1]),
      `93${text('BlockRemoved')}91d3${H1}${text('GPU')}`,
      `91${text('AllBlocksCleared')}`,
      '00',
    ].join(''),
  );
});

t.test('long lists and texts, and a batch without events', async t => {
  const encoder = encoderOf({ blockSize: 1024 });
  t.equal(encoder.takeBatch(0), null);
  const keys = Array.from({ length: 100 }, (_, at) => at);
  for (const length of [31, 32, 255, 256, 70_000]) {
    const cacheSalt = `é${'s'.repeat(length - 2)}`;
    encoder.stored({ keys, cacheSalt, tokenAt: at => at * 40_000 }, 0, keys.length);
    const [ts, events, rank] = unpackr.unpack(encoder.takeBatch(1500)!);
    const [[tag, hashes, parent, ids, blockSize, , , , extraKeys]] = events;
    t.same([ts, rank, tag, parent, blockSize], [1.5, 0, 'BlockStored', null, 1024]);
    t.equal(new Set(hashes).size, 100);
    // Too long a list for the comparison of `same`.
    t.equal(ids.join(), Array.from({ length: 102_400 }, (_, at) => at * 40_000).join());
    t.same(extraKeys, [[cacheSalt], ...Array(99).fill(null)]);
  }
  t.equal(encoder.takeBatch(0), null, 'a batch is taken once');
});

/** The resident prefixes as a reader of the events knows them, by the engine's hash. */
class NaiveReader {
  readonly resident = new Set<bigint>();
  readonly wrong: string[] = [];
  /** Batches in which something was removed before something was stored. */
  evictingBatches = 0;
  readonly #prefixes = new Map<bigint, { ids: number[]; salt: string }>();

  apply(payload: Buffer): void {
    const [, events] = unpackr.unpack(payload);
    const kinds = events.map((event: unknown[]) => event[0]);
    if (kinds.lastIndexOf('BlockStored') > kinds.indexOf('BlockRemoved') && kinds.includes('BlockRemoved'))
      this.evictingBatches++;
    for (const [tag, hashes, parent, ids, blockSize, , , , extraKeys] of events) {
      if (tag === 'BlockStored') this.#store(hashes, parent, ids, blockSize, extraKeys);
      else if (tag === 'AllBlocksCleared') this.resident.clear();
      else for (const hash of hashes) if (!this.resident.delete(hash)) this.wrong.push('removed twice');
    }
  }

  /** The pool's key of each resident prefix, from nothing but its tokens and salt. */
  keys(blockSize: number): number[] {
    return [...this.resident].map(hash => {
      const { ids, salt } = this.#prefixes.get(hash)!;
      return digestPrompt(ids, blockSize, salt).keys.at(-1)!;
    });
  }

  #store(
    hashes: bigint[],
    parent: bigint | null,
    ids: number[],
    blockSize: number,
    extraKeys: unknown[],
  ): void {
    const before = parent === null ? { ids: [], salt: '' } : this.#prefixes.get(parent);
    if (before === undefined) {
      this.wrong.push('the parent was never stored');
      return;
    }
    const salt = parent === null ? ((extraKeys[0] as string[] | null)?.[0] ?? '') : before.salt;
    hashes.forEach((hash, at) => {
      if (this.resident.has(hash)) this.wrong.push('stored twice');
      this.resident.add(hash);
      this.#prefixes.set(hash, { ids: [...before.ids, ...ids.slice(0, (at + 1) * blockSize)], salt });
    });
  }
}

t.test('whoever applies all events knows what the pool holds after every pass', async t => {
  const random = seededRandom(SEED);
  const blockSize = 4;
  const settings = resolveEngineSettings({
    numGpuBlocks: 40,
    blockSize,
    maxNumBatchedTokens: 32,
    maxModelLen: 100,
  });
  const encoder = encoderOf({ blockSize });
  const core = new EngineCore<null>(settings, { ids: Uint32Array.of(1, 2, 3), eosId: 9 }, encoder);
  const reader = new NaiveReader();
  const live: EngineSequence<null>[] = [];
  let resets = 0;
  let refusedResets = 0;
  for (let pass = 0; pass < 2500 && reader.wrong.length === 0; pass++) {
    if (core.waiting < 3 && random() < 0.6) {
      const family = randomInteger(random, 6);
      const ids = Array.from({ length: 1 + randomInteger(random, 40) }, (_, at) => family * 100 + at);
      const prompt = digestPrompt(ids, blockSize, ['', '', 'one', 'two'][randomInteger(random, 4)]);
      const maxTokens = 1 + randomInteger(random, 30);
      const limits = { maxTokens, minTokens: 0, ignoreEos: true, stopTokenIds: [] };
      live.push(core.add({ ...limits, prompt, choice: randomInteger(random, 2), owner: null }, pass));
    }
    if (random() < 0.03 && live.length > 0)
      core.abort(live.splice(randomInteger(random, live.length), 1)[0]!);
    const isIdle = random() < 0.02;
    while (isIdle && core.running + core.waiting > 0) core.executePass(pass);
    if (isIdle || random() < 0.05) {
      if (core.pool.reset()) resets++;
      else refusedResets++;
    }
    core.executePass(pass);
    const batch = encoder.takeBatch(pass);
    if (batch !== null) reader.apply(batch);
    const held = [...core.pool.snapshot().copies.keys()].sort().join();
    if (reader.keys(blockSize).sort().join() !== held) reader.wrong.push(`pass ${pass}: other blocks`);
  }
  t.same(reader.wrong, []);
  t.ok(reader.evictingBatches > 50, `${reader.evictingBatches} batches remove before they store`);
  t.ok(core.totals.preemptions > 20, `${core.totals.preemptions} preemptions`);
  t.ok(resets > 10 && refusedResets > 10, `${resets} resets, ${refusedResets} refused`);
});
