/**
 * Carries one mock engine's block events into the router's prefix index, as the ingest thread does for a real engine's.
 * Removals of one moment are collected and go in one call, before the next store. Owned by one run of a replay.
 */
import type { Hash64 } from '../../router/hashing/seeds.js';
import type { PrefixIndexWriter, Tier } from '../../router/index/contract.js';
import type { BlockEvents, CachedSequence } from '../block-pool.js';
import { writeHash } from './workload.js';

const ROOM_START = 256;

/** See the head of the file. `holder` is the worker's slot. */
export class IndexFeed implements BlockEvents {
  readonly #index: PrefixIndexWriter;
  readonly #holder: number;
  readonly #tier: Tier;
  readonly #parent: { low: number; high: number } = { low: 0, high: 0 };
  #hashes = new Uint32Array(2 * ROOM_START);
  #removed = new Uint32Array(2 * ROOM_START);
  #removedCount = 0;

  constructor(index: PrefixIndexWriter, holder: number, tier: Tier) {
    this.#index = index;
    this.#holder = holder;
    this.#tier = tier;
  }

  stored({ keys }: CachedSequence, from: number, to: number): void {
    this.flush();
    const count = to - from;
    if (this.#hashes.length < 2 * count) this.#hashes = new Uint32Array(4 * count);
    for (let at = 0; at < count; at += 1) writeHash(keys[from + at]!, this.#hashes, at);
    this.#index.store(this.#holder, this.#parentOf(keys, from), this.#hashes, count, this.#tier, null);
  }

  removed(key: number): void {
    if (this.#removed.length === 2 * this.#removedCount) {
      const larger = new Uint32Array(2 * this.#removed.length);
      larger.set(this.#removed);
      this.#removed = larger;
    }
    writeHash(key, this.#removed, this.#removedCount++);
  }

  cleared(): void {
    this.#removedCount = 0;
    this.#index.clear(this.#holder);
  }

  /** Sends the removals that are collected. */
  flush(): void {
    if (this.#removedCount === 0) return;
    this.#index.remove(this.#holder, this.#removed, this.#removedCount, this.#tier);
    this.#removedCount = 0;
  }

  #parentOf(keys: readonly number[], from: number): Hash64 | null {
    if (from === 0) return null;
    const key = keys[from - 1]!;
    this.#parent.low = key >>> 0;
    this.#parent.high = Math.floor(key / 4294967296);
    return this.#parent;
  }
}
