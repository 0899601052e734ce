/**
 * The body of a prefill for vLLM's connectors (R5, pool thread): the request as it would be answered, shortened to one
 * token that nobody reads. Pure.
 */
import { rewriteObject } from './json-bytes.js';

/**
 * Fields that would make the answer longer than it is worth, or end it by anything but its length: a Mooncake prefill that
 * ends otherwise keeps nothing for decode.
 */
const DROPPED = new Set([
  'stream_options',
  'min_tokens',
  'max_completion_tokens',
  'stop',
  'stop_token_ids',
  'logprobs',
  'top_logprobs',
  'return_token_ids',
  'return_tokens_as_token_ids',
]);

/** `params`: the value of `kv_transfer_params`, as JSON. */
export function vllmPrefillBody(body: Uint8Array, params: string): Buffer {
  return rewriteObject(body, DROPPED, [
    ['kv_transfer_params', params],
    ['stream', 'false'],
    ['max_tokens', '1'],
    ['n', '1'],
    ['ignore_eos', 'true'],
  ]);
}
