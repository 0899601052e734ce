/**
 * The body of an OpenAI request → TokenRequest (R3, pool thread): the one place where a request's fields are checked.
 * A wrong field is an InvalidRequestError that names it and what is allowed. Fields that Millrace does not know are kept
 * for the engine. Pure; the bytes are not kept.
 */
import type { Limits } from '../limits.js';
import type { Api, Output, Sampling, Stop, TokenRequest } from '../messages/token-request.js';
import { engineOnlyFields, isEngineOnlyField } from './engine-only.js';
import {
  booleanField,
  checkNumber,
  describe,
  fieldValue,
  INT32_MAX,
  invalidField,
  isObject,
  type NumberRange,
  numberField,
  tokenIdsField,
} from './field.js';
import { type JsonObject, parseJsonBody } from './json-body.js';
import { readMessages, readPrompt } from './prompt-field.js';

/** Longest model name, in UTF-16 units. */
const MODEL_UNITS_MAX = 256;
/** Longest name of a field of the client's own that an error shows, in UTF-16 units. */
const PARAM_UNITS_MAX = 64;
/** A salt that an engine cannot take must not reach it: vLLM processes have died of one. */
const CACHE_SALT = /^[\x21-\x7e]{1,128}$/;

const TOKENS: NumberRange = { min: 1, max: INT32_MAX, integer: true };
const PENALTY: NumberRange = { min: -2, max: 2 };
/** A seed is a 64-bit integer to engines; beyond 2^53 JSON numbers lose digits, so that the seed would be another one. */
const SEED: NumberRange = { min: Number.MIN_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER, integer: true };
const LOGIT_BIAS: NumberRange = { min: -100, max: 100 };

/** Fields that are passed on as they are, but whose form is the same with every engine. */
const PASSED_ON: Readonly<Record<string, NumberRange>> = {
  top_k: { min: -1, max: INT32_MAX, integer: true },
  min_p: { min: 0, max: 1 },
  repetition_penalty: { min: 0, max: 2, aboveMin: true },
  priority: { min: -INT32_MAX, max: INT32_MAX, integer: true },
};

/** Fields that a TokenRequest holds in its own terms. */
const COMMON_FIELDS = [
  'model',
  'n',
  'max_tokens',
  'min_tokens',
  'temperature',
  'top_p',
  'presence_penalty',
  'frequency_penalty',
  'seed',
  'stop',
  'stop_token_ids',
  'ignore_eos',
  'include_stop_str_in_output',
  'skip_special_tokens',
  'stream',
  'stream_options',
  'logprobs',
];
const KNOWN_FIELDS: Readonly<Record<Api, ReadonlySet<string>>> = {
  chat: new Set([...COMMON_FIELDS, 'messages', 'max_completion_tokens', 'top_logprobs']),
  completions: new Set([...COMMON_FIELDS, 'prompt']),
};

function readModel(body: JsonObject): string {
  const model = fieldValue(body, 'model');
  if (typeof model === 'string' && model.length > 0 && model.length <= MODEL_UNITS_MAX) return model;
  throw invalidField('model', `is required: a string of 1 to ${MODEL_UNITS_MAX} characters`);
}

function readSampling(body: JsonObject, limits: Limits): Sampling {
  const fields = {
    temperature: numberField(body, 'temperature', { min: 0, max: 2 }),
    topP: numberField(body, 'top_p', { min: 0, max: 1, aboveMin: true }),
    seed: numberField(body, 'seed', SEED),
    presencePenalty: numberField(body, 'presence_penalty', PENALTY),
    frequencyPenalty: numberField(body, 'frequency_penalty', PENALTY),
  };
  const n = numberField(body, 'n', { min: 1, max: limits.choicesMax, integer: true }) ?? 1;
  const given = Object.entries(fields).filter(([, value]) => value !== undefined);
  return { n, ...Object.fromEntries(given) };
}

/** Splits `stop` (a string, or an array of strings and token ids) into its strings and its ids. */
function readStopField(body: JsonObject, limits: Limits): { strings: string[]; ids: number[] } {
  const { stopStringsMax, stopStringBytesMax, stopTokenIdsMax } = limits;
  const value = fieldValue(body, 'stop');
  const strings: string[] = [];
  const ids: number[] = [];
  if (value === undefined) return { strings, ids };
  if (typeof value !== 'string' && !Array.isArray(value)) {
    throw invalidField('stop', `must be a string or an array of strings, got ${describe(value)}`);
  }
  const entries: readonly unknown[] = typeof value === 'string' ? [value] : value;
  if (entries.length > stopStringsMax + stopTokenIdsMax) {
    throw invalidField('stop', `must have at most ${stopStringsMax} strings, got ${entries.length} entries`);
  }
  for (const [index, entry] of entries.entries()) {
    const param = typeof value === 'string' ? 'stop' : `stop[${index}]`;
    if (typeof entry === 'number') {
      ids.push(checkNumber(entry, param, { min: 0, max: INT32_MAX, integer: true }));
      continue;
    }
    if (typeof entry !== 'string' || entry === '' || Buffer.byteLength(entry) > stopStringBytesMax) {
      throw invalidField(param, `must be a string of 1 to ${stopStringBytesMax} bytes`);
    }
    strings.push(entry);
  }
  if (strings.length > stopStringsMax) {
    throw invalidField('stop', `must have at most ${stopStringsMax} strings, got ${strings.length}`);
  }
  return { strings, ids };
}

