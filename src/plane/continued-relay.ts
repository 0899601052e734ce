/**
 * The rest of a relayed answer after it went on at another worker (R5, R7): that one is asked by ids, on its completions
 * route, so its frames are not the client's. Their text is taken out and given on by choice, to be framed like the part
 * before. Owned by the answer of one request; socket thread.
 */
import type { FrameBatch } from '../engines/contract.js';
import {
  type ChoiceEvent,
  errorOf,
  explodeFrame,
  finishReasonOf,
  parseRange,
  rowStart,
} from '../engines/event-rows.js';
import { FRAME, FRAME_FLAG } from '../engines/frame-descriptor.js';
import type { FinishReason } from '../messages/delta.js';
import { ABORTED, type BatchOutcome, emptyOutcome } from './batch-outcome.js';
import type { RelayRecord } from './relay-record.js';
import type { CallRange } from './token-answer.js';

const NO_CHOICE = FRAME_FLAG.done | FRAME_FLAG.comment | FRAME_FLAG.noChoices;
/** Frames that a row does not hold all of: a finish has its reason besides. */
const EXPLODES = FRAME_FLAG.severalChoices | FRAME_FLAG.idsOverflow | FRAME_FLAG.finish;
const NO_IDS: readonly number[] = [];

/** Where the text goes. */
export interface ContinuedOutput {
  text(choice: number, text: string): void;
  finish(choice: number, reason: FinishReason, stopReason: string | number | null): void;
}

/** Takes a batch of a continuation's frames. */
export function takeContinued(
  batch: FrameBatch,
  call: CallRange,
  record: RelayRecord,
  output: ContinuedOutput,
): BatchOutcome {
  const outcome = emptyOutcome();
  for (let row = 0; row < batch.count; row++) {
    const flags = batch.table[rowStart(row) + FRAME.flags]!;
    if ((flags & FRAME_FLAG.error) !== 0) outcome.engineError = errorOf(batch, row);
    else if ((flags & FRAME_FLAG.malformed) !== 0) outcome.malformed = true;
    else if ((flags & NO_CHOICE) === 0) takeFrame(batch, row, flags, call, record, output, outcome);
    if (outcome.malformed || outcome.engineError !== null) break;
  }
  return outcome;
}

function takeFrame(
  batch: FrameBatch,
  row: number,
  flags: number,
  call: CallRange,
  record: RelayRecord,
  output: ContinuedOutput,
  outcome: BatchOutcome,
): void {
  const events = (flags & EXPLODES) === 0 ? [eventOf(batch, row)] : explodeFrame(batch, row);
  if (events === null) outcome.malformed = true;
  for (const event of events ?? []) {
    const index = call.choiceBase + event.choice;
    const choice = event.choice >= 0 && event.choice < call.choices ? record.choices[index] : undefined;
    if (choice === undefined) outcome.malformed = true;
    else if (event.finish === 'aborted') outcome.engineError = ABORTED;
    if (choice === undefined || event.finish === 'aborted' || choice.hasFinished) continue;
    const ids = event.ids ?? NO_IDS;
    const text = event.text ?? '';
    outcome.tokens += ids.length;
    if (text !== '') output.text(index, text);
    record.take(index, ids, 0, ids.length, text !== '', event.finish !== null);
    if (event.finish !== null) output.finish(index, event.finish, event.stopReason);
  }
}

function eventOf(batch: FrameBatch, row: number): ChoiceEvent {
  const { table, ids } = batch;
  const at = rowStart(row);
  const first = table[at + FRAME.idsFirst]!;
  const text = parseRange(batch, row, FRAME.textStart, FRAME.textEnd);
  return {
    choice: table[at + FRAME.choice]!,
    text: typeof text === 'string' ? text : null,
    ids: first < 0 ? null : [...ids.subarray(first, first + table[at + FRAME.idsCount]!)],
    finish: finishReasonOf(batch, row),
    stopReason: null,
    logprobs: null,
  };
}
