/**
 * Fields of a JSON object as byte ranges (R5): what one engine says for another is cut out of an answer and put into a
 * request as it is, numbers beyond 2^53 and spellings included. Reads only text that is known to be valid JSON: bodies
 * that we made, and answers that JSON.parse took. Pure; runs on pool threads (bodies) and socket threads (answers).
 */
import { strict as assert } from 'node:assert';

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;

/** One field of an object: from the quote of its name to the end of its value. */
export interface JsonField {
  readonly name: string;
  readonly start: number;
  readonly valueStart: number;
  readonly valueEnd: number;
}

const isSpace = (byte: number | undefined): boolean =>
  byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;

function skipSpace(text: Buffer, from: number): number {
  let at = from;
  while (isSpace(text[at])) at += 1;
  return at;
}

/** The place behind the string that begins at `from`. */
function skipString(text: Buffer, from: number): number {
  let at = from + 1;
  for (;;) {
    const quote = text.indexOf(QUOTE, at);
    assert(quote >= 0, 'a string of valid JSON ends');
    let slashes = 0;
    while (text[quote - 1 - slashes] === BACKSLASH) slashes += 1;
    // An odd number of them: the last one belongs to the quote, which is part of the string.
    if (slashes % 2 === 0) return quote + 1;
    at = quote + 1;
  }
}

/** The place behind the value that begins at `from`. */
function skipValue(text: Buffer, from: number): number {
  const first = text[from];
  if (first === QUOTE) return skipString(text, from);
  let at = from;
  if (first !== OPEN_BRACE && first !== OPEN_BRACKET) {
    while (at < text.length && !isSpace(text[at]) && text[at] !== COMMA) {
      if (text[at] === CLOSE_BRACE || text[at] === CLOSE_BRACKET) break;
      at += 1;
    }
    return at;
  }
  let depth = 0;
  do {
    const byte = text[at];
    assert(byte !== undefined, 'an object or list of valid JSON ends');
    if (byte === QUOTE) {
      at = skipString(text, at);
      continue;
    }
    if (byte === OPEN_BRACE || byte === OPEN_BRACKET) depth += 1;
    else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) depth -= 1;
    at += 1;
  } while (depth > 0);
  return at;
}

const bufferOf = (bytes: Uint8Array): Buffer => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The fields of the object that begins at `from`, in their order; null where something else begins there. */
export function fieldsOf(json: Uint8Array, from = 0): JsonField[] | null {
  const text = bufferOf(json);
  let at = skipSpace(text, from);
  if (text[at] !== OPEN_BRACE) return null;
  const fields: JsonField[] = [];
  at = skipSpace(text, at + 1);
  while (text[at] !== CLOSE_BRACE) {
    const start = at;
    const nameEnd = skipString(text, at);
    const valueStart = skipSpace(text, skipSpace(text, nameEnd) + 1);
    const valueEnd = skipValue(text, valueStart);
    const name = JSON.parse(text.toString('utf8', start, nameEnd)) as string;
    fields.push({ name, start, valueStart, valueEnd });
    at = skipSpace(text, valueEnd);
    if (text[at] === COMMA) at = skipSpace(text, at + 1);
  }
  return fields;
}

/** The field of that name; the last one of several counts, as for JSON.parse. Null: there is none. */
export function findField(fields: readonly JsonField[] | null, name: string): JsonField | null {
  return fields?.findLast(field => field.name === name) ?? null;
}

/** The place of the first item of the list that begins at `from`; null for an empty list or another value. */
export function firstItem(json: Uint8Array, from: number): number | null {
  const text = bufferOf(json);
  if (text[from] !== OPEN_BRACKET) return null;
  const at = skipSpace(text, from + 1);
  return text[at] === CLOSE_BRACKET ? null : at;
}

/** The object `json` without the fields in `drop` and with those of `set` (name, value as JSON) in front. Fresh bytes. */
export function rewriteObject(
  json: Uint8Array,
  drop: ReadonlySet<string>,
  set: readonly (readonly [string, string])[],
): Buffer {
  const fields = fieldsOf(json);
  assert(fields !== null, 'a request body is an object');
  const parts: Uint8Array[] = [Buffer.from('{')];
  const add = (part: Uint8Array): void => {
    if (parts.length > 1) parts.push(Buffer.from(','));
    parts.push(part);
  };
  if (set.length > 0) add(fieldText(set));
  const replaced = new Set(set.map(([name]) => name));
  for (const { name, start, valueEnd } of fields)
    if (!drop.has(name) && !replaced.has(name)) add(json.subarray(start, valueEnd));
  parts.push(Buffer.from('}'));
  return Buffer.concat(parts);
}

/** `json` with the bytes from `start` to `end` replaced. Fresh bytes. */
export function replaceRange(json: Uint8Array, start: number, end: number, by: Uint8Array): Buffer {
  return Buffer.concat([json.subarray(0, start), by, json.subarray(end)]);
}

/** Where `fieldText` goes into an object that has fields: behind its brace. */
export const FRONT = 1;

/** Fields as they stand in an object, without its braces. */
export function fieldText(fields: readonly (readonly [string, string])[]): Buffer {
  return Buffer.from(fields.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(','));
}

/** The object `json`, which has at least one field, with `fields` in front of its own. Fresh bytes. */
export function withFields(json: Uint8Array, fields: readonly (readonly [string, string])[]): Buffer {
  return replaceRange(json, FRONT, FRONT, Buffer.concat([fieldText(fields), Buffer.from(',')]));
}
