/**
 * ByteWriter: the write half of the record codec (R2). Fields go into one scratch buffer that lives as long as the thread;
 * `finish` copies them out and gives the parts of the record in order, with large byte arrays by reference. Numbers are
 * little-endian. A value outside its field's range is a bug of the caller and fails an assertion.
 */
import { strict as assert } from 'node:assert';

const SCRATCH_BYTES = 16 * 1024;
/** The bytes of a blob start at a multiple of this in the record: copying out of shared memory is then 10 times faster. */
export const BLOB_ALIGN = 8;
/** Up to here a loop over the characters beats the call into Buffer. */
const SHORT_STRING = 32;

/** Writes one record at a time: `begin`, fields, `finish`. Not shared between threads. */
export class ByteWriter {
  #bytes = Buffer.allocUnsafeSlow(SCRATCH_BYTES);
  #view = viewOf(this.#bytes);
  #at = 0;
  #referencedBytes = 0;
  /** Byte arrays by reference, each with the offset in the scratch before which it belongs. */
  readonly #references: { at: number; bytes: Uint8Array }[] = [];

  /** Starts a record; drops one that was not finished. */
  begin(): this {
    this.#at = 0;
    this.#referencedBytes = 0;
    this.#references.length = 0;
    return this;
  }

  u8(value: number): this {
    if ((value & 0xff) !== value) assert.fail(`${value} does not fit in 8 bits`);
    this.#grow(1);
    this.#bytes[this.#at] = value;
    this.#at += 1;
    return this;
  }

  bool(value: boolean): this {
    return this.u8(value ? 1 : 0);
  }

  u32(value: number): this {
    if (value >>> 0 !== value) assert.fail(`${value} does not fit in 32 bits`);
    this.#grow(4);
    this.#view.setUint32(this.#at, value, true);
    this.#at += 4;
    return this;
  }

  /** A finite number, as 64-bit floating point. */
  f64(value: number): this {
    if (!Number.isFinite(value)) assert.fail(`${value} is not finite`);
    this.#grow(8);
    this.#view.setFloat64(this.#at, value, true);
    this.#at += 8;
    return this;
  }

  /** A whole number from `min` to 2^53-1. */
  integer(value: number, min = 0): this {
    if (!Number.isSafeInteger(value) || value < min)
      assert.fail(`${value} is no whole number of at least ${min}`);
    return this.f64(value);
  }

  /** UTF-8 with its byte length in front; a lone surrogate becomes U+FFFD. */
  string(value: string): this {
    this.#grow(4 + value.length * 3);
    const start = this.#at + 4;
    const written = this.#shortAscii(value, start) ? value.length : this.#bytes.write(value, start);
    this.#view.setUint32(this.#at, written, true);
    this.#at = start + written;
    return this;
  }

  /** Pairs of strings, such as headers. */
  pairs(list: readonly (readonly [string, string])[]): this {
    this.u32(list.length);
    for (const [name, value] of list) this.string(name).string(value);
    return this;
  }

  /** 32-bit words with their count in front, copied. */
  words(list: ArrayLike<number>): this {
    this.u32(list.length);
    for (let index = 0; index < list.length; index += 1) this.u32(list[index] as number);
    return this;
  }

  /** Bytes with their length and padding in front, by reference: leave them unchanged until the record is sent. */
  blob(chunks: readonly Uint8Array[]): this {
    let length = 0;
    for (const chunk of chunks) length += chunk.length;
    this.u32(length);
    while ((this.#at + this.#referencedBytes) % BLOB_ALIGN !== 0) this.u8(0);
    this.#referencedBytes += length;
    for (const bytes of chunks) if (bytes.length > 0) this.#references.push({ at: this.#at, bytes });
    return this;
  }

  /** The record as parts, to be written one after the other. */
  finish(): Uint8Array[] {
    const own = new Uint8Array(this.#at);
    own.set(this.#bytes.subarray(0, this.#at));
    const parts: Uint8Array[] = [];
    let from = 0;
    for (const { at, bytes } of this.#references) {
      if (at > from) parts.push(own.subarray(from, at));
      parts.push(bytes);
      from = at;
    }
    if (from < this.#at) parts.push(own.subarray(from));
    this.#references.length = 0;
    return parts;
  }

  #shortAscii(value: string, start: number): boolean {
    if (value.length > SHORT_STRING) return false;
    const bytes = this.#bytes;
    for (let index = 0; index < value.length; index += 1) {
      const unit = value.charCodeAt(index);
      if (unit > 0x7f) return false;
      bytes[start + index] = unit;
    }
    return true;
  }

  #grow(more: number): void {
    const needed = this.#at + more;
    if (needed <= this.#bytes.length) return;
    const bigger = Buffer.allocUnsafeSlow(Math.max(needed, this.#bytes.length * 2));
    bigger.set(this.#bytes.subarray(0, this.#at));
    this.#bytes = bigger;
    this.#view = viewOf(bigger);
  }
}

const viewOf = (bytes: Uint8Array): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
