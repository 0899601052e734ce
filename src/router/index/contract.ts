/**
 * The prefix index (R4): which worker rank holds which KV blocks, and so how much of a prompt each of them need not
 * compute again. One writer (the ingest thread) applies the engines' KV events; pool threads look up. Implementations:
 * `createSimpleIndex` (one thread, no addon) and `createSharedIndex` (shared memory and C++, readers on every thread).
 *
 * A block is named by its chained sequence hash (router/hashing): a pair of words, low then high. A *holder* is a worker
 * rank, named by an integer below HOLDERS_MAX that the caller gives out. A holder's *depth* for a prompt is the number of
 * leading blocks that it holds, without a hole. No look-up gives a depth that is greater than the true one was at every
 * moment between its call and its return.
 */
import type { Hash64 } from '../hashing/seeds.js';

/** Holders are the integers below this. */
export const HOLDERS_MAX = 4096;

/** Where a block lies at its holder. A block can lie in several tiers at once. */
export const TIER = { device: 0, host: 1, disk: 2 } as const;
/** A value of TIER. */
export type Tier = (typeof TIER)[keyof typeof TIER];

/** Words of one engine hash: 128 bits, so digests are folded and 64-bit hashes have two words of 0. */
export const ENGINE_HASH_WORDS = 4;

/** Counts since the index was made, and what it holds now. Whole numbers. */
export interface IndexStats {
  /** Blocks in the index: held by someone, or an ancestor of such a block. */
  readonly blocks: number;
  /** Most blocks that it takes; above it the least useful go. */
  readonly blocksMax: number;
  /** Holders known now. */
  readonly holders: number;
  /** Engine hashes that can be translated now, and the most there can be. */
  readonly engineHashes: number;
  readonly engineHashesMax: number;
  /** Predictions that have not expired, those that were confirmed or cleared since among them; the most there can be. */
  readonly predictions: number;
  readonly predictionsMax: number;
  /** Blocks given in stores and removals that were applied. */
  readonly stored: number;
  readonly removed: number;
  /** Blocks dropped at the cap. */
  readonly evicted: number;
  /** Blocks not stored for want of room that eviction could not make. */
  readonly refused: number;
  /** Anomaly: a store whose parent its holder does not have. Kept; it counts once the parent comes. */
  readonly orphans: number;
  /** Anomaly: a block that the holder already has in that tier. */
  readonly duplicates: number;
  /** Anomaly: removal of what the holder does not have. */
  readonly unknownRemovals: number;
  /** Anomaly: a block that names itself, a descendant or another parent than before as its parent. Not stored. */
  readonly parentConflicts: number;
  /** Anomaly: an event of a holder that was not added. Ignored. */
  readonly unknownHolders: number;
}

/** Applies events and predictions. One thread owns it; every call returns at once. */
export interface PrefixIndexWriter {
  /** Makes a holder known, with no blocks. False when it is known already. */
  addHolder(holder: number): boolean;
  /** Forgets a holder: from the return on, look-ups give it depth 0. False when it is not known. */
  removeHolder(holder: number): boolean;
  /** Forgets all blocks of a holder, as an engine that resets its cache says. False when it is not known. */
  clear(holder: number): boolean;

  /**
   * The holder stored `count` consecutive blocks in a tier: the first has `parent` (null: it begins a sequence), each
   * other one the block before it. `engineHashes`, when given, are the engine's own names of these blocks, by which
   * `translate` and `removeEngine` find them. Returns how many leading blocks were taken: less than `count` after a
   * parent conflict or when there is no room.
   */
  store(
    holder: number,
    parent: Hash64 | null,
    hashes: Uint32Array,
    count: number,
    tier: Tier,
    engineHashes: Uint32Array | null,
  ): number;
  /** The holder removed `count` blocks, in any order, from a tier. Returns how many it had. */
  remove(holder: number, hashes: Uint32Array, count: number, tier: Tier): number;
  /** `remove` by the engine's hashes. A block that is in no tier any more loses its engine hash. */
  removeEngine(holder: number, engineHashes: Uint32Array, count: number, tier: Tier): number;
  /** Writes the sequence hashes of `count` engine hashes to `hashesOut`, up to the first unknown; returns how many. */
  translate(holder: number, engineHashes: Uint32Array, count: number, hashesOut: Uint32Array): number;

  /**
   * A request that was sent to the holder will make it have blocks `from` to `to` (excluded) of `sequenceHashes`. They
   * count as held on its device until events confirm them or until `expire` is called with `expiresMs` or later. Whole
   * milliseconds on the caller's clock. Returns how many of the blocks are held or predicted now.
   */
  predict(holder: number, sequenceHashes: Uint32Array, from: number, to: number, expiresMs: number): number;
  /** Drops predictions that are due at `nowMs`. Those of one `predict` go before those of a later one. */
  expire(nowMs: number): void;

  /**
   * Gives back the memory of removed and cleared holders, looking at about `stepsMax` entries at a time. True while there
   * is more to do. Look-ups do not depend on it.
   */
  sweep(stepsMax: number): boolean;
  stats(): IndexStats;
}

/** Looks up. Each thread has its own. */
export interface PrefixIndexReader {
  /**
   * Depths of the holders for a prompt of `blocks` blocks, one call for all candidates: `depthsOut[i]` is the depth of
   * `holders[i]` over all tiers, `depthsOut[holderCount + i]` the part of it that lies on the device. Both count
   * predictions. A holder that is not known has depth 0. `depthsOut` has at least 2 × holderCount words; each holder is
   * named once. Returns how often a read was repeated because the writer was in between.
   */
  lookup(
    sequenceHashes: Uint32Array,
    blocks: number,
    holders: Uint32Array,
    holderCount: number,
    depthsOut: Uint32Array,
  ): number;
}
