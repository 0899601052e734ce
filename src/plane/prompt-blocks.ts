/**
 * The blocks of a prompt by their sequence hashes (R3), as the prefix index names them: once for each block size among the
 * workers, usually one. The arrays are used again for the next prompt. Owned by a pool thread.
 */
import type { PromptBlocks } from '../router/decide.js';
import { HASH_WORDS, type Hashers } from '../router/hashing/block-hasher.js';

/** Hashes the prompts of one pool thread. */
export class PromptHasher {
  readonly #hashers: Hashers;
  /** Sequence hashes, an array for each block size of the prompt. */
  readonly #hashes: Uint32Array<ArrayBuffer>[] = [];

  constructor(hashers: Hashers) {
    this.#hashers = hashers;
  }

  /** The complete blocks of `ids`, once for each of `blockSizes` (tokens); valid until the next call. */
  blocksOf(ids: Uint32Array, blockSizes: readonly number[], adapter: string, salt: string): PromptBlocks[] {
    const hasher = this.#hashers.of(adapter, salt);
    return blockSizes.map((blockSize, at) => {
      const words = HASH_WORDS * Math.floor(ids.length / blockSize);
      let hashes = this.#hashes[at];
      if (hashes === undefined || hashes.length < words) {
        hashes = new Uint32Array(2 ** Math.ceil(Math.log2(words)));
        this.#hashes[at] = hashes;
      }
      return { hashes, count: hasher.hash(ids, blockSize, null, hashes), blockSize };
    });
  }
}
