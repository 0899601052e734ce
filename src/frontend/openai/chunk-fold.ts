/**
 * Folds the chunks of a streamed OpenAI answer into the body that the same engine would have sent unary (R7): texts are
 * joined, tool calls merged by their index, log-probabilities put behind each other, and what Millrace does not know is
 * kept, the last value that is not null. One per request, owned by the socket thread; used where only the engine can
 * make the text and the client wants it whole.
 */
import type { Api } from '../../messages/token-request.js';

type JsonObject = Record<string, unknown>;

/** What one answer is folded by. */
export interface ChunkFoldOptions {
  readonly api: Api;
  /** The client asked for token ids: they stay in the body. */
  readonly keepsIds: boolean;
}

const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Sets what is new; null never replaces a value. */
function put(target: JsonObject, name: string, value: unknown): void {
  if (value !== null || !Object.hasOwn(target, name)) target[name] = value;
}

/** Lists grow by the lists of later chunks; the first chunk's list is not changed. */
function append(target: JsonObject, name: string, value: unknown): void {
  const before = target[name];
  if (Array.isArray(before) && Array.isArray(value)) before.push(...value);
  else put(target, name, Array.isArray(value) ? [...value] : value);
}

const isIdsMember = (name: string): boolean => name === 'token_ids' || name === 'prompt_token_ids';

/** See the head of the file. */
export class ChunkFold {
  readonly #chat: boolean;
  readonly #keepsIds: boolean;
  readonly #whole: JsonObject = {};
  readonly #choices = new Map<number, JsonObject>();

  constructor(options: ChunkFoldOptions) {
    this.#chat = options.api === 'chat';
    this.#keepsIds = options.keepsIds;
  }

  /** Adds the next chunk. False: it is not one. */
  add(chunk: JsonObject): boolean {
    for (const [name, value] of Object.entries(chunk)) {
      if (name !== 'choices' && (this.#keepsIds || !isIdsMember(name))) put(this.#whole, name, value);
    }
    if (chunk.choices === undefined || chunk.choices === null) return true;
    if (!Array.isArray(chunk.choices)) return false;
    return chunk.choices.every(choice => isObject(choice) && this.#addChoice(choice));
  }

  /** The body. */
  body(): string {
    const choices = [...this.#choices]
      .sort(([a], [b]) => a - b)
      .map(([, choice]) => (this.#chat ? withMessage(choice) : choice));
    const object = this.#chat ? 'chat.completion' : 'text_completion';
    const { usage, ...rest } = this.#whole;
    return JSON.stringify({ ...rest, object, choices, ...(usage === undefined ? {} : { usage }) });
  }

  #addChoice(piece: JsonObject): boolean {
    const index = piece.index ?? 0;
    if (!Number.isSafeInteger(index)) return false;
    let choice = this.#choices.get(index as number);
    if (choice === undefined) {
      choice = { index };
      this.#choices.set(index as number, choice);
    }
    for (const [name, value] of Object.entries(piece)) {
      if (name === 'delta') {
        if (!isObject(value)) return false;
        choice.delta ??= {};
        mergeDelta(choice.delta as JsonObject, value);
      } else if (name === 'text') choice.text = joined(choice.text, value);
      else if (name === 'logprobs') mergeLogprobs(choice, value);
      else if (name === 'token_ids') {
        if (this.#keepsIds) append(choice, name, value);
      } else if (name !== 'index' && (this.#keepsIds || name !== 'prompt_token_ids'))
        put(choice, name, value);
    }
    return true;
  }
}

const joined = (before: unknown, value: unknown): unknown =>
  typeof before === 'string' && typeof value === 'string' ? before + value : (value ?? before ?? null);

function mergeLogprobs(choice: JsonObject, value: unknown): void {
  if (!isObject(value)) {
    put(choice, 'logprobs', value);
    return;
  }
  if (!isObject(choice.logprobs)) choice.logprobs = {};
  for (const [name, list] of Object.entries(value)) append(choice.logprobs as JsonObject, name, list);
}

function mergeDelta(message: JsonObject, delta: JsonObject): void {
  for (const [name, value] of Object.entries(delta)) {
    if (name === 'tool_calls' && Array.isArray(value)) {
      message.tool_calls ??= [];
      for (const call of value) if (isObject(call)) mergeToolCall(message.tool_calls as JsonObject[], call);
    } else if (name === 'function_call' && isObject(value)) {
      message.function_call ??= {};
      mergeFunction(message.function_call as JsonObject, value);
    } else if (name === 'role') put(message, name, value);
    // Content, refusal and reasoning under any of its names: text that grows.
    else message[name] = joined(message[name], value);
  }
}

function mergeToolCall(calls: JsonObject[], piece: JsonObject): void {
  let call = calls.find(known => known.index === piece.index);
  if (call === undefined) {
    call = { index: piece.index };
    calls.push(call);
  }
  for (const [name, value] of Object.entries(piece)) {
    if (name === 'function' && isObject(value)) {
      call.function ??= {};
      mergeFunction(call.function as JsonObject, value);
    } else put(call, name, value);
  }
}

/** The name comes whole, the arguments in pieces. */
function mergeFunction(target: JsonObject, piece: JsonObject): void {
  for (const [name, value] of Object.entries(piece)) {
    if (name === 'arguments') target.arguments = joined(target.arguments, value);
    else put(target, name, value);
  }
}

/** The choice of a unary body: `message` in the place of `delta`, tool calls without the index of their pieces. */
function withMessage(choice: JsonObject): JsonObject {
  const { index, delta, ...rest } = choice;
  const { role = 'assistant', content = null, ...others } = (delta ?? {}) as JsonObject;
  const message: JsonObject = { role, content, ...others };
  if (Array.isArray(message.tool_calls)) {
    message.tool_calls = (message.tool_calls as JsonObject[]).map(({ index: _, ...call }) => call);
  }
  // A message that only calls tools has no content, which the first chunk of its stream writes as an empty one.
  if (content === '' && message.tool_calls !== undefined) message.content = null;
  return { index, message, ...rest };
}
