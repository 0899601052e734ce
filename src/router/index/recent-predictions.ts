/**
 * What this pool thread has just decided and the index does not know yet (R4): the prompts that it sent, and to whom. A
 * decision reaches the writer by ring and is seen by all once applied; until then this thread's look-ups see it here, so that
 * the second of two sibling requests finds the first. Owned by one thread; a ring of fixed size, the oldest goes first.
 */
import { strict as assert } from 'node:assert';

interface Prediction {
  holder: number;
  blocks: number;
  expiresMs: number;
  readonly hashes: Uint32Array;
}

/** The latest decisions of one thread. */
export class RecentPredictions {
  readonly #entries: Prediction[];
  #next = 0;

  /** Keeps up to `entriesMax` prompts, of each the first `blocksMax` blocks: 8 bytes a block, reserved here. */
  constructor(entriesMax: number, blocksMax: number) {
    assert(entriesMax >= 1 && blocksMax >= 1, 'there is room for one block');
    this.#entries = Array.from({ length: entriesMax }, () => ({
      holder: 0,
      blocks: 0,
      expiresMs: 0,
      hashes: new Uint32Array(blocksMax * 2),
    }));
  }

  /** A prompt of `blocks` blocks was sent to a holder, which will have them; copied. It counts while now < `expiresMs`. */
  note(holder: number, sequenceHashes: Uint32Array, blocks: number, expiresMs: number): void {
    const entry = this.#entries[this.#next]!;
    this.#next = (this.#next + 1) % this.#entries.length;
    entry.holder = holder;
    entry.blocks = Math.min(blocks, entry.hashes.length / 2);
    entry.expiresMs = expiresMs;
    entry.hashes.set(sequenceHashes.subarray(0, entry.blocks * 2));
  }

  /** Raises the depths that `PrefixIndexReader.lookup` gave for the same arguments to those noted here. */
  raise(
    sequenceHashes: Uint32Array,
    blocks: number,
    holders: Uint32Array,
    holderCount: number,
    depthsOut: Uint32Array,
    nowMs: number,
  ): void {
    for (const entry of this.#entries) {
      if (entry.blocks === 0 || entry.expiresMs <= nowMs) continue;
      const index = holders.subarray(0, holderCount).indexOf(entry.holder);
      if (index < 0) continue;
      const depth = commonBlocks(entry.hashes, sequenceHashes, Math.min(entry.blocks, blocks));
      if (depth > depthsOut[index]!) depthsOut[index] = depth;
      if (depth > depthsOut[holderCount + index]!) depthsOut[holderCount + index] = depth;
    }
  }
}

/** Leading blocks that two prompts share: hashes are chained, so equal ones mean equal prompts up to there. */
function commonBlocks(left: Uint32Array, right: Uint32Array, blocks: number): number {
  let low = 0;
  let high = blocks;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    const at = middle * 2 - 2;
    if (left[at] === right[at] && left[at + 1] === right[at + 1]) low = middle;
    else high = middle - 1;
  }
  return low;
}
