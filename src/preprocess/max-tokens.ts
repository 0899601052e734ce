/**
 * How many tokens a request may generate, once the length of its prompt is known (R3, pool thread). A request that
 * cannot fit in the model's context is refused here, before any worker sees it. Pure.
 */
import { InvalidRequestError } from '../errors.js';
import type { TokenRequest } from '../messages/token-request.js';

/** What a completion generates when it does not say: OpenAI's and vLLM's default. */
const COMPLETION_TOKENS_DEFAULT = 16;

function tooLong(param: string, message: string): InvalidRequestError {
  return new InvalidRequestError('MILLRACE_CONTEXT_LENGTH', message, { param });
}

/**
 * The `max_tokens` to send, per choice; null (a chat that does not say, context unknown) leaves it to the engine.
 * `promptTokens` must be exact (in relay mode it is not: pass no context length there). `contextLength` counts prompt
 * and answer together, in tokens. Throws InvalidRequestError MILLRACE_CONTEXT_LENGTH when
 * the prompt leaves no room for a token, or for the tokens that the request wants, which vLLM refuses too.
 */
export function resolveMaxTokens(
  request: TokenRequest,
  promptTokens: number,
  contextLength: number | null,
): number | null {
  const { maxTokens, minTokens } = request.stop;
  const wanted = maxTokens ?? (request.api === 'completions' ? COMPLETION_TOKENS_DEFAULT : null);
  let resolved = wanted;
  if (contextLength !== null) {
    const room = contextLength - promptTokens;
    const limit = `The model's context length is ${contextLength} tokens`;
    if (room < 1) {
      const param = request.api === 'chat' ? 'messages' : 'prompt';
      throw tooLong(param, `${limit}; the prompt has ${promptTokens}, which leaves no room for an answer`);
    }
    if (maxTokens !== null && maxTokens > room) {
      const newer = request.api === 'chat' && (request.raw.max_completion_tokens ?? null) !== null;
      const param = newer ? 'max_completion_tokens' : 'max_tokens';
      throw tooLong(param, `${limit}; the prompt has ${promptTokens} and ${param} is ${maxTokens}`);
    }
    resolved = Math.min(wanted ?? room, room);
  }
  if (resolved !== null && minTokens > resolved) {
    const message = `min_tokens is ${minTokens}, but the answer may have at most ${resolved} tokens`;
    throw new InvalidRequestError('MILLRACE_INVALID_REQUEST', message, { param: 'min_tokens' });
  }
  return resolved;
}
