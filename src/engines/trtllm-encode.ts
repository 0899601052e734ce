/**
 * The request body for a TensorRT-LLM server (R5), made by a pool thread. Token mode is /v1/completions with a prompt of
 * ids and `detokenize: false`, which answers in ids. The server refuses a body with a field that it does not know, so
 * nothing of ours is ever sent that is not on its lists; what the client wrote is passed on, and the server's refusal then
 * names the client's field. Pure. Wire facts: `CompletionRequest` and `ChatCompletionRequest` of
 * tensorrt_llm/serve/openai_protocol.py (extra="forbid"), main of mid 2026.
 */
import { strict as assert } from 'node:assert';
import { createHash } from 'node:crypto';
import type { TokenRequest } from '../messages/token-request.js';
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
import { CONSTRAINT_FIELDS, constraintOf } from './sglang-constraint.js';

/** `max_tokens` of OpenAI's completions where the request has none; the server would fill the context. */
const COMPLETION_TOKENS = 16;

/** Fields of the completions route among those that Millrace does not know. */
const COMPLETION_FIELDS = new Set([
  'best_of',
  'logit_bias',
  'user',
  'lora_request',
  'prompt_ignore_length',
  'use_beam_search',
  'top_k',
  'top_p_min',
  'min_p',
  'repetition_penalty',
  'length_penalty',
  'early_stopping',
  'spaces_between_special_tokens',
  'return_context_logits',
  'thinking_token_budget',
  'response_format',
  'disaggregated_params',
  'priority',
  'conversation_params',
]);

/** Fields of a token-mode body that are ours to set or to leave out. `stop`: the plane matches in its own text. */
const OWN_FIELDS = new Set([
  'model',
  'prompt',
  'messages',
  'stream',
  'stream_options',
  'detokenize',
  'add_special_tokens',
  'truncate_prompt_tokens',
  'stop',
  'priority',
]);

/** `EngineAdapter.encode` for TensorRT-LLM. */
export function encodeTrtllmCall(input: EncodeInput): EncodedCall {
  // Its chat route returns no ids, and its completions route returns either text or ids.
  assert(input.mode !== 'relayIds', 'TensorRT-LLM is asked in token or relay mode');
  return input.mode === 'token' ? encodeTokens(input) : encodeRelay(input);
}

/** `EngineAdapter.tokenModeGap` for TensorRT-LLM. */
export function trtllmTokenModeGap({ api, output, unknown }: TokenRequest): string | null {
  // It names the weighed tokens by their text, which does not say which id is meant.
  if (output.logprobs !== null) return 'logprobs';
  // A chat's field that the completions route does not have, such as `cache_salt`.
  if (api === 'completions') return null;
  const isTaken = (name: string): boolean => COMPLETION_FIELDS.has(name) || CONSTRAINT_FIELDS.includes(name);
  return Object.keys(unknown).find(name => unknown[name] !== null && !isTaken(name)) ?? null;
}

/** `EngineAdapter.canary` for TensorRT-LLM, whose ranks cannot be named. */
export function trtllmCanary(model: string): CanaryCall {
  return completionsCanary(model, [], { detokenize: false });
}

function encodeTokens(input: EncodeInput): EncodedCall {
  return {
    method: 'POST',
    path: COMPLETIONS_PATH,
    head: jsonHead(input.requestId),
    body: bodyWithIds('prompt', input.promptIds, tokenFields(input)),
    usageInjected: !input.request.output.includeUsage,
    idsInjected: true,
  };
}

function tokenFields(input: EncodeInput): Record<string, unknown> {
  const { request, maxTokens } = input;
  const { sampling, stop } = request;
  assert(
    maxTokens !== null || request.api === 'completions',
    'a chat in token mode has a resolved maxTokens',
  );
  const fields = unknownFields(request, OWN_FIELDS);
  fields.model = input.workerModel;
  fields.stream = true;
  fields.stream_options = { include_usage: true };
  fields.detokenize = false;
  fields.max_tokens = maxTokens ?? COMPLETION_TOKENS;
  if (stop.minTokens > 0) fields.min_tokens = stop.minTokens;
  fields.seed = sampling.seed;
  addSampling(fields, request);
  addPriority(fields, request);
  addConstraint(fields);
  addAdapter(fields, input);
  return fields;
}

function encodeRelay(input: EncodeInput): EncodedCall {
  const { path, body, usageInjected } = relayBody(input, input.request.output.stream);
  addPriority(body, input.request);
  addConstraint(body);
  addAdapter(body, input);
  return {
    method: 'POST',
    path,
    head: jsonHead(input.requestId),
    body: Buffer.from(JSON.stringify(body)),
    usageInjected,
    idsInjected: false,
  };
}

/**
 * Our API has vLLM's priorities: integers, the lowest first, 0 by default. The server's go from 0 to 1, the highest first,
 * 0.5 by default: a logistic curve keeps the order and the default.
 */
function addPriority(fields: Record<string, unknown>, { unknown }: TokenRequest): void {
  const { priority } = unknown;
  if (typeof priority === 'number') fields.priority = 1 / (1 + Math.exp(priority / PRIORITY_SCALE));
}

/**
 * The server knows constraints as `response_format` alone: what clients write in vLLM's or SGLang's fields becomes one. A
 * field that has no form there stays, for the server to name.
 */
function addConstraint(fields: Record<string, unknown>): void {
  const { response_format: given = null, ...others } = fields;
  if (given !== null) return;
  const { params, gap } = constraintOf(others);
  const [kind] = Object.keys(params);
  if (gap !== null || kind === undefined) return;
  const format = FORMATS[kind]!(params[kind]!);
  for (const name of CONSTRAINT_FIELDS) delete fields[name];
  fields.response_format = format;
}

/** `ResponseFormat` of the server by SGLang's names of constraints. */
const FORMATS: Readonly<Record<string, (text: string) => object>> = {
  json_schema: text => ({ type: 'json', schema: JSON.parse(text) as unknown }),
  regex: regex => ({ type: 'regex', regex }),
  ebnf: ebnf => ({ type: 'ebnf', ebnf }),
  structural_tag: text => JSON.parse(text) as object,
};

/** The server knows no adapter by its name alone: the request brings all that it needs to load it. */
function addAdapter(fields: Record<string, unknown>, { adapter, workerModel }: EncodeInput): void {
  if (adapter === undefined) return;
  assert(adapter.path !== undefined, 'an adapter of TensorRT-LLM has a path');
  if (adapter.parent !== undefined) fields.model = adapter.parent;
  fields.lora_request = {
    lora_name: workerModel,
    lora_int_id: adapterNumber(workerModel, adapter.path),
    lora_path: adapter.path,
  };
}

/**
 * The number that the server keeps weights and KV blocks of an adapter under: the same from every sender, and another one
 * for other weights. 31 bits, not 0.
 */
function adapterNumber(name: string, path: string): number {
  const digest = createHash('sha256').update(`${name}\0${path}`).digest();
  return (digest.readUInt32BE(0) >>> 1) | 1;
}

/** Priorities up to some thousands stay apart. */
const PRIORITY_SCALE = 100;
