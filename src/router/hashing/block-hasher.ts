/**
 * Block hashing of a prompt (R3, pool thread) and of what engines store (R4, ingest thread), bit-compatible with Dynamo's
 * router: `lib/kv-router/src/protocols.rs` of ai-dynamo/dynamo. Only complete blocks are hashed.
 *
 *     L[i] = xxh3_64(ids of block i as little-endian u32 ‖ media of block i, smallest first, as le64, seeds.block)
 *     S[0] = L[0];  S[i] = xxh3_64(le64(S[i-1]) ‖ le64(L[i]), seeds.chain)      sequence hash
 *
 * S names a block together with everything before it and is the key of the prefix index. With the addon a prompt is
 * one native call; without it XXH3 comes from hash-wasm. Both give the same words. A hasher belongs to one thread.
 */
import type { Addon } from '../../runtime/addon.js';
import { DEFAULT_SEEDS, type Hash64, type HashSeeds, identitySeeds } from './seeds.js';
import { type Digest, hash64, Xxh3 } from './xxh3.js';

/** Words of one 64-bit hash in an output array: low, then high. */
export const HASH_WORDS = 2;

/** Words of one entry of `media`: block, hash low, hash high. As in the media table of events/event-tables.ts. */
const MEDIA_WORDS = 3;
/** Most pairs of adapter and salt that are kept; the one not used for longest goes. */
const IDENTITIES_MAX = 1024;
const NO_PARENT: Hash64 = { low: 0, high: 0 };

/** Hashes prompts of one adapter and salt. */
export interface BlockHasher {
  /**
   * Hashes the `floor(ids.length / blockSize)` complete blocks of a prompt and returns their number: `hashAfter` from its
   * beginning.
   */
  hash(
    ids: Uint32Array,
    blockSize: number,
    media: Uint32Array | null,
    sequenceHashesOut: Uint32Array,
  ): number;
  /**
   * Writes the sequence hashes of `blocks` complete blocks, of which the first begins at index `from` of `ids`: block `i`
   * at words 2i (low) and 2i + 1 (high), nothing behind the last one. The first follows the block with the sequence hash
   * `parent`; null: it begins a sequence. `media` has three words per entry, the block counted from 0 at `from` and the
   * hash, low then high; the entries are in the order of their blocks, and those behind the last block do not count.
   * Throws RangeError when a number is no integer of its range, the blocks do not lie in `ids`, `media` is not of that
   * form, or the output is too small.
   */
  hashAfter(
    parent: Hash64 | null,
    ids: Uint32Array,
    from: number,
    blocks: number,
    blockSize: number,
    media: Uint32Array | null,
    sequenceHashesOut: Uint32Array,
  ): void;
}

/** The hashers of one thread. */
export interface Hashers {
  /** The hasher of requests with this adapter and salt; '' is none. */
  of(adapter: string, salt: string): BlockHasher;
}

/**
 * Makes the hashers of a thread: over the addon when there is one, else over hash-wasm. `base` are the seeds of requests
 * without adapter and salt: others than Dynamo's only where engines and stores outside use them.
 */
export async function createHashers(addon: Addon | null, base: HashSeeds = DEFAULT_SEEDS): Promise<Hashers> {
  return new IdentityHashers(addon, await Xxh3.create([base.block, base.chain]), base);
}

class IdentityHashers implements Hashers {
  readonly #addon: Addon | null;
  readonly #xxh3: Xxh3;
  readonly #base: HashSeeds;
  /** In order of use. */
  readonly #hashers = new Map<string, BlockHasher>();

  constructor(addon: Addon | null, xxh3: Xxh3, base: HashSeeds) {
    this.#addon = addon;
    this.#xxh3 = xxh3;
    this.#base = base;
  }

