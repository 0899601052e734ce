/**
 * What workers will soon have in their caches because of requests that this thread has just sent there (R4). KV events
 * tell it only when a worker begins to compute; until then siblings of a request, which come with it, would see no prefix
 * anywhere and be spread over the fleet. A set-associative table of blocks, each with a few slots and an expiry: bounded,
 * never rehashed; what it forgets is only undercounted. One per decider, on its thread.
 */
import type { PromptBlocks } from './decide.js';

/** Blocks: 2^BUCKET_BITS buckets of WAYS entries. */
const BUCKET_BITS = 13;
const WAYS = 4;
/** Slots kept per block. */
const HOLDERS = 4;
const NO_HOLDER = 0xffff_ffff;

/** See the head of the file. */
export class Predictions {
  readonly #low = new Uint32Array(WAYS << BUCKET_BITS);
  readonly #high = new Uint32Array(WAYS << BUCKET_BITS);
  readonly #expiresMs = new Float64Array(WAYS << BUCKET_BITS);
  readonly #holders = new Uint32Array((WAYS << BUCKET_BITS) * HOLDERS).fill(NO_HOLDER);
  readonly #generations = new Uint32Array((WAYS << BUCKET_BITS) * HOLDERS);

  /** The worker will hold blocks `from` to the end of `blocks`, until `expiresMs`. */
  add(
    blocks: PromptBlocks,
    from: number,
    slot: number,
    generation: number,
    nowMs: number,
    expiresMs: number,
  ): void {
    for (let block = from; block < blocks.count; block += 1) {
      const low = blocks.hashes[2 * block]!;
      const high = blocks.hashes[2 * block + 1]!;
      const entry = this.#claim(low, high, nowMs);
      this.#expiresMs[entry] = Math.max(this.#expiresMs[entry]!, expiresMs);
      this.#addHolder(entry * HOLDERS, slot, generation);
    }
  }

  /** Leading blocks that the worker holds or will hold, when it is known to hold `depth` of them. */
  extend(blocks: PromptBlocks, depth: number, slot: number, generation: number, nowMs: number): number {
    if (depth >= blocks.count || !this.#has(blocks, depth, slot, generation, nowMs)) return depth;
    // A prompt's blocks are added together, so those of one worker follow each other without a hole.
    let held = depth + 1;
    let step = 1;
    while (held + step <= blocks.count && this.#has(blocks, held + step - 1, slot, generation, nowMs)) {
      held += step;
      step *= 2;
    }
    let missing = Math.min(held + step, blocks.count + 1);
    while (missing - held > 1) {
      const middle = (held + missing) >> 1;
      if (this.#has(blocks, middle - 1, slot, generation, nowMs)) held = middle;
      else missing = middle;
    }
    return held;
  }

  #has(blocks: PromptBlocks, block: number, slot: number, generation: number, nowMs: number): boolean {
    const entry = this.#find(blocks.hashes[2 * block]!, blocks.hashes[2 * block + 1]!, nowMs);
    if (entry < 0) return false;
    for (let at = entry * HOLDERS; at < (entry + 1) * HOLDERS; at += 1) {
      if (this.#holders[at] === slot) return this.#generations[at] === generation;
    }
    return false;
  }

  /** The living entry of a block, −1 when there is none. */
  #find(low: number, high: number, nowMs: number): number {
    const first = (low & ((1 << BUCKET_BITS) - 1)) * WAYS;
    for (let entry = first; entry < first + WAYS; entry += 1) {
      if (this.#low[entry] === low && this.#high[entry] === high)
        return this.#expiresMs[entry]! > nowMs ? entry : -1;
    }
    return -1;
  }

  /** The entry of a block: its own, or else that of its bucket which expires first, emptied. */
  #claim(low: number, high: number, nowMs: number): number {
    const first = (low & ((1 << BUCKET_BITS) - 1)) * WAYS;
    let entry = first;
    for (let at = first; at < first + WAYS; at += 1) {
      if (this.#low[at] === low && this.#high[at] === high) {
        if (this.#expiresMs[at]! > nowMs) return at;
        entry = at;
        break;
      }
      if (this.#expiresMs[at]! < this.#expiresMs[entry]!) entry = at;
    }
    this.#low[entry] = low;
    this.#high[entry] = high;
    this.#expiresMs[entry] = 0;
    // A loop, because `fill` costs more than four stores.
    for (let at = entry * HOLDERS; at < (entry + 1) * HOLDERS; at += 1) this.#holders[at] = NO_HOLDER;
    return entry;
  }

  /** Newest first; the oldest falls off. */
  #addHolder(first: number, slot: number, generation: number): void {
    let at = first;
    while (at < first + HOLDERS - 1 && this.#holders[at] !== slot) at += 1;
    for (; at > first; at -= 1) {
      this.#holders[at] = this.#holders[at - 1]!;
      this.#generations[at] = this.#generations[at - 1]!;
    }
    this.#holders[first] = slot;
    this.#generations[first] = generation;
  }
}
