/**
 * The byte strings of a byte-level vocabulary and the way back from bytes to id (R3). Built once per thread and then
 * read only: all bytes lie in one array, and an open-addressing table over their hash finds an id without allocating.
 * The id of a string is also its merge rank, as in tiktoken: a lower id merges first.
 */
import assert from 'node:assert';

/** Answer of a look-up that found nothing; greater than every rank. */
export const NO_ID = 0x7fffffff;

/** Hash of `bytes[start, end)` for vocabulary and word-cache look-ups (FNV-1a, 32 bit, mixed at the end). */
export function hashBytes(bytes: Uint8Array, start: number, end: number): number {
  let hash = 0x811c9dc5;
  for (let at = start; at < end; at++) hash = Math.imul(hash ^ bytes[at]!, 0x01000193);
  return hash ^ (hash >>> 15);
}

/** Byte strings numbered 0, 1, 2 …; every single byte must be among them. */
export class Vocabulary {
  /** Number of strings. */
  readonly size: number;
  /** Length of the longest string, in bytes. */
  readonly longestBytes: number;
  readonly #bytes: Uint8Array;
  readonly #offsets: Uint32Array;
  readonly #slots: Int32Array;
  readonly #hashes: Int32Array;
  readonly #mask: number;
  /** Ids of all strings of one byte, and of two bytes (first byte × 256 + second). */
  readonly #single = new Int32Array(256).fill(NO_ID);
  readonly #double = new Int32Array(65_536).fill(NO_ID);

  /**
   * `bytes` holds the strings one after the other; string `id` is `bytes[offsets[id], offsets[id + 1])`. Both arrays
   * now belong to the vocabulary.
   */
  constructor(bytes: Uint8Array, offsets: Uint32Array) {
    this.size = offsets.length - 1;
    this.#bytes = bytes;
    this.#offsets = offsets;
    const slots = 2 ** Math.ceil(Math.log2(this.size * 2 + 2));
    this.#slots = new Int32Array(slots).fill(NO_ID);
    this.#hashes = new Int32Array(slots);
    this.#mask = slots - 1;
    let longest = 0;
    for (let id = 0; id < this.size; id++) {
      const start = offsets[id]!;
      const end = offsets[id + 1]!;
      longest = Math.max(longest, end - start);
      if (end - start === 1) this.#single[bytes[start]!] = id;
      if (end - start === 2) this.#double[(bytes[start]! << 8) | bytes[start + 1]!] = id;
      const hash = hashBytes(bytes, start, end);
      let slot = hash & this.#mask;
      while (this.#slots[slot] !== NO_ID) slot = (slot + 1) & this.#mask;
      this.#slots[slot] = id;
      this.#hashes[slot] = hash;
    }
    this.longestBytes = longest;
    assert(!this.#single.includes(NO_ID), 'a byte-level vocabulary holds all 256 single bytes');
  }

  idOfByte(byte: number): number {
    return this.#single[byte]!;
  }

  /** Id of a string of two bytes, or NO_ID. */
  idOfPair(first: number, second: number): number {
    return this.#double[(first << 8) | second]!;
  }

  /** Id of `bytes[start, end)`, or NO_ID. */
  idOf(bytes: Uint8Array, start: number, end: number): number {
    if (end - start > this.longestBytes) return NO_ID;
    return this.idOfHashed(bytes, start, end, hashBytes(bytes, start, end));
  }

  /** The same for a caller that has the hash already. */
  idOfHashed(bytes: Uint8Array, start: number, end: number, hash: number): number {
    let slot = hash & this.#mask;
    for (;;) {
      const id = this.#slots[slot]!;
      if (id === NO_ID) return NO_ID;
      if (this.#hashes[slot] === hash && this.#equals(id, bytes, start, end)) return id;
      slot = (slot + 1) & this.#mask;
    }
  }

  /** Bytes of an id below `size`: a view, not to be written to. */
  bytesOf(id: number): Uint8Array {
    return this.#bytes.subarray(this.#offsets[id], this.#offsets[id + 1]);
  }

  #equals(id: number, bytes: Uint8Array, start: number, end: number): boolean {
    let mine = this.#offsets[id]!;
    if (this.#offsets[id + 1]! - mine !== end - start) return false;
    for (let at = start; at < end; at++) if (this.#bytes[mine++] !== bytes[at]) return false;
    return true;
  }
}
