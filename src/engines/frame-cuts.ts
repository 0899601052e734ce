/**
 * Taking members out of relayed frames (R5, socket thread): the ids and usage that we asked the engine for and the
 * client did not. A frame is never rebuilt: what is kept of it are ranges of its bytes, found by the scanner's rows, and
 * their sum is the same JSON object without those members. Only a frame with several choices, which stock engines do
 * not send, is parsed and written anew. null is absent to the scanner and stays, as engines send it unasked.
 */
import type { FrameBatch } from './contract.js';
import { frameObject, isObject, rowStart } from './event-rows.js';
import { FRAME, FRAME_FLAG } from './frame-descriptor.js';

/** What is taken out of the frames of an answer. */
export interface FrameCuts {
  /** `token_ids` and `prompt_token_ids`. */
  readonly ids: boolean;
  /** `usage`, and a chunk without choices that carries it as a whole. */
  readonly usage: boolean;
}

/** Members that can be cut from one frame, each as the words of its start and end. */
const IDS = [
  [FRAME.tokenIdsKey, FRAME.tokenIdsEnd],
  [FRAME.choicePromptIdsStart, FRAME.choicePromptIdsEnd],
  [FRAME.promptIdsStart, FRAME.promptIdsEnd],
] as const;
const USAGE = [FRAME.usageKey, FRAME.usageEnd] as const;
const CUTS_MAX = IDS.length + 1;
/** Words that `keptRanges` may write: a start and an end for each range. */
export const KEPT_WORDS_MAX = 2 * (CUTS_MAX + 1);
/** A chunk that carries usage and no choice. */
const USAGE_CHUNK = FRAME_FLAG.usage | FRAME_FLAG.noChoices;

const COMMA = 0x2c;
const SPACE = 0x20;
const TAB = 0x09;

const isSpace = (byte: number | undefined): boolean => byte === SPACE || byte === TAB;

/** Cuts of the frame at hand, by position; a module is loaded once per thread. */
const starts = new Int32Array(CUTS_MAX);
const ends = new Int32Array(CUTS_MAX);

/** Whether the frame of this row has a member that is cut. */
export function isCut(batch: FrameBatch, row: number, cuts: FrameCuts): boolean {
  const { table } = batch;
  const at = rowStart(row);
  if (cuts.usage && table[at + FRAME.usageKey]! >= 0) return true;
  if (!cuts.ids) return false;
  // The row does not say what the other choices hold.
  if ((table[at + FRAME.flags]! & FRAME_FLAG.severalChoices) !== 0) return true;
  return (
    table[at + FRAME.tokenIdsKey]! >= 0 ||
    table[at + FRAME.choicePromptIdsStart]! >= 0 ||
    table[at + FRAME.promptIdsStart]! >= 0
  );
}

/**
 * Writes the ranges of a frame with one choice that are kept, (start, end) in the batch's bytes, to the begin of `out`
 * and returns how many words. None are kept of a usage chunk. `out` has room for KEPT_WORDS_MAX words.
 */
export function keptRanges(batch: FrameBatch, row: number, cuts: FrameCuts, out: Int32Array): number {
  const { table, bytes } = batch;
  const first = rowStart(row);
  if (cuts.usage && (table[first + FRAME.flags]! & USAGE_CHUNK) === USAGE_CHUNK) return 0;
  const count = collectCuts(table, first, cuts);
  let words = 0;
  let from = table[first + FRAME.start]!;
  for (let cut = 0; cut < count; cut++) {
    let end = ends[cut]!;
    while (isSpace(bytes[end])) end++;
    let keptTo = starts[cut]!;
    if (bytes[end] === COMMA) {
      end++;
    } else {
      // The last member takes the comma before it, which may be before earlier cuts of the same object.
      end = ends[cut]!;
      for (;;) {
        while (keptTo > from && isSpace(bytes[keptTo - 1])) keptTo--;
        if (keptTo > from || words === 0) break;
        words -= 2;
        from = out[words]!;
        keptTo = out[words + 1]!;
      }
      if (bytes[keptTo - 1] === COMMA) keptTo--;
    }
    out[words++] = from;
    out[words++] = keptTo;
    from = end;
  }
  out[words++] = from;
  out[words++] = table[first + FRAME.end]!;
  return words;
}

/** Puts the members to cut into `starts` and `ends`, in the order of the frame; returns how many there are. */
function collectCuts(table: Int32Array, first: number, cuts: FrameCuts): number {
  let count = 0;
  if (cuts.ids) {
    for (const [start, end] of IDS) count = addCut(table[first + start]!, table[first + end]!, count);
  }
  if (cuts.usage) count = addCut(table[first + USAGE[0]]!, table[first + USAGE[1]]!, count);
  return count;
}

function addCut(start: number, end: number, count: number): number {
  if (start < 0) return count;
  let at = count;
  for (; at > 0 && starts[at - 1]! > start; at--) {
    starts[at] = starts[at - 1]!;
    ends[at] = ends[at - 1]!;
  }
  starts[at] = start;
  ends[at] = end;
  return count + 1;
}

/** A frame with several choices, written anew without the members that are cut; null: it is not what it seemed. */
export function rewriteFrame(batch: FrameBatch, row: number, cuts: FrameCuts): Uint8Array | null {
  const frame = frameObject(batch, row);
  if (frame === null || !Array.isArray(frame.choices) || !frame.choices.every(isObject)) return null;
  if (cuts.usage && frame.usage !== null) delete frame.usage;
  if (cuts.ids) {
    for (const holder of [frame, ...frame.choices]) {
      for (const name of ['token_ids', 'prompt_token_ids']) if (holder[name] !== null) delete holder[name];
    }
  }
  return Buffer.from(`data: ${JSON.stringify(frame)}\n\n`);
}
