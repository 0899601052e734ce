/**
 * The prefix index without the addon (R4): Maps on the one pool thread, which is then also the ingest thread, so writer
 * and reader are one object and nothing is shared. Same answers as the shared index, by walking each prompt from its
 * first block. Memory is bounded by `blocksMax`; the least useful blocks go first, as in the shared index.
 */
import { strict as assert } from 'node:assert';
import type { Hash64 } from '../hashing/seeds.js';
import {
  ENGINE_HASH_WORDS,
  HOLDERS_MAX,
  type IndexStats,
  type PrefixIndexReader,
  type PrefixIndexWriter,
  TIER,
  type Tier,
} from './contract.js';
import { type Block, BlockTable, isAncestor } from './simple-blocks.js';

/** Bounds of a simple index. */
export interface SimpleIndexOptions {
  /** Most blocks, of all holders together; an engine hash per block and holder comes on top, up to twice as many. */
  readonly blocksMax: number;
  /** Most predictions at one time. */
  readonly predictionsMax: number;
}

/** Flags of one block at one holder: a bit per tier, then this one. */
const PREDICTED = 8;
const DEVICE = (1 << TIER.device) | PREDICTED;
interface Holder {
  /** By the four words of the engine hash. */
  readonly engineHashes: Map<string, Block>;
  readonly blocks: Set<Block>;
}

interface Prediction {
  readonly holder: number;
  readonly block: Block;
  readonly expiresMs: number;
}

/** Makes an index that only the calling thread can use. */
export function createSimpleIndex(options: SimpleIndexOptions): PrefixIndexWriter & PrefixIndexReader {
  return new SimpleIndex(options);
}

