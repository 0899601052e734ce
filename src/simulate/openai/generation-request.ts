/**
 * Body of POST /v1/completions and /v1/chat/completions, as a mock engine reads it: checks and defaults of
 * vLLM, prompts turned into ids. Fields that need a real model (penalties, tools …) are taken and ignored.
 * Runs on the mock engine's thread, once per request; the result is read-only.
 */
import { LIMITS } from '../../limits.js';
import type { Api, ChatMessage } from '../../messages/token-request.js';
import { renderChat } from '../../preprocess/chat-template.js';
import type { Tokenizer } from '../../preprocess/tokenizers/tokenizer.js';
import type { RequestHandover } from '../disagg/kv-connector.js';
import { type Body, booleanOf, idsOf, integerOf, objectOf, stringOf } from './body-fields.js';
import type { AnswerExtras, NativeForm } from './frame-format.js';
import { HttpError } from './http-error.js';
import type { LogprobsRequest } from './token-logprobs.js';

/** A generation request with every default filled in. */
export interface GenerationRequest {
  readonly api: Api;
  /** One or more prompts; each has `n` choices. */
  readonly prompts: readonly Uint32Array[];
  readonly n: number;
  /** Tokens to generate at most, for each of the prompts. */
  readonly maxTokens: readonly number[];
  readonly minTokens: number;
  readonly ignoreEos: boolean;
  readonly stopStrings: readonly string[];
  readonly stopTokenIds: readonly number[];
  readonly includeStopString: boolean;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly continuousUsage: boolean;
  readonly returnTokenIds: boolean;
  /** Ids in the place of text. */
  readonly idsOnly: boolean;
  /** Null: no log-probabilities are wanted. */
  readonly logprobs: LogprobsRequest | null;
  /** Empty without one. */
  readonly cacheSalt: string;
  /** Name of its LoRA adapter; empty: none. */
  readonly adapter: string;
  /** A form of the engine's own; null: OpenAI's. */
  readonly native: NativeForm | null;
  /** Under which the engine can be told to end it; null: it has no name. */
  readonly abortId: string | null;
  /** What other engines have to do with its KV; absent: nothing. */
  readonly handover?: RequestHandover;
  /** Tokens that the answer begins with: another engine has drawn them. */
  readonly firstTokens?: readonly number[];
  /** What an engine adds to a whole answer. */
  readonly extras?: (first: FirstChoice) => AnswerExtras;
}

/** The first choice of a whole answer, in ids. */
export interface FirstChoice {
  readonly ids: readonly number[];
  readonly promptIds: Uint32Array;
}

/** What the engine says about itself. */
export interface ServedModel {
  readonly name: string;
  readonly maxModelLen: number;
  readonly tokenizer: Tokenizer;
  /** Paths of its LoRA adapters by their names. */
  readonly adapters: ReadonlyMap<string, string>;
}

const PROMPTS_MAX = 256;
const TOKENS_MAX = 2_147_483_647;
const STOP_TOKEN_IDS_MAX = 256;
/** vLLM's `--max-logprobs` unless told otherwise. */
const LOGPROBS_MAX = 20;
/** Default of the completions route; the chat route fills the context instead. */
const COMPLETION_TOKENS = 16;

/**
 * The adapter that the body's `model` names; '' for the model itself, as for no name. Throws HttpError 404 when it is
 * neither.
 */
export function adapterOf(body: Body, model: ServedModel): string {
  const name = stringOf(body, 'model', model.name);
  if (name === model.name) return '';
  if (model.adapters.has(name)) return name;
  throw new HttpError(404, `The model \`${name}\` does not exist.`, 'model');
}

/** Reads a body. Throws HttpError that names the field and what is allowed. */
export function readGenerationRequest(api: Api, body: Body, model: ServedModel): GenerationRequest {
  const adapter = adapterOf(body, model);
  const prompts =
    api === 'chat' ? [chatPrompt(body, model.tokenizer)] : completionPrompts(body, model.tokenizer);
  const asked = maxTokensOf(api, body);
  const stream = booleanOf(body, 'stream', false);
  const streamOptions = objectOf(body.stream_options ?? {}, 'stream_options');
  if (!stream && (body.stream_options ?? null) !== null)
    throw new HttpError(400, 'Stream options can only be defined when `stream=True`.', 'stream_options');
  const maxTokens = prompts.map(prompt => tokensLeft(prompt.length, asked, model.maxModelLen));
  return {
    api,
    prompts,
    n: integerOf(body, 'n', 1, LIMITS.choicesMax.max, 1),
    maxTokens,
    minTokens: integerOf(body, 'min_tokens', 0, Math.min(...maxTokens), 0),
    ignoreEos: booleanOf(body, 'ignore_eos', false),
    stopStrings: stopStringsOf(body),
    stopTokenIds: stopTokenIdsOf(body, model.tokenizer.vocabularySize),
    includeStopString: booleanOf(body, 'include_stop_str_in_output', false),
    stream,
    includeUsage: booleanOf(streamOptions, 'include_usage', false),
    continuousUsage: booleanOf(streamOptions, 'continuous_usage_stats', false),
    returnTokenIds: booleanOf(body, 'return_token_ids', false),
    logprobs: logprobsOf(api, body),
    cacheSalt: stringOf(body, 'cache_salt', ''),
    adapter,
    idsOnly: false,
    native: null,
    abortId: null,
  };
}

