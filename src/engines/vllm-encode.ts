/**
 * The request body for a vLLM server (R5), made by a pool thread. Token mode sends the prompt as ids to /v1/completions
 * and asks for ids back. The relay modes send the client's own body with the worker's model name; with ids, these are
 * asked for as well, and a unary request becomes a stream. Pure: the result is a fresh array that the caller owns.
 */
import { strict as assert } from 'node:assert';
import type { CanaryCall, EncodedCall, EncodeInput } from './contract.js';
import {
  addSampling,
  bodyWithIds,
  COMPLETIONS_PATH,
  completionsCanary,
  jsonHead,
  relayBody,
  unknownFields,
} from './openai-encode.js';
import { addStructuredOutputs } from './vllm-constraint.js';

/**
 * Fields of a token-mode body that are ours to set or to leave out; an unknown field of the same name is dropped.
 * `stop` and `include_stop_str_in_output` stay out on purpose: the plane matches stop strings in its own text and
 * aborts, and an engine that matched them too would end the choice at its own idea of the text, before we saw the ids.
 * `echo` and the rest of the engine's text work rule token mode out, so they cannot be wanted here.
 */
const OWN_FIELDS = new Set([
  'model',
  'prompt',
  'messages',
  'stream',
  'stream_options',
  'return_token_ids',
  'max_tokens',
  'max_completion_tokens',
  'min_tokens',
  'n',
  'temperature',
  'top_p',
  'seed',
  'presence_penalty',
  'frequency_penalty',
  'ignore_eos',
  'stop',
  'stop_token_ids',
  'include_stop_str_in_output',
  'skip_special_tokens',
  'echo',
  'logprobs',
  'top_logprobs',
  'return_tokens_as_token_ids',
  'prompt_embeds',
]);

/** `EngineAdapter.encode` for vLLM. */
export function encodeVllmCall(input: EncodeInput): EncodedCall {
  return input.mode === 'token' ? encodeTokens(input) : encodeRelay(input, input.mode === 'relayIds');
}

/** `EngineAdapter.canary` for vLLM. */
export function vllmCanary(model: string, rank: number | null): CanaryCall {
  return completionsCanary(model, rankHead(rank));
}

function callHead(input: EncodeInput): EncodedCall['head'] {
  return [...jsonHead(input.requestId), ...rankHead(input.rank)];
}

function rankHead(rank: number | null): [string, string][] {
  return rank === null ? [] : [['x-data-parallel-rank', String(rank)]];
}

function encodeTokens(input: EncodeInput): EncodedCall {
  const { request, promptIds } = input;
  // Left out, max_tokens is 16 on this route: right for OpenAI's completions, a cut answer for chat.
  assert(
    input.maxTokens !== null || request.api === 'completions',
    'a chat request in token mode has a resolved maxTokens',
  );
  return {
    method: 'POST',
    path: COMPLETIONS_PATH,
    head: callHead(input),
    body: bodyWithIds('prompt', promptIds, tokenFields(input)),
    usageInjected: !request.output.includeUsage,
    idsInjected: true,
  };
}

function tokenFields(input: EncodeInput): Record<string, unknown> {
  const { request, maxTokens } = input;
  const { sampling, stop } = request;
  const fields = unknownFields(request, OWN_FIELDS);
  fields.model = input.workerModel;
  fields.stream = true;
  fields.stream_options = { include_usage: true };
  fields.return_token_ids = true;
  if (request.output.logprobs !== null) {
    fields.logprobs = request.output.logprobs;
    // Tokens by id, so that each gets the text and bytes of our own tokenizer.
    fields.return_tokens_as_token_ids = true;
  }
  if (maxTokens !== null) fields.max_tokens = maxTokens;
  if (stop.minTokens > 0) fields.min_tokens = stop.minTokens;
  fields.seed = sampling.seed;
  addSampling(fields, request);
  fields.skip_special_tokens = request.output.skipSpecialTokens;
  addStructuredOutputs(fields);
  return fields;
}

function encodeRelay(input: EncodeInput, withIds: boolean): EncodedCall {
  const { request } = input;
  const { path, body, usageInjected } = relayBody(input, request.output.stream || withIds);
  const idsInjected = withIds && request.raw.return_token_ids !== true;
  if (idsInjected) body.return_token_ids = true;
  addStructuredOutputs(body);
  return {
    method: 'POST',
    path,
    head: callHead(input),
    body: Buffer.from(JSON.stringify(body)),
    usageInjected,
    idsInjected,
  };
}
