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
/** Every so many evictions the oldest shared leaf goes, so that stale shared blocks do not stay for ever. */
const SHARED_EVICTION_PERIOD = 8;

interface Block {
  readonly low: number;
  readonly high: number;
  /** Another block with the same 53-bit key. */
  next: Block | undefined;
  /** Null: begins a sequence. Undefined: known only as the parent of an orphan. */
  parent: Block | null | undefined;
  children: number;
  /** Flags by holder. */
  readonly flags: Map<number, number>;
}

interface Holder {
  /** By the four words of the engine hash. */
  readonly engineHashes: Map<string, Block>;
  readonly blocks: Set<Block>;
}

interface Prediction {
  readonly owner: Holder;
  readonly holder: number;
  readonly block: Block;
  readonly expiresMs: number;
}

/** Makes an index that only the calling thread can use. */
export function createSimpleIndex(options: SimpleIndexOptions): PrefixIndexWriter & PrefixIndexReader {
  return new SimpleIndex(options);
}

const keyOf = (low: number, high: number): number => (high & 0x1fffff) * 2 ** 32 + low;

class SimpleIndex implements PrefixIndexWriter, PrefixIndexReader {
  readonly #blocksMax: number;
  readonly #predictionsMax: number;
  readonly #table = new Map<number, Block>();
  readonly #holders = new Map<number, Holder>();
  /** Blocks without children, oldest touched first: those with at most one holder, and the shared ones. */
  readonly #leaves = [new Set<Block>(), new Set<Block>()] as const;
  /** In order of arrival; those before `#expired` are over. */
  #predictions: Prediction[] = [];
  /** The latest expiry of a predicted block, by holder. */
  readonly #expiry = new Map<Block, Map<number, number>>();
  #blocks = 0;
  #engineHashes = 0;
  /** The parent of the block evicted last: a chain goes from its end. */
  #nextVictim: Block | null = null;
  readonly #counts = {
    stored: 0,
    removed: 0,
    evicted: 0,
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
    this.#predictions = this.#predictions.filter(({ owner }) => owner !== state);
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
        this.#release(block);
        break;
      }
      const flags = block.flags.get(holder) ?? 0;
      if ((flags & (1 << tier)) !== 0) this.#counts.duplicates += 1;
      this.#expiry.get(block)?.delete(holder);
      this.#setFlags(holder, state, block, (flags & ~PREDICTED) | (1 << tier));
      before = block;
    }
    if (first !== null) this.#release(first);
    this.#counts.stored += taken;
    return taken;
  }

  remove(holder: number, hashes: Uint32Array, count: number, tier: Tier): number {
    assert(count * 2 <= hashes.length, 'hashes has 2 words per block');
    const state = this.#known(holder);
    if (state === null) return 0;
    let removed = 0;
    for (let i = 0; i < count; i += 1) {
      const block = this.#find(hashes[i * 2]!, hashes[i * 2 + 1]!);
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
      const block = named === undefined ? undefined : this.#find(named.low, named.high);
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
      from === 0 ? null : this.#find(sequenceHashes[from * 2 - 2]!, sequenceHashes[from * 2 - 1]!);
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
      this.#predictions.push({ owner: state, holder, block, expiresMs });
      const expiry = this.#expiry.get(block) ?? new Map<number, number>();
      this.#expiry.set(block, expiry.set(holder, expiresMs));
    }
    return to - from;
  }

  expire(nowMs: number): void {
    const living = this.#predictions.findIndex(({ expiresMs }) => expiresMs > nowMs);
    const over = this.#predictions.splice(0, living < 0 ? this.#predictions.length : living);
    for (const { owner, holder, block } of over) {
      const expiry = this.#expiry.get(block);
      const due = expiry?.get(holder);
      if (due === undefined || due > nowMs) continue;
      expiry?.delete(holder);
      this.#setFlags(holder, owner, block, (block.flags.get(holder) ?? 0) & ~PREDICTED);
    }
  }

  sweep(): boolean {
    return false;
  }

  stats(): IndexStats {
    return {
      blocks: this.#blocks,
      blocksMax: this.#blocksMax,
      holders: this.#holders.size,
      engineHashes: this.#engineHashes,
      engineHashesMax: this.#blocksMax * 2,
      predictions: this.#predictions.length,
      predictionsMax: this.#predictionsMax,
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
      const flags = this.#find(sequenceHashes[depth * 2]!, sequenceHashes[depth * 2 + 1]!)?.flags;
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

  #find(low: number, high: number): Block | undefined {
    let block = this.#table.get(keyOf(low, high));
    while (block !== undefined && block.high !== high) block = block.next;
    return block;
  }

  /** The parent of a store, made when it is missing; undefined when it is the stored block itself or finds no room. */
  #parentOf(holder: number, hash: Hash64, hashes: Uint32Array): Block | undefined {
    if (hash.low === hashes[0] && hash.high === hashes[1]) {
      this.#counts.parentConflicts += 1;
      return undefined;
    }
    const block = this.#find(hash.low, hash.high) ?? this.#create(hash.low, hash.high, undefined);
    if (block === null) return undefined;
    if (!block.flags.has(holder)) this.#counts.orphans += 1;
    return block;
  }

  /** Finds or makes a block below `parent` and marks it as just used; null after a conflict or without room. */
  #place(low: number, high: number, parent: Block | null): Block | null {
    const block = this.#find(low, high) ?? this.#create(low, high, parent);
    if (block === null) return null;
    if (block.parent === undefined && !isAncestor(block, parent)) this.#link(block, parent);
    if (block.parent !== parent) {
      this.#counts.parentConflicts += 1;
      return null;
    }
    this.#touch(block);
    return block;
  }

  #create(low: number, high: number, parent: Block | null | undefined): Block | null {
    if (this.#blocks >= this.#blocksMax && !this.#evict(parent ?? null)) {
      this.#counts.refused += 1;
      return null;
    }
    const key = keyOf(low, high);
    const block: Block = {
      low,
      high,
      next: this.#table.get(key),
      parent: undefined,
      children: 0,
      flags: new Map(),
    };
    this.#table.set(key, block);
    this.#blocks += 1;
    if (parent !== undefined) this.#link(block, parent);
    return block;
  }

  #link(block: Block, parent: Block | null): void {
    block.parent = parent;
    if (parent === null) return;
    parent.children += 1;
    this.#leaves[0].delete(parent);
    this.#leaves[1].delete(parent);
  }

  /** Moves a leaf to the young end of its list. */
  #touch(block: Block): void {
    this.#leaves[0].delete(block);
    this.#leaves[1].delete(block);
    if (block.children === 0) this.#leaves[block.flags.size > 1 ? 1 : 0].add(block);
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
    if (shared !== block.flags.size > 1) this.#touch(block);
    this.#release(block);
  }

  /** Frees a block that nobody holds and no other block needs, and then its parent likewise. */
  #release(block: Block): void {
    for (let last: Block | null = block; last !== null && last.flags.size + last.children === 0; ) {
      last = this.#free(last);
    }
  }

  /** Takes a leaf out of the index; returns its parent. */
  #free(block: Block): Block | null {
    const key = keyOf(block.low, block.high);
    const head = this.#table.get(key);
    if (head === block && block.next === undefined) this.#table.delete(key);
    else if (head === block) this.#table.set(key, block.next!);
    else for (let at = head!; at !== block; at = at.next!) if (at.next === block) at.next = block.next;
    this.#blocks -= 1;
    this.#leaves[0].delete(block);
    this.#leaves[1].delete(block);
    this.#expiry.delete(block);
    const parent = block.parent ?? null;
    if (parent === null) return null;
    parent.children -= 1;
    if (parent.children === 0) this.#touch(parent);
    return parent;
  }

  /** Drops one leaf other than `keep`; false when there is none. */
  #evict(keep: Block | null): boolean {
    const next = this.#nextVictim;
    const order = this.#counts.evicted % SHARED_EVICTION_PERIOD === 0 ? [1, 0] : [0, 1];
    let victim = next !== null && next !== keep && this.#leaves[0].has(next) ? next : undefined;
    for (const list of order) {
      if (victim !== undefined) break;
      for (const leaf of this.#leaves[list]!) {
        if (leaf === keep) continue;
        victim = leaf;
        break;
      }
    }
    if (victim === undefined) return false;
    for (const holder of victim.flags.keys()) this.#holders.get(holder)!.blocks.delete(victim);
    victim.flags.clear();
    this.#nextVictim = this.#free(victim);
    this.#counts.evicted += 1;
    return true;
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
      const block = this.#find(low, high);
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

/** Whether `block` is `below` or one of its ancestors. */
function isAncestor(block: Block, below: Block | null): boolean {
  let at: Block | null = below;
  while (at !== null && at !== block) at = at.parent ?? null;
  return at === block;
}
