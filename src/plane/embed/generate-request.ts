/**
 * The request of `generate()` and `pick()`: plain fields of JavaScript, turned into the body of the OpenAI request that
 * means the same, so that one parser checks all requests. Pure; runs on the host's thread.
 */
import { InvalidRequestError } from '../../errors.js';
import type { ChatMessageBody } from '../../frontend/openai/bodies.js';
import { NO_HINTS, type RoutingHints } from '../../messages/records.js';
import type { Api } from '../../messages/token-request.js';
import { nearestName } from '../../runtime/nearest-name.js';
import { checkedHints } from '../routing-hints.js';

/** Where a request is to go. */
export interface RoutingFields {
  /** Address of the only worker that may serve it: `http://host:port`. */
  readonly worker?: string;
  /** Requests of one session go to one worker while it is there; 1 to 256 characters. */
  readonly session?: string;
}

/** What is asked: exactly one of `messages`, `prompt` and `ids`. */
export interface PromptFields {
  readonly model: string;
  readonly messages?: readonly ChatMessageBody[];
  readonly prompt?: string;
  /** Token ids of the model's vocabulary. */
  readonly ids?: readonly number[] | Uint32Array;
}

/** A request of `generate()`. Ranges are those of the OpenAI fields with the same meaning. */
export interface GenerateRequest extends PromptFields, RoutingFields {
  readonly maxTokens?: number;
  readonly minTokens?: number;
  /** Choices; each Delta says by `index` to which it belongs. */
  readonly n?: number;
  readonly temperature?: number;
  readonly topP?: number;
  readonly seed?: number;
  readonly presencePenalty?: number;
  readonly frequencyPenalty?: number;
  readonly stop?: string | readonly string[];
  readonly stopTokenIds?: readonly number[];
  readonly ignoreEos?: boolean;
  readonly includeStopString?: boolean;
  readonly skipSpecialTokens?: boolean;
  /** Further fields of the OpenAI request under their own names, such as `tools`. */
  readonly extra?: Readonly<Record<string, unknown>>;
  /** Ends the request and the engine's work on it. */
  readonly signal?: AbortSignal;
}

/** A request of `pick()`. */
export interface PickOptions extends PromptFields, RoutingFields {
  /** Milliseconds after which the reservation is released by itself; default and range: the limit pickExpiryMs. */
  readonly expiresInMs?: number;
}

/** Names in the OpenAI request. */
const FIELDS = {
  model: 'model',
  messages: 'messages',
  prompt: 'prompt',
  maxTokens: 'max_tokens',
  minTokens: 'min_tokens',
  n: 'n',
  temperature: 'temperature',
  topP: 'top_p',
  seed: 'seed',
  presencePenalty: 'presence_penalty',
  frequencyPenalty: 'frequency_penalty',
  stop: 'stop',
  stopTokenIds: 'stop_token_ids',
  ignoreEos: 'ignore_eos',
  includeStopString: 'include_stop_str_in_output',
  skipSpecialTokens: 'skip_special_tokens',
} as const satisfies Partial<Record<keyof GenerateRequest, string>>;
const OWN_FIELDS = ['ids', 'extra', 'signal', 'worker', 'session'];

const invalid = (param: string, message: string): InvalidRequestError =>
  new InvalidRequestError('MILLRACE_INVALID_REQUEST', message, { param });

/** An API, the JSON body for it, and what goes beside the body. */
export interface EncodedRequest {
  readonly api: Api;
  readonly hints: RoutingHints;
  readonly body: Uint8Array;
}

/** Encodes a request of `generate()`. Throws InvalidRequestError for a field that does not exist or a missing prompt. */
export function encodeGenerate(request: GenerateRequest): EncodedRequest {
  const valid = [...Object.keys(FIELDS), ...OWN_FIELDS];
  const body: Record<string, unknown> = { ...request.extra };
  for (const [field, value] of Object.entries(request)) {
    if (!valid.includes(field))
      throw invalid(field, `there is no field "${field}"; did you mean "${nearestName(field, valid)}"?`);
    if (value !== undefined && Object.hasOwn(FIELDS, field))
      body[FIELDS[field as keyof typeof FIELDS]] = value;
  }
  if (request.signal !== undefined && !(request.signal instanceof AbortSignal))
    throw invalid('signal', 'signal must be an AbortSignal');
  return {
    api: promptOf(request, body),
    hints: hintsOf(request),
    body: bytesOf(body, { include_usage: true }),
  };
}

/** Encodes a request of `pick()`. Throws as `encodeGenerate`. */
export function encodePick(request: PickOptions): EncodedRequest {
  const { model, messages, prompt } = request;
  const body: Record<string, unknown> = { model, messages, prompt };
  return { api: promptOf(request, body), hints: hintsOf(request), body: bytesOf(body, undefined) };
}

function hintsOf({ worker, session }: RoutingFields): RoutingHints {
  if (worker === undefined && session === undefined) return NO_HINTS;
  for (const [name, value] of Object.entries({ worker, session })) {
    if (value !== undefined && typeof value !== 'string') throw invalid(name, `${name} must be a string`);
  }
  const names = { worker: 'worker', session: 'session' };
  const hints = checkedHints({ worker, session, explains: false, names });
  if ('param' in hints) throw invalid(hints.param, hints.message);
  return hints;
}

function promptOf({ messages, prompt, ids }: PromptFields, body: Record<string, unknown>): Api {
  const given = [messages, prompt, ids].filter(value => value !== undefined).length;
  if (given !== 1) throw invalid('prompt', 'give exactly one of messages, prompt and ids');
  if (ids !== undefined) body.prompt = Array.from(ids);
  return messages === undefined ? 'completions' : 'chat';
}

function bytesOf(body: Record<string, unknown>, streamOptions: object | undefined): Uint8Array {
  const streamed = streamOptions === undefined ? {} : { stream: true, stream_options: streamOptions };
  try {
    return Buffer.from(JSON.stringify({ ...body, ...streamed }));
  } catch (cause) {
    throw new InvalidRequestError(
      'MILLRACE_INVALID_REQUEST',
      `the request is not JSON: ${(cause as Error).message}`,
      { cause },
    );
  }
}
