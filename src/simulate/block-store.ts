/**
 * Where the free blocks of a simulated engine are: who gives out physical block numbers and takes them back. Plain memory
 * gives out any free block at once; memory that other processes read may keep a block for longer. Owned by one BlockPool.
 */

/** The blocks that hold nothing; those that were taken belong to the pool until it gives them back. */
export interface BlockStore {
  /** Blocks that `take` would give out now. */
  readonly free: number;
  /** Takes `count` blocks, at most `free`, and appends them to `into`. */
  take(count: number, into: number[]): void;
  /** Takes blocks back. They may not be free at once. */
  give(blocks: readonly number[]): void;
  /** Takes all blocks back. */
  clear(): void;
}

/** Blocks of plain memory, those first that were given back last. */
export class OwnBlocks implements BlockStore {
  readonly #capacity: number;
  readonly #given: number[] = [];
  /** Blocks from here on were never used: their pages of memory are not even touched. */
  #untouched = 0;

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  get free(): number {
    return this.#capacity - this.#untouched + this.#given.length;
  }

  take(count: number, into: number[]): void {
    for (let taken = 0; taken < count; taken++) into.push(this.#given.pop() ?? this.#untouched++);
  }

  give(blocks: readonly number[]): void {
    for (const block of blocks) this.#given.push(block);
  }

  clear(): void {
    this.#given.length = 0;
    this.#untouched = 0;
  }
}
