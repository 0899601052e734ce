/**
 * The merge loop of byte-pair encoding (R3): a word's bytes become ids by joining, again and again, the leftmost
 * adjacent pair of lowest rank. Short words scan their few pairs; longer ones keep the pairs in a heap over a linked
 * list, so that a word of a million bytes costs n log n. Both give the same ids. One instance per tokenizer; the scratch
 * arrays are its own.
 */
import { NO_ID, type Vocabulary } from './vocabulary.js';

/** Longest word, in bytes, for which scanning every pair is the faster way (measured). */
export const SCAN_BYTES_MAX = 48;

/** A heap key is rank × 2^32 + position: exact in a double, and the leftmost of equal ranks comes first. */
const POSITION_SPAN = 2 ** 32;

/** Merges the bytes of one word to ids; reusable scratch memory, one per tokenizer. */
export class BytePairMerge {
  readonly #vocabulary: Vocabulary;
  readonly #bounds = new Int32Array(SCAN_BYTES_MAX + 1);
  readonly #ids = new Int32Array(SCAN_BYTES_MAX);
  readonly #ranks = new Int32Array(SCAN_BYTES_MAX);

  constructor(vocabulary: Vocabulary) {
    this.#vocabulary = vocabulary;
  }

  /** Writes the ids of the word `bytes[start, end)` to `out` from `at` on (room for one per byte); returns the new end. */
  merge(bytes: Uint8Array, start: number, end: number, out: Uint32Array, at: number): number {
    return end - start <= SCAN_BYTES_MAX
      ? this.#mergeByScan(bytes, start, end, out, at)
      : mergeByHeap(this.#vocabulary, bytes, start, end, out, at);
  }

  #mergeByScan(bytes: Uint8Array, start: number, end: number, out: Uint32Array, at: number): number {
    const vocabulary = this.#vocabulary;
    const bounds = this.#bounds;
    const ids = this.#ids;
    const ranks = this.#ranks;
    let parts = end - start;
    for (let part = 0; part < parts; part++) {
      bounds[part] = start + part;
      ids[part] = vocabulary.idOfByte(bytes[start + part]!);
      if (part > 0) ranks[part - 1] = vocabulary.idOfPair(bytes[start + part - 1]!, bytes[start + part]!);
    }
    bounds[parts] = end;
    for (;;) {
      let lowest = NO_ID;
      let chosen = -1;
      for (let part = 0; part < parts - 1; part++) {
        if (ranks[part]! < lowest) {
          lowest = ranks[part]!;
          chosen = part;
        }
      }
      if (chosen === -1) break;
      ids[chosen] = lowest;
      parts--;
      for (let part = chosen + 1; part < parts; part++) {
        bounds[part] = bounds[part + 1]!;
        ids[part] = ids[part + 1]!;
        ranks[part] = ranks[part + 1]!;
      }
      bounds[parts] = end;
      if (chosen + 1 < parts) ranks[chosen] = vocabulary.idOf(bytes, bounds[chosen]!, bounds[chosen + 2]!);
      if (chosen > 0) ranks[chosen - 1] = vocabulary.idOf(bytes, bounds[chosen - 1]!, bounds[chosen + 1]!);
    }
    for (let part = 0; part < parts; part++) out[at + part] = ids[part]!;
    return at + parts;
  }
}

/** A binary min-heap of doubles of fixed capacity. */
class DoubleHeap {
  readonly #keys: Float64Array;
  #size = 0;

  constructor(capacity: number) {
    this.#keys = new Float64Array(capacity);
  }

  push(key: number): void {
    const keys = this.#keys;
    let at = this.#size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (keys[parent]! <= key) break;
      keys[at] = keys[parent]!;
      at = parent;
    }
    keys[at] = key;
  }

  /** The smallest key, or -1 when the heap is empty. */
  pop(): number {
    if (this.#size === 0) return -1;
    const keys = this.#keys;
    const top = keys[0]!;
    const last = keys[--this.#size]!;
    const size = this.#size;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= size) break;
      if (child + 1 < size && keys[child + 1]! < keys[child]!) child++;
      if (keys[child]! >= last) break;
      keys[at] = keys[child]!;
      at = child;
    }
    keys[at] = last;
    return top;
  }
}

/** The long way of `BytePairMerge.merge`. A part is named by its first byte; `ranks[p]` is that of p joined with its next. */
function mergeByHeap(
  vocabulary: Vocabulary,
  bytes: Uint8Array,
  start: number,
  end: number,
  out: Uint32Array,
  at: number,
): number {
  const length = end - start;
  const next = new Int32Array(length + 1);
  const previous = new Int32Array(length + 1);
  const ids = new Int32Array(length);
  const ranks = new Int32Array(length).fill(NO_ID);
  // At most one key per pair at first, and two more for each of the fewer than `length` merges, each of which took one.
  const heap = new DoubleHeap(2 * length);
  const rank = (part: number, partEnd: number): void => {
    const id = vocabulary.idOf(bytes, start + part, start + partEnd);
    ranks[part] = id;
    if (id !== NO_ID) heap.push(id * POSITION_SPAN + part);
  };
  for (let part = 0; part < length; part++) {
    next[part] = part + 1;
    previous[part + 1] = part;
    ids[part] = vocabulary.idOfByte(bytes[start + part]!);
    if (part + 1 < length) rank(part, part + 2);
  }
  for (let key = heap.pop(); key !== -1; key = heap.pop()) {
    const lowest = Math.floor(key / POSITION_SPAN);
    const part = key - lowest * POSITION_SPAN;
    // A key whose pair has changed since is out of date.
    if (ranks[part] !== lowest) continue;
    const eaten = next[part]!;
    const after = next[eaten]!;
    ids[part] = lowest;
    ranks[eaten] = NO_ID;
    next[part] = after;
    previous[after] = part;
    if (after < length) rank(part, next[after]!);
    else ranks[part] = NO_ID;
    if (part > 0) rank(previous[part]!, after);
  }
  let written = at;
  for (let part = 0; part < length; part = next[part]!) out[written++] = ids[part]!;
  return written;
}
