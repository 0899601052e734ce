/**
 * The extra keys of a store event (R4, decoder): per block nil or a list of what, besides tokens, makes its KV cache
 * differ. vLLM lists in this order: LoRA name, media items (`[hash, offset]`, in older versions the bare hash), the cache
 * salt (only in the block that starts a sequence) and digests of prompt embeddings (bytes, not used here). Sources:
 * `generate_block_hash_extra_keys` in `vllm/v1/core/kv_cache_utils.py`; media as u64 as in ai-dynamo/dynamo.
 */
import type { IHasher } from 'hash-wasm';
import { DECODE_FAULT, EVENT_MEDIA_MAX, EVENT_MEDIA_WORDS } from './event-tables.js';
import { DecodeError, KIND, type MsgpackCursor, sameBytes } from './msgpack-cursor.js';

/** Hex digits of a media digest (SHA-256 or BLAKE3). */
const DIGEST_DIGITS = 64;

/** Reads the extra keys of one event after the other; belongs to one decoder. */
export class ExtraKeys {
  readonly #cursor: MsgpackCursor;
  readonly #xxh3: IHasher;
  readonly #media: Uint32Array;
  #payload: Uint8Array = new Uint8Array(0);
  #adapterAt = 0;
  #adapterBytes = 0;
  /** Entries in the media table: of this batch, so far. */
  mediaCount = 0;
  /** The salt of the event that was read last, as a range of the payload; (0, 0) when it has none. */
  saltAt = 0;
  saltBytes = 0;

  /** `xxh3` is XXH3-64 with seed 0; `media` is the table to fill. */
  constructor(cursor: MsgpackCursor, xxh3: IHasher, media: Uint32Array) {
    this.#cursor = cursor;
    this.#xxh3 = xxh3;
    this.#media = media;
  }

  /** Begins a batch. */
  open(payload: Uint8Array): void {
    this.#payload = payload;
    this.mediaCount = 0;
  }

  /** Begins an event, whose adapter's name is at this range of the payload. */
  begin(adapterAt: number, adapterBytes: number): void {
    this.#adapterAt = adapterAt;
    this.#adapterBytes = adapterBytes;
    this.saltAt = 0;
    this.saltBytes = 0;
  }

  /** Reads the list at the cursor; media beyond the event's blocks are passed over. */
  read(blocks: number): void {
    const cursor = this.#cursor;
    const entries = cursor.expect(KIND.array);
    for (let block = 0; block < entries; block += 1) {
      if (cursor.skipNil()) continue;
      for (let items = cursor.expect(KIND.array); items > 0; items -= 1) this.#item(block, blocks);
    }
  }

  #item(block: number, blocks: number): void {
    const cursor = this.#cursor;
    const at = cursor.at;
    cursor.next();
    const { kind, size, start } = cursor;
    if (kind === KIND.text) {
      const isAdapter =
        size === this.#adapterBytes && sameBytes(this.#payload, start, this.#payload, this.#adapterAt, size);
      if (size === 0 || isAdapter) return;
      if (this.#isDigest(start, size)) this.#addMedium(block, blocks, start, size);
      else if (block === 0) {
        this.saltAt = start;
        this.saltBytes = size;
      }
      return;
    }
    if (kind === KIND.array && size === 2) {
      cursor.next();
      const { size: nameBytes, start: nameAt } = cursor;
      if (cursor.kind === KIND.text) {
        cursor.skip();
        this.#addMedium(block, blocks, nameAt, nameBytes);
        return;
      }
    }
    cursor.at = at;
    cursor.skip();
  }

  #isDigest(at: number, length: number): boolean {
    if (length !== DIGEST_DIGITS) return false;
    for (let i = at; i < at + length; i += 1) if (Number.isNaN(hexDigit(this.#payload[i]!))) return false;
    return true;
  }

  /** A digest counts by its first 64 bits, another name by its hash. */
  #addMedium(block: number, blocks: number, at: number, length: number): void {
    if (length === 0 || block >= blocks) return;
    if (this.mediaCount >= EVENT_MEDIA_MAX) throw new DecodeError(DECODE_FAULT.oversized);
    const row = this.mediaCount * EVENT_MEDIA_WORDS;
    this.mediaCount += 1;
    this.#media[row] = block;
    if (this.#isDigest(at, length)) {
      this.#media[row + 1] = this.#hexWord(at + 8);
      this.#media[row + 2] = this.#hexWord(at);
      return;
    }
    const digest = this.#xxh3
      .init()
      .update(this.#payload.subarray(at, at + length))
      .digest('binary');
    // hash-wasm gives the canonical form, which is big-endian.
    const words = new DataView(digest.buffer, digest.byteOffset, digest.byteLength);
    this.#media[row + 1] = words.getUint32(4);
    this.#media[row + 2] = words.getUint32(0);
  }

  #hexWord(at: number): number {
    let value = 0;
    for (let i = at; i < at + 8; i += 1) value = value * 16 + hexDigit(this.#payload[i]!);
    return value;
  }
}

/** Value of an ASCII hex digit; NaN for another byte. */
function hexDigit(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const letter = byte | 0x20;
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x57 : Number.NaN;
}
