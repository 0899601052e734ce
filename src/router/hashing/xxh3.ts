/**
 * XXH3-64 from hash-wasm (R3, R4; any thread, one instance each). hash-wasm makes a hasher for one seed, and not at once;
 * here one hasher serves every seed: the words of XXH3's state are the same for all seeds, grow with the seed or fall
 * with it, so two states that hash-wasm itself has made give that of any other seed.
 */
import { strict as assert } from 'node:assert';
import { createXXHash3, type IHasher } from 'hash-wasm';
import type { Hash64 } from './seeds.js';

/** hash-wasm puts the 4 bytes of its version's mark before the state. */
const STATE_AT = 4;
const WORD_BYTES = 8;

/** A hash function of its own for each seed. */
export class Xxh3 {
  readonly #hasher: IHasher;
  /** The state of seed 1, and by how much each of its words rises when the seed rises by 1. */
  readonly #first: Uint8Array;
  readonly #slopes: readonly bigint[];

  private constructor(hasher: IHasher, first: Uint8Array, slopes: readonly bigint[]) {
    this.#hasher = hasher;
    this.#first = first;
    this.#slopes = slopes;
  }

  /** Loads the WebAssembly. */
  static async create(): Promise<Xxh3> {
    const [one, two] = await Promise.all([createXXHash3(1, 0), createXXHash3(2, 0)]);
    const [first, second] = [one.save(), two.save()];
    const slopes = wordsOf(second).map((word, i) => BigInt.asIntN(64, word - wordsOf(first)[i]!));
    assert(
      slopes.every(slope => slope >= -1n && slope <= 1n),
      'the state of hash-wasm’s XXH3 is as it was',
    );
    return new Xxh3(one, first, slopes);
  }

  /** The state in which a hash under this seed begins. */
  begin(seed: Hash64): Uint8Array {
    const steps = ((BigInt(seed.high) << 32n) | BigInt(seed.low)) - 1n;
    const state = this.#first.slice();
    const view = new DataView(state.buffer);
    wordsOf(state).forEach((word, i) => {
      const value = word + this.#slopes[i]! * steps;
      view.setBigUint64(STATE_AT + i * WORD_BYTES, BigInt.asUintN(64, value), true);
    });
    return state;
  }

  /** Hashes `data` from a state of `begin` on: 8 bytes, the highest first. */
  digest(begun: Uint8Array, data: Uint8Array | string): Uint8Array {
    return this.#hasher.load(begun).update(data).digest('binary');
  }

  /** The hash of a text's UTF-8 bytes. */
  hashText(text: string, seed: Hash64): Hash64 {
    const digest = this.digest(this.begin(seed), text);
    const view = new DataView(digest.buffer, digest.byteOffset);
    return { low: view.getUint32(4), high: view.getUint32(0) };
  }
}

function wordsOf(state: Uint8Array): bigint[] {
  const view = new DataView(state.buffer, state.byteOffset);
  const words = Math.floor((state.length - STATE_AT) / WORD_BYTES);
  return Array.from({ length: words }, (_, i) => view.getBigUint64(STATE_AT + i * WORD_BYTES, true));
}