class SimpleIndex implements PrefixIndexWriter, PrefixIndexReader {
  readonly #blocksMax: number;
  readonly #table: BlockTable;
  readonly #predictionsMax: number;
  readonly #holders = new Map<number, Holder>();
  /** In order of arrival. One stays until its time is over, whatever has become of its block by then. */
  #predictions: Prediction[] = [];
  /** The latest expiry of a predicted block, by holder. */
  readonly #expiry = new Map<Block, Map<number, number>>();
  #engineHashes = 0;
  readonly #counts = {
    stored: 0,
    removed: 0,
    refused: 0,
    orphans: 0,
    duplicates: 0,
    unknownRemovals: 0,
    parentConflicts: 0,
    unknownHolders: 0,
  };

  constructor({ blocksMax, predictionsMax }: SimpleIndexOptions) {
    assert(Number.isSafeInteger(blocksMax) && blocksMax >= 2, 'blocksMax is at least 2');
    assert(Number.isSafeInteger(predictionsMax) && predictionsMax >= 0, 'predictionsMax is not negative');
    this.#blocksMax = blocksMax;
    this.#table = new BlockTable(blocksMax, block => this.#forget(block));
    this.#predictionsMax = predictionsMax;
  }

  addHolder(holder: number): boolean {
    assert(Number.isInteger(holder) && holder >= 0 && holder < HOLDERS_MAX, 'holder is below HOLDERS_MAX');
    if (this.#holders.has(holder)) return false;
    this.#holders.set(holder, { engineHashes: new Map(), blocks: new Set() });
    return true;
  }

  removeHolder(holder: number): boolean {
    return this.clear(holder) && this.#holders.delete(holder);
  }

  clear(holder: number): boolean {
    const state = this.#holders.get(holder);
    if (state === undefined) return false;
    this.#holders.set(holder, { engineHashes: new Map(), blocks: new Set() });
    this.#engineHashes -= state.engineHashes.size;
    for (const block of state.blocks) {
      this.#expiry.get(block)?.delete(holder);
      this.#setFlags(holder, state, block, 0);
    }
    return true;
  }

  store(
    holder: number,
    parent: Hash64 | null,
    hashes: Uint32Array,
    count: number,
    tier: Tier,
    engineHashes: Uint32Array | null,
  ): number {
    assert(count * 2 <= hashes.length, 'hashes has 2 words per block');
    assert(
      engineHashes === null || count * ENGINE_HASH_WORDS <= engineHashes.length,
      'engineHashes is long enough',
    );
    const state = this.#known(holder);
    if (state === null || count === 0) return 0;
    const first = parent === null ? null : this.#parentOf(holder, parent, hashes);
    if (first === undefined) return 0;
    let before = first;
    let taken = 0;
    for (; taken < count; taken += 1) {
      const block = this.#place(hashes[taken * 2]!, hashes[taken * 2 + 1]!, before);
      if (block === null) break;
      if (engineHashes !== null && !this.#name(state, engineHashes, taken, block)) {
        this.#counts.refused += count - taken;
        this.#table.release(block);
        break;
      }
      const flags = block.flags.get(holder) ?? 0;
      if ((flags & (1 << tier)) !== 0) this.#counts.duplicates += 1;
      this.#expiry.get(block)?.delete(holder);
      this.#setFlags(holder, state, block, (flags & ~PREDICTED) | (1 << tier));
      before = block;
    }
    if (first !== null) this.#table.release(first);
    this.#counts.stored += taken;
    return taken;
  }

  remove(holder: number, hashes: Uint32Array, count: number, tier: Tier): number {
    assert(count * 2 <= hashes.length, 'hashes has 2 words per block');
    const state = this.#known(holder);
    if (state === null) return 0;
    let removed = 0;
    for (let i = 0; i < count; i += 1) {
      const block = this.#table.find(hashes[i * 2]!, hashes[i * 2 + 1]!);
      if (this.#removeFrom(holder, state, block, tier)) removed += 1;
    }
    return removed;
  }

  removeEngine(holder: number, engineHashes: Uint32Array, count: number, tier: Tier): number {
    assert(count * ENGINE_HASH_WORDS <= engineHashes.length, 'engineHashes is long enough');
    const state = this.#known(holder);
    if (state === null) return 0;
    let removed = 0;
    for (let i = 0; i < count; i += 1) {
      const name = engineName(engineHashes, i);
      const named = state.engineHashes.get(name);
      const block = named === undefined ? undefined : this.#table.find(named.low, named.high);
      if (this.#removeFrom(holder, state, block, tier)) removed += 1;
      const inTiers = ((block?.flags.get(holder) ?? 0) & ~PREDICTED) !== 0;
      if (!inTiers && state.engineHashes.delete(name)) this.#engineHashes -= 1;
    }
    return removed;
  }

  translate(holder: number, engineHashes: Uint32Array, count: number, hashesOut: Uint32Array): number {
    const state = this.#known(holder);
    for (let i = 0; i < count; i += 1) {
      const block = state?.engineHashes.get(engineName(engineHashes, i));
      if (block === undefined) return i;
      hashesOut[i * 2] = block.low;
      hashesOut[i * 2 + 1] = block.high;
    }
    return count;
  }

  predict(holder: number, sequenceHashes: Uint32Array, from: number, to: number, expiresMs: number): number {
    assert(from <= to && to * 2 <= sequenceHashes.length, 'from and to lie inside sequenceHashes');
    const state = this.#known(holder);
    if (state === null || from === to) return 0;
    const first =
      from === 0 ? null : this.#table.find(sequenceHashes[from * 2 - 2]!, sequenceHashes[from * 2 - 1]!);
    if (first === undefined) return 0;
    let before: Block | null = first;
    for (let i = from; i < to; i += 1) {
      if (this.#predictions.length >= this.#predictionsMax) return i - from;
      const block = this.#place(sequenceHashes[i * 2]!, sequenceHashes[i * 2 + 1]!, before);
      if (block === null) return i - from;
      before = block;
      const flags = block.flags.get(holder) ?? 0;
      if ((flags & (1 << TIER.device)) !== 0) continue;
      this.#setFlags(holder, state, block, flags | PREDICTED);
      this.#predictions.push({ holder, block, expiresMs });
      const expiry = this.#expiry.get(block) ?? new Map<number, number>();
      this.#expiry.set(block, expiry.set(holder, expiresMs));
    }
    return to - from;
  }

  expire(nowMs: number): void {
    const living = this.#predictions.findIndex(({ expiresMs }) => expiresMs > nowMs);
    const over = this.#predictions.splice(0, living < 0 ? this.#predictions.length : living);
    for (const { holder, block } of over) {
      const expiry = this.#expiry.get(block);
      const due = expiry?.get(holder);
      // Confirmed, forgotten with its holder, or predicted again for longer.
      if (due === undefined || due > nowMs) continue;
      expiry?.delete(holder);
      this.#setFlags(holder, this.#holders.get(holder)!, block, (block.flags.get(holder) ?? 0) & ~PREDICTED);
    }
  }

  sweep(): boolean {
    return false;
  }

  stats(): IndexStats {
    return {
      blocks: this.#table.size,
      blocksMax: this.#blocksMax,
      holders: this.#holders.size,
      engineHashes: this.#engineHashes,
      engineHashesMax: this.#blocksMax * 2,
      predictions: this.#predictions.length,
      predictionsMax: this.#predictionsMax,
      evicted: this.#table.evicted,
      ...this.#counts,
    };
  }

  lookup(
    sequenceHashes: Uint32Array,
    blocks: number,
    holders: Uint32Array,
    holderCount: number,
    depthsOut: Uint32Array,
  ): number {
    assert(blocks * 2 <= sequenceHashes.length, 'sequenceHashes has 2 words per block');
    assert(holderCount <= holders.length && holderCount * 2 <= depthsOut.length, 'the holders fit');
    depthsOut.fill(0, 0, holderCount * 2);
    for (let depth = 0, living = true; depth < blocks && living; depth += 1) {
      const flags = this.#table.find(sequenceHashes[depth * 2]!, sequenceHashes[depth * 2 + 1]!)?.flags;
      living = false;
      if (flags === undefined) break;
      for (let i = 0; i < holderCount; i += 1) {
        if (depthsOut[i] !== depth) continue;
        const held = flags.get(holders[i]!) ?? 0;
        if (held === 0) continue;
        living = true;
        depthsOut[i] = depth + 1;
        const device = holderCount + i;
        if ((held & DEVICE) !== 0 && depthsOut[device] === depth) depthsOut[device] = depth + 1;
      }
    }
    return 0;
  }

  #known(holder: number): Holder | null {
    const state = this.#holders.get(holder);
    if (state === undefined) this.#counts.unknownHolders += 1;
    return state ?? null;
  }

  #create(low: number, high: number, parent: Block | null | undefined): Block | null {
    const block = this.#table.create(low, high, parent);
    if (block === null) this.#counts.refused += 1;
    return block;
  }

  #forget(block: Block): void {
    for (const holder of block.flags.keys()) this.#holders.get(holder)!.blocks.delete(block);
    block.flags.clear();
    this.#expiry.delete(block);
  }

  /** The parent of a store, made when it is missing; undefined when it is the stored block itself or finds no room. */
  #parentOf(holder: number, hash: Hash64, hashes: Uint32Array): Block | undefined {
    if (hash.low === hashes[0] && hash.high === hashes[1]) {
      this.#counts.parentConflicts += 1;
      return undefined;
    }
    const block = this.#table.find(hash.low, hash.high) ?? this.#create(hash.low, hash.high, undefined);
    if (block === null) return undefined;
    if (!block.flags.has(holder)) this.#counts.orphans += 1;
    return block;
  }

  /** Finds or makes a block below `parent` and marks it as just used; null after a conflict or without room. */
  #place(low: number, high: number, parent: Block | null): Block | null {
    const block = this.#table.find(low, high) ?? this.#create(low, high, parent);
    if (block === null) return null;
    if (block.parent === undefined && !isAncestor(block, parent)) this.#table.link(block, parent);
    if (block.parent !== parent) {
      this.#counts.parentConflicts += 1;
      return null;
    }
    this.#table.touch(block);
    return block;
  }

  #setFlags(holder: number, state: Holder, block: Block, flags: number): void {
    const shared = block.flags.size > 1;
    if (flags === 0) {
      block.flags.delete(holder);
      state.blocks.delete(block);
    } else {
      block.flags.set(holder, flags);
      state.blocks.add(block);
    }
    if (shared !== block.flags.size > 1) this.#table.touch(block);
    this.#table.release(block);
  }

  #removeFrom(holder: number, state: Holder, block: Block | undefined, tier: Tier): boolean {
    const flags = block?.flags.get(holder) ?? 0;
    if (block === undefined || (flags & (1 << tier)) === 0) {
      this.#counts.unknownRemovals += 1;
      return false;
    }
    this.#setFlags(holder, state, block, flags & ~(1 << tier));
    this.#counts.removed += 1;
    return true;
  }

  /** Notes the engine's name of a block; false when there is no room for it. */
  #name(state: Holder, engineHashes: Uint32Array, index: number, block: Block): boolean {
    const name = engineName(engineHashes, index);
    const known = state.engineHashes.get(name);
    if (known === undefined) {
      if (this.#engineHashes >= this.#blocksMax * 2 && !this.#dropName(state)) return false;
      this.#engineHashes += 1;
    }
    state.engineHashes.set(name, block);
    return true;
  }

  /** Forgets the name of a block that was evicted: looks at the oldest few. */
  #dropName(state: Holder): boolean {
    let steps = 0;
    for (const [name, { low, high }] of state.engineHashes) {
      steps += 1;
      if (steps > 256) return false;
      const block = this.#table.find(low, high);
      if (block !== undefined && state.blocks.has(block)) continue;
      this.#engineHashes -= 1;
      return state.engineHashes.delete(name);
    }
    return false;
  }
}

function engineName(engineHashes: Uint32Array, index: number): string {
  const at = index * ENGINE_HASH_WORDS;
  return `${engineHashes[at]},${engineHashes[at + 1]},${engineHashes[at + 2]},${engineHashes[at + 3]}`;
}
