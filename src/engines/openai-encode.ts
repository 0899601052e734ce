/**
 * What the request bodies for all engines with OpenAI's routes have in common (R5, pool thread): the head of a call, and
 * the relayed body, which is the client's own with the worker's model name and with usage asked for. Pure: results are
 * fresh values that the caller owns.
 */
import { strict as assert } from 'node:assert';
import type { Api, TokenRequest } from '../messages/token-request.js';
import type { CanaryCall, EncodedCall, EncodeInput } from './contract.js';

/** Path of OpenAI's completions route. */
export const COMPLETIONS_PATH = '/v1/completions';

const PATHS: Readonly<Record<Api, string>> = {
  chat: '/v1/chat/completions',
  completions: COMPLETIONS_PATH,
};

/** Head of a call with a JSON body. */
export function jsonHead(requestId: string): [string, string][] {
  return [
    ['content-type', 'application/json'],
    ['x-request-id', requestId],
  ];
}

/** A relayed body before it becomes text; the caller may add fields. */
export interface RelayBody {
  readonly path: string;
  readonly body: Record<string, unknown>;
  readonly usageInjected: boolean;
}

/** `streams`: the engine streams, whatever the client asked for. */
export function relayBody(input: EncodeInput, streams: boolean): RelayBody {
  const { request } = input;
  const usageInjected = streams && !request.output.includeUsage;
  const body: Record<string, unknown> = { ...request.raw, model: input.workerModel };
  if (streams) body.stream = true;
  if (usageInjected) body.stream_options = withUsage(request);
  return { path: PATHS[request.api], body, usageInjected };
}

/**
 * The body of a token-mode call: `fields` with the prompt's ids under `name`. Joined by hand: JSON.stringify would need
 * the ids as a plain array first, at twice the cost.
 */
export function bodyWithIds(
  name: string,
  ids: EncodeInput['promptIds'],
  fields: Readonly<Record<string, unknown>>,
): EncodedCall['body'] {
  assert(ids !== null && ids.length > 0, 'token mode has prompt ids');
  return Buffer.from(`{"${name}":[${ids.join(',')}],${JSON.stringify(fields).slice(1)}`);
}

/** The client's fields that Millrace does not know, without those in `own`, which are ours to set or to leave out. */
export function unknownFields(request: TokenRequest, own: ReadonlySet<string>): Record<string, unknown> {
  // fromEntries defines properties, so that a field named __proto__ is passed on like any other.
  return Object.fromEntries(Object.entries(request.unknown).filter(([name]) => !own.has(name)));
}

/**
 * Sets the sampling fields that all engines name alike. Undefined values are left out by JSON.stringify: the engine's own
 * defaults then count. The seed and the least number of tokens have names of each engine's own.
 */
export function addSampling(fields: Record<string, unknown>, { sampling, stop }: TokenRequest): void {
  if (sampling.n > 1) fields.n = sampling.n;
  fields.temperature = sampling.temperature;
  fields.top_p = sampling.topP;
  fields.presence_penalty = sampling.presencePenalty;
  fields.frequency_penalty = sampling.frequencyPenalty;
  if (stop.ignoreEos) fields.ignore_eos = true;
  if (stop.tokenIds.length > 0) fields.stop_token_ids = stop.tokenIds;
}

function withUsage(request: TokenRequest): Record<string, unknown> {
  const given = request.raw.stream_options;
  const options: Record<string, unknown> = typeof given === 'object' && given !== null ? { ...given } : {};
  // Without include_usage an engine ignores it; with ours it would put usage on every frame, unasked.
  delete options.continuous_usage_stats;
  options.include_usage = true;
  return options;
}

/** Id of the prompt of a canary: every vocabulary has it. */
export const CANARY_ID = 1;

/** A canary for an engine with OpenAI's completions route; the engine names the request itself. */
export function completionsCanary(
  model: string,
  head: CanaryCall['head'],
  fields: Readonly<Record<string, unknown>> = {},
): CanaryCall {
  const body = { model, prompt: [CANARY_ID], max_tokens: 1, temperature: 0, stream: false, ...fields };
  return {
    method: 'POST',
    path: COMPLETIONS_PATH,
    head: [['content-type', 'application/json'], ...head],
    body: Buffer.from(JSON.stringify(body)),
  };
}
