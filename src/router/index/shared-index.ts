/**
 * The prefix index in shared memory (R4), over the addon: one writer on the ingest thread, a reader on every pool thread,
 * all over one segment that is reserved whole when it is made. A segment is one shard: at most 1 GiB, with its own writer;
 * models have nothing in common, so each has its own. Layout: index-descriptor.ts; rules of access:
 * native/core/prefix_index.h.
 */
import { strict as assert } from 'node:assert';
import type { Addon } from '../../runtime/addon.js';
import { type Random, randomInteger } from '../../runtime/random.js';
import { allocateShared, SEGMENT_BYTES_MAX } from '../../runtime/shared-memory.js';
import type { Hash64 } from '../hashing/seeds.js';
import {
  HOLDERS_MAX,
  type IndexStats,
  type PrefixIndexReader,
  type PrefixIndexWriter,
  type Tier,
} from './contract.js';
import {
  INDEX_ALIGN_WORDS,
  INDEX_BLOCK_WORDS,
  INDEX_CHUNK_WORDS,
  INDEX_HEADER,
  INDEX_HEADER_WORDS,
  INDEX_MAGIC,
  INDEX_NAME_WORDS,
  INDEX_PREDICTION_WORDS,
  INDEX_SLOT_ARRAYS,
  INDEX_SLOTS,
  INDEX_STATS,
  INDEX_STRIPES,
} from './index-descriptor.js';

/** Smallest segment of an index: the fixed parts and some thousand blocks. */
export const INDEX_BYTES_MIN = 1024 ** 2;

/** How a segment is divided. */
export interface IndexMemoryOptions {
  /** Everything of the index: table, holders, engine hashes, predictions. INDEX_BYTES_MIN to SEGMENT_BYTES_MAX. */
  readonly bytes: number;
  /** Most predictions at one time: 1 to 2^20. */
  readonly predictionsMax: number;
  /** Seeds the hash table, so that nobody outside can choose blocks that meet in one bucket. */
  readonly random: Random;
}

/** Blocks for which there is one chunk: so many blocks may be shared by holders of one group of 16. */
const BLOCKS_PER_CHUNK = 5;
/** Part of the places for engine hashes that is used: more makes long runs. Also in native/core/prefix_index.h. */
const NAMES_LOAD = 0.85;
/**
 * Engine hashes per block. Blocks go as soon as what is held passes 15/16 of the room for engine hashes, so that every
 * store at the cap soon finds the dead hash of an evicted block. 16/15 lets the table fill when no block is shared.
 */
const NAMES_PER_BLOCK = 1.07;
const BYTES_PER_WORD = 4;
const SECTIONS = 12;

const fixedWords = (predictionsMax: number): number =>
  INDEX_HEADER_WORDS +
  HOLDERS_MAX +
  INDEX_SLOTS * INDEX_SLOT_ARRAYS +
  INDEX_STRIPES +
  predictionsMax * (2 * INDEX_NAME_WORDS + INDEX_PREDICTION_WORDS) +
  INDEX_BLOCK_WORDS +
  1 +
  INDEX_CHUNK_WORDS +
  SECTIONS * INDEX_ALIGN_WORDS;

/** Words of one block: in the buckets, itself, in the lists, and its share of chunks and engine hashes. */
const WORDS_PER_BLOCK =
  1 +
  INDEX_BLOCK_WORDS +
  1 +
  INDEX_CHUNK_WORDS / BLOCKS_PER_CHUNK +
  (INDEX_NAME_WORDS * NAMES_PER_BLOCK) / NAMES_LOAD;

/**
 * Makes the segment of an index: empty, all of it reserved, committed by the system page by page as it fills. It takes as
 * many blocks as `bytes` allow (63.4 bytes each), when each of them has one holder; blocks with several need an engine hash for each. Throws RangeError.
 */
