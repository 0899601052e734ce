/** Counting the tokens of frames that the engine makes the text of (relayIds mode). Pure, socket thread. */
import type { FrameBatch } from '../engines/contract.js';
import { explodeFrame, rowStart } from '../engines/event-rows.js';
import { FRAME, FRAME_FLAG } from '../engines/frame-descriptor.js';

const EXPLODES = FRAME_FLAG.severalChoices | FRAME_FLAG.idsOverflow;

/**
 * Tokens of a frame that should carry ids. Where it has none, because the engine hides them with the reasoning, a frame
 * with something in it counts as one: the first token and the pauses between tokens must be seen.
 */
export function tokensOf(batch: FrameBatch, row: number): number {
  const { table } = batch;
  const at = rowStart(row);
  if ((table[at + FRAME.flags]! & EXPLODES) !== 0) {
    const events = explodeFrame(batch, row) ?? [];
    return events.reduce((sum, event) => sum + (event.ids?.length ?? 0), 0);
  }
  if (table[at + FRAME.idsFirst]! >= 0) return table[at + FRAME.idsCount]!;
  const text = table[at + FRAME.textStart]!;
  const isEmpty = text >= 0 && table[at + FRAME.textEnd]! - text === '""'.length;
  return isEmpty ? 0 : 1;
}