  of(adapter: string, salt: string): BlockHasher {
    // The length tells where the adapter ends, so that no two pairs meet.
    const key = `${adapter.length}:${adapter}${salt}`;
    const known = this.#hashers.get(key);
    const hasher = known ?? this.#make(identitySeeds(this.#xxh3, this.#base, adapter, salt));
    if (known !== undefined) this.#hashers.delete(key);
    else if (this.#hashers.size === IDENTITIES_MAX) this.#hashers.delete(this.#hashers.keys().next().value!);
    this.#hashers.set(key, hasher);
    return hasher;
  }

  #make(seeds: HashSeeds): BlockHasher {
    return this.#addon === null
      ? new WasmBlockHasher(this.#xxh3, seeds)
      : new NativeBlockHasher(this.#addon, seeds);
  }
}

function completeBlocks(ids: Uint32Array, blockSize: number): number {
  if (!Number.isInteger(blockSize) || blockSize < 1 || blockSize > 0xffff_ffff) {
    throw new RangeError('blockSize must be an integer in [1, 4294967295]');
  }
  return Math.floor(ids.length / blockSize);
}

class NativeBlockHasher implements BlockHasher {
  readonly #addon: Addon;
  readonly #seeds: HashSeeds;

  constructor(addon: Addon, seeds: HashSeeds) {
    this.#addon = addon;
    this.#seeds = seeds;
  }

  hash(ids: Uint32Array, blockSize: number, media: Uint32Array | null, out: Uint32Array): number {
    const blocks = completeBlocks(ids, blockSize);
    this.hashAfter(null, ids, 0, blocks, blockSize, media, out);
    return blocks;
  }

  hashAfter(
    parent: Hash64 | null,
    ids: Uint32Array,
    from: number,
    blocks: number,
    blockSize: number,
    media: Uint32Array | null,
    sequenceHashesOut: Uint32Array,
  ): void {
    const { block, chain } = this.#seeds;
    const { low, high } = parent ?? NO_PARENT;
    this.#addon.hashBlocks(
      ids,
      from,
      blocks,
      blockSize,
      block.low,
      block.high,
      chain.low,
      chain.high,
      parent === null ? 0 : 1,
      low,
      high,
      media,
      sequenceHashesOut,
    );
  }
}

class WasmBlockHasher implements BlockHasher {
  readonly #block: Digest;
  readonly #chain: Digest;
  // The 16 bytes of one link: the previous sequence hash, then the block hash.
  readonly #link = new Uint8Array(16);
  readonly #linkWords = new DataView(this.#link.buffer);

  constructor(xxh3: Xxh3, seeds: HashSeeds) {
    this.#block = xxh3.under(seeds.block);
    this.#chain = xxh3.under(seeds.chain);
  }

  hash(ids: Uint32Array, blockSize: number, media: Uint32Array | null, out: Uint32Array): number {
    const blocks = completeBlocks(ids, blockSize);
    this.hashAfter(null, ids, 0, blocks, blockSize, media, out);
    return blocks;
  }

  hashAfter(
    parent: Hash64 | null,
    ids: Uint32Array,
    from: number,
    blocks: number,
    blockSize: number,
    media: Uint32Array | null,
    sequenceHashesOut: Uint32Array,
  ): void {
    check(ids, from, blocks, blockSize, media, sequenceHashesOut);
    const bytes = new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength);
    let before = parent;
    let entry = 0;
    for (let i = 0; i < blocks; i++) {
      const firstByte = (from + i * blockSize) * Uint32Array.BYTES_PER_ELEMENT;
      const data = bytes.subarray(firstByte, firstByte + blockSize * Uint32Array.BYTES_PER_ELEMENT);
      const firstEntry = entry;
      while (media !== null && media[entry] === i) entry += MEDIA_WORDS;
      const framed =
        media === null || entry === firstEntry ? data : frame(data, media.subarray(firstEntry, entry));
      let hash = hash64(this.#block(framed));
      if (before !== null) {
        this.#linkWords.setUint32(0, before.low, true);
        this.#linkWords.setUint32(4, before.high, true);
        this.#linkWords.setUint32(8, hash.low, true);
        this.#linkWords.setUint32(12, hash.high, true);
        hash = hash64(this.#chain(this.#link));
      }
      sequenceHashesOut[i * HASH_WORDS] = hash.low;
      sequenceHashesOut[i * HASH_WORDS + 1] = hash.high;
      before = hash;
    }
  }
}

/** The bytes of a block's ids, then its media hashes from the smallest on. */
function frame(ids: Uint8Array, media: Uint32Array): Uint8Array {
  const hashes = new BigUint64Array(media.length / MEDIA_WORDS);
  for (let i = 0; i < hashes.length; i++) {
    hashes[i] = (BigInt(media[i * MEDIA_WORDS + 2]!) << 32n) | BigInt(media[i * MEDIA_WORDS + 1]!);
  }
  hashes.sort();
  const framed = new Uint8Array(ids.length + hashes.byteLength);
  framed.set(ids);
  framed.set(new Uint8Array(hashes.buffer), ids.length);
  return framed;
}

function check(
  ids: Uint32Array,
  from: number,
  blocks: number,
  blockSize: number,
  media: Uint32Array | null,
  sequenceHashesOut: Uint32Array,
): void {
  const require = (holds: boolean, rule: string): void => {
    if (!holds) throw new RangeError(rule);
  };
  require(Number.isInteger(from) &&
    from >= 0 &&
    from <= ids.length, 'from must be at most the length of ids');
  const most = completeBlocks(ids.subarray(from), blockSize);
  require(Number.isInteger(blocks) && blocks >= 0 && blocks <= most, 'blocks must lie inside ids');
  require(sequenceHashesOut.length >= blocks * HASH_WORDS, 'sequenceHashesOut must hold 2 words per block');
  if (media === null) return;
  require(media.length % MEDIA_WORDS === 0, 'media must be of 3 words each');
  for (let i = MEDIA_WORDS; i < media.length; i += MEDIA_WORDS) {
    require(media[i]! >= media[i - MEDIA_WORDS]!, 'media must be in the order of their blocks');
  }
}