export function createIndexMemory({ bytes, predictionsMax, random }: IndexMemoryOptions): SharedArrayBuffer {
  if (!Number.isSafeInteger(bytes) || bytes < INDEX_BYTES_MIN || bytes > SEGMENT_BYTES_MAX)
    throw new RangeError(
      `prefix index: bytes is ${bytes}, allowed are ${INDEX_BYTES_MIN} to ${SEGMENT_BYTES_MAX}`,
    );
  const room = Math.floor(bytes / BYTES_PER_WORD) - fixedWords(predictionsMax);
  const blocksMax = Math.floor(room / WORDS_PER_BLOCK);
  if (
    !(
      Number.isSafeInteger(predictionsMax) &&
      predictionsMax >= 1 &&
      predictionsMax <= 2 ** 20 &&
      blocksMax >= 2
    )
  )
    throw new RangeError(
      `prefix index: predictionsMax is ${predictionsMax}, allowed are 1 to 2^20 that fit in bytes`,
    );
  const memory = allocateShared(bytes, 'prefix index');
  const words = new Uint32Array(memory, 0, INDEX_HEADER_WORDS);
  words[INDEX_HEADER.blocksMax] = blocksMax;
  words[INDEX_HEADER.chunksMax] = Math.floor(blocksMax / BLOCKS_PER_CHUNK);
  words[INDEX_HEADER.namesMax] = Math.floor((blocksMax * NAMES_PER_BLOCK) / NAMES_LOAD);
  words[INDEX_HEADER.predictionsMax] = predictionsMax;
  words[INDEX_HEADER.bucketSeedLow] = randomInteger(random, 2 ** 32);
  words[INDEX_HEADER.bucketSeedHigh] = randomInteger(random, 2 ** 32);
  words[INDEX_HEADER.magic] = INDEX_MAGIC;
  return memory;
}

const wordsOf = (memory: SharedArrayBuffer): Uint32Array =>
  new Uint32Array(memory, 0, memory.byteLength / BYTES_PER_WORD);

const lowWord = (value: number): number => value >>> 0;
const highWord = (value: number): number => Math.floor(value / 2 ** 32);

const CHANGE = { add: 0, remove: 1, clear: 2 } as const;

/** The writer of a segment. One at a time; what it has written stays when its thread ends, and the next one goes on. */
export class SharedIndexWriter implements PrefixIndexWriter {
  readonly #addon: Addon;
  readonly #handle: number;
  readonly #header: Uint32Array;
  readonly #stats = new Uint32Array(INDEX_STATS.length * 2);

  constructor(addon: Addon, memory: SharedArrayBuffer) {
    this.#addon = addon;
    this.#header = new Uint32Array(memory, 0, INDEX_HEADER_WORDS);
    this.#handle = addon.attachIndexWriter(wordsOf(memory));
  }

  addHolder(holder: number): boolean {
    return this.#addon.indexHolder(this.#handle, holder, CHANGE.add) === 1;
  }

  removeHolder(holder: number): boolean {
    return this.#addon.indexHolder(this.#handle, holder, CHANGE.remove) === 1;
  }

  clear(holder: number): boolean {
    return this.#addon.indexHolder(this.#handle, holder, CHANGE.clear) === 1;
  }

