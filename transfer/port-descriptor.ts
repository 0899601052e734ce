/**
 * The memory of a transfer port (K2, K3): how a thread that has no agent of its own hands transfers to one and learns of
 * their ends, without a call of the addon. `native/include/millrace/port_descriptor.h` is generated from here.
 *
 *     header      PORT_HEADER_WORDS, each group on a cache line of its own
 *     cancels     1 word × entries: (turn << 1 | 1) of the transfer under that tag that is to be cancelled, else 0
 *     submissions PORT_ENTRY_WORDS × entries
 *     completions PORT_COMPLETION_WORDS × entries
 *     texts       PORT_TEXT_BYTES × entries: the words of the error in the completion of the same place
 *     arena       arenaWords: local blocks × n | remote blocks × n | remote generations × n, if any | notification bytes
 *
 * The port's thread writes submissions, cancels, the arena, `polled`, `cancels` and bits of `waiting`; the agent's progress
 * thread all else, and it takes no word of the other side on trust. Entry i of a ring is ready when its turn is i + 1 (both
 * mod 2^32). A submission is copied when it is taken, in order, and its part of the arena is free from then on. Each that
 * was taken has exactly one completion, and none is taken without room for it: at most `entries` are in the port.
 */

/** Entries of each ring: a power of two between these. */
export const PORT_ENTRIES_MIN = 16;
export const PORT_ENTRIES_MAX = 4096;

/** Words of the header. */
export const PORT_HEADER_WORDS = 64;
/**
 * Word of each field of the header. `polled`: completions that the port's thread has taken. `taken`: submissions that the
 * progress thread has taken. `sleeping`: 1 while the progress thread sleeps and must be kicked. `state`: PORT_STATE.
 * `waiting`: PORT_WAITING bits of who is to be woken by the next completion. `cancels` is raised after each cancel.
 */
export const PORT_HEADER = {
  polled: 0,
  taken: 16,
  sleeping: 32,
  state: 33,
  waiting: 48,
  cancels: 49,
} as const;
/** `ended`: nothing will be taken or completed any more. */
export const PORT_STATE = { open: 0, ended: 1 } as const;
/** The port's thread blocks on the word; its event loop wants a call. */
export const PORT_WAITING = { blocked: 1, loop: 2 } as const;

/** Words of a submission. */
export const PORT_ENTRY_WORDS = 16;
/**
 * Word of each field of a submission. `tag` is below `entries` and under no other transfer of the port in flight. `lists` is
 * the word of the arena where its block lists begin. The other fields as in TRANSFER_REQUEST; `flags` packs the small ones.
 */
export const PORT_ENTRY = {
  turn: 0,
  tag: 1,
  peer: 2,
  localPool: 3,
  remotePool: 4,
  blocks: 5,
  lists: 6,
  flags: 7,
  firstLayer: 8,
  layers: 9,
  firstHead: 10,
  heads: 11,
  deadlineMs: 12,
  lease: 13,
  notificationBytes: 15,
} as const;
/** Lowest bit of each field of `flags`: one bit for direction and generations, two for integrity and reader, eight each for the last two. */
export const PORT_FLAG_SHIFT = {
  direction: 0,
  generations: 1,
  integrity: 2,
  reader: 4,
  transport: 8,
  priority: 16,
} as const;

/** Words of a completion. */
export const PORT_COMPLETION_WORDS = 16;
/** Word of each field of a completion, as in TRANSFER_EVENT; `textBytes` of its text say why it failed. */
export const PORT_COMPLETION = {
  turn: 0,
  tag: 1,
  status: 2,
  transport: 3,
  bytes: 4,
  postedNs: 6,
  begunNs: 8,
  doneNs: 10,
  textBytes: 12,
} as const;
/** The most of an error's words. */
export const PORT_TEXT_BYTES = 256;
