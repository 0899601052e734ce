/**
 * The decoder of SGLang's /generate stream (R5, socket thread), whose frames are written anew as OpenAI's: see
 * translated-stream.ts.
 *
 *     data: {"text":"a","output_ids":[7],"meta_info":{"finish_reason":null,"prompt_tokens":3,"completion_tokens":1,…}}
 *  →  data: {"choices":[{"index":0,"token_ids":[7]}]}
 *
 * By default a frame repeats the whole answer; a server with --incremental-streaming-output (before 2026
 * --stream-output) sends what is new. Which one it is shows in `completion_tokens`, which counts from the start in both;
 * a frame whose ids do not fit it has lost some (releases of 2025 dropped increments under load), and ends the stream as
 * malformed. Wire facts: `_handle_batch_output` of sglang/srt/managers/tokenizer_manager.py, 0.4.6 to main of mid 2026.
 */
import type { EngineStream } from './contract.js';
import { isObject } from './event-rows.js';
import { sglangLogprobs } from './sglang-logprobs.js';
import type { StreamLimits, StreamScanner } from './stream-decoder.js';
import { type FrameTranslator, openTranslatedStream } from './translated-stream.js';

const OPEN_BRACE = 0x7b;
const U32_MAX = 0xffff_ffff;

/** What is known of one choice. */
interface Choice {
  /** Ids that were handed on. */
  tokens: number;
  form: 'unknown' | 'cumulative' | 'incremental';
  finished: boolean;
  promptTokens: number | null;
  cachedTokens: number | null;
}

/** Opens a decoder; the rules of `openSseStream` hold. */
export function openGenerateStream(
  scanner: StreamScanner,
  { firstFrameBytesMax }: StreamLimits,
): EngineStream {
  // Any frame may repeat the whole answer, as the first one of other engines may repeat the prompt.
  const limits = { firstFrameBytesMax, frameBytesMax: firstFrameBytesMax };
  return openTranslatedStream(scanner, limits, new GenerateFrames());
}

class GenerateFrames implements FrameTranslator {
  readonly #choices = new Map<number, Choice>();

  frame(bytes: Uint8Array): string | null {
    const frame = readFrame(bytes);
    if (frame === null) return null;
    if (frame.error !== undefined && frame.error !== null) return errorFrame(frame.error);
    return this.#answer(frame);
  }

  #answer(frame: Record<string, unknown>): string | null {
    const { output_ids: ids = [], index = 0, meta_info: meta } = frame;
    if (!isCount(index) || !isObject(meta) || !isIdList(ids)) return null;
    const finish = isObject(meta.finish_reason) ? meta.finish_reason : null;
    if (finish?.type === 'abort') return abortFrame(finish);
    const choice = this.#choice(index);
    const first = choice.finished ? null : firstNewId(choice, ids.length, meta.completion_tokens);
    if (first === null) return null;
    const fresh = ids.slice(first);
    const answer: Record<string, unknown> = { index, token_ids: fresh };
    if (meta.output_token_logprobs !== undefined) {
      answer.logprobs = sglangLogprobs(meta, choice.tokens, fresh);
      if (answer.logprobs === null) return null;
    }
    choice.tokens += fresh.length;
    if (finish !== null) {
      choice.finished = true;
      answer.finish_reason = finish.type;
      answer.stop_reason = typeof finish.matched === 'string' ? fromLatin1(finish.matched) : finish.matched;
    }
    if (isCount(meta.prompt_tokens)) choice.promptTokens = meta.prompt_tokens;
    if (isCount(meta.cached_tokens)) choice.cachedTokens = meta.cached_tokens;
    return dataFrame({ choices: [answer] });
  }

  #choice(index: number): Choice {
    let choice = this.#choices.get(index);
    if (choice === undefined) {
      choice = { tokens: 0, form: 'unknown', finished: false, promptTokens: null, cachedTokens: null };
      this.#choices.set(index, choice);
    }
    return choice;
  }

  /** The frame with the counts of the answer; empty before an answer. The prompt of all choices is one. */
  last(): string {
    const choices = [...this.#choices.values()];
    const promptTokens = choices[0]?.promptTokens ?? null;
    if (promptTokens === null) return '';
    const completionTokens = choices.reduce((sum, choice) => sum + choice.tokens, 0);
    return dataFrame({
      choices: [],
      usage: {
        prompt_tokens: promptTokens,
        completion_tokens: completionTokens,
        total_tokens: promptTokens + completionTokens,
        prompt_tokens_details: { cached_tokens: choices[0]!.cachedTokens },
      },
    });
  }
}

/** Where in a frame's `count` ids the new ones begin; null when ids are missing. Learns the form of the stream. */
function firstNewId(choice: Choice, count: number, completionTokens: unknown): number | null {
  const total = isCount(completionTokens) ? completionTokens : null;
  if (choice.form === 'unknown' && choice.tokens > 0) {
    // A list may be longer than its count: some releases go on filling it before it is written.
    if (total !== null && count >= total) choice.form = 'cumulative';
    else if (total === choice.tokens + count) choice.form = 'incremental';
    else return null;
  }
  if (choice.form === 'cumulative') {
    return count >= choice.tokens && (total === null || count >= total) ? choice.tokens : null;
  }
  const isWhole = total === null || total === choice.tokens + count;
  // The first frame is the same in both forms.
  return isWhole || (choice.tokens === 0 && count >= total) ? 0 : null;
}

/** Read as Latin-1, which costs a copy: only the rare texts in it need their real characters (`fromLatin1`). */
function readFrame(bytes: Uint8Array): Record<string, unknown> | null {
  const from = bytes.indexOf(OPEN_BRACE);
  const text = Buffer.from(bytes.buffer, bytes.byteOffset + from, bytes.byteLength - from).toString('latin1');
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : null;
  } catch {
    return null;
  }
}

function fromLatin1(text: string): string {
  return Buffer.from(text, 'latin1').toString('utf8');
}

function dataFrame(value: object): string {
  return `data: ${JSON.stringify(value)}\n\n`;
}

/** An error instead of an answer. One without a status is a ValueError of the server: the request was wrong. */
function errorFrame(error: unknown): string {
  const { message, code } = isObject(error) ? error : {};
  return dataFrame({
    error: { message: messageOf(message), code: isCount(code) ? code : 400 },
  });
}

/** The server gave the request up: by a status of its own, or at the word of somebody else. */
function abortFrame(finish: Record<string, unknown>): string {
  const status = isCount(finish.status_code) ? finish.status_code : 500;
  return dataFrame({ error: { message: messageOf(finish.message), code: status } });
}

function messageOf(message: unknown): string | null {
  return typeof message === 'string' ? fromLatin1(message) : null;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isIdList(value: unknown): value is number[] {
  return Array.isArray(value) && value.every(id => isCount(id) && id <= U32_MAX);
}
