/**
 * The blocks that a worker without KV events is thought to hold, in order of their last use (R4). A prompt's blocks are
 * used together and its first one counts as used last, so every block is older than its ancestors: whatever is taken
 * from the old end, what stays has no hole. Typed arrays that double up to the capacity and stay; one per holder, on the
 * thread that writes the index.
 */

/** No entry; also the two ends of the list. */
const NONE = 0;
const ENTRIES_START = 1024;

/** See the head of the file. */
export class RecentBlocks {
  readonly capacity: number;
  readonly #seed: number;
  #size = 0;
  /** Entries from here on were never used. */
  #untouched = 1;
  /** Entries that were given back, through #older. */
  #free = NONE;
  #low = new Uint32Array(0);
  #high = new Uint32Array(0);
  #newer = new Uint32Array(0);
  #older = new Uint32Array(0);
  #usedMs = new Float64Array(0);
  /** First entry of each hash bucket, and from each entry the next one of its bucket. */
  #buckets = new Uint32Array(0);
  #chain = new Uint32Array(0);
  /** Entries of the prompt that is being used. */
  #held = new Uint32Array(0);

  /**
   * @param capacity most blocks, ≥ 1
   * @param seed 32 bits that nobody outside knows, so that nobody can choose blocks that meet in one bucket
   */
  constructor(capacity: number, seed: number) {
    this.capacity = capacity;
    this.#seed = seed;
    this.#resize(Math.min(ENTRIES_START, capacity));
  }

  /** Blocks held. */
  get size(): number {
    return this.#size;
  }

  /**
   * How many leading ones of `count` blocks are held. They are taken out of the order of use, so that `evict` spares them,
   * and belong back by `use` of the same prompt.
   */
  lift(hashes: Uint32Array, count: number): number {
    if (this.#held.length < count) this.#held = new Uint32Array(2 ** Math.ceil(Math.log2(count)));
    let held = 0;
    for (; held < count; held += 1) {
      const entry = this.#find(hashes[2 * held]!, hashes[2 * held + 1]!);
      if (entry === NONE) break;
      this.#unlink(entry);
      this.#held[held] = entry;
    }
    return held;
  }

  /** Takes up to `count` blocks from the old end, into `out`, deepest first. Returns how many. */
  evict(count: number, out: Uint32Array): number {
    return this.#evict(count, Number.POSITIVE_INFINITY, out);
  }

  /** Takes up to `count` blocks that were last used at `untilMs` or before. Returns how many. */
  expire(count: number, untilMs: number, out: Uint32Array): number {
    return this.#evict(count, untilMs, out);
  }

  /** The first `count` blocks are used now: the `held` ones that `lift` found, and new ones, for which there is room. */
  use(hashes: Uint32Array, held: number, count: number, nowMs: number): void {
    const entries = this.#size + count - held + 1;
    if (entries > this.#low.length) this.#resize(Math.min(2 ** Math.ceil(Math.log2(entries)), this.capacity));
    for (let block = count - 1; block >= 0; block -= 1) {
      const entry =
        block < held ? this.#held[block]! : this.#insert(hashes[2 * block]!, hashes[2 * block + 1]!);
      this.#usedMs[entry] = nowMs;
      this.#link(entry);
    }
  }

  #evict(count: number, untilMs: number, out: Uint32Array): number {
    let taken = 0;
    for (; taken < count; taken += 1) {
      const entry = this.#newer[NONE]!;
      if (entry === NONE || this.#usedMs[entry]! > untilMs) break;
      out[2 * taken] = this.#low[entry]!;
      out[2 * taken + 1] = this.#high[entry]!;
      this.#unlink(entry);
      this.#drop(entry);
    }
    return taken;
  }

  #bucketOf(low: number, high: number): number {
    let mixed = Math.imul(low ^ this.#seed, 0x85ebca6b) ^ high;
    mixed = Math.imul(mixed ^ (mixed >>> 15) ^ this.#seed, 0xc2b2ae35);
    return (mixed ^ (mixed >>> 13)) & (this.#buckets.length - 1);
  }

  #find(low: number, high: number): number {
    let entry = this.#buckets[this.#bucketOf(low, high)]!;
    while (entry !== NONE && (this.#low[entry] !== low || this.#high[entry] !== high))
      entry = this.#chain[entry]!;
    return entry;
  }

  #insert(low: number, high: number): number {
    let entry = this.#free;
    if (entry === NONE) entry = this.#untouched++;
    else this.#free = this.#older[entry]!;
    this.#low[entry] = low;
    this.#high[entry] = high;
    const bucket = this.#bucketOf(low, high);
    this.#chain[entry] = this.#buckets[bucket]!;
    this.#buckets[bucket] = entry;
    this.#size += 1;
    return entry;
  }

  #drop(entry: number): void {
    const bucket = this.#bucketOf(this.#low[entry]!, this.#high[entry]!);
    if (this.#buckets[bucket] === entry) this.#buckets[bucket] = this.#chain[entry]!;
    else {
      let before = this.#buckets[bucket]!;
      while (this.#chain[before] !== entry) before = this.#chain[before]!;
      this.#chain[before] = this.#chain[entry]!;
    }
    this.#older[entry] = this.#free;
    this.#free = entry;
    this.#size -= 1;
  }

  #link(entry: number): void {
    const newest = this.#older[NONE]!;
    this.#older[entry] = newest;
    this.#newer[newest] = entry;
    this.#newer[entry] = NONE;
    this.#older[NONE] = entry;
  }

  #unlink(entry: number): void {
    const [older, newer] = [this.#older[entry]!, this.#newer[entry]!];
    this.#newer[older] = newer;
    this.#older[newer] = older;
  }

  /** Room for `blocks` entries and the ends of the list. */
  #resize(blocks: number): void {
    const grow = (from: Uint32Array): Uint32Array<ArrayBuffer> => {
      const to = new Uint32Array(blocks + 1);
      to.set(from);
      return to;
    };
    this.#low = grow(this.#low);
    this.#high = grow(this.#high);
    this.#newer = grow(this.#newer);
    this.#older = grow(this.#older);
    const usedMs = new Float64Array(blocks + 1);
    usedMs.set(this.#usedMs);
    this.#usedMs = usedMs;
    this.#rehash(blocks);
  }

  #rehash(blocks: number): void {
    const chained = this.#buckets;
    const chain = this.#chain;
    this.#buckets = new Uint32Array(2 ** Math.ceil(Math.log2(blocks)));
    this.#chain = new Uint32Array(blocks + 1);
    for (const first of chained) {
      for (let entry = first; entry !== NONE; entry = chain[entry]!) {
        const bucket = this.#bucketOf(this.#low[entry]!, this.#high[entry]!);
        this.#chain[entry] = this.#buckets[bucket]!;
        this.#buckets[bucket] = entry;
      }
    }
  }
}
