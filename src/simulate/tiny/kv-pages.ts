/**
 * Memory of the tiny model's KV cache: real pages in one plain buffer, addressed by the block numbers of the BlockPool
 * and by nothing else. The buffer may come from outside, so that a transfer engine can register it. Owned by one mock
 * engine; written by its model and by whoever carries blocks into it.
 *
 *     block 0                                          block 1 …
 *     ├ layer 0: K [slot][head][dim], V [slot][head][dim] ┤ layer 1: K, V ┤
 */
import assert from 'node:assert';
import { ConfigError } from '../../errors.js';

/** Shape of the tiny model, as far as its pages show it. */
export const TINY_SHAPE = { layers: 2, heads: 2, headDim: 8 } as const;

/** Floats of K, or of V, of one token in one layer. */
export const TINY_ROW = TINY_SHAPE.heads * TINY_SHAPE.headDim;

const FLOAT_BYTES = 4;
/** Bytes of K and V of one token in all layers. */
export const TINY_TOKEN_BYTES = TINY_SHAPE.layers * 2 * TINY_ROW * FLOAT_BYTES;
const MEMORY_BYTES_MAX = 2 ** 32;

/** See the head of the file. */
export class KvPages {
  readonly blocks: number;
  readonly blockSize: number;
  readonly blockBytes: number;
  /** All pages, block 0 first. */
  readonly floats: Float32Array;
  readonly #bytes: Uint8Array;

  /**
   * Pages for `blocks` blocks of `blockSize` tokens, at the start of `memory` or in memory of their own, which costs
   * nothing until it is written. Throws ConfigError when they do not fit.
   */
  constructor(blocks: number, blockSize: number, memory?: ArrayBufferLike) {
    this.blocks = blocks;
    this.blockSize = blockSize;
    this.blockBytes = blockSize * TINY_TOKEN_BYTES;
    const bytes = blocks * this.blockBytes;
    if (bytes > MEMORY_BYTES_MAX)
      throw new ConfigError(
        `tiny: numGpuBlocks × blockSize × ${TINY_TOKEN_BYTES} bytes must be at most ${MEMORY_BYTES_MAX}; got ${bytes}`,
        { param: 'numGpuBlocks' },
      );
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
