/**
 * Residency of workers that publish no KV events (R4): what is routed to a worker is taken to be in its cache, stored in the
 * same prefix index, on the device, without engine hashes. Where the size of the worker's KV memory is known, the blocks
 * used longest ago go when it is full, as its engine would have it; else blocks go when they were not used for `ttlMs`
 * (`router_ttl_secs` of Dynamo's router, 120 s there). A guess: it may be wrong both ways. Runs on the thread that writes
 * the index, which owns its state.
 */
import { strict as assert } from 'node:assert';
import { type Random, randomInteger } from '../../runtime/random.js';
import { type PrefixIndexWriter, TIER } from '../index/contract.js';
import type { RoutedPrompt } from './contract.js';
import { RecentBlocks } from './recent-blocks.js';

/** Most blocks of one holder, 32 to 40 bytes each; a larger worker counts as one of this size. */
export const APPROXIMATE_BLOCKS_MAX = 1 << 18;
/** Milliseconds after which unused blocks of a worker of unknown size go. */
export const APPROXIMATE_TTL_MS = 120_000;
/** Blocks per removal when they expire. */
const EXPIRE_BATCH = 1024;

/** What it works with. */
export interface ApproximateOptions {
  readonly writer: PrefixIndexWriter;
  readonly random: Random;
  /** APPROXIMATE_TTL_MS when absent. */
  readonly ttlMs?: number;
}

interface Holder {
  readonly blocks: RecentBlocks;
  /** Its size is not known: blocks expire. */
  readonly expires: boolean;
}

/** See the head of the file. Makes its holders known to the writer, and forgets them there. */
export class ApproximateResidency {
  readonly #writer: PrefixIndexWriter;
  readonly #random: Random;
  readonly #ttlMs: number;
  readonly #holders = new Map<number, Holder>();
  /** Hashes of one removal. */
  #evicted = new Uint32Array(2 * EXPIRE_BATCH);

  constructor({ writer, random, ttlMs = APPROXIMATE_TTL_MS }: ApproximateOptions) {
    assert(ttlMs > 0, 'ttlMs is positive');
    this.#writer = writer;
    this.#random = random;
    this.#ttlMs = ttlMs;
  }

  /**
   * Makes a holder known, with no blocks; one that is known is emptied.
   *
   * @param totalBlocks blocks of its KV memory; null: not known, its blocks expire
   */
  add(holder: number, totalBlocks: number | null): void {
    assert(totalBlocks === null || totalBlocks >= 1, 'totalBlocks is positive');
    const capacity = Math.min(totalBlocks ?? APPROXIMATE_BLOCKS_MAX, APPROXIMATE_BLOCKS_MAX);
    if (!this.#writer.addHolder(holder)) this.#writer.clear(holder);
    const seed = randomInteger(this.#random, 2 ** 32);
    this.#holders.set(holder, { blocks: new RecentBlocks(capacity, seed), expires: totalBlocks === null });
  }

  /** Forgets a holder and its blocks; nothing happens for one that is not known. */
  remove(holder: number): void {
    if (this.#holders.delete(holder)) this.#writer.removeHolder(holder);
  }

  /**
   * A prompt was sent to the holder `prompt.slot`: its blocks are there from now on, as far as they fit, and were used
   * now. Ignored for a holder that is not known. The caller has checked the generation.
   */
  route(prompt: RoutedPrompt, nowMs: number): void {
    const holder = this.#holders.get(prompt.slot);
    if (holder === undefined) return;
    const { blocks } = holder;
    if (holder.expires) this.#expire(prompt.slot, blocks, nowMs);
    const count = Math.min(prompt.blocks, blocks.capacity);
    const held = blocks.lift(prompt.hashes, count);
    this.#makeRoom(prompt.slot, blocks, blocks.size + count - held - blocks.capacity);
    const stored = this.#store(prompt, Math.min(held, prompt.cachedBlocks), count);
    blocks.use(prompt.hashes, held, Math.max(held, stored), nowMs);
  }

  /** Drops what has expired; called a few times a second. */
  tend(nowMs: number): void {
    for (const [slot, { blocks, expires }] of this.#holders) if (expires) this.#expire(slot, blocks, nowMs);
  }

  /**
   * Stores blocks `from` to `to` in the index: also known ones that a look-up did not find, because the index drops
   * blocks at its cap. Returns up to which block it has taken them.
   */
  #store({ slot, hashes }: RoutedPrompt, from: number, to: number): number {
    if (from === to) return to;
    const parent = from === 0 ? null : { low: hashes[2 * from - 2]!, high: hashes[2 * from - 1]! };
    const part = hashes.subarray(2 * from, 2 * to);
    return from + this.#writer.store(slot, parent, part, to - from, TIER.device, null);
  }

  #makeRoom(slot: number, blocks: RecentBlocks, count: number): void {
    if (count <= 0) return;
    if (this.#evicted.length < 2 * count)
      this.#evicted = new Uint32Array(2 ** Math.ceil(Math.log2(2 * count)));
    const taken = blocks.evict(count, this.#evicted);
    this.#writer.remove(slot, this.#evicted, taken, TIER.device);
  }

  #expire(slot: number, blocks: RecentBlocks, nowMs: number): void {
    let taken: number;
    do {
      taken = blocks.expire(EXPIRE_BATCH, nowMs - this.#ttlMs, this.#evicted);
      if (taken > 0) this.#writer.remove(slot, this.#evicted, taken, TIER.device);
    } while (taken === EXPIRE_BATCH);
  }
}
