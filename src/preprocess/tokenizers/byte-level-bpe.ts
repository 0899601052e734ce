/**
 * Byte-level byte-pair tokenizer (R3): text → words → ids. It makes ids only, no offsets, and keeps short words that it
 * has merged before. Built once per thread by a file that knows a vocabulary (chatml-cl100k.ts); after that only its
 * scratch buffers and its cache change, so one thread at a time may use it.
 */
import { BytePairMerge } from './byte-pair-merge.js';
import type { Tokenizer } from './tokenizer.js';
import { hashBytes, NO_ID, type Vocabulary } from './vocabulary.js';
import { WordCache } from './word-cache.js';
import { wordEnd } from './word-splitter.js';

/** Texts up to this many UTF-16 units are encoded in a buffer that is kept; longer ones get their own. */
const SCRATCH_UNITS_MAX = 65_536;
/** A UTF-16 unit makes at most three UTF-8 bytes. */
const BYTES_PER_UNIT = 3;

const UTF8 = new TextEncoder();

/** What a byte-level BPE tokenizer is built from. */
export interface ByteLevelBpeOptions {
  readonly name: string;
  readonly vocabulary: Vocabulary;
  /** Special tokens by their text. Their ids must not be below `vocabulary.size`. */
  readonly specials: ReadonlyMap<string, number>;
  readonly eosIds: Uint32Array;
}

/** Byte-level BPE over one vocabulary; one instance per thread. */
export class ByteLevelBpe implements Tokenizer {
  readonly name: string;
  readonly vocabularySize: number;
  readonly eosIds: Uint32Array;
  readonly leadingBlanks = 'kept';
  readonly #vocabulary: Vocabulary;
  readonly #specials: ReadonlyMap<string, number>;
  readonly #specialBytes = new Map<number, Uint8Array>();
  readonly #merge: BytePairMerge;
  readonly #cache = new WordCache();
  readonly #scratchBytes = new Uint8Array(SCRATCH_UNITS_MAX * BYTES_PER_UNIT);
  readonly #scratchIds = new Uint32Array(SCRATCH_UNITS_MAX * BYTES_PER_UNIT);

  constructor(options: ByteLevelBpeOptions) {
    this.name = options.name;
    this.eosIds = options.eosIds;
    this.#vocabulary = options.vocabulary;
    this.#specials = options.specials;
    this.#merge = new BytePairMerge(options.vocabulary);
    for (const [text, id] of options.specials) this.#specialBytes.set(id, UTF8.encode(text));
    this.vocabularySize = Math.max(
      options.vocabulary.size,
      ...[...options.specials.values()].map(id => id + 1),
    );
  }

  encode(text: string): Uint32Array {
    if (text.length <= SCRATCH_UNITS_MAX) {
      const { written } = UTF8.encodeInto(text, this.#scratchBytes);
      const count = this.#encodeBytes(this.#scratchBytes, written, this.#scratchIds);
      return this.#scratchIds.slice(0, count);
    }
    const bytes = UTF8.encode(text);
    const ids = new Uint32Array(bytes.length);
    return ids.slice(0, this.#encodeBytes(bytes, bytes.length, ids));
  }

  specialId(text: string): number | undefined {
    return this.#specials.get(text);
  }

  isSpecial(id: number): boolean {
    return this.#specialBytes.has(id);
  }

  bytesOf(id: number): Uint8Array | undefined {
    return id < this.#vocabulary.size ? this.#vocabulary.bytesOf(id) : this.#specialBytes.get(id);
  }

  /** Writes the ids of `bytes[0, length)` to `out` and returns how many there are. */
  #encodeBytes(bytes: Uint8Array, length: number, out: Uint32Array): number {
    const vocabulary = this.#vocabulary;
    let count = 0;
    for (let start = 0; start < length; ) {
      const end = wordEnd(bytes, start, length);
      const hash = hashBytes(bytes, start, end);
      const whole = vocabulary.idOfHashed(bytes, start, end, hash);
      if (whole !== NO_ID) {
        out[count++] = whole;
      } else {
        const afterCached = this.#cache.read(bytes, start, end, hash, out, count);
        if (afterCached === -1) {
          const afterMerged = this.#merge.merge(bytes, start, end, out, count);
          this.#cache.write(bytes, start, end, hash, out, count, afterMerged);
          count = afterMerged;
        } else {
          count = afterCached;
        }
      }
      start = end;
    }
    return count;
  }
}
