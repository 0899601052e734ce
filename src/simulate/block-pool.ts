/**
 * Paged KV memory of a simulated engine: physical blocks, which of them hold a reusable prefix, and in which order they
 * are given up. Rules of vLLM's block pool as Dynamo's mocker states them. Owned by one EngineCore; no clock, no I/O.
 *
 * A reference may be a pin: it outlives its request until another engine has read the block.
 *
 *     free ──reserve──► private ──publish──► cached, refs > 0 ──release──► cached, refs = 0 (inactive, in LRU order)
 *       ▲                  │ release                ▲  reserve of a hit ◄──────┘        │ eviction, oldest first
 *       └──────────────────┴─────────────────────── ┼ ◄─────────────────────────────────┘
 */
import assert from 'node:assert';
import { type BlockStore, OwnBlocks } from './block-store.js';
import { KeyTable } from './key-table.js';

const FREE = 0;
const PRIVATE = 1;
const CACHED = 2;
/** No block. */
const NONE = -1;

/** One block as `snapshot` shows it. */
export interface BlockState {
  readonly state: 'private' | 'cached';
  readonly refs: number;
  /** References that are pins. */
  readonly pins: number;
  /** Identity of the prefix that ends with this block; null while it is private. */
  readonly key: number | null;
}

/** The whole pool at one moment, for tests and diagnosis; O(capacity). */
export interface BlockPoolSnapshot {
  readonly blocks: ReadonlyMap<number, BlockState>;
  /** Blocks without a reader, next to be evicted first. */
  readonly inactive: readonly number[];
  /** Copies of each key; the first one answers look-ups. */
  readonly copies: ReadonlyMap<number, readonly number[]>;
  readonly free: number;
}

/** A sequence as BlockEvents see it, valid during the call. */
export interface CachedSequence {
  /** Keys of its full blocks, in order. */
  readonly keys: readonly number[];
  /** `cache_salt` of its request; empty without one. */
  readonly cacheSalt: string;
  /** Name of its request's LoRA adapter; absent or empty: none. */
  readonly adapter?: string;
  /** Token id at a position of prompt and answer. Only for a sequence whose prompt has ids. */
  tokenAt(position: number): number;
}

/**
 * Hears which prefixes are resident, as an engine's KV events tell it (Dynamo's mocker: `Stored` only on a key's first
 * copy, `Removed` only with its last one). Called while a pass is scheduled: what it hears is true at the pass's start.
 */
export interface BlockEvents {
  /**
   * The blocks `from` to `to − 1` of a sequence became resident; the parent of the first is block `from − 1`, none when
   * `from` is 0.
   */
  stored(sequence: CachedSequence, from: number, to: number): void;
  /** The last copy of `key` is gone. */
  removed(key: number): void;
  /** Nothing is resident any more. */
  cleared(): void;
}

/** Blocks are integers from 0 to capacity − 1. Keys are integers below 2^53 that name a whole prefix. */
export class BlockPool {
  readonly capacity: number;
  readonly #events: BlockEvents | null;
  readonly #state: Uint8Array;
  readonly #refs: Int32Array;
  readonly #pins: Int32Array;
  readonly #keys: Float64Array;
  /** LRU list of inactive blocks through a sentinel at index `capacity`. */
  readonly #previous: Int32Array;
  readonly #next: Int32Array;
  /** First copy of each key, and from each copy the next one. */
  readonly #firstCopy: KeyTable;
  readonly #nextCopy: Int32Array;
  readonly #store: BlockStore;
  /** Blocks that are not with the store. */
  #used = 0;
  #inactive = 0;
  #inactiveHits = 0;
  #pinned = 0;

  /**
   * `events` hears of removals from here; stores come from whoever publishes, which knows the parents. `store` has the
   * free blocks; by default plain memory.
   */
  constructor(
    capacity: number,
    events: BlockEvents | null = null,
    store: BlockStore = new OwnBlocks(capacity),
  ) {
    this.capacity = capacity;
    this.#events = events;
    this.#store = store;
    this.#state = new Uint8Array(capacity);
    this.#refs = new Int32Array(capacity);
    this.#pins = new Int32Array(capacity);
    this.#keys = new Float64Array(capacity);
    this.#firstCopy = new KeyTable(this.#keys);
    this.#nextCopy = new Int32Array(capacity);
    this.#previous = new Int32Array(capacity + 1);
    this.#next = new Int32Array(capacity + 1);
    this.#previous[capacity] = capacity;
    this.#next[capacity] = capacity;
  }

  /** Blocks that hold nothing and can be taken. */
  get free(): number {
    return this.#store.free;
  }

  /** Blocks with at least one pin. */
  get pinned(): number {
    return this.#pinned;
  }

  /** Blocks that a request or a pin holds. */
  get active(): number {
    return this.#used - this.#inactive;
  }

