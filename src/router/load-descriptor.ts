/**
 * The bytes of the load table and of the reservation ledger: two shared segments of unsigned 32-bit words, every line
 * and entry a whole number of 64-byte cache lines. `native/include/millrace/load_descriptor.h` is generated from here.
 *
 *     load table   line of a worker = slot × 2 + generation mod 2 (see load-table.ts), at word line × LOAD_LINE_WORDS
 *       first cache line, written by decide / firstToken / release:
 *         0 activePrefillTokens   1 decodeBlocks   2 requests   3 generation   4 state
 *         5 prefilledTokens   6..15 –
 *       second cache line, written by the metrics scrape:
 *         16 running  17 waiting  18 kvUsagePpm  19 scrapedSeconds  20..31 –     (UNKNOWN = not reported)
 *
 *     ledger       entry(index) = index × LEDGER_ENTRY_WORDS
 *         0 state + 2^8 × entry generation  1 owner epoch  2 slot  3 slot generation  4 prefillTokens  5 blocks  6..15 –
 *         (2 holds the line that the load was added to)
 *
 * A reservation id is entry generation × 2^20 + index, never 0. The generation, 1 to 2^12 − 1 and counted up at each
 * claim, shares its word with the state: a compare-and-set by a stale id cannot hit the entry's next use.
 */

/** 32-bit words of a line: two cache lines. */
export const LOAD_LINE_WORDS = 32;
/** Word of each field in a line of the load table. */
export const LOAD = {
  activePrefillTokens: 0,
  decodeBlocks: 1,
  requests: 2,
  generation: 3,
  state: 4,
  prefilledTokens: 5,
  running: 16,
  waiting: 17,
  kvUsagePpm: 18,
  scrapedSeconds: 19,
} as const;

/** Value of a scraped word whose metric the engine does not report. */
export const LOAD_UNKNOWN = 0xffff_ffff;

/** State of a worker slot. Only `ready` may be chosen. */
export const SLOT_STATE = { absent: 0, ready: 1, draining: 2, unavailable: 3 } as const;

/** 32-bit words of an entry: one cache line. */
export const LEDGER_ENTRY_WORDS = 16;
/** Word of each field in an entry of the ledger. */
export const LEDGER = {
  state: 0,
  owner: 1,
  slot: 2,
  slotGeneration: 3,
  prefillTokens: 4,
  blocks: 5,
} as const;

/**
 * free → claimed (being written by decide) → prefill → decode → releasing → free. Every step is a compare-and-set, so
 * firstToken and release happen once however often they are called.
 */
export const LEDGER_STATE = { free: 0, claimed: 1, prefill: 2, decode: 3, releasing: 4 } as const;

/** Bits of an entry's state word below its generation. */
export const LEDGER_GENERATION_SHIFT = 8;

/** Low bits of a reservation id that hold the index of its entry. */
export const RESERVATION_INDEX_BITS = 20;
/** The id that names no reservation. */
export const RESERVATION_NONE = 0;
