/**
 * Reads msgpack values one after the other, without making objects of them (R4, ingest thread). A general msgpack library
 * gives values and not their places; the decoder needs both, must keep all 64 bits of an integer without a BigInt each,
 * and must not let a length field of a stranger allocate. One cursor is used again for every batch. Format: the msgpack
 * specification, https://github.com/msgpack/msgpack/blob/master/spec.md.
 */
import { DECODE_FAULT, type DecodeFault } from './event-tables.js';

/** Ends the decoding of one batch; never leaves `decode`. */
export class DecodeError extends Error {
  readonly fault: DecodeFault;

  constructor(fault: DecodeFault) {
    super();
    this.fault = fault;
  }
}

const INT32_MAX = 0x7fff_ffff;

/** What a value is, by its first byte. `invalid` is 0xc1; `other` are booleans, floats and extensions. */
export const KIND = {
  invalid: 0,
  nil: 1,
  integer: 2,
  text: 3,
  binary: 4,
  array: 5,
  map: 6,
  other: 7,
} as const;
/** A value of KIND. */
export type Kind = (typeof KIND)[keyof typeof KIND];

/** By first byte: the kind, the bytes of the length field, and the bytes that follow besides (of scalars: all). */
const KINDS = new Uint8Array(256);
const LENGTH_BYTES = new Uint8Array(256);
const FIXED_BYTES = new Uint8Array(256);

function define(first: number, last: number, kind: Kind, lengthBytes = 0, fixedBytes = 0): void {
  KINDS.fill(kind, first, last + 1);
  LENGTH_BYTES.fill(lengthBytes, first, last + 1);
  FIXED_BYTES.fill(fixedBytes, first, last + 1);
}

define(0x00, 0x7f, KIND.integer);
define(0x80, 0x8f, KIND.map);
define(0x90, 0x9f, KIND.array);
define(0xa0, 0xbf, KIND.text);
define(0xc0, 0xc0, KIND.nil);
define(0xc2, 0xc3, KIND.other);
[1, 2, 4].forEach((bytes, i) => {
  define(0xc4 + i, 0xc4 + i, KIND.binary, bytes);
  define(0xc7 + i, 0xc7 + i, KIND.other, bytes, 1);
  define(0xd9 + i, 0xd9 + i, KIND.text, bytes);
});
define(0xca, 0xca, KIND.other, 0, 4);
define(0xcb, 0xcb, KIND.other, 0, 8);
[1, 2, 4, 8, 16].forEach((bytes, i) => {
  if (bytes < 16) define(0xcc + i, 0xcc + i, KIND.integer, 0, bytes);
  if (bytes < 16) define(0xd0 + i, 0xd0 + i, KIND.integer, 0, bytes);
  define(0xd4 + i, 0xd4 + i, KIND.other, 0, 1 + bytes);
});
define(0xdc, 0xdc, KIND.array, 2);
define(0xdd, 0xdd, KIND.array, 4);
define(0xde, 0xde, KIND.map, 2);
define(0xdf, 0xdf, KIND.map, 4);
define(0xe0, 0xff, KIND.integer);

/** A place in a payload. Methods that read throw a DecodeError: `truncated` when the bytes end inside the value. */
export class MsgpackCursor {
  #bytes: Uint8Array = new Uint8Array(0);
  #view: DataView = new DataView(this.#bytes.buffer);
  /** Offset of the next value. */
  at = 0;
  /** Of the value read last: its kind, its bytes, elements or entries, and where its bytes begin. */
  kind: Kind = KIND.nil;
  size = 0;
  start = 0;
  /** Of the integer read last: its words as unsigned numbers; a negative one is sign-extended. */
  low = 0;
  high = 0;

  /** Goes to the start of a payload. */
  open(payload: Uint8Array): void {
    this.#bytes = payload;
    this.#view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
    this.at = 0;
  }

  /** Whether all bytes were read. */
  get isAtEnd(): boolean {
    return this.at === this.#bytes.length;
  }

  /** Reads a value; of an array or a map only its head, so that its elements are next. */
  next(): void {
    const first = this.#bytes[this.at];
    if (first === undefined) throw new DecodeError(DECODE_FAULT.truncated);
    this.at += 1;
    this.kind = KINDS[first] as Kind;
    if (this.kind === KIND.invalid) throw new DecodeError(DECODE_FAULT.malformed);
    this.size = this.#length(first);
    this.start = this.at;
    // Each element takes a byte at least, so a length beyond the end cannot be true.
    if (this.kind === KIND.array) this.#need(this.size);
    else if (this.kind === KIND.map) this.#need(this.size * 2);
    else this.#advance(this.size + FIXED_BYTES[first]!);
    if (this.kind === KIND.integer) this.#integer(first);
  }

