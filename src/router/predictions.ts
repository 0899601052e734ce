/**
 * What workers will soon have in their caches because of requests that this thread has just sent there (R4). KV events
 * tell it only when a worker begins to compute; until then siblings of a request, which come with it, would see no prefix
 * anywhere and be spread over the fleet. One record per prompt: the worker and the blocks that it lacked. A sequence hash
 * names all blocks before it too, so what two prompts have in common is found by halving. Bounded, never rehashed; what
 * it forgets is only undercounted. One per decider, on its thread.
 *
 *     hashes     ring of sequence hashes, two words per block: those of a record lie together
 *     records    ring by serial number: worker, first block and the one behind the last, where its hashes lie, expiry
 *     buckets    by sequence hash: serials of the last PLACES records with this block at their beginning or at a multiple
 *                of STRIDE; other blocks of theirs are found from the one of these before
 */
import type { PromptBlocks } from './decide.js';

const HASHES = 2 ** 16;
const RECORDS = 2 ** 12;
const BUCKETS = 2 ** 13;
/** Records of a bucket: also the most workers for which one block is predicted. */
const PLACES = 8;
/** Blocks from one that is in the buckets to the next. */
const STRIDE = 16;
/** Longer prompts are remembered by their beginning: none takes more than a part of the memory. */
const RECORD_BLOCKS_MAX = HASHES / 8;

/** Slots are below 2^12. Generations that are 2^20 replacements apart look the same, never within an expiry. */
const SLOT_SHIFT = 20;
const tagOf = (slot: number, generation: number): number =>
  ((slot << SLOT_SHIFT) | (generation & ((1 << SLOT_SHIFT) - 1))) >>> 0;

/** Records that have one block: the first `count` of `serials`. */
interface Found {
  readonly serials: Uint32Array;
  count: number;
}

const nothingFound = (): Found => ({ serials: new Uint32Array(PLACES * STRIDE), count: 0 });

/** See the head of the file. */
export class Predictions {
  readonly #hashes = new Uint32Array(2 * HASHES);
  /** Blocks ever written to `#hashes`, unused ends of the ring among them. */
  #written = 0;
  readonly #tags = new Uint32Array(RECORDS);
  readonly #firsts = new Uint32Array(RECORDS);
  readonly #ends = new Uint32Array(RECORDS);
  /** Where its hashes lie, counted as `#written`. */
  readonly #starts = new Float64Array(RECORDS);
  readonly #expiriesMs = new Float64Array(RECORDS);
  readonly #buckets = new Uint32Array(BUCKETS * PLACES);
  /** Of the last record; 0 names none. */
  #serial = 0;
  /** The last ones, among which are all that live. */
  #living = 0;
  #blocks: PromptBlocks | null = null;
  #nowMs = 0;
  /** The block that was looked for last, and the records that have it. */
  #foundAt = -1;
  readonly #found = nothingFound();
  /** The same for what lies behind a record. */
  readonly #foundBehind = nothingFound();

  /** The worker will hold blocks `from` to the end of `blocks`, until `expiresMs`. */
  add(blocks: PromptBlocks, from: number, slot: number, generation: number, expiresMs: number): void {
    const end = Math.min(blocks.count, from + RECORD_BLOCKS_MAX);
    if (end <= from) return;
    const start = this.#keep(blocks.hashes, from, end);
    this.#serial = (this.#serial + 1) >>> 0 || 1;
    this.#living = Math.min(this.#living + 1, RECORDS);
    const record = this.#serial % RECORDS;
    this.#tags[record] = tagOf(slot, generation);
    this.#firsts[record] = from;
    this.#ends[record] = end;
    this.#starts[record] = start;
    this.#expiriesMs[record] = expiresMs;
    this.#enter(blocks.hashes[2 * from]!);
    for (let block = from - (from % STRIDE) + STRIDE; block < end; block += STRIDE)
      this.#enter(blocks.hashes[2 * block]!);
  }

