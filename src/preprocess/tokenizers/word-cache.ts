/**
 * A bounded cache from word to ids (R3, one per tokenizer, so one thread). Direct-mapped with slots of a fixed size: a
 * word lives in the slot its hash names, a newer word replaces the older, and nothing is ever allocated or evicted.
 * It holds only short words that need more than one id; single-id words are found in the vocabulary itself.
 */

const SLOTS = 32_768;
/** Longest word that is kept, in bytes. */
const WORD_BYTES_MAX = 24;
/** Most ids that are kept for a word. */
const IDS_MAX = 8;
/** Words of 32 bits per slot: hash, byte length and id count, then the ids. */
const SLOT_WORDS = 2 + IDS_MAX;

/** Bounded cache from the bytes of a word to its ids; a new word replaces the one in its place. */
export class WordCache {
  readonly #words = new Uint8Array(SLOTS * WORD_BYTES_MAX);
  readonly #facts = new Int32Array(SLOTS * SLOT_WORDS);

  /** Copies the ids of `bytes[start, end)` to `out` from `at` on and returns the new end; -1 when it is not here. */
  read(bytes: Uint8Array, start: number, end: number, hash: number, out: Uint32Array, at: number): number {
    const length = end - start;
    if (length > WORD_BYTES_MAX) return -1;
    const slot = hash & (SLOTS - 1);
    const facts = this.#facts;
    const base = slot * SLOT_WORDS;
    const lengthAndCount = facts[base + 1]!;
    if (facts[base] !== hash || lengthAndCount >> 8 !== length) return -1;
    let mine = slot * WORD_BYTES_MAX;
    for (let index = start; index < end; index++) if (this.#words[mine++] !== bytes[index]) return -1;
    const count = lengthAndCount & 0xff;
    for (let index = 0; index < count; index++) out[at + index] = facts[base + 2 + index]!;
    return at + count;
  }

  /** Keeps `ids[from, to)` as the ids of `bytes[start, end)`, unless either is too long for a slot. */
  write(
    bytes: Uint8Array,
    start: number,
    end: number,
    hash: number,
    ids: Uint32Array,
    from: number,
    to: number,
  ): void {
    const length = end - start;
    const count = to - from;
    if (length > WORD_BYTES_MAX || count > IDS_MAX) return;
    const slot = hash & (SLOTS - 1);
    const base = slot * SLOT_WORDS;
    this.#facts[base] = hash;
    this.#facts[base + 1] = (length << 8) | count;
    for (let index = 0; index < count; index++) this.#facts[base + 2 + index] = ids[from + index]!;
    for (let index = 0; index < length; index++) {
      this.#words[slot * WORD_BYTES_MAX + index] = bytes[start + index]!;
    }
  }
}
