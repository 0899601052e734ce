/**
 * The prefix index of one run of a replay: the shared one with the addon, the simple one without, as a serving process
 * would have it. Owned by the run, which closes it.
 */
import type { PrefixIndexReader, PrefixIndexWriter } from '../../router/index/contract.js';
import { createIndexMemory, SharedIndexReader, SharedIndexWriter } from '../../router/index/shared-index.js';
import { createSimpleIndex } from '../../router/index/simple-index.js';
import type { Addon } from '../../runtime/addon.js';
import { seededRandom } from '../../runtime/random.js';
import { SEGMENT_BYTES_MAX } from '../../runtime/shared-memory.js';

/** Blocks in the index of a run: every engine's blocks, twice, so that nothing is evicted for want of room. */
const INDEX_SHARE = 2;
/** Room of the shared index: for a block, and for what does not depend on their number. */
const INDEX_BLOCK_BYTES = 64;
const INDEX_FIXED_BYTES = 2 ** 20;

/** See the head of the file. */
export interface RunIndex {
  readonly writer: PrefixIndexWriter;
  readonly reader: PrefixIndexReader;
  close(): void;
}

/** What an index is made for. */
export interface RunIndexOptions {
  /** Each of them is a holder, by its slot. */
  readonly workers: number;
  /** KV blocks of one worker. */
  readonly blocks: number;
  readonly seed: number;
  readonly addon: Addon | null;
}

/** Opens an empty index. */
export function openRunIndex({ workers, blocks, seed, addon }: RunIndexOptions): RunIndex {
  const blocksMax = INDEX_SHARE * workers * blocks;
  const index: RunIndex = addon === null ? openSimple(blocksMax) : openShared(addon, blocksMax, seed);
  for (let slot = 0; slot < workers; slot += 1) index.writer.addHolder(slot);
  return index;
}

function openSimple(blocksMax: number): RunIndex {
  const index = createSimpleIndex({ blocksMax, predictionsMax: 0 });
  return { writer: index, reader: index, close: () => {} };
}

function openShared(addon: Addon, blocksMax: number, seed: number): RunIndex {
  const bytes = Math.min(INDEX_FIXED_BYTES + INDEX_BLOCK_BYTES * blocksMax, SEGMENT_BYTES_MAX);
  const memory = createIndexMemory({ bytes, predictionsMax: 1, random: seededRandom(seed) });
  const writer = new SharedIndexWriter(addon, memory);
  const reader = new SharedIndexReader(addon, memory);
  const close = (): void => {
    reader.close();
    writer.close();
  };
  return { writer, reader, close };
}