  /** Reads a value that must be of `kind`; returns its size. */
  expect(kind: Kind): number {
    this.next();
    if (this.kind !== kind) throw new DecodeError(DECODE_FAULT.malformed);
    return this.size;
  }

  /** Reads an integer in [0, 2^32). */
  word(): number {
    // Most ids of a prompt: two bytes, or one.
    const first = this.#bytes[this.at]!;
    if (first < 0x80) {
      this.at += 1;
      return first;
    }
    if (first === 0xcd && this.at + 3 <= this.#bytes.length) {
      this.at += 3;
      return (this.#bytes[this.at - 2]! << 8) | this.#bytes[this.at - 1]!;
    }
    this.expect(KIND.integer);
    if (this.high !== 0) throw new DecodeError(DECODE_FAULT.malformed);
    return this.low;
  }

  /** Reads an integer in [min, 2^31). */
  number(min: number): number {
    const value = this.word();
    if (value < min || value > INT32_MAX) throw new DecodeError(DECODE_FAULT.malformed);
    return value;
  }

  /** Passes over a nil; false when something else is next. */
  skipNil(): boolean {
    if (this.#bytes[this.at] !== 0xc0) return false;
    this.at += 1;
    return true;
  }

  /** Reads a text, or nil; false for nil. */
  text(): boolean {
    if (this.skipNil()) return false;
    this.expect(KIND.text);
    return true;
  }

  /** Passes over values with all that is in them. */
  skip(count = 1): void {
    for (let left = count; left > 0; left -= 1) {
      this.next();
      if (this.kind === KIND.array) left += this.size;
      if (this.kind === KIND.map) left += this.size * 2;
      this.#need(left - 1);
    }
  }

  /** Reads the key of a map's entry: its index in `words`, or −1 when it is another one or no text. */
  key(words: WordTable): number {
    const at = this.at;
    this.next();
    if (this.kind === KIND.text) return this.find(words);
    this.at = at;
    this.skip();
    return -1;
  }

  /** Index of the text read last, or −1. */
  find(words: WordTable): number {
    return words.find(this.#bytes, this.start, this.size);
  }

  #need(bytes: number): void {
    if (bytes > this.#bytes.length - this.at) throw new DecodeError(DECODE_FAULT.truncated);
  }

  #advance(bytes: number): void {
    this.#need(bytes);
    this.at += bytes;
  }

  /** Elements, entries or bytes that the value begun by `first` says it has; reads its length field. */
  #length(first: number): number {
    const bytes = LENGTH_BYTES[first]!;
    if (bytes === 0) {
      if (first >= 0x80 && first <= 0x9f) return first & 0x0f;
      return first >= 0xa0 && first <= 0xbf ? first & 0x1f : 0;
    }
    const at = this.at;
    this.#advance(bytes);
    if (bytes === 1) return this.#view.getUint8(at);
    return bytes === 2 ? this.#view.getUint16(at) : this.#view.getUint32(at);
  }

  /** The integer begun by `first`, the rest of which is at `start`. */
  #integer(first: number): void {
    const at = this.start;
    if (first === 0xcf || first === 0xd3) {
      this.high = this.#view.getUint32(at);
      this.low = this.#view.getUint32(at + 4);
      return;
    }
    const value = this.#small(first, at);
    this.low = value >>> 0;
    this.high = value < 0 ? 0xffff_ffff : 0;
  }

  #small(first: number, at: number): number {
    if (first < 0x80) return first;
    if (first >= 0xe0) return first - 0x100;
    if (first === 0xcc) return this.#view.getUint8(at);
    if (first === 0xcd) return this.#view.getUint16(at);
    if (first === 0xce) return this.#view.getUint32(at);
    if (first === 0xd0) return this.#view.getInt8(at);
    return first === 0xd1 ? this.#view.getInt16(at) : this.#view.getInt32(at);
  }
}

/** A fixed list of words, found by their bytes without making a string. */
export class WordTable {
  readonly #words: readonly Uint8Array[];

  constructor(words: readonly string[]) {
    this.#words = words.map(word => Buffer.from(word));
  }

  /** Index of the word that is `bytes[at, at + length)`, or −1. */
  find(bytes: Uint8Array, at: number, length: number): number {
    for (let i = 0; i < this.#words.length; i += 1) {
      const word = this.#words[i]!;
      if (word.length === length && sameBytes(word, 0, bytes, at, length)) return i;
    }
    return -1;
  }
}

/** Whether `count` bytes of `a` and `b` are equal; both have that many. */
export function sameBytes(a: Uint8Array, aAt: number, b: Uint8Array, bAt: number, count: number): boolean {
  for (let i = 0; i < count; i += 1) if (a[aAt + i] !== b[bAt + i]) return false;
  return true;
}
