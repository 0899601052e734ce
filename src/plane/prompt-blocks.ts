/**
 * The blocks of a prompt by their sequence hashes (R3), as the prefix index names them: once for each block size among the
 * workers, usually one. The arrays are used again for the next prompt. Owned by a pool thread.
 */
import type { WorkerView } from '../messages/records.js';
import { BLOCK_SIZE_UNKNOWN, type PromptBlocks } from '../router/decide.js';
import { type BlockHasher, HASH_WORDS } from '../router/hashing/block-hasher.js';

/** Gives the hasher of requests with one adapter and salt ('' for none). */
export interface HasherSource {
  of(adapter: string, salt: string): BlockHasher;
}

/** Hashes the prompts of one pool thread. */
export class PromptHasher {
  readonly #hashers: HasherSource;
  #blockHashes = new Uint32Array(0);
  /** Sequence hashes, an array for each block size of the prompt. */
  readonly #sequenceHashes: Uint32Array<ArrayBuffer>[] = [];

  constructor(hashers: HasherSource) {
    this.#hashers = hashers;
  }

  /** The complete blocks of `ids` for every block size of `workers`; valid until the next call. */
  blocksOf(ids: Uint32Array, workers: readonly WorkerView[], adapter: string, salt: string): PromptBlocks[] {
    const hasher = this.#hashers.of(adapter, salt);
    const sizes = new Set(workers.map(({ blockSize }) => blockSize ?? BLOCK_SIZE_UNKNOWN));
    return [...sizes].map((blockSize, at) => {
      const words = HASH_WORDS * Math.floor(ids.length / blockSize);
      if (this.#blockHashes.length < words) this.#blockHashes = roomFor(words);
      let hashes = this.#sequenceHashes[at];
      if (hashes === undefined || hashes.length < words) {
        hashes = roomFor(words);
        this.#sequenceHashes[at] = hashes;
      }
      const count = hasher.hash(ids, blockSize, this.#blockHashes, hashes);
      return { hashes, count, blockSize };
    });
  }
}

const roomFor = (words: number): Uint32Array<ArrayBuffer> =>
  new Uint32Array(2 ** Math.ceil(Math.log2(words)));
