/**
 * Bytes of a request body → the object that they spell (R3, pool thread). Everything that could hurt JSON.parse or what
 * comes after it is refused before or repaired after: bad UTF-8, deep nesting, objects of very many keys, lone
 * surrogates. Pure; linear in the body.
 */
import { isAscii, isUtf8 } from 'node:buffer';
import { InvalidRequestError } from '../errors.js';
import type { Limits } from '../limits.js';

/** A parsed JSON object. Its keys may be anything, `__proto__` too: read named fields only, copy with spread. */
export type JsonObject = Readonly<Record<string, unknown>>;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COLON = 0x3a;
const BRACE_OPEN = 0x7b;
const BRACE_CLOSE = 0x7d;
const BRACKET_OPEN = 0x5b;
const BRACKET_CLOSE = 0x5d;

/** Bytes of a string that are looked at one by one before a native search pays. */
const NEAR_BYTES = 32;
const BYTE_ORDER_MARK_BYTES = 3;

function invalidJson(message: string): InvalidRequestError {
  return new InvalidRequestError('MILLRACE_INVALID_JSON', message);
}

/** Index of the quote that closes the string whose first byte is at `start`, or the length of the body. */
function stringEnd(body: Buffer, start: number): number {
  let at = start;
  for (const near = Math.min(body.length, start + NEAR_BYTES); at < near; at++) {
    const byte = body[at]!;
    if (byte === QUOTE) return at;
    if (byte === BACKSLASH) at++;
  }
  for (;;) {
    const quote = body.indexOf(QUOTE, at);
    if (quote === -1) return body.length;
    let backslashes = 0;
    while (quote - backslashes > at && body[quote - backslashes - 1] === BACKSLASH) backslashes++;
    if (backslashes % 2 === 0) return quote;
    at = quote + 1;
  }
}

/** Refuses nesting and objects over the limits. Needs no valid JSON; a wrong body is JSON.parse's to refuse. */
function checkShape(body: Buffer, limits: Limits): void {
  const { jsonDepthMax, jsonKeysMax } = limits;
  const keys = new Uint32Array(jsonDepthMax + 1);
  let depth = 0;
  for (let at = 0; at < body.length; at++) {
    const byte = body[at]!;
    if (byte === QUOTE) {
      at = stringEnd(body, at + 1);
    } else if (byte === BRACE_OPEN || byte === BRACKET_OPEN) {
      if (++depth > jsonDepthMax) throw invalidJson(`body is nested deeper than ${jsonDepthMax} levels`);
      keys[depth] = 0;
    } else if (byte === BRACE_CLOSE || byte === BRACKET_CLOSE) {
      if (depth > 0) depth--;
    } else if (byte === COLON && ++keys[depth]! > jsonKeysMax) {
      throw invalidJson(`body has an object of more than ${jsonKeysMax} keys`);
    }
  }
}

/** Strings in well-formed UTF-16, at any depth, in place. Engines fail on lone surrogates, which `\ud800` can spell. */
function repairSurrogates(value: unknown): unknown {
  if (typeof value === 'string') return value.replace(/\p{Surrogate}/gu, '\ufffd');
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length; index++) value[index] = repairSurrogates(value[index]);
  } else if (typeof value === 'object' && value !== null) {
    const object = value as Record<string, unknown>;
    for (const key of Object.keys(object)) object[key] = repairSurrogates(object[key]);
  }
  return value;
}

/** V8 quotes the body in its messages; only the position may be passed on. */
function positionOf(cause: unknown): string {
  const found = / at position (\d+)(?: \(line \d+ column \d+\))?$/.exec(
    cause instanceof Error ? cause.message : '',
  );
  return found === null ? '' : ` at position ${found[1]}`;
}

/**
 * The object in `body`. A byte order mark is skipped, of two equal keys the last one counts, lone surrogates become
 * U+FFFD. Throws InvalidRequestError MILLRACE_INVALID_JSON, never with a part of the body in its message.
 */
export function parseJsonBody(body: Uint8Array, limits: Limits): JsonObject {
  const bytes = Buffer.from(body.buffer, body.byteOffset, body.byteLength);
  if (bytes.length === 0) throw invalidJson('body is empty; it must be a JSON object');
  // One-byte strings are made and parsed faster, and most bodies are ASCII.
  const ascii = isAscii(bytes);
  if (!ascii && !isUtf8(bytes)) throw invalidJson('body is not valid UTF-8');
  checkShape(bytes, limits);
  const hasMark = bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf;
  const text = ascii ? bytes.toString('latin1') : bytes.toString('utf8', hasMark ? BYTE_ORDER_MARK_BYTES : 0);
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw invalidJson(`body is not valid JSON${positionOf(cause)}`);
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw invalidJson('body must be a JSON object');
  }
  if (text.includes('\\ud') || text.includes('\\uD')) repairSurrogates(parsed);
  return parsed as JsonObject;
}