  /**
   * Fills `hits` with the resident blocks of the longest resident prefix of `keys`. They are not held yet: nothing
   * may happen to the pool between this and `reserve`.
   */
  match(keys: readonly number[], hits: number[]): void {
    hits.length = 0;
    this.#inactiveHits = 0;
    for (const key of keys) {
      const block = this.#firstCopy.get(key);
      if (block === NONE) return;
      if (this.#refs[block] === 0) this.#inactiveHits++;
      hits.push(block);
    }
  }

  /**
   * Takes the blocks of the last `match` (`hits`) and `fresh` private blocks, and appends both to `into`. Returns
   * false, and takes nothing, when there is no room; reviving an inactive hit counts as use of room.
   */
  reserve(hits: readonly number[], fresh: number, into: number[]): boolean {
    const inactiveHits = hits.length === 0 ? 0 : this.#inactiveHits;
    if (fresh - this.free > this.#inactive - inactiveHits) return false;
    const from = into.length;
    for (const block of hits) {
      if (this.#refs[block] === 0) this.#unlink(block);
      this.#refs[block]!++;
      into.push(block);
    }
    // A block that a peer still reads is evicted and not free: then the next one goes too.
    while (this.free < fresh && this.#inactive > 0) this.#evictOldest();
    if (this.free < fresh) {
      this.release(into.splice(from));
      return false;
    }
    this.#store.take(fresh, into);
    this.#used += fresh;
    for (let at = into.length - fresh; at < into.length; at++) this.#state[into[at]!] = PRIVATE;
    return true;
  }

  /**
   * Makes a full block findable under `key`; true when no other copy of it was. A block that is already findable stays
   * as it is.
   */
  publish(block: number, key: number): boolean {
    if (this.#state[block] === CACHED) return false;
    assert(this.#state[block] === PRIVATE);
    this.#state[block] = CACHED;
    this.#refs[block] = 1;
    this.#keys[block] = key;
    this.#nextCopy[block] = NONE;
    let last = this.#firstCopy.get(key);
    if (last === NONE) {
      this.#firstCopy.set(block);
      return true;
    }
    while (this.#nextCopy[last] !== NONE) last = this.#nextCopy[last]!;
    this.#nextCopy[last] = block;
    return false;
  }

  /** Gives a request's blocks back, last one first, so that leaves are evicted before their parents. Empties the list. */
  release(blocks: number[]): void {
    const freed: number[] = [];
    for (let at = blocks.length - 1; at >= 0; at--) {
      const block = blocks[at]!;
      if (this.#state[block] === PRIVATE) {
        assert(this.#pins[block] === 0);
        freed.push(block);
        continue;
      }
      assert(this.#refs[block]! > this.#pins[block]!);
      if (--this.#refs[block]! === 0) this.#linkNewest(block);
    }
    this.#give(freed);
    blocks.length = 0;
  }

  /** Turns a request's references into pins: the same blocks, until `unpin`. */
  pin(blocks: readonly number[]): void {
    for (const block of blocks) {
      assert(this.#state[block] === PRIVATE || this.#refs[block]! > this.#pins[block]!);
      if (this.#pins[block]!++ === 0) this.#pinned++;
    }
  }

  /** Takes pins away and gives the blocks back, as `release` does. Empties the list. */
  unpin(blocks: number[]): void {
    for (const block of blocks) {
      assert(this.#pins[block]! > 0);
      if (--this.#pins[block]! === 0) this.#pinned--;
    }
    this.release(blocks);
  }

  /**
   * Forgets every prefix. Returns false, and changes nothing, while a request holds a block, as vLLM's
   * `reset_prefix_cache` does.
   */
  reset(): boolean {
    if (this.active > 0) return false;
    this.#state.fill(FREE);
    this.#firstCopy.clear();
    this.#store.clear();
    this.#used = 0;
    this.#inactive = 0;
    this.#previous[this.capacity] = this.capacity;
    this.#next[this.capacity] = this.capacity;
    this.#events?.cleared();
    return true;
  }

  /** A copy of the whole state. */
  snapshot(): BlockPoolSnapshot {
    const blocks = new Map<number, BlockState>();
    for (let block = 0; block < this.capacity; block++) {
      if (this.#state[block] === FREE) continue;
      const cached = this.#state[block] === CACHED;
      blocks.set(block, {
        state: cached ? 'cached' : 'private',
        refs: cached ? this.#refs[block]! : 1,
        pins: this.#pins[block]!,
        key: cached ? this.#keys[block]! : null,
      });
    }
    const inactive: number[] = [];
    for (let at = this.#next[this.capacity]!; at !== this.capacity; at = this.#next[at]!) inactive.push(at);
    const copies = new Map<number, number[]>();
    for (const { key } of blocks.values()) {
      if (key === null || copies.has(key)) continue;
      const list: number[] = [];
      for (let at = this.#firstCopy.get(key); at !== NONE; at = this.#nextCopy[at]!) list.push(at);
      copies.set(key, list);
    }
    return { blocks, inactive, copies, free: this.free };
  }

  #evictOldest(): void {
    const block = this.#next[this.capacity]!;
    assert(block !== this.capacity);
    this.#unlink(block);
    this.#dropCopy(block);
    this.#give([block]);
  }

  #give(blocks: readonly number[]): void {
    if (blocks.length === 0) return;
    for (const block of blocks) this.#state[block] = FREE;
    this.#used -= blocks.length;
    this.#store.give(blocks);
  }

  #dropCopy(block: number): void {
    const key = this.#keys[block]!;
    const next = this.#nextCopy[block]!;
    let at = this.#firstCopy.get(key);
    if (at !== block) {
      while (this.#nextCopy[at] !== block) at = this.#nextCopy[at]!;
      this.#nextCopy[at] = next;
    } else if (next !== NONE) this.#firstCopy.set(next);
    else {
      this.#firstCopy.delete(block);
      this.#events?.removed(key);
    }
  }

  #linkNewest(block: number): void {
    const end = this.capacity;
    const newest = this.#previous[end]!;
    this.#next[newest] = block;
    this.#previous[block] = newest;
    this.#next[block] = end;
    this.#previous[end] = block;
    this.#inactive++;
  }

  #unlink(block: number): void {
    const before = this.#previous[block]!;
    const after = this.#next[block]!;
    this.#next[before] = after;
    this.#previous[after] = before;
    this.#inactive--;
  }
}
