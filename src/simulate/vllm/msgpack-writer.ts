/**
 * Writes msgpack by hand into one growing buffer that is used again: a batch of KV events is mostly token ids, which
 * stand in no array that a general encoder could take, and hashes of 64 bits, which are no JS numbers. Lengths and
 * integers take the shortest form, as msgspec's do. Owned by one KvEventEncoder.
 */
import assert from 'node:assert';

const BYTES_START = 4096;
/** Longest item but for text: a tag and eight bytes. */
const ITEM_BYTES = 9;

/** See the head of the file. */
export class MsgpackWriter {
  #bytes = Buffer.allocUnsafe(BYTES_START);
  #at = 0;

  /** What was written since the last `clear`; valid until the next write. */
  get written(): Buffer {
    return this.#bytes.subarray(0, this.#at);
  }

  clear(): void {
    this.#at = 0;
  }

  nil(): void {
    this.#room(ITEM_BYTES);
    this.#bytes[this.#at++] = 0xc0;
  }

  /** A whole number from 0 to 2^32 − 1. */
  unsigned(value: number): void {
    this.#room(ITEM_BYTES);
    const bytes = this.#bytes;
    if (value < 0x80) bytes[this.#at++] = value;
    else if (value < 0x100) {
      bytes[this.#at++] = 0xcc;
      bytes[this.#at++] = value;
    } else if (value < 0x10000) {
      bytes[this.#at++] = 0xcd;
      bytes[this.#at++] = value >>> 8;
      bytes[this.#at++] = value & 0xff;
    } else {
      assert(value < 0x100000000);
      bytes[this.#at++] = 0xce;
      this.#word(value);
    }
  }

  /** 64 bits as an unsigned integer, or as one in two's complement, always in eight bytes. */
  integer64(high: number, low: number, signed: boolean): void {
    this.#room(ITEM_BYTES);
    this.#bytes[this.#at++] = signed && high > 0x7fffffff ? 0xd3 : 0xcf;
    this.#word(high);
    this.#word(low);
  }

  /** A byte string of the big-endian `words`, at most 63 of them. */
  binary(words: Uint32Array): void {
    this.#room(2 + 4 * words.length);
    this.#bytes[this.#at++] = 0xc4;
    this.#bytes[this.#at++] = 4 * words.length;
    for (const word of words) this.#word(word);
  }

  float64(value: number): void {
    this.#room(ITEM_BYTES);
    this.#bytes[this.#at++] = 0xcb;
    this.#at = this.#bytes.writeDoubleBE(value, this.#at);
  }

  text(value: string): void {
    const length = Buffer.byteLength(value);
    this.#room(ITEM_BYTES + length);
    const bytes = this.#bytes;
    if (length < 32) bytes[this.#at++] = 0xa0 | length;
    else if (length < 0x100) {
      bytes[this.#at++] = 0xd9;
      bytes[this.#at++] = length;
    } else if (length < 0x10000) {
      bytes[this.#at++] = 0xda;
      this.#at = bytes.writeUInt16BE(length, this.#at);
    } else {
      bytes[this.#at++] = 0xdb;
      this.#word(length);
    }
    this.#at += bytes.write(value, this.#at);
  }

  /** Opens an array; its items follow. */
  array(length: number): void {
    this.#room(ITEM_BYTES);
    if (length < 16) this.#bytes[this.#at++] = 0x90 | length;
    else if (length < 0x10000) {
      this.#bytes[this.#at++] = 0xdc;
      this.#at = this.#bytes.writeUInt16BE(length, this.#at);
    } else {
      this.#bytes[this.#at++] = 0xdd;
      this.#word(length);
    }
  }

  /** Opens a map of at most 15 entries; keys and values follow in turn. */
  map(length: number): void {
    assert(length < 16);
    this.#room(ITEM_BYTES);
    this.#bytes[this.#at++] = 0x80 | length;
  }

  #word(value: number): void {
    const bytes = this.#bytes;
    bytes[this.#at++] = value >>> 24;
    bytes[this.#at++] = value >>> 16;
    bytes[this.#at++] = value >>> 8;
    bytes[this.#at++] = value;
  }

  #room(wanted: number): void {
    if (this.#at + wanted <= this.#bytes.length) return;
    const larger = Buffer.allocUnsafe(2 * (this.#at + wanted));
    this.#bytes.copy(larger, 0, 0, this.#at);
    this.#bytes = larger;
  }
}
