/**
 * Memory of the tiny model's KV cache: real pages in one plain buffer, addressed by the block numbers of the BlockPool
 * and by nothing else. The buffer may come from outside, so that a transfer engine can register it. Owned by one mock
 * engine; written by its model and by whoever carries blocks into it.
 *
 *     block 0                                          block 1 …
 *     ├ layer 0: K [slot][head][dim], V [slot][head][dim] ┤ layer 1: K, V ┤      nhd; hnd: [head][slot][dim]
 */
import assert from 'node:assert';
import { ConfigError } from '../../errors.js';

/** Shape of the tiny model, as far as its pages show it. */
export const TINY_SHAPE = { layers: 2, heads: 2, headDim: 8 } as const;

/** Orders of the numbers of K, or of V, in one layer of a block, by the names that vLLM has for them. */
export const KV_ORDERS = ['nhd', 'hnd'] as const;
/** See KV_ORDERS. */
export type KvOrder = (typeof KV_ORDERS)[number];

/** Floats of K, or of V, of one token in one layer. */
export const TINY_ROW = TINY_SHAPE.heads * TINY_SHAPE.headDim;

/** Bytes of one number. */
export const FLOAT_BYTES = 4;
/** Bytes of K and V of one token in all layers. */
export const TINY_TOKEN_BYTES = TINY_SHAPE.layers * 2 * TINY_ROW * FLOAT_BYTES;
const MEMORY_BYTES_MAX = 2 ** 32;

/** Bytes of the pages of `blocks` blocks of `blockSize` tokens. Throws ConfigError when they are too many. */
export function pageBytes(blocks: number, blockSize: number): number {
  const bytes = blocks * blockSize * TINY_TOKEN_BYTES;
  if (bytes <= MEMORY_BYTES_MAX) return bytes;
  throw new ConfigError(
    `tiny: numGpuBlocks × blockSize × ${TINY_TOKEN_BYTES} bytes must be at most ${MEMORY_BYTES_MAX}; got ${bytes}`,
    { param: 'numGpuBlocks' },
  );
}

/** See the head of the file. */
export class KvPages {
  readonly blocks: number;
  readonly blockSize: number;
  readonly blockBytes: number;
  /** Floats from a slot to the next, and from a head to the next, of K or V in one layer of a block. */
  readonly slotStride: number;
  readonly headStride: number;
  /** All pages, block 0 first. */
  readonly floats: Float32Array;
  readonly #bytes: Uint8Array;

  /**
   * Pages for `blocks` blocks of `blockSize` tokens, at the start of `memory` or in memory of their own, which costs
   * nothing until it is written. Throws ConfigError when they do not fit.
   */
  constructor(blocks: number, blockSize: number, memory?: ArrayBufferLike, order: KvOrder = 'nhd') {
    this.blocks = blocks;
    this.blockSize = blockSize;
    this.blockBytes = blockSize * TINY_TOKEN_BYTES;
    this.slotStride = order === 'nhd' ? TINY_ROW : TINY_SHAPE.headDim;
    this.headStride = order === 'nhd' ? TINY_SHAPE.headDim : blockSize * TINY_SHAPE.headDim;
    const bytes = pageBytes(blocks, blockSize);
    if (memory !== undefined && memory.byteLength < bytes)
      throw new ConfigError(`kvMemory must have at least ${bytes} bytes; got ${memory.byteLength}`, {
        param: 'kvMemory',
      });
    const buffer = memory ?? new ArrayBuffer(bytes);
    this.floats = new Float32Array(buffer, 0, bytes / FLOAT_BYTES);
    this.#bytes = new Uint8Array(buffer, 0, bytes);
  }

  /** The memory of one block, not a copy. */
  bytesOf(block: number): Uint8Array {
    assert(block >= 0 && block < this.blocks);
    return this.#bytes.subarray(block * this.blockBytes, (block + 1) * this.blockBytes);
  }
}