  /** Begins a prompt, which must not change until the last call of `extend` for it. */
  open(blocks: PromptBlocks, nowMs: number): void {
    this.#nowMs = nowMs;
    while (this.#living > 0 && !this.#isLiving(this.#serial - this.#living + 1)) this.#living -= 1;
    this.#blocks = this.#living > 0 ? blocks : null;
    this.#foundAt = -1;
  }

  /** Leading blocks of the prompt that the worker holds or will hold, when it is known to hold `depth` of them. */
  extend(depth: number, slot: number, generation: number): number {
    const blocks = this.#blocks;
    if (blocks === null) return depth;
    // Most workers lack the same block: one search serves them all.
    if (depth !== this.#foundAt) {
      this.#search(blocks, depth, this.#found);
      this.#foundAt = depth;
    }
    if (this.#found.count === 0) return depth;
    const tag = tagOf(slot, generation);
    let held = depth;
    let record = this.#recordOf(tag, this.#found);
    while (record >= 0) {
      held = this.#shared(blocks, record, held);
      this.#search(blocks, held, this.#foundBehind);
      record = this.#recordOf(tag, this.#foundBehind);
    }
    return held;
  }

  /** Copies hashes into the ring; returns where they lie. */
  #keep(hashes: Uint32Array, from: number, end: number): number {
    const left = HASHES - (this.#written % HASHES);
    if (left < end - from) this.#written += left;
    const start = this.#written;
    this.#hashes.set(hashes.subarray(2 * from, 2 * end), 2 * (start % HASHES));
    this.#written += end - from;
    return start;
  }

  /** Puts the last record into the bucket of a hash, by its low word; the oldest there falls out. */
  #enter(low: number): void {
    const buckets = this.#buckets;
    const first = (low % BUCKETS) * PLACES;
    for (let at = first + PLACES - 1; at > first; at -= 1) buckets[at] = buckets[at - 1]!;
    buckets[first] = this.#serial;
  }

  /** Finds the living records that have block `block` of the prompt, the newest of a bucket first. */
  #search(blocks: PromptBlocks, block: number, found: Found): void {
    found.count = 0;
    if (block >= blocks.count) return;
    for (let at = block; at >= block - (block % STRIDE); at -= 1) {
      const first = (blocks.hashes[2 * at]! % BUCKETS) * PLACES;
      for (let place = first; place < first + PLACES; place += 1) {
        const serial = this.#buckets[place]!;
        // What is behind it is older still.
        if (serial === 0 || (this.#serial - serial) >>> 0 >= this.#living) break;
        if (this.#isLiving(serial) && this.#has(blocks, serial % RECORDS, block))
          found.serials[found.count++] = serial;
      }
    }
  }

  #isLiving(serial: number): boolean {
    const record = (serial >>> 0) % RECORDS;
    return this.#expiriesMs[record]! > this.#nowMs && this.#written - this.#starts[record]! <= HASHES;
  }

  /** The first record of this worker, −1: there is none. */
  #recordOf(tag: number, found: Found): number {
    for (let at = 0; at < found.count; at += 1) {
      const record = found.serials[at]! % RECORDS;
      if (this.#tags[record] === tag) return record;
    }
    return -1;
  }

  /** Whether block `block` of the prompt is one of the record. */
  #has(blocks: PromptBlocks, record: number, block: number): boolean {
    const first = this.#firsts[record]!;
    if (block < first || block >= this.#ends[record]!) return false;
    const at = 2 * ((this.#starts[record]! % HASHES) + block - first);
    return (
      this.#hashes[at] === blocks.hashes[2 * block] && this.#hashes[at + 1] === blocks.hashes[2 * block + 1]
    );
  }

  /** Leading blocks of the prompt up to the last one that the record has, which has block `known`. */
  #shared(blocks: PromptBlocks, record: number, known: number): number {
    let held = known + 1;
    let missing = Math.min(this.#ends[record]!, blocks.count) + 1;
    while (missing - held > 1) {
      const middle = (held + missing) >> 1;
      if (this.#has(blocks, record, middle - 1)) held = middle;
      else missing = middle;
    }
    return held;
  }
}
