/**
 * Readers of single request fields (R3, pool thread): each checks type and range and refuses with the field's name and
 * what is allowed. JSON null and a missing field are the same: undefined. Values are never echoed, except numbers:
 * texts may be prompts. Pure.
 */
import { InvalidRequestError } from '../errors.js';
import type { JsonObject } from './json-body.js';

/** Greatest token count or token id: engines keep both in signed 32-bit integers. */
export const INT32_MAX = 2_147_483_647;

/** The 400 of a field: `param` and the beginning of the message name it. */
export function invalidField(param: string, problem: string): InvalidRequestError {
  return new InvalidRequestError('MILLRACE_INVALID_REQUEST', `${param} ${problem}`, { param });
}

/** What was given, in words that hold no text of the client. */
export function describe(value: unknown): string {
  if (value === undefined || value === null) return 'nothing';
  if (typeof value === 'number' || typeof value === 'boolean') return String(value);
  if (Array.isArray(value)) return value.length === 0 ? 'an empty array' : 'an array';
  if (value === '') return 'an empty string';
  return typeof value === 'string' ? 'a string' : 'an object';
}

/** The value of a field; null is the same as missing. */
export function fieldValue(object: JsonObject, name: string): unknown {
  return Object.hasOwn(object, name) ? (object[name] ?? undefined) : undefined;
}

/** True for an object that is neither null nor an array. */
export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The allowed numbers of a field, both ends included unless `aboveMin`: then only values above `min` are. */
export interface NumberRange {
  readonly min: number;
  readonly max: number;
  readonly integer?: boolean;
  readonly aboveMin?: boolean;
}

/** Checks a number against its range; `param` names it in the refusal. */
export function checkNumber(value: unknown, param: string, range: NumberRange): number {
  const { min, max, integer = false, aboveMin = false } = range;
  if (
    typeof value === 'number' &&
    (integer ? Number.isSafeInteger(value) : Number.isFinite(value)) &&
    (aboveMin ? value > min : value >= min) &&
    value <= max
  ) {
    return value;
  }
  const kind = integer ? 'an integer' : 'a number';
  const span = aboveMin ? `above ${min} and at most ${max}` : `from ${min} to ${max}`;
  throw invalidField(param, `must be ${kind} ${span}, got ${describe(value)}`);
}

/** A number field of a body, checked against its range; undefined when absent or null. Throws InvalidRequestError. */
export function numberField(object: JsonObject, name: string, range: NumberRange): number | undefined {
  const value = fieldValue(object, name);
  return value === undefined ? undefined : checkNumber(value, name, range);
}

/** `path` is what precedes the name in `param`, for fields of nested objects. */
export function booleanField(object: JsonObject, name: string, path = ''): boolean | undefined {
  const value = fieldValue(object, name);
  if (value === undefined || typeof value === 'boolean') return value;
  throw invalidField(path + name, `must be true or false, got ${describe(value)}`);
}

/** Token ids in an array of at most `countMax`. */
export function tokenIdsField(object: JsonObject, name: string, countMax: number): readonly number[] {
  const value = fieldValue(object, name);
  if (value === undefined) return [];
  if (!Array.isArray(value) || value.length > countMax) {
    const got = Array.isArray(value) ? `${value.length} of them` : describe(value);
    throw invalidField(name, `must be an array of at most ${countMax} token ids, got ${got}`);
  }
  const range = { min: 0, max: INT32_MAX, integer: true };
  return value.map((id, index) => checkNumber(id, `${name}[${index}]`, range));
}
