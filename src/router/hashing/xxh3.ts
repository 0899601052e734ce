/**
 * XXH3-64 from hash-wasm (R3, R4; any thread, one instance each). hash-wasm makes a hasher for one seed, and not at once:
 * those of the seeds used most are made at the start. All other seeds share one hasher: the words of XXH3's state are the
 * same for all seeds, grow with the seed or fall with it, so two states that hash-wasm itself has made give any other.
 */
import { strict as assert } from 'node:assert';
import { createXXHash3, type IHasher } from 'hash-wasm';
import type { Hash64 } from './seeds.js';

/** hash-wasm puts the 4 bytes of its version's mark before the state. */
const STATE_AT = 4;
const WORD_BYTES = 8;

/** Hashes data, or a text's UTF-8 bytes: 8 bytes, the highest first. */
export type Digest = (data: Uint8Array | string) => Uint8Array;

/** Makes hash functions. */
export class Xxh3 {
  readonly #prepared: readonly { readonly seed: Hash64; readonly hasher: IHasher }[];
  /** Hashes under all other seeds. */
  readonly #hasher: IHasher;
  /** The state of seed 1, and by how much each of its words rises when the seed rises by 1. */
  readonly #first: Uint8Array;
  readonly #slopes: readonly bigint[];

  private constructor(
    prepared: readonly { readonly seed: Hash64; readonly hasher: IHasher }[],
    hasher: IHasher,
    first: Uint8Array,
    slopes: readonly bigint[],
  ) {
    this.#prepared = prepared;
    this.#hasher = hasher;
    this.#first = first;
    this.#slopes = slopes;
  }

  /** Loads the WebAssembly. Under `seeds` hashes will be several times as fast as under others, whose state is copied in. */
  static async create(seeds: readonly Hash64[]): Promise<Xxh3> {
    const [one, two] = await Promise.all([createXXHash3(1, 0), createXXHash3(2, 0)]);
    const [first, second] = [one.save(), two.save()];
    const firstWords = wordsOf(first);
    const slopes = wordsOf(second).map((word, i) => BigInt.asIntN(64, word - firstWords[i]!));
    assert(
      slopes.every(slope => slope >= -1n && slope <= 1n),
      'the state of XXH3 in hash-wasm has the form that is known here',
    );
    const prepared = seeds.map(async seed => ({ seed, hasher: await createXXHash3(seed.low, seed.high) }));
    return new Xxh3(await Promise.all(prepared), one, first, slopes);
  }

  /** The hash function of a seed. */
  under(seed: Hash64): Digest {
    const own = this.#prepared.find(
      ({ seed: { low, high } }) => low === seed.low && high === seed.high,
    )?.hasher;
    if (own !== undefined) return data => own.init().update(data).digest('binary');
    const state = this.#stateOf(seed);
    return data => this.#hasher.load(state).update(data).digest('binary');
  }

  #stateOf(seed: Hash64): Uint8Array {
    const steps = ((BigInt(seed.high) << 32n) | BigInt(seed.low)) - 1n;
    const state = this.#first.slice();
    const view = new DataView(state.buffer);
    wordsOf(state).forEach((word, i) => {
      const value = word + this.#slopes[i]! * steps;
      view.setBigUint64(STATE_AT + i * WORD_BYTES, BigInt.asUintN(64, value), true);
    });
    return state;
  }
}

/** Reads a digest. */
export function hash64(digest: Uint8Array): Hash64 {
  return { low: bigEndian(digest, 4), high: bigEndian(digest, 0) };
}

function bigEndian(bytes: Uint8Array, at: number): number {
  return ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0;
}

function wordsOf(state: Uint8Array): bigint[] {
  const view = new DataView(state.buffer, state.byteOffset);
  const words = Math.floor((state.length - STATE_AT) / WORD_BYTES);
  return Array.from({ length: words }, (_, i) => view.getBigUint64(STATE_AT + i * WORD_BYTES, true));
}
