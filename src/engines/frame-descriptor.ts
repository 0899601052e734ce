/**
 * The layout of the frame table: what the SSE frame scanner (C++ and its TypeScript twin) writes about each frame of
 * an engine's answer. One row of FRAME_WORDS 32-bit words per frame; offsets are bytes into the scanned buffer, a
 * range is (start, end), and -1 means absent. `native/include/millrace/frame_descriptor.h` is generated from this file.
 *
 *     word  0      1    2      3       4        5         6..7    8..9   10..11  12..13  14..15    16..17
 *          start  end  flags  choice  idsFirst idsCount  finish  usage  error   text    tokenIds  logprobs
 *     word  18        19           20..21         22..23
 *          usageKey  tokenIdsKey  choicePromptIds  promptIds
 *
 * `start` is the first byte of the frame and `end` the byte after its blank line. Ranges 6–17 cover the JSON *value*
 * (with its quotes, braces or brackets). `idsFirst` indexes the ids array of the same scan. A key word is the first
 * quote of the member's key: with the end of its value it is what a relayed frame is cut by (see frame-cuts.ts).
 * Ranges 20–23 reach from the first quote of the key to the end of the value of `prompt_token_ids`.
 */

/** 32-bit words of one row. */
export const FRAME_WORDS = 24;
/** Frames that one scan can report; a scan that fills the table says how far it came and is called again. */
export const FRAMES_MAX = 512;
/** Token ids that one scan can report. */
export const FRAME_IDS_MAX = 8192;

/** Word of each field in a row. */
export const FRAME = {
  start: 0,
  end: 1,
  flags: 2,
  choice: 3,
  idsFirst: 4,
  idsCount: 5,
  finishStart: 6,
  finishEnd: 7,
  usageStart: 8,
  usageEnd: 9,
  errorStart: 10,
  errorEnd: 11,
  textStart: 12,
  textEnd: 13,
  tokenIdsStart: 14,
  tokenIdsEnd: 15,
  logprobsStart: 16,
  logprobsEnd: 17,
  usageKey: 18,
  tokenIdsKey: 19,
  choicePromptIdsStart: 20,
  choicePromptIdsEnd: 21,
  promptIdsStart: 22,
  promptIdsEnd: 23,
} as const;

/** Bits of a row's `flags`. */
export const FRAME_FLAG = {
  /** `data: [DONE]`. */
  done: 1,
  /** A comment or an event without `data:`. */
  comment: 2,
  /** The data is not one JSON object: the engine broke its protocol. */
  malformed: 4,
  /** `choices` holds more than one element; the row describes the first, the adapter must parse the frame. */
  severalChoices: 8,
  /** `choices` is there and empty (a usage frame). */
  noChoices: 16,
  /** `usage` is there and not null. */
  usage: 32,
  /** Top-level `error` is there and not null. */
  error: 64,
  /** `choices[0].finish_reason` is there and not null. */
  finish: 128,
  /** The frame has more token ids than room was left for; the adapter must parse the frame. */
  idsOverflow: 256,
} as const;

/** Words of the header that a scan writes before the rows. */
export const SCAN_HEADER_WORDS = 4;
/** Word of each field in the header of a scan. */
export const SCAN_HEADER = {
  /** Rows written. */
  frames: 0,
  /** Bytes of the buffer that the rows cover; the rest is an unfinished frame or did not fit the table. */
  consumed: 1,
  /** Ids written. */
  ids: 2,
  /** 1 when the scan stopped for a full table, not for lack of bytes. */
  full: 3,
} as const;

/** Words of the array that is handed to the addon at attach. */
export const FRAME_TABLE_WORDS = SCAN_HEADER_WORDS + FRAME_WORDS * FRAMES_MAX;
