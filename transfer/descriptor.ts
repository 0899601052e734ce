/**
 * The words that cross between transfer/ and the addon: requests, layouts, events and blocks as 32-bit words, 64-bit
 * values as their low and high word. One file for both sides: `native/include/millrace/transfer_descriptor.h` is
 * generated from here. Arrays are owned by the JS thread that opened the agent and are read or written inside a call.
 *
 *     request   TRANSFER_REQUEST_WORDS | local blocks × n | remote blocks × n | generations × n
 *     layout    TRANSFER_LAYOUT_WORDS | planes × {base low, base high, stride low, stride high}
 *     event     TRANSFER_EVENT_WORDS each: one cache line
 */

/** Words of a request before its block lists. */
export const TRANSFER_REQUEST_WORDS = 18;
/**
 * Word of each field of a request. `transport` is 0 (the cheapest) or 1 + the place in TRANSPORTS; `deadlineMs` 0: none;
 * `lease` (two words) is the peer's, 0: none. `generations` is 1 when those of the remote blocks follow.
 */
export const TRANSFER_REQUEST = {
  peer: 0,
  direction: 1,
  localPool: 2,
  remotePool: 3,
  firstLayer: 4,
  layers: 5,
  firstHead: 6,
  heads: 7,
  integrity: 8,
  reader: 9,
  priority: 10,
  transport: 11,
  deadlineMs: 12,
  blocks: 13,
  generations: 14,
  lease: 15,
} as const;

/** Words of a layout before its planes. */
export const TRANSFER_LAYOUT_WORDS = 18;
/** Word of each field of a layout; block bytes and stride are of an opaque one. */
export const TRANSFER_LAYOUT = {
  kind: 0,
  layers: 1,
  blockTokens: 2,
  heads: 3,
  headsTotal: 4,
  headDim: 5,
  elementBytes: 6,
  tpRank: 7,
  tpSize: 8,
  blockOrder: 9,
  innerOrder: 10,
  kvSplit: 11,
  blocks: 12,
  blockBytes: 13,
  stride: 15,
  planes: 17,
} as const;
/** Words of a plane of a layout. */
export const TRANSFER_PLANE_WORDS = 4;

/** Words of an event. */
export const TRANSFER_EVENT_WORDS = 16;
/**
 * Word of each field of an event: `id` of a transfer or lease, `bytes` that were moved, the three times in nanoseconds of
 * CLOCK_MONOTONIC (two words each). A notification's bytes, or the words of a lost peer, lie in the notification array from
 * `notificationAt` on.
 */
export const TRANSFER_EVENT = {
  kind: 0,
  status: 1,
  id: 2,
  peer: 4,
  notificationAt: 5,
  bytes: 6,
  postedNs: 8,
  begunNs: 10,
  doneNs: 12,
  transport: 14,
  notificationBytes: 15,
} as const;
/** What an event says. */
export const TRANSFER_EVENT_KIND = {
  completion: 0,
  notification: 1,
  peerUp: 2,
  peerLost: 3,
  leaseExpired: 4,
} as const;

/** Words of an entry of a commit: the block, its sequence hash (two words), its CRC-32C and its parent. */
export const BLOCK_COMMIT_WORDS = 5;
/** Words of a commit's outcome: status and, where the hash was there already, the block that has it. */
export const BLOCK_OUTCOME_WORDS = 2;
/** The words of a table's numbers, two each. */
export const BLOCK_STATS = [
  'free',
  'reserved',
  'filling',
  'ready',
  'quarantine',
  'pinned',
  'evictions',
  'refused',
] as const;
/** No block: the parent of the first block of a sequence. */
export const NO_BLOCK = 0xffff_ffff;

/** Transports by name; a request and an event carry 1 + the place here. */
export const TRANSPORTS = ['memory', 'shm', 'cma', 'tcp', 'ucx', 'cuda'] as const;

/** Longest notification. */
export const NOTIFICATION_BYTES_MAX = 65_520;
/** Longest metadata blob that is accepted from a peer. */
export const METADATA_BYTES_MAX = 4_194_304;
/** Most blocks of one transfer. */
export const TRANSFER_BLOCKS_MAX = 1_048_576;