function readStop(body: JsonObject, api: Api, limits: Limits): Stop {
  const maxTokens = numberField(body, 'max_tokens', TOKENS);
  // The newer name wins where both are given, as with OpenAI.
  const newer = api === 'chat' ? numberField(body, 'max_completion_tokens', TOKENS) : undefined;
  const allowed = newer ?? maxTokens ?? null;
  const minTokensMax = allowed ?? INT32_MAX;
  const minTokens = numberField(body, 'min_tokens', { min: 0, max: minTokensMax, integer: true }) ?? 0;
  const { strings, ids } = readStopField(body, limits);
  const tokenIds = [...new Set([...tokenIdsField(body, 'stop_token_ids', limits.stopTokenIdsMax), ...ids])];
  if (tokenIds.length > limits.stopTokenIdsMax) {
    throw invalidField('stop_token_ids', `and stop must have at most ${limits.stopTokenIdsMax} ids together`);
  }
  return {
    maxTokens: allowed,
    minTokens,
    strings: [...new Set(strings)],
    tokenIds,
    ignoreEos: booleanField(body, 'ignore_eos') ?? false,
    includeStopString: booleanField(body, 'include_stop_str_in_output') ?? false,
  };
}

/** OpenAI's bound for chat; completions, where `logprobs` is a count, have the same for stock engines. */
const LOGPROBS: NumberRange = { min: 0, max: 20, integer: true };

/** Alternatives per token: `logprobs` with `top_logprobs` in chat, the count `logprobs` in completions. */
function readLogprobs(body: JsonObject, isChat: boolean): number | null {
  if (!isChat) return numberField(body, 'logprobs', LOGPROBS) ?? null;
  const wanted = booleanField(body, 'logprobs') ?? false;
  const top = numberField(body, 'top_logprobs', LOGPROBS);
  if (top !== undefined && !wanted)
    throw invalidField('top_logprobs', 'is only allowed when logprobs is true');
  return wanted ? (top ?? 0) : null;
}

function readOutput(body: JsonObject, isChat: boolean): Output {
  const stream = booleanField(body, 'stream') ?? false;
  const options = fieldValue(body, 'stream_options') ?? {};
  if (!isObject(options)) throw invalidField('stream_options', `must be an object, got ${describe(options)}`);
  if (!stream && fieldValue(body, 'stream_options') !== undefined) {
    throw invalidField('stream_options', 'is only allowed when stream is true');
  }
  const includeUsage = booleanField(options, 'include_usage', 'stream_options.') ?? false;
  const continuous = booleanField(options, 'continuous_usage_stats', 'stream_options.') ?? false;
  return {
    stream,
    includeUsage,
    // As in vLLM, usage on every chunk is a form of usage at the end, not a request for it.
    continuousUsage: includeUsage && continuous,
    skipSpecialTokens: booleanField(body, 'skip_special_tokens') ?? true,
    logprobs: readLogprobs(body, isChat),
  };
}

function checkPassedOn(body: JsonObject): void {
  for (const [name, range] of Object.entries(PASSED_ON)) numberField(body, name, range);
  const salt = fieldValue(body, 'cache_salt');
  if (salt !== undefined && !(typeof salt === 'string' && CACHE_SALT.test(salt))) {
    throw invalidField('cache_salt', 'must be a string of 1 to 128 visible ASCII characters');
  }
  const bias = fieldValue(body, 'logit_bias') ?? {};
  if (!isObject(bias)) throw invalidField('logit_bias', `must be an object, got ${describe(bias)}`);
  for (const [id, value] of Object.entries(bias)) {
    if (!/^\d{1,10}$/.test(id) || Number(id) > INT32_MAX) {
      throw invalidField('logit_bias', `must have token ids from 0 to ${INT32_MAX} as its keys`);
    }
    checkNumber(value, `logit_bias.${id}`, LOGIT_BIAS);
  }
  for (const [name, value] of Object.entries(body)) {
    // JSON has no infinity: 1e400 would reach the engine as null, which means something else.
    if (typeof value === 'number' && !Number.isFinite(value)) {
      throw invalidField(name.slice(0, PARAM_UNITS_MAX), 'is too large a number');
    }
  }
}

/**
 * Reads the body of `POST /v1/chat/completions` (`api` chat) or `POST /v1/completions`. Throws InvalidRequestError
 * MILLRACE_INVALID_JSON or MILLRACE_INVALID_REQUEST. Costs O(body), whatever the body is.
 */
export function parseRequest(api: Api, body: Uint8Array, limits: Limits): TokenRequest {
  const raw = parseJsonBody(body, limits);
  const model = readModel(raw);
  const isChat = api === 'chat';
  const { prompt, engineOnly } = isChat ? readMessages(raw, limits) : readPrompt(raw);
  const sampling = readSampling(raw, limits);
  const stop = readStop(raw, api, limits);
  const output = readOutput(raw, isChat);
  const fields = engineOnlyFields(raw, sampling.n, limits.choicesMax);
  checkPassedOn(raw);
  const known = KNOWN_FIELDS[api];
  // fromEntries makes `__proto__` a plain key, which assignment would not.
  const unknown = Object.fromEntries(
    Object.entries(raw).filter(([name]) => !known.has(name) && !isEngineOnlyField(name)),
  );
  return {
    api,
    model,
    prompt,
    sampling,
    stop,
    output,
    engineOnly: [...fields, ...engineOnly],
    unknown,
    raw,
  };
}
