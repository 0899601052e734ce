/** Finds engine hashes that occur twice in one store (R4, thread of the sink), in one pass and without allocating. */
import { strict as assert } from 'node:assert';
import { ENGINE_HASH_WORDS } from '../index/contract.js';
import { EVENT_BLOCKS_MAX } from './event-tables.js';

/** A power of two, so that the table is at most half full. */
const SLOTS = EVENT_BLOCKS_MAX * 2;

/** A hash table that is used again for every store; belongs to one applier. */
export class RepeatedHash {
  /** Base + index of a block; what is below the base is of a store before. */
  readonly #slots = new Int32Array(SLOTS);
  #base = 1;

  /** Whether two of the first `count` hashes are equal. */
  find(hashes: Uint32Array, count: number): boolean {
    assert(count <= EVENT_BLOCKS_MAX, 'a store has at most EVENT_BLOCKS_MAX blocks');
    if (count < 2) return false;
    if (this.#base > 0x7fff_ffff - EVENT_BLOCKS_MAX) {
      this.#slots.fill(0);
      this.#base = 1;
    }
    const base = this.#base;
    this.#base += count;
    for (let i = 0; i < count; i += 1) {
      let slot = slotOf(hashes, i);
      for (; this.#slots[slot]! >= base; slot = (slot + 1) & (SLOTS - 1))
        if (sameHash(hashes, this.#slots[slot]! - base, hashes, i)) return true;
      this.#slots[slot] = base + i;
    }
    return false;
  }
}

/** Whether hash `i` of `a` is hash `j` of `b`. */
export function sameHash(a: Uint32Array, i: number, b: Uint32Array, j: number): boolean {
  for (let word = 0; word < ENGINE_HASH_WORDS; word += 1)
    if (a[i * ENGINE_HASH_WORDS + word] !== b[j * ENGINE_HASH_WORDS + word]) return false;
  return true;
}

function slotOf(hashes: Uint32Array, index: number): number {
  let mixed = 0;
  for (let word = 0; word < ENGINE_HASH_WORDS; word += 1) {
    mixed = Math.imul(mixed ^ hashes[index * ENGINE_HASH_WORDS + word]!, 0x9e37_79b1);
    mixed ^= mixed >>> 15;
  }
  return mixed & (SLOTS - 1);
}
