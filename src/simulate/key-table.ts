/**
 * Finds the block that holds a prefix by its key: open addressing over block numbers, with linear probing and no marks for
 * what was deleted. A Map of numbers above 2^31 boxes each key and costs most of a fast replay. Owned by one BlockPool.
 */

const EMPTY = -1;

/** See the head of the file. A key is in it at most once. */
export class KeyTable {
  /** Keys by block, written by the owner. */
  readonly #keys: Float64Array;
  readonly #slots: Int32Array;
  readonly #mask: number;

  /** At most `keys.length` blocks are in it at one time. */
  constructor(keys: Float64Array) {
    this.#keys = keys;
    const size = 2 ** Math.ceil(Math.log2(2 * keys.length + 1));
    this.#slots = new Int32Array(size).fill(EMPTY);
    this.#mask = size - 1;
  }

  /** The block of `key`; −1 when there is none. */
  get(key: number): number {
    return this.#slots[this.#find(key)]!;
  }

  /** Puts `block`, whose key is in `keys`, in the place of the block that has the same key, or in a new one. */
  set(block: number): void {
    this.#slots[this.#find(this.#keys[block]!)] = block;
  }

  /** Takes out everything. */
  clear(): void {
    this.#slots.fill(EMPTY);
  }

  /** Takes out a key that is in the table, by its block. */
  delete(block: number): void {
    const slots = this.#slots;
    let hole = this.#find(this.#keys[block]!);
    for (let at = (hole + 1) & this.#mask; slots[at] !== EMPTY; at = (at + 1) & this.#mask) {
      const home = this.#home(this.#keys[slots[at]!]!);
      // An entry may move back to the hole unless its home lies behind the hole.
      if (((at - home) & this.#mask) < ((at - hole) & this.#mask)) continue;
      slots[hole] = slots[at]!;
      hole = at;
    }
    slots[hole] = EMPTY;
  }

  #find(key: number): number {
    let at = this.#home(key);
    for (;;) {
      const block = this.#slots[at]!;
      if (block === EMPTY || this.#keys[block] === key) return at;
      at = (at + 1) & this.#mask;
    }
  }

  #home(key: number): number {
    const mixed = Math.imul(key | 0, 0x9e3779b1);
    return (mixed ^ (mixed >>> 15)) & this.#mask;
  }
}