  store(
    holder: number,
    parent: Hash64 | null,
    hashes: Uint32Array,
    count: number,
    tier: Tier,
    engineHashes: Uint32Array | null,
  ): number {
    const { low, high } = parent ?? { low: 0, high: 0 };
    const hasParent = parent === null ? 0 : 1;
    return this.#addon.indexStore(
      this.#handle,
      holder,
      hasParent,
      low,
      high,
      hashes,
      count,
      tier,
      engineHashes,
    );
  }

  remove(holder: number, hashes: Uint32Array, count: number, tier: Tier): number {
    return this.#addon.indexRemove(this.#handle, holder, hashes, count, tier, 0);
  }

  removeEngine(holder: number, engineHashes: Uint32Array, count: number, tier: Tier): number {
    return this.#addon.indexRemove(this.#handle, holder, engineHashes, count, tier, 1);
  }

  translate(holder: number, engineHashes: Uint32Array, count: number, hashesOut: Uint32Array): number {
    return this.#addon.indexTranslate(this.#handle, holder, engineHashes, count, hashesOut);
  }

  predict(holder: number, sequenceHashes: Uint32Array, from: number, to: number, expiresMs: number): number {
    assert(Number.isSafeInteger(expiresMs) && expiresMs >= 0, 'expiresMs is whole milliseconds');
    const [low, high] = [lowWord(expiresMs), highWord(expiresMs)];
    return this.#addon.indexPredict(this.#handle, holder, sequenceHashes, from, to, low, high);
  }

  expire(nowMs: number): void {
    const now = Math.floor(nowMs);
    assert(now >= 0, 'nowMs is not negative');
    this.#addon.indexExpire(this.#handle, lowWord(now), highWord(now));
  }

  sweep(stepsMax: number): boolean {
    return this.#addon.indexSweep(this.#handle, stepsMax) === 1;
  }

  stats(): IndexStats {
    this.#addon.indexStats(this.#handle, this.#stats);
    const counts = Object.fromEntries(
      INDEX_STATS.map((name, i) => [name, this.#stats[i * 2]! + this.#stats[i * 2 + 1]! * 2 ** 32]),
    ) as Record<(typeof INDEX_STATS)[number], number>;
    return {
      ...counts,
      blocksMax: this.#header[INDEX_HEADER.blocksMax]!,
      engineHashesMax: Math.floor(this.#header[INDEX_HEADER.namesMax]! / 20) * 17,
      predictionsMax: this.#header[INDEX_HEADER.predictionsMax]!,
    };
  }

  /** Lets go of the segment. */
  close(): void {
    this.#addon.detach(this.#handle);
  }
}

/**
 * A reader of a segment. Takes no lock, writes nothing there, and never waits. Look-ups are fastest with arrays over shared
 * memory that are the same each time: these are bound to the addon once, and a call passes integers only.
 */
export class SharedIndexReader implements PrefixIndexReader {
  readonly #addon: Addon;
  readonly #handle: number;
  #undercounts = 0;
  /** The arrays that are bound, as `#arrays`; 0 when there are none. */
  #hashes: Uint32Array | null = null;
  #holders: Uint32Array | null = null;
  #depths: Uint32Array | null = null;
  #arrays = 0;

  constructor(addon: Addon, memory: SharedArrayBuffer) {
    this.#addon = addon;
    this.#handle = addon.attachIndexReader(wordsOf(memory));
  }

  /** Reads of this thread that met the writer too often and were given up: each may have made a depth too small. */
  get undercounts(): number {
    return this.#undercounts;
  }

  lookup(
    sequenceHashes: Uint32Array,
    blocks: number,
    holders: Uint32Array,
    holderCount: number,
    depthsOut: Uint32Array,
  ): number {
    const bound =
      sequenceHashes === this.#hashes && holders === this.#holders && depthsOut === this.#depths
        ? this.#arrays
        : this.#bind(sequenceHashes, holders, depthsOut);
    const answer =
      bound !== 0
        ? this.#addon.indexLookupAttached(this.#handle, bound, blocks, holderCount)
        : this.#addon.indexLookup(this.#handle, sequenceHashes, blocks, holders, holderCount, depthsOut);
    if (answer < 2 ** 32) return answer;
    this.#undercounts += Math.floor(answer / 2 ** 32);
    return answer % 2 ** 32;
  }

  /** Binds arrays in place of those before; 0 when they can be detached, so that the addon must not keep them. */
  #bind(hashes: Uint32Array, holders: Uint32Array, depths: Uint32Array): number {
    if (![hashes, holders, depths].every(array => array.buffer instanceof SharedArrayBuffer)) return 0;
    const arrays = this.#addon.attachLookupArrays(hashes, holders, depths);
    if (this.#arrays !== 0) this.#addon.detach(this.#arrays);
    this.#arrays = arrays;
    this.#hashes = hashes;
    this.#holders = holders;
    this.#depths = depths;
    return this.#arrays;
  }

  /** Lets go of the segment and the arrays. */
  close(): void {
    if (this.#arrays !== 0) this.#addon.detach(this.#arrays);
    this.#addon.detach(this.#handle);
  }
}