/** Prompt ids of the `messages` of a chat body. */
export function chatPrompt(body: Body, tokenizer: Tokenizer): Uint32Array {
  const list = body.messages;
  if (!Array.isArray(list) || list.length === 0 || list.length > LIMITS.messagesMax.max)
    throw new HttpError(
      400,
      `messages must be a list of 1 to ${LIMITS.messagesMax.max} messages`,
      'messages',
    );
  return renderChat(tokenizer, list.map(readMessage));
}

function readMessage(value: unknown, at: number): ChatMessage {
  const field = `messages[${at}]`;
  const message = objectOf(value, field);
  const role = stringOf(message, 'role', null);
  if (role === null) throw new HttpError(400, `${field}.role must be a string`, field);
  const name = stringOf(message, 'name', undefined);
  const text = contentText(message.content ?? '', `${field}.content`);
  return { role, text, hasMedia: false, ...(name === undefined ? {} : { name }) };
}

function contentText(content: unknown, field: string): string {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content))
    throw new HttpError(400, `${field} must be a string or a list of parts`, field);
  return content
    .map((value: unknown, at) => {
      const part = objectOf(value, `${field}[${at}]`);
      if (part.type === 'text' && typeof part.text === 'string') return part.text;
      throw new HttpError(400, `${field}[${at}] must be a text part: this model reads text only`, field);
    })
    .join('\n');
}

/** Prompts of a completions body: text, ids, or a list of either. */
function completionPrompts(body: Body, tokenizer: Tokenizer): Uint32Array[] {
  const { prompt } = body;
  if (typeof prompt === 'string') return [textPrompt(prompt, tokenizer)];
  if (!Array.isArray(prompt) || prompt.length === 0)
    throw new HttpError(400, 'prompt must be a string, a list of token ids, or a list of either', 'prompt');
  if (typeof prompt[0] === 'number') return [idsOf(prompt, 'prompt', tokenizer.vocabularySize)];
  if (prompt.length > PROMPTS_MAX)
    throw new HttpError(400, `prompt must have at most ${PROMPTS_MAX} prompts`, 'prompt');
  return prompt.map((one: unknown, at) => {
    const field = `prompt[${at}]`;
    const ids =
      typeof one === 'string' ? textPrompt(one, tokenizer) : idsOf(one, field, tokenizer.vocabularySize);
    if (ids.length === 0) throw new HttpError(400, `${field} must not be empty`, 'prompt');
    return ids;
  });
}

function textPrompt(text: string, tokenizer: Tokenizer): Uint32Array {
  if (text === '') throw new HttpError(400, 'prompt must not be empty', 'prompt');
  return tokenizer.encode(text);
}

function maxTokensOf(api: Api, body: Body): number | null {
  if (api === 'completions') return integerOf(body, 'max_tokens', 1, TOKENS_MAX, COMPLETION_TOKENS);
  const older = integerOf(body, 'max_tokens', 1, TOKENS_MAX, null);
  return integerOf(body, 'max_completion_tokens', 1, TOKENS_MAX, older);
}

/** Tokens that an answer may have: those asked for, which must fit, or all that fit. Throws HttpError. */
export function tokensLeft(promptTokens: number, asked: number | null, maxModelLen: number): number {
  const left = maxModelLen - promptTokens;
  if (left >= (asked ?? 1)) return asked ?? left;
  const total = asked === null ? promptTokens + 1 : promptTokens + asked;
  const parts = `${promptTokens} in the messages, ${asked ?? 1} in the completion`;
  throw new HttpError(
    400,
    `This model's maximum context length is ${maxModelLen} tokens. However, you requested ${total} tokens (${parts}). Please reduce the length of the messages or completion.`,
    'input_tokens',
  );
}

/** The field `stop`. Throws HttpError. */
export function stopStringsOf(body: Body): readonly string[] {
  const value = body.stop ?? [];
  const list: unknown[] = Array.isArray(value) ? value : [value];
  if (list.length > LIMITS.stopStringsMax.max || !list.every(one => typeof one === 'string' && one !== ''))
    throw new HttpError(
      400,
      `stop must be a string or a list of at most ${LIMITS.stopStringsMax.max} strings, none empty`,
      'stop',
    );
  return list as string[];
}

/** The field `stop_token_ids`. Throws HttpError. */
export function stopTokenIdsOf(body: Body, vocabularySize: number): readonly number[] {
  const ids = idsOf(body.stop_token_ids ?? [], 'stop_token_ids', vocabularySize);
  if (ids.length > STOP_TOKEN_IDS_MAX)
    throw new HttpError(400, `stop_token_ids must have at most ${STOP_TOKEN_IDS_MAX} ids`, 'stop_token_ids');
  return [...ids];
}

function logprobsOf(api: Api, body: Body): LogprobsRequest | null {
  const asIds = booleanOf(body, 'return_tokens_as_token_ids', false);
  if (api === 'completions') {
    const top = integerOf(body, 'logprobs', 0, LOGPROBS_MAX, null);
    return top === null ? null : { top, asIds };
  }
  const top = integerOf(body, 'top_logprobs', 0, LOGPROBS_MAX, 0);
  if (booleanOf(body, 'logprobs', false)) return { top, asIds };
  if (top > 0)
    throw new HttpError(400, 'when using `top_logprobs`, `logprobs` must be set to true.', 'top_logprobs');
  return null;
}
