/**
 * The answer of a prefill worker as far as every engine's is alike (R5, socket thread): JSON that is checked as a whole
 * before anything is cut out of it, and OpenAI's usage. Pure.
 */

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
