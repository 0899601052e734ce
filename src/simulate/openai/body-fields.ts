/** Typed access to the fields of a JSON request body: absent or null is the default, a wrong type or range is a 400. */
import { HttpError } from './http-error.js';

/** A parsed JSON object. */
export type Body = Readonly<Record<string, unknown>>;

/** Parses a body that must be a JSON object. */
export function parseBody(chunks: readonly Uint8Array[]): Body {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch {
    throw new HttpError(400, 'the body is not valid JSON');
  }
  return objectOf(value, 'body');
}

/** `value` as a JSON object. */
export function objectOf(value: unknown, name: string): Body {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new HttpError(400, `${name} must be an object`, name);
  return value as Body;
}

/** An integer within a range. */
export function integerOf<Default>(
  body: Body,
  name: string,
  min: number,
  max: number,
  absent: Default,
): number | Default {
  const value = body[name] ?? null;
  if (value === null) return absent;
  if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value;
  throw new HttpError(400, `${name} must be an integer from ${min} to ${max}`, name);
}

/** A boolean. */
export function booleanOf(body: Body, name: string, absent: boolean): boolean {
  const value = body[name] ?? absent;
  if (typeof value === 'boolean') return value;
  throw new HttpError(400, `${name} must be true or false`, name);
}

/** A string. */
export function stringOf<Default>(body: Body, name: string, absent: Default): string | Default {
  const value = body[name] ?? null;
  if (value === null) return absent;
  if (typeof value === 'string') return value;
  throw new HttpError(400, `${name} must be a string`, name);
}

/** A list of token ids below `vocabularySize`. */
export function idsOf(value: unknown, name: string, vocabularySize: number): Uint32Array {
  if (!Array.isArray(value)) throw new HttpError(400, `${name} must be a list of token ids`, name);
  const ids = new Uint32Array(value.length);
  for (let at = 0; at < ids.length; at++) {
    const id: unknown = value[at];
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= vocabularySize)
      throw new HttpError(400, `${name}[${at}] must be a token id from 0 to ${vocabularySize - 1}`, name);
    ids[at] = id;
  }
  return ids;
}
