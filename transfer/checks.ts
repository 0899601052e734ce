/**
 * Checks of what callers of transfer/ give: each returns the checked value, or throws TransferError INVALID that names the
 * field, the value and what is allowed. Pure.
 */
import { invalid } from './errors.js';

const U32_MAX = 0xffff_ffff;

/** A whole number in [min, max]. */
export function wholeNumber(field: string, value: unknown, min: number, max: number): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min || value > max)
    invalid(field, value, `a whole number ${min} to ${max}`);
  return value as number;
}

/** One of the names; returns its place in the list. */
export function choice(field: string, value: unknown, names: readonly string[]): number {
  const place = names.indexOf(value as string);
  if (place < 0) invalid(field, value, `one of ${names.join(', ')}`);
  return place;
}

/** Text of at most so many bytes of UTF-8. */
export function text(field: string, value: unknown, bytesMax: number): string {
  if (typeof value !== 'string' || Buffer.byteLength(value) > bytesMax)
    invalid(field, value, `a string of at most ${bytesMax} bytes`);
  return value as string;
}

/** Bytes, at least `min` and at most `max`. */
export function bytes(field: string, value: unknown, min: number, max: number): Uint8Array {
  if (!(value instanceof Uint8Array)) invalid(field, value, 'a Uint8Array');
  if (value.length < min || value.length > max) invalid(`${field}.length`, value.length, `${min} to ${max}`);
  return value;
}

/** A list of block numbers, of which there are `min` to `max`, each below 2^32. */
export function blockList(field: string, value: unknown, min: number, max: number): Uint32Array {
  if (!(value instanceof Uint32Array) && !Array.isArray(value))
    invalid(field, value, 'a Uint32Array or an array');
  if (value.length < min || value.length > max) invalid(`${field}.length`, value.length, `${min} to ${max}`);
  if (value instanceof Uint32Array) return value;
  for (let i = 0; i < value.length; i++) wholeNumber(`${field}[${i}]`, value[i], 0, U32_MAX);
  return Uint32Array.from(value as number[]);
}

/** An object that holds no key but the given ones: a misspelt option must not pass for one that was left out. */
export function options(field: string, value: unknown, keys: readonly string[]): void {
  if (typeof value !== 'object' || value === null) invalid(field, value, 'an object');
  for (const key in value) {
    if (!keys.includes(key))
      invalid(`${field}.${key}`, 'given', `nothing; the options are ${keys.join(', ')}`);
  }
}
