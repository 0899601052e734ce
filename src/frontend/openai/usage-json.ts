/** OpenAI's `usage` object as JSON text (R7), shared by the stream and the unary format. Pure, socket thread. */
import type { Usage } from '../../messages/delta.js';

/** `prompt_tokens_details` is left out where the engine does not say what it took from its cache. */
export function usageJson(usage: Usage): string {
  const { promptTokens, completionTokens, cachedTokens } = usage;
  const details = cachedTokens === null ? '' : `,"prompt_tokens_details":{"cached_tokens":${cachedTokens}}`;
  const total = promptTokens + completionTokens;
  return `{"prompt_tokens":${promptTokens},"completion_tokens":${completionTokens},"total_tokens":${total}${details}}`;
}
