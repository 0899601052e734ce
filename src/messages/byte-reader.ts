/**
 * ByteReader: the read half of the record codec (R2). Every read is checked against the bytes that are left and every
 * count before anything of that size is made; whatever is wrong with the bytes is one RecordError. Numbers are
 * little-endian. The bytes may lie in shared memory: nothing here keeps them, except a `view` that says so.
 */
import { BLOB_ALIGN } from './byte-writer.js';

/** Bytes that are no such record: says which record and which field. Both sides run the same build, so it is a bug. */
export class RecordError extends Error {
  constructor(
    readonly record: string,
    readonly field: string,
    problem: string,
  ) {
    super(`${record}.${field}: ${problem}`);
    this.name = 'RecordError';
  }
}

/** Up to here a loop over the bytes beats the call into Buffer. */
const SHORT_STRING = 24;

/** Reads the fields of one record in order; `end` checks that nothing is left. */
export class ByteReader {
  readonly #record: string;
  readonly #bytes: Buffer;
  readonly #view: DataView;
  #at = 0;

  constructor(record: string, bytes: Uint8Array) {
    this.#record = record;
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** The error for `field`, for checks that only the record's codec can make. */
  fault(field: string, problem: string): RecordError {
    return new RecordError(this.#record, field, problem);
  }

  u8(field: string): number {
    return this.#bytes[this.#take(1, field)] as number;
  }

  bool(field: string): boolean {
    const value = this.u8(field);
    if (value > 1) throw this.fault(field, `${value} is not 0 or 1`);
    return value === 1;
  }

  u32(field: string): number {
    return this.#view.getUint32(this.#take(4, field), true);
  }

  f64(field: string): number {
    const value = this.#view.getFloat64(this.#take(8, field), true);
    if (!Number.isFinite(value)) throw this.fault(field, 'is not a finite number');
    return value;
  }

  integer(field: string, min = 0): number {
    const value = this.f64(field);
    if (!Number.isSafeInteger(value) || value < min || Object.is(value, -0)) {
      throw this.fault(field, `is not a whole number of at least ${min}`);
    }
    return value;
  }

  /** One of `names`, stored as its index. */
  oneOf<Name extends string>(field: string, names: readonly Name[]): Name {
    const index = this.u8(field);
    const name = names[index];
    if (name === undefined) throw this.fault(field, `${index} is not below ${names.length}`);
    return name;
  }

  string(field: string): string {
    const length = this.u32(field);
    const start = this.#take(length, field);
    if (length <= SHORT_STRING) {
      const text = this.#shortAscii(start, length);
      if (text !== null) return text;
    }
    return this.#bytes.toString('utf8', start, start + length);
  }

  pairs(field: string): [string, string][] {
    const count = this.count(field, 8);
    const list: [string, string][] = [];
    for (let index = 0; index < count; index += 1) list.push([this.string(field), this.string(field)]);
    return list;
  }

  words(field: string): number[] {
    const count = this.count(field, 4);
    const list: number[] = [];
    for (let index = 0; index < count; index += 1) list.push(this.u32(field));
    return list;
  }

  /** A number of things that take at least `bytesEach` bytes each, so that no count can ask for more than is there. */
  count(field: string, bytesEach: number): number {
    const count = this.u32(field);
    const left = this.#bytes.length - this.#at;
    if (count * bytesEach > left) throw this.fault(field, `${count} do not fit in the ${left} bytes left`);
    return count;
  }

  /** Bytes as a view of the record: valid as long as the record's own bytes are. */
  view(field: string): Uint8Array {
    const length = this.u32(field);
    this.#take(-this.#at & (BLOB_ALIGN - 1), field);
    const start = this.#take(length, field);
    return new Uint8Array(this.#bytes.buffer, this.#bytes.byteOffset + start, length);
  }

  /** Bytes copied into memory of their own, never shared. */
  copy(field: string): Uint8Array {
    const view = this.view(field);
    const own = new Uint8Array(view.length);
    own.set(view);
    return own;
  }

  /** Words of a byte array, copied into memory of their own, never shared. */
  copyWords(field: string): Uint32Array {
    const view = this.view(field);
    if (view.length % 4 !== 0) throw this.fault(field, `${view.length} bytes are no whole number of words`);
    const own = new Uint32Array(view.length / 4);
    new Uint8Array(own.buffer).set(view);
    return own;
  }

  /** All bytes left, as text. */
  rest(): string {
    const text = this.#bytes.toString('utf8', this.#at);
    this.#at = this.#bytes.length;
    return text;
  }

  /** Throws unless every byte was read. */
  end(): void {
    const left = this.#bytes.length - this.#at;
    if (left !== 0) throw this.fault('end', `${left} bytes too many`);
  }

  #shortAscii(start: number, length: number): string | null {
    let text = '';
    for (let at = start; at < start + length; at += 1) {
      const unit = this.#bytes[at] as number;
      if (unit > 0x7f) return null;
      text += String.fromCharCode(unit);
    }
    return text;
  }

  #take(length: number, field: string): number {
    const start = this.#at;
    const left = this.#bytes.length - start;
    if (length > left) throw this.fault(field, `needs ${length} bytes, ${left} are left`);
    this.#at = start + length;
    return start;
  }
}
