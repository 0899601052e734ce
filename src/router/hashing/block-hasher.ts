/**
 * Block hashing of a prompt (R3, pool thread), bit-compatible with Dynamo's router: `lib/kv-router/src/protocols.rs`
 * and `lib/tokens/src/lib.rs` of ai-dynamo/dynamo. Only complete blocks are hashed.
 *
 *     L[i] = xxh3_64(ids of block i as little-endian u32, seeds.block)          block hash
 *     S[0] = L[0];  S[i] = xxh3_64(le64(S[i-1]) ‖ le64(L[i]), seeds.chain)      sequence hash
 *
 * S names a block together with everything before it and is the key of the prefix index. With the addon a prompt is
 * one native call; without it XXH3 comes from hash-wasm. Both give the same words. A hasher belongs to one thread.
 */
import { createXXHash3, type IHasher } from 'hash-wasm';
import type { Addon } from '../../runtime/addon.js';
import type { Hash64, HashSeeds } from './seeds.js';

/** Words of one 64-bit hash in an output array: low, then high. */
export const HASH_WORDS = 2;

/** Hashes prompts under one pair of seeds. */
export interface BlockHasher {
  /**
   * Hashes the `floor(ids.length / blockSize)` complete blocks of a prompt and returns their number. Block `i` is at
   * words 2i (low) and 2i + 1 (high) of each output; what lies behind the last block is left as it was. Throws
   * RangeError when `blockSize` is no integer in [1, 2^32) or an output is too small.
   */
  hash(
    ids: Uint32Array,
    blockSize: number,
    blockHashesOut: Uint32Array,
    sequenceHashesOut: Uint32Array,
  ): number;
}

/** Makes a hasher: over the addon when there is one, else over hash-wasm. */
export async function createHasher(addon: Addon | null, seeds: HashSeeds): Promise<BlockHasher> {
  if (addon !== null) return new NativeBlockHasher(addon, seeds);
  const [block, chain] = await Promise.all([createXxh3(seeds.block), createXxh3(seeds.chain)]);
  return new WasmBlockHasher(block, chain);
}

function createXxh3(seed: Hash64): Promise<IHasher> {
  return createXXHash3(seed.low, seed.high);
}

class NativeBlockHasher implements BlockHasher {
  readonly #addon: Addon;
  readonly #seeds: HashSeeds;

  constructor(addon: Addon, seeds: HashSeeds) {
    this.#addon = addon;
    this.#seeds = seeds;
  }

  hash(
    ids: Uint32Array,
    blockSize: number,
    blockHashesOut: Uint32Array,
    sequenceHashesOut: Uint32Array,
  ): number {
    const { block, chain } = this.#seeds;
    return this.#addon.hashBlocks(
      ids,
      blockSize,
      block.low,
      block.high,
      chain.low,
      chain.high,
      blockHashesOut,
      sequenceHashesOut,
    );
  }
}

class WasmBlockHasher implements BlockHasher {
  readonly #block: IHasher;
  readonly #chain: IHasher;
  // The 16 bytes of one link: the previous sequence hash, then the block hash.
  readonly #link = new Uint8Array(16);
  readonly #linkWords = new DataView(this.#link.buffer);

  constructor(block: IHasher, chain: IHasher) {
    this.#block = block;
    this.#chain = chain;
  }

  hash(
    ids: Uint32Array,
    blockSize: number,
    blockHashesOut: Uint32Array,
    sequenceHashesOut: Uint32Array,
  ): number {
    const blocks = checkedBlocks(ids, blockSize, blockHashesOut, sequenceHashesOut);
    const bytes = new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength);
    const blockBytes = blockSize * Uint32Array.BYTES_PER_ELEMENT;
    for (let i = 0; i < blocks; i++) {
      const data = bytes.subarray(i * blockBytes, (i + 1) * blockBytes);
      writeDigest(this.#block.init().update(data).digest('binary'), blockHashesOut, i);
      const low = blockHashesOut[i * HASH_WORDS]!;
      const high = blockHashesOut[i * HASH_WORDS + 1]!;
      if (i === 0) {
        sequenceHashesOut[0] = low;
        sequenceHashesOut[1] = high;
        continue;
      }
      this.#linkWords.setUint32(0, sequenceHashesOut[(i - 1) * HASH_WORDS]!, true);
      this.#linkWords.setUint32(4, sequenceHashesOut[(i - 1) * HASH_WORDS + 1]!, true);
      this.#linkWords.setUint32(8, low, true);
      this.#linkWords.setUint32(12, high, true);
      writeDigest(this.#chain.init().update(this.#link).digest('binary'), sequenceHashesOut, i);
    }
    return blocks;
  }
}

/** hash-wasm gives digests in XXH3's canonical form, which is big-endian. */
function writeDigest(digest: Uint8Array, out: Uint32Array, index: number): void {
  out[index * HASH_WORDS] = bigEndian(digest, 4);
  out[index * HASH_WORDS + 1] = bigEndian(digest, 0);
}

/** The 32-bit word at `at`; its sign bit is right once it is stored in a Uint32Array. */
function bigEndian(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!;
}

function checkedBlocks(
  ids: Uint32Array,
  blockSize: number,
  blockHashesOut: Uint32Array,
  sequenceHashesOut: Uint32Array,
): number {
  if (!Number.isInteger(blockSize) || blockSize < 1 || blockSize > 0xffff_ffff) {
    throw new RangeError('blockSize must be an integer in [1, 4294967295]');
  }
  const blocks = Math.floor(ids.length / blockSize);
  if (blockHashesOut.length < blocks * HASH_WORDS) {
    throw new RangeError('blockHashesOut must hold 2 words per complete block');
  }
  if (sequenceHashesOut.length < blocks * HASH_WORDS) {
    throw new RangeError('sequenceHashesOut must hold 2 words per complete block');
  }
  return blocks;
}
