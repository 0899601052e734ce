/**
 * Log-probabilities in the frames of an engine that was asked for them with `return_tokens_as_token_ids` (R5): vLLM's
 * completions form, in which a token is named `token_id:7`. Parsed with JSON.parse: only requests that want them pay.
 * Runs on the socket thread while the batch is valid; what is returned is a copy.
 */
import type { FrameBatch } from './contract.js';
import { isObject, parseRange } from './event-rows.js';
import { FRAME } from './frame-descriptor.js';

/** A token that the engine weighed, and its log-probability. */
export interface IdLogprob {
  readonly id: number;
  readonly logprob: number;
}

/** What the engine says of one generated token. `top`: the likeliest ones in its order, the drawn one among them. */
export interface DrawnLogprob {
  readonly logprob: number;
  readonly top: readonly IdLogprob[];
}

const TOKEN_NAME = /^token_id:(\d{1,10})$/;

/** Of the row's choice, one per token id of the frame; null when they are absent or not in that form. */
export function logprobsOf(batch: FrameBatch, row: number): DrawnLogprob[] | null {
  return readLogprobs(parseRange(batch, row, FRAME.logprobsStart, FRAME.logprobsEnd));
}

/** The same from the parsed value of `logprobs`. */
export function readLogprobs(value: unknown): DrawnLogprob[] | null {
  if (!isObject(value)) return null;
  const { token_logprobs: logprobs, top_logprobs: tops } = value;
  if (!Array.isArray(logprobs) || !Array.isArray(tops) || logprobs.length !== tops.length) return null;
  const drawn: DrawnLogprob[] = [];
  for (const [at, logprob] of logprobs.entries()) {
    const top = readTop(tops[at]);
    if (typeof logprob !== 'number' || top === null) return null;
    drawn.push({ logprob, top });
  }
  return drawn;
}

function readTop(value: unknown): IdLogprob[] | null {
  if (value === null) return [];
  if (!isObject(value)) return null;
  const top: IdLogprob[] = [];
  for (const [name, logprob] of Object.entries(value)) {
    const id = TOKEN_NAME.exec(name)?.[1];
    if (id === undefined || typeof logprob !== 'number') return null;
    top.push({ id: Number(id), logprob });
  }
  return top;
}
