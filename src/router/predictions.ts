/**
 * What workers will soon have in their caches because of requests that this thread has just sent there (R4). KV events
 * tell it only when a worker begins to compute; until then siblings of a request, which come with it, would see no prefix
 * anywhere and be spread over the fleet. A set-associative table of blocks, each with a few holders and an expiry: bounded,
 * never rehashed; what it forgets is only undercounted. One per decider, on its thread.
 *
 *     bucket, 128 bytes      low words of WAYS blocks │ high words │ expiries, 8 bytes each │ HOLDERS tags of each block
 */
import type { PromptBlocks } from './decide.js';

const BUCKETS = 2 ** 13;
const WAYS = 4;
/** Workers kept per block. */
const HOLDERS = 4;
const HIGH = WAYS;
const EXPIRY = 2 * WAYS;
const TAGS = 4 * WAYS;
const BUCKET_WORDS = TAGS + WAYS * HOLDERS;

/** Slots are below 2^12. Generations that are 2^20 replacements apart look the same, never within an expiry. */
const SLOT_SHIFT = 20;
const tagOf = (slot: number, generation: number): number =>
  ((slot << SLOT_SHIFT) | (generation & ((1 << SLOT_SHIFT) - 1))) >>> 0;

/** See the head of the file. */
export class Predictions {
  readonly #words = new Uint32Array(BUCKETS * BUCKET_WORDS);
  /** The same memory. */
  readonly #times = new Float64Array(this.#words.buffer);
  /** Of each bucket: counts what was replaced there. */
  readonly #turns = new Uint8Array(BUCKETS);
  /** No entry lives from here on. */
  #allExpiredMs = 0;

  /** The worker will hold blocks `from` to the end of `blocks`, until `expiresMs`. */
  add(
    blocks: PromptBlocks,
    from: number,
    slot: number,
    generation: number,
    nowMs: number,
    expiresMs: number,
  ): void {
    const { hashes, count } = blocks;
    const tag = tagOf(slot, generation);
    this.#allExpiredMs = Math.max(this.#allExpiredMs, expiresMs);
    const times = this.#times;
    for (let block = from; block < count; block += 1) {
      const low = hashes[2 * block]!;
      const high = hashes[2 * block + 1]!;
      const bucket = (low & (BUCKETS - 1)) * BUCKET_WORDS;
      const way = this.#wayOf(bucket, low, high);
      if (way < 0) this.#replace(bucket, low, high, tag, nowMs, expiresMs);
      else {
        const time = (bucket + EXPIRY) / 2 + way;
        this.#addHolder(bucket + TAGS + way * HOLDERS, tag, times[time]! > nowMs);
        if (times[time]! < expiresMs) times[time] = expiresMs;
      }
    }
  }

  /** Where the living predictions of a block are kept, −1: there are none. Valid until the next `add`. */
  find(blocks: PromptBlocks, block: number, nowMs: number): number {
    if (nowMs >= this.#allExpiredMs) return -1;
    const low = blocks.hashes[2 * block]!;
    const high = blocks.hashes[2 * block + 1]!;
    const bucket = (low & (BUCKETS - 1)) * BUCKET_WORDS;
    const way = this.#wayOf(bucket, low, high);
    return way >= 0 && this.#times[(bucket + EXPIRY) / 2 + way]! > nowMs ? bucket + TAGS + way * HOLDERS : -1;
  }

  /** True when the worker is among those predicted at `place`, which `find` gave. */
  isHolder(place: number, slot: number, generation: number): boolean {
    const tag = tagOf(slot, generation);
    const words = this.#words;
    for (let at = place; at < place + HOLDERS; at += 1) if (words[at] === tag) return true;
    return false;
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
    const place = this.find(blocks, block, nowMs);
    return place >= 0 && this.isHolder(place, slot, generation);
  }

  /** The way of a block in its bucket, −1: none. */
  #wayOf(bucket: number, low: number, high: number): number {
    const words = this.#words;
    for (let way = 0; way < WAYS; way += 1)
      if (words[bucket + way] === low && words[bucket + HIGH + way] === high) return way;
    return -1;
  }

  /**
   * Takes the place of a block that has expired, else of the one that expires first. The ways come in turn, so the next one
   * has mostly expired: always to compare all of them would cost more than all the rest of `add`.
   */
  #replace(bucket: number, low: number, high: number, tag: number, nowMs: number, expiresMs: number): void {
    const words = this.#words;
    const times = this.#times;
    const time = (bucket + EXPIRY) / 2;
    const turn = this.#turns[bucket / BUCKET_WORDS]!;
    this.#turns[bucket / BUCKET_WORDS] = turn + 1;
    let way = turn & (WAYS - 1);
    if (times[time + way]! > nowMs)
      for (let other = 0; other < WAYS; other += 1)
        if (times[time + other]! < times[time + way]!) way = other;
    words[bucket + way] = low;
    words[bucket + HIGH + way] = high;
    times[time + way] = expiresMs;
    const first = bucket + TAGS + way * HOLDERS;
    words[first] = tag;
    for (let at = first + 1; at < first + HOLDERS; at += 1) words[at] = 0;
  }

  /** Newest first; the oldest falls off, and all of them when they have expired. */
  #addHolder(first: number, tag: number, living: boolean): void {
    const words = this.#words;
    const slot = tag >>> SLOT_SHIFT;
    let at = first;
    if (living)
      while (at < first + HOLDERS - 1 && words[at] !== 0 && words[at]! >>> SLOT_SHIFT !== slot) at += 1;
    else for (let old = first; old < first + HOLDERS; old += 1) words[old] = 0;
    for (; at > first; at -= 1) words[at] = words[at - 1]!;
    words[first] = tag;
  }
}
