/**
 * The answer of a prefill worker as far as every engine's is alike (R5, socket thread): JSON that is checked as a whole
 * before anything is cut out of it, and OpenAI's usage. Pure.
 */
import { fieldsOf, findField, replaceRange, rewriteObject } from './json-bytes.js';

/** Answers above this are passed on as they are: the socket thread does no long work. */
const TOLD_BYTES_MAX = 262_144;
const NOTHING: ReadonlySet<string> = new Set();

/** The parsed answer; null: it is not a JSON object. */
export function parseAnswer(answer: Uint8Array): Readonly<Record<string, unknown>> | null {
  try {
    const text = Buffer.from(answer.buffer, answer.byteOffset, answer.byteLength).toString('utf8');
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : null;
  } catch {
    return null;
  }
}

/** `usage.prompt_tokens_details.cached_tokens`; null: the engine does not say. */
export function cachedTokensOf(answer: Readonly<Record<string, unknown>>): number | null {
  const usage = answer.usage as Readonly<Record<string, unknown>> | null | undefined;
  if (typeof usage !== 'object' || usage === null) return null;
  const details = usage.prompt_tokens_details as Readonly<Record<string, unknown>> | null | undefined;
  // vLLM writes null for none, where it was started with --enable-prompt-tokens-details.
  if (details === null) return 0;
  const cached = details?.cached_tokens;
  return typeof cached === 'number' && Number.isInteger(cached) && cached >= 0 ? cached : null;
}

/** OpenAI's usage, valid JSON of an object, with `cachedTokens` in its `prompt_tokens_details`. Fresh bytes. */
export function withCachedTokens(usage: Uint8Array, cachedTokens: number): Uint8Array {
  const details = findField(fieldsOf(usage), 'prompt_tokens_details');
  const given = details === null ? null : usage.subarray(details.valueStart, details.valueEnd);
  const cached = [['cached_tokens', String(cachedTokens)]] as const;
  const isObject = given !== null && fieldsOf(given) !== null;
  const told = rewriteObject(isObject ? given : Buffer.from('{}'), NOTHING, cached);
  return rewriteObject(usage, NOTHING, [['prompt_tokens_details', told.toString('utf8')]]);
}

/** A whole answer with `cachedTokens` in its usage; itself where it has none. */
export function tellCachedTokens(answer: Buffer, cachedTokens: number): Uint8Array {
  const usage = answer.length > TOLD_BYTES_MAX ? null : parseAnswer(answer)?.usage;
  if (typeof usage !== 'object' || usage === null || Array.isArray(usage)) return answer;
  const { valueStart, valueEnd } = findField(fieldsOf(answer), 'usage')!;
  const told = withCachedTokens(answer.subarray(valueStart, valueEnd), cachedTokens);
  return replaceRange(answer, valueStart, valueEnd, told);
}
