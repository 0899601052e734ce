/**
 * The bytes of the shared prefix index: one segment of unsigned 32-bit words, all of it reserved at the start.
 * `native/include/millrace/index_descriptor.h` is generated from here; native/core/prefix_index.h says who writes what.
 *
 *     header       INDEX_HEADER_WORDS: the counts below, then the writer's state and counters
 *     aliases      4,096 × 1   by holder: slot + 2^13 × generation; slot 0 = not known. Readers check it last.
 *     slots        8,192 × 5   by slot: state, blocks, engine hashes, blocks not reachable (any tier, device)
 *     stripes      4,096 × 1   the sequence word, striped by bucket: odd while memory of its buckets is given back
 *     buckets      blocksMax   first block of each hash chain
 *     blocks       (1 + blocksMax) × 8   block 0 is no block:
 *                  0,1 sequence hash  2 next in bucket  3 holders  4 parent  5 first child | 2^31 + next leaf
 *                  6 next sibling  7 previous sibling
 *     leaves       (1 + blocksMax) × 1   previous leaf + 2^31 × list
 *     chunks       (1 + chunksMax) × 4   flags of 16 neighbouring slots of a shared block:
 *                  0 device, host  1 disk, predicted  2 reachable, reachable on the device  (16 bits each)
 *                  3 next chunk + 2^23 × (slot / 16)
 *     names        namesMax × 4   engine hash → sequence hash: 64 bits of slot, displacement and rest; then the hash
 *     expiries     2 × predictionsMax × 4   like names: (block, slot) → latest expiry of a prediction
 *     predictions  predictionsMax × 6   ring: sequence hash, slot, expiry in ms (low, high), –
 *
 *     holders of a block: 0 none | slot + 2^13 × flags (one holder) | 2^31 + first chunk (several)
 */

/** First word of a segment that holds an index. */
export const INDEX_MAGIC = 0x4d52_4958;
/** Words of the header. */
export const INDEX_HEADER_WORDS = 128;
/** Words of the header that are written when the segment is made. The others are the addon's. */
export const INDEX_HEADER = {
  magic: 0,
  blocksMax: 1,
  chunksMax: 2,
  namesMax: 3,
  predictionsMax: 4,
  bucketSeedLow: 5,
  bucketSeedHigh: 6,
} as const;

/** Internal names of holders: twice as many as holders, so that a cleared one has a new name at once. */
export const INDEX_SLOTS = 8192;
/** Arrays of one word per slot. */
export const INDEX_SLOT_ARRAYS = 5;
/** Sequence words. */
export const INDEX_STRIPES = 4096;
/** Words of a block. */
export const INDEX_BLOCK_WORDS = 8;
/** Words of a chunk. */
export const INDEX_CHUNK_WORDS = 4;
/** Words of an engine hash or an expiry. */
export const INDEX_NAME_WORDS = 4;
/** Words of a prediction. */
export const INDEX_PREDICTION_WORDS = 6;
/** Sections begin at multiples of this, a cache line. */
export const INDEX_ALIGN_WORDS = 16;
/** Chunks are named by 23 bits. */
export const INDEX_CHUNKS_MAX = 2 ** 23 - 1;

/** Bits of the flags of one block at one holder. */
export const INDEX_FLAG = {
  device: 1,
  host: 2,
  disk: 4,
  predicted: 8,
  reachable: 16,
  deviceReachable: 32,
} as const;

/** Order of the numbers that the addon's `indexStats` writes. */
export const INDEX_STATS = [
  'blocks',
  'holders',
  'engineHashes',
  'predictions',
  'stored',
  'removed',
  'evicted',
  'refused',
  'orphans',
  'duplicates',
  'unknownRemovals',
  'parentConflicts',
  'unknownHolders',
] as const;
