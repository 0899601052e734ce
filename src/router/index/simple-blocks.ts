/**
 * The blocks of the simple prefix index (R4, one thread): found by their hash, linked to their parents, and in lists of
 * leaves by age, from which the least useful go when there is no room for one more.
 */

/** Every so many evictions the oldest shared leaf goes, so that stale shared blocks do not stay for ever. */
const SHARED_EVICTION_PERIOD = 8;

/** A block: held by someone, or an ancestor of such a block. */
export interface Block {
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

const keyOf = (low: number, high: number): number => (high & 0x1fffff) * 2 ** 32 + low;

/** All blocks of an index. `onFree` is called with each block before it goes, holders and all. */
export class BlockTable {
  readonly #blocksMax: number;
  readonly #onFree: (block: Block) => void;
  readonly #table = new Map<number, Block>();
  /** Blocks without children, oldest touched first: those with at most one holder, and the shared ones. */
  readonly #leaves = [new Set<Block>(), new Set<Block>()] as const;
  /** The parent of the block evicted last: a chain goes from its end. */
  #nextVictim: Block | null = null;
  #size = 0;
  #evicted = 0;

  constructor(blocksMax: number, onFree: (block: Block) => void) {
    this.#blocksMax = blocksMax;
    this.#onFree = onFree;
  }

  get size(): number {
    return this.#size;
  }

  /** Blocks dropped for want of room. */
  get evicted(): number {
    return this.#evicted;
  }

  /** The block of a hash. */
  find(low: number, high: number): Block | undefined {
    let block = this.#table.get(keyOf(low, high));
    while (block !== undefined && block.high !== high) block = block.next;
    return block;
  }

  /** Makes a block, below `parent` unless that is undefined; null when there is no room. `parent` is not evicted. */
  create(low: number, high: number, parent: Block | null | undefined): Block | null {
    if (this.#size >= this.#blocksMax && !this.#evict(parent ?? null)) {
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
    this.#size += 1;
    if (parent !== undefined) this.link(block, parent);
    return block;
  }

  /** Gives a block its parent. */
  link(block: Block, parent: Block | null): void {
    block.parent = parent;
    if (parent === null) return;
    parent.children += 1;
    this.#leaves[0].delete(parent);
    this.#leaves[1].delete(parent);
  }

  /** Moves a leaf to the young end of its list. */
  touch(block: Block): void {
    this.#leaves[0].delete(block);
    this.#leaves[1].delete(block);
    if (block.children === 0) this.#leaves[block.flags.size > 1 ? 1 : 0].add(block);
  }

  /** Frees a block that nobody holds and no other block needs, and then its parent likewise. */
  release(block: Block): void {
    for (let last: Block | null = block; last !== null && last.flags.size + last.children === 0; ) {
      last = this.#free(last);
    }
  }

  /** Takes a leaf out of the index; returns its parent. */
  #free(block: Block): Block | null {
    this.#onFree(block);
    const key = keyOf(block.low, block.high);
    const head = this.#table.get(key);
    if (head === block && block.next === undefined) this.#table.delete(key);
    else if (head === block) this.#table.set(key, block.next!);
    else for (let at = head!; at !== block; at = at.next!) if (at.next === block) at.next = block.next;
    this.#size -= 1;
    this.#leaves[0].delete(block);
    this.#leaves[1].delete(block);
    const parent = block.parent ?? null;
    if (parent === null) return null;
    parent.children -= 1;
    if (parent.children === 0) this.touch(parent);
    return parent;
  }

  /** Drops one leaf other than `keep`; false when there is none. */
  #evict(keep: Block | null): boolean {
    const next = this.#nextVictim;
    const order = this.#evicted % SHARED_EVICTION_PERIOD === 0 ? [1, 0] : [0, 1];
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
    let parent = this.#free(victim);
    while (parent !== null && parent !== keep && parent.flags.size + parent.children === 0) {
      parent = this.#free(parent);
    }
    this.#nextVictim = parent;
    this.#evicted += 1;
    return true;
  }
}

/** Whether `block` is `below` or one of its ancestors. */
export function isAncestor(block: Block, below: Block | null): boolean {
  let at: Block | null = below;
  while (at !== null && at !== block) at = at.parent ?? null;
  return at === block;
}
