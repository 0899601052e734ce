/**
 * The request body for an SGLang server (R5), made by a pool thread. Token mode is the native POST /generate: ids in, ids
 * out, sampling under SGLang's names. Relay mode sends the client's own body to the OpenAI routes. Pure. Wire facts:
 * GenerateReqInput in sglang/srt/managers/io_struct.py and sglang/srt/sampling/sampling_params.py, main of mid 2026.
 */
import { strict as assert } from 'node:assert';
import type { TokenRequest } from '../messages/token-request.js';
import type { AbortCall, CanaryCall, EncodedCall, EncodeInput } from './contract.js';
import { addSampling, bodyWithIds, CANARY_ID, jsonHead, relayBody, unknownFields } from './openai-encode.js';
import { CONSTRAINT_FIELDS, constraintOf } from './sglang-constraint.js';

/** `max_tokens` of OpenAI's completions where the request has none; /generate would take 128. */
const COMPLETION_TOKENS = 16;

/**
 * Fields of the client that are sampling parameters under the same name. A name that is none ends in a TypeError of the
 * server after it has answered 200, so no other is ever sent among them.
 */
const SAMPLING_FIELDS = [
  'top_k',
  'min_p',
  'repetition_penalty',
  'logit_bias',
  'custom_params',
  'stream_interval',
  'spaces_between_special_tokens',
];

/**
 * Fields of a token-mode body that are ours to set or to leave out. The rest of what the client wrote goes beside them:
 * /generate ignores what it does not know. `stop` stays out on purpose: the plane matches stop strings in its own text.
 */
const OWN_FIELDS = new Set([
  ...SAMPLING_FIELDS,
  ...CONSTRAINT_FIELDS,
  'text',
  'input_ids',
  'input_embeds',
  'sampling_params',
  'stream',
  'rid',
  'return_logprob',
  'logprob_start_len',
  'top_logprobs_num',
  'token_ids_logprob',
  'return_text_in_logprobs',
  'return_flat_raw_top_logprobs',
  'return_hidden_states',
  'stop',
  'stop_regex',
  'lora_path',
  'priority',
  'routed_dp_rank',
  'data_parallel_rank',
  'prompt',
  'messages',
  'model',
]);

/** `EngineAdapter.encode` for SGLang. */
export function encodeSglangCall(input: EncodeInput): EncodedCall {
  // Its OpenAI routes return no ids.
  assert(input.mode !== 'relayIds', 'SGLang is asked in token or relay mode');
  return input.mode === 'token' ? encodeTokens(input) : encodeRelay(input);
}

/** `EngineAdapter.tokenModeGap` for SGLang. */
export function sglangTokenModeGap({ unknown }: TokenRequest): string | null {
  // Matched by the engine in its own text, while the plane would show the text after the match.
  if ((unknown.stop_regex ?? null) !== null) return 'stop_regex';
  return constraintOf(unknown).gap;
}

/** `EngineAdapter.abortCall` for SGLang: ends what was sent under this `rid`. */
export function sglangAbortCall(requestId: string): AbortCall {
  return {
    method: 'POST',
    path: '/abort_request',
    head: [['content-type', 'application/json']],
    body: Buffer.from(JSON.stringify({ rid: requestId })),
  };
}

/** `EngineAdapter.canary` for SGLang: the route that serves token mode. */
export function sglangCanary(_model: string, rank: number | null): CanaryCall {
  const fields = {
    input_ids: [CANARY_ID],
    sampling_params: { max_new_tokens: 1, temperature: 0 },
    stream: false,
    ...rankFields(rank),
  };
  return {
    method: 'POST',
    path: '/generate',
    head: [['content-type', 'application/json']],
    body: Buffer.from(JSON.stringify(fields)),
  };
}

function encodeTokens(input: EncodeInput): EncodedCall {
  const { request, promptIds } = input;
  const { logprobs } = request.output;
  const fields = unknownFields(request, OWN_FIELDS);
  fields.sampling_params = samplingParams(input);
  fields.stream = true;
  if (logprobs !== null) {
    fields.return_logprob = true;
    fields.top_logprobs_num = logprobs;
  }
  addRouting(fields, input);
  return {
    method: 'POST',
    path: '/generate',
    head: jsonHead(input.requestId),
    body: bodyWithIds('input_ids', promptIds, fields),
    // Every answer carries its counts.
    usageInjected: !request.output.includeUsage,
    idsInjected: true,
  };
}

function samplingParams(input: EncodeInput): Record<string, unknown> {
  const { request, maxTokens } = input;
  const { sampling, stop, unknown } = request;
  assert(
    maxTokens !== null || request.api === 'completions',
    'a chat in token mode has a resolved maxTokens',
  );
  const params: Record<string, unknown> = { ...constraintOf(unknown).params };
  for (const name of SAMPLING_FIELDS) {
    const value = Object.hasOwn(unknown, name) ? unknown[name] : null;
    if (value !== null) params[name] = value;
  }
  // vLLM's word for "all"; SGLang's is -1, and it refuses 0.
  if (params.top_k === 0) params.top_k = -1;
  params.max_new_tokens = maxTokens ?? COMPLETION_TOKENS;
  if (stop.minTokens > 0) params.min_new_tokens = stop.minTokens;
  params.sampling_seed = sampling.seed;
  addSampling(params, request);
  return params;
}

function encodeRelay(input: EncodeInput): EncodedCall {
  const { path, body, usageInjected } = relayBody(input, input.request.output.stream);
  addRouting(body, input);
  return {
    method: 'POST',
    path,
    head: jsonHead(input.requestId),
    body: Buffer.from(JSON.stringify(body)),
    usageInjected,
    idsInjected: false,
  };
}

function rankFields(rank: EncodeInput['rank']): Record<string, number> {
  // The second is the name before 2026; later releases take it as an alias.
  return typeof rank === 'number' ? { routed_dp_rank: rank, data_parallel_rank: rank } : {};
}

/** What both routes name alike. */
function addRouting(fields: Record<string, unknown>, input: EncodeInput): void {
  const { request, workerModel, rank } = input;
  // Several choices are requests of their own inside the server, for which older releases refuse one `rid`.
  if (request.sampling.n === 1) fields.rid = input.requestId;
  if (input.adapter !== undefined) fields.lora_path = workerModel;
  Object.assign(fields, rankFields(rank));
  const { priority } = request.unknown;
  // Our API has vLLM's sense, where the lowest goes first; SGLang's scheduler prefers the highest.
  if (typeof priority === 'number') fields.priority = priority === 0 ? 0 : -priority;
}
