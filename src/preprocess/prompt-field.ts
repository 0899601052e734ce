/**
 * The prompt of a request: `messages` of a chat, or `prompt` of a completion (R3, pool thread). It checks form and
 * limits and keeps what the chat template needs; whatever it cannot render as text is named, so that the request goes to
 * the engine as the client wrote it. Pure.
 */
import type { Limits } from '../limits.js';
import type { ChatMessage, Prompt } from '../messages/token-request.js';
import { checkNumber, describe, fieldValue, INT32_MAX, invalidField, isObject } from './field.js';
import type { JsonObject } from './json-body.js';

/** Between the text parts of one message, as vLLM joins them. */
const PART_SEPARATOR = '\n';
const NAME_PATTERN = /^[A-Za-z0-9_.-]{1,64}$/;

/** The prompt, and the fields in it that only the engine's own template can render. */
export interface PromptField {
  readonly prompt: Prompt;
  readonly engineOnly: readonly string[];
}

/** Text of a message's content parts; `hasMedia` when a part is anything but text. */
function joinParts(
  parts: readonly unknown[],
  param: string,
): { text: string; textParts: readonly string[]; hasMedia: boolean } {
  const texts: string[] = [];
  let hasMedia = false;
  for (const [index, part] of parts.entries()) {
    const partParam = `${param}[${index}]`;
    if (!isObject(part)) throw invalidField(partParam, `must be an object, got ${describe(part)}`);
    const type = fieldValue(part, 'type');
    if (typeof type !== 'string') {
      throw invalidField(`${partParam}.type`, `must be a string such as "text", got ${describe(type)}`);
    }
    const text = fieldValue(part, 'text');
    if (type !== 'text') hasMedia = true;
    else if (typeof text === 'string') texts.push(text);
    else throw invalidField(`${partParam}.text`, `must be a string, got ${describe(text)}`);
  }
  return { text: texts.join(PART_SEPARATOR), textParts: texts, hasMedia };
}

function identifierOf(message: JsonObject, name: string, param: string): string | undefined {
  const value = fieldValue(message, name);
  if (value === undefined) return undefined;
  if (typeof value === 'string' && NAME_PATTERN.test(value)) return value;
  throw invalidField(`${param}.${name}`, 'must be a string of 1 to 64 letters, digits, "_", "." or "-"');
}

function readMessage(message: unknown, param: string, engineOnly: string[]): ChatMessage {
  if (!isObject(message)) throw invalidField(param, `must be an object, got ${describe(message)}`);
  const role = identifierOf(message, 'role', param);
  if (role === undefined) throw invalidField(`${param}.role`, 'is required: a string such as "user"');
  const name = identifierOf(message, 'name', param);
  const callsTools =
    role === 'assistant' &&
    (fieldValue(message, 'tool_calls') !== undefined || fieldValue(message, 'function_call') !== undefined);
  if (callsTools) engineOnly.push(`${param}.tool_calls`);
  const content = fieldValue(message, 'content');
  let text = '';
  let textParts: readonly string[] = [];
  let hasMedia = false;
  if (typeof content === 'string') text = content;
  else if (Array.isArray(content)) ({ text, textParts, hasMedia } = joinParts(content, `${param}.content`));
  else if (content !== undefined || !callsTools) {
    const problem = `must be a string or an array of parts, got ${describe(content)}`;
    throw invalidField(`${param}.content`, `${problem} (null only with an assistant's tool_calls)`);
  }
  if (hasMedia) engineOnly.push(`${param}.content`);
  return {
    role,
    text,
    ...(textParts.length > 1 ? { textParts } : {}),
    ...(name === undefined ? {} : { name }),
    hasMedia,
  };
}

/** Reads `messages`: 1 to `messagesMax` of them. */
export function readMessages(body: JsonObject, limits: Limits): PromptField {
  const value = fieldValue(body, 'messages');
  if (!Array.isArray(value) || value.length === 0 || value.length > limits.messagesMax) {
    const got = Array.isArray(value) && value.length > 0 ? `${value.length} messages` : describe(value);
    throw invalidField('messages', `must be an array of 1 to ${limits.messagesMax} messages, got ${got}`);
  }
  const engineOnly: string[] = [];
  const messages = value.map((message, index) => readMessage(message, `messages[${index}]`, engineOnly));
  return { prompt: { kind: 'messages', messages }, engineOnly };
}

/** Reads `prompt`: one text or one array of token ids, not empty. */
export function readPrompt(body: JsonObject): PromptField {
  const value = fieldValue(body, 'prompt');
  if (typeof value === 'string' && value !== '') {
    return { prompt: { kind: 'text', text: value }, engineOnly: [] };
  }
  if (!Array.isArray(value) || value.length === 0) {
    throw invalidField(
      'prompt',
      `must be a text or an array of token ids, not empty, got ${describe(value)}`,
    );
  }
  if (typeof value[0] === 'string' || Array.isArray(value[0])) {
    throw invalidField(
      'prompt',
      'must be one prompt: a text or an array of token ids; send one request per prompt',
    );
  }
  const ids = new Uint32Array(value.length);
  for (let index = 0; index < value.length; index++) {
    const id: unknown = value[index];
    // The check builds a name per element; only a wrong one needs it.
    ids[index] =
      typeof id === 'number' && Number.isInteger(id) && id >= 0 && id <= INT32_MAX
        ? id
        : checkNumber(id, `prompt[${index}]`, { min: 0, max: INT32_MAX, integer: true });
  }
  return { prompt: { kind: 'ids', ids }, engineOnly: [] };
}
