/**
 * Reading the rows of a frame batch (R5): the values behind the ranges that the scanner found. Runs on the socket thread
 * while the batch is valid; everything returned is a copy. Rare values (finish, usage, error, frames with several
 * choices) are parsed with JSON.parse here; text and token ids of common frames are read from the batch directly.
 */
import type { FinishReason, Usage } from '../messages/delta.js';
import type { FrameBatch } from './contract.js';
import { type EngineError, readEngineError } from './engine-error.js';
import { FRAME, FRAME_FLAG, FRAME_WORDS, SCAN_HEADER_WORDS } from './frame-descriptor.js';

/** Why an engine ended a choice. 'aborted': the engine gave the request up, which no client asked for. */
export type EngineFinish = FinishReason | 'aborted';

/** One choice of a frame that the scanner could not put into one row. */
export interface ChoiceEvent {
  /** The engine's choice index. */
  readonly choice: number;
  readonly text: string | null;
  /** Token ids of this frame; null when the frame carries none. */
  readonly ids: readonly number[] | null;
  readonly finish: EngineFinish | null;
  /** The stop string or token id that ended the choice; null for end of sequence or no stop. */
  readonly stopReason: string | number | null;
  /** The value of `logprobs`; null when the frame carries none. */
  readonly logprobs: unknown;
}

/** Word of the batch's table at which row `row` begins. */
export function rowStart(row: number): number {
  return SCAN_HEADER_WORDS + row * FRAME_WORDS;
}

/** The value in a range of a row: its words `start` and `end`. Null when absent, undefined when it is not JSON. */
export function parseRange(batch: FrameBatch, row: number, start: number, end: number): unknown {
  const at = rowStart(row);
  const from = batch.table[at + start]!;
  if (from < 0) return null;
  return parseJson(readText(batch.bytes, from, batch.table[at + end]!));
}

function readText(bytes: Uint8Array, from: number, to: number): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset + from, to - from).toString('utf8');
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** vLLM's and SGLang's `abort`, vLLM's `error`, TensorRT-LLM's `cancelled` and `timeout`. */
const GIVEN_UP = new Set(['abort', 'error', 'cancelled', 'timeout']);

function finishOf(value: unknown): EngineFinish | null {
  if (typeof value !== 'string') return null;
  if (value === 'length' || value === 'tool_calls' || value === 'content_filter') return value;
  if (GIVEN_UP.has(value)) return 'aborted';
  // Engines invent reasons ('repetition', 'function_call'); OpenAI's clients know only the four.
  return 'stop';
}

/** Whether a value of a parsed frame is an object, not null and not a list. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const record = (value: unknown): Record<string, unknown> | null => (isObject(value) ? value : null);

const count = (value: unknown): number | null =>
  Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : null;

/** The finish reason of the row's choice, or null. */
export function finishReasonOf(batch: FrameBatch, row: number): EngineFinish | null {
  return finishOf(parseRange(batch, row, FRAME.finishStart, FRAME.finishEnd));
}

/** The usage of the row's frame; null when it has none, or none with both token counts. */
export function usageOf(batch: FrameBatch, row: number): Usage | null {
  const usage = record(parseRange(batch, row, FRAME.usageStart, FRAME.usageEnd));
  const promptTokens = count(usage?.prompt_tokens);
  if (usage === null || promptTokens === null) return null;
  // The last chunk of a request that generated nothing may leave completion_tokens out.
  const completionTokens = count(usage.completion_tokens) ?? 0;
  return {
    promptTokens,
    completionTokens,
    cachedTokens: count(record(usage.prompt_tokens_details)?.cached_tokens),
  };
}

/** The error that the engine reports in the row's frame (flag `error`), ready for the client. */
export function errorOf(batch: FrameBatch, row: number): EngineError {
  const error = record(parseRange(batch, row, FRAME.errorStart, FRAME.errorEnd));
  return readEngineError(count(error?.code) ?? 500, error);
}

/**
 * What the first batch of an answer begins with: 'nothing' (comments only), 'answer', the error that the engine reports
 * instead of an answer, or 'end' (the end marker without an answer).
 */
export function openingOf(batch: FrameBatch): 'nothing' | 'answer' | 'end' | EngineError {
  for (let row = 0; row < batch.count; row++) {
    const flags = batch.table[rowStart(row) + FRAME.flags]!;
    if ((flags & FRAME_FLAG.comment) !== 0) continue;
    if ((flags & FRAME_FLAG.error) !== 0) return errorOf(batch, row);
    return (flags & FRAME_FLAG.done) !== 0 ? 'end' : 'answer';
  }
  return 'nothing';
}

/**
 * The JSON object of the row's frame, for what its row does not hold. Null when it is none: values that nobody asks
 * for are not validated by the scanner.
 */
export function frameObject(batch: FrameBatch, row: number): Record<string, unknown> | null {
  const at = rowStart(row);
  const frame = readText(batch.bytes, batch.table[at + FRAME.start]!, batch.table[at + FRAME.end]!);
  const data = frame
    .split(/\r\n|\r|\n/)
    .filter(line => line.startsWith('data:'))
    .map(line => line.slice(line[5] === ' ' ? 6 : 5))
    .join('\n');
  return record(parseJson(data));
}

/**
 * All choices of a frame whose row has the flag `severalChoices` or `idsOverflow`. Null when the frame is not a JSON
 * object with a list of choices: the engine broke its protocol.
 */
export function explodeFrame(batch: FrameBatch, row: number): ChoiceEvent[] | null {
  const choices = frameObject(batch, row)?.choices;
  if (!Array.isArray(choices)) return null;
  const events: ChoiceEvent[] = [];
  for (const [index, value] of choices.entries()) {
    const choice = record(value);
    if (choice === null) return null;
    const text = choice.text ?? record(choice.delta)?.content;
    const ids = choice.token_ids;
    const stopReason = choice.stop_reason;
    if (ids !== undefined && ids !== null && !isIdList(ids)) return null;
    events.push({
      choice: count(choice.index) ?? index,
      text: typeof text === 'string' ? text : null,
      ids: isIdList(ids) ? ids : null,
      finish: finishOf(choice.finish_reason),
      stopReason: typeof stopReason === 'string' || typeof stopReason === 'number' ? stopReason : null,
      logprobs: choice.logprobs ?? null,
    });
  }
  return events;
}

/** Whether a value of a parsed frame is a list of token ids. */
export function isIdList(value: unknown): value is number[] {
  return Array.isArray(value) && value.every(id => Number.isInteger(id) && id >= 0 && id <= 0xffff_ffff);
}
