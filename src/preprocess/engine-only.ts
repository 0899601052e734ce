/**
 * Fields that only the engine's own text work can honour (R3, pool thread): a request that uses one gets the engine's
 * own text, whatever tokenizer we hold. Each field has its own test of "uses", because most have a value that asks for nothing.
 * Pure.
 */
import type { TokenRequest } from '../messages/token-request.js';
import { booleanField, describe, fieldValue, invalidField, isObject, numberField } from './field.js';
import type { JsonObject } from './json-body.js';

/** Whether `value` (never null) asks for something that changes the text work. */
type Uses = (value: unknown, body: JsonObject) => boolean;

const present: Uses = () => true;
const isTrue: Uses = value => value === true;
const isFalse: Uses = value => value === false;
const notEmpty: Uses = value =>
  Array.isArray(value) ? value.length > 0 : !isObject(value) || Object.keys(value).length > 0;

const ENGINE_ONLY: Readonly<Record<string, Uses>> = {
  // Log-probabilities of other tokens than the generated ones.
  prompt_logprobs: present,
  logprob_token_ids: notEmpty,
  // The answer holds the prompt, other tokens or ids in a form of the engine's own.
  echo: isTrue,
  suffix: present,
  best_of: value => value !== 1,
  use_beam_search: isTrue,
  return_token_ids: isTrue,
  return_tokens_as_token_ids: isTrue,
  return_prompt_text: isTrue,
  bad_words: notEmpty,
  spaces_between_special_tokens: isFalse,
  modalities: value => !(Array.isArray(value) && value.every(entry => entry === 'text')),
  audio: present,
  // Tools and reasoning: in the template and in the parsing of the answer.
  tools: (value, body) => notEmpty(value, body) && fieldValue(body, 'tool_choice') !== 'none',
  tool_choice: value => value !== 'none',
  functions: notEmpty,
  function_call: value => value !== 'none',
  reasoning_effort: present,
  include_reasoning: present,
  // The template and the tokenization of the prompt.
  chat_template: present,
  chat_template_kwargs: notEmpty,
  add_generation_prompt: isFalse,
  continue_final_message: isTrue,
  add_special_tokens: present,
  documents: notEmpty,
  truncate_prompt_tokens: present,
  truncation_side: present,
  prompt_embeds: present,
  mm_processor_kwargs: notEmpty,
  media_io_kwargs: notEmpty,
};

/** True for a field that this file knows, used or not: it is not passed on as unknown. */
export function isEngineOnlyField(name: string): boolean {
  return Object.hasOwn(ENGINE_ONLY, name);
}

/** Fields with which an engine gives its answer in one piece only. */
const WHOLE_ANSWER_ONLY = new Set(['prompt_logprobs', 'best_of', 'use_beam_search', 'modalities', 'audio']);

/** Whether the engine could stream the answer to this request, were it asked to. */
export function canStream(request: Pick<TokenRequest, 'engineOnly'>): boolean {
  return !request.engineOnly.some(name => WHOLE_ANSWER_ONLY.has(name));
}

/** Checks the engine-only fields whose form every engine agrees on. */
function checkForms(body: JsonObject, choices: number, choicesMax: number): void {
  booleanField(body, 'echo');
  booleanField(body, 'use_beam_search');
  numberField(body, 'best_of', { min: choices, max: choicesMax, integer: true });
  for (const name of ['tools', 'documents', 'bad_words']) {
    const value = fieldValue(body, name);
    if (value !== undefined && !Array.isArray(value)) {
      throw invalidField(name, `must be an array, got ${describe(value)}`);
    }
  }
}

/** The names of the engine-only fields that `body` uses, in the order of the body. Throws for a wrong form. */
export function engineOnlyFields(body: JsonObject, choices: number, choicesMax: number): string[] {
  checkForms(body, choices, choicesMax);
  return Object.keys(body).filter(name => {
    if (!isEngineOnlyField(name)) return false;
    const value = fieldValue(body, name);
    return value !== undefined && ENGINE_ONLY[name]!(value, body);
  });
}
