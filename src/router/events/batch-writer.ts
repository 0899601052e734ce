/**
 * Writes batches of KV events in the msgpack form that vLLM and SGLang publish (R4, ingest thread): what is polled from
 * servers with a form of their own goes the same way from here on, through the same decoder and applier, and over worker
 * links and ports. One writer per source; a batch is handed on when it is full and at `flush`.
 */
import type { EngineBlockHash, EventWriter, StoredBlocks } from './contract.js';

/** A batch that has this many bytes or rows is full: far below the bounds of the decoder. */
const BATCH_BYTES = 1 << 20;
const BATCH_ROWS = 4096;
/** Blocks of one row; longer lists are continued in the next row. */
const ROW_BLOCKS_MAX = 256;
/** Array of two, a float64, an array whose length is written at the end. */
const HEAD_BYTES = 15;
const FIRST_BYTES = 64 * 1024;
/** Longest encoding of a number, an array's head or a 64-bit hash. */
const SCALAR_BYTES = 9;
/** Of a digest this many bytes count. */
const DIGEST_BYTES = 16;
const HEX = /^(?:[0-9a-f]{2})+$/i;

const TAGS = { store: 'BlockStored', remove: 'BlockRemoved', clear: 'AllBlocksCleared' } as const;

/** See the head of the file. */
export class BatchWriter implements EventWriter {
  readonly #deliver: (payload: Uint8Array) => void;
  #bytes = Buffer.allocUnsafe(FIRST_BYTES);
  #at = HEAD_BYTES;
  #rows = 0;

  /** `deliver` owns what it is given. */
  constructor(deliver: (payload: Uint8Array) => void) {
    this.#deliver = deliver;
  }

  store(stored: StoredBlocks): void {
    const { blocks } = stored;
    for (let from = 0; from < blocks.length; from += ROW_BLOCKS_MAX) {
      this.#storeRow(stored, from, Math.min(blocks.length, from + ROW_BLOCKS_MAX));
      this.#endRow();
    }
  }

  remove(hashes: readonly EngineBlockHash[]): void {
    for (let from = 0; from < hashes.length; from += ROW_BLOCKS_MAX) {
      const row = hashes.slice(from, from + ROW_BLOCKS_MAX);
      this.#array(2);
      this.#text(TAGS.remove);
      this.#array(row.length);
      for (const hash of row) this.#hash(hash);
      this.#endRow();
    }
  }

  clear(): void {
    this.#array(1);
    this.#text(TAGS.clear);
    this.#endRow();
  }

  /** Hands on what was written since the last batch, if anything. */
  flush(): void {
    if (this.#rows === 0) return;
    this.#bytes[0] = 0x92;
    this.#bytes[1] = 0xcb;
    // There is no time in what was polled; nobody reads it behind this point.
    this.#bytes.writeDoubleBE(0, 2);
    this.#bytes[10] = 0xdd;
    this.#bytes.writeUInt32BE(this.#rows, 11);
    const payload = new Uint8Array(this.#bytes.subarray(0, this.#at));
    this.discard();
    this.#deliver(payload);
  }

  /** Drops what was written since the last batch. */
  discard(): void {
    this.#at = HEAD_BYTES;
    this.#rows = 0;
  }

  #endRow(): void {
    this.#rows += 1;
    if (this.#rows >= BATCH_ROWS || this.#at >= BATCH_BYTES) this.flush();
  }

  /** block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium, lora_name, extra_keys. */
  #storeRow({ parent, blocks, blockSize, adapter, adapterId, salt }: StoredBlocks, from: number, to: number) {
    this.#array(9);
    this.#text(TAGS.store);
    this.#array(to - from);
    for (let at = from; at < to; at += 1) this.#hash(blocks[at]!.hash);
    const before = from === 0 ? parent : blocks[from - 1]!.hash;
    if (before === null) this.#nil();
    else this.#hash(before);
    this.#array((to - from) * blockSize);
    for (let at = from; at < to; at += 1) this.#tokens(blocks[at]!.tokens);
    this.#integer(blockSize);
    if (adapterId === null) this.#nil();
    else this.#integer(adapterId);
    this.#nil();
    if (adapter === null) this.#nil();
    else this.#text(adapter);
    if (salt === null || from > 0) this.#nil();
    else {
      this.#array(1);
      this.#array(1);
      this.#text(salt);
    }
  }

  #tokens(tokens: readonly number[]): void {
    this.#need(tokens.length * 5);
    for (const token of tokens) this.#putInteger(token);
  }

  #hash(hash: EngineBlockHash): void {
    if (typeof hash === 'bigint') {
      this.#need(SCALAR_BYTES);
      this.#bytes[this.#at] = 0xcf;
      this.#bytes.writeBigUInt64BE(hash, this.#at + 1);
      this.#at += 9;
      return;
    }
    const digest = Buffer.from(hash, HEX.test(hash) ? 'hex' : 'utf8').subarray(-DIGEST_BYTES);
    this.#need(2 + digest.length);
    this.#bytes[this.#at] = 0xc4;
    this.#bytes[this.#at + 1] = digest.length;
    digest.copy(this.#bytes, this.#at + 2);
    this.#at += 2 + digest.length;
  }

  #nil(): void {
    this.#need(1);
    this.#bytes[this.#at++] = 0xc0;
  }

  #array(length: number): void {
    this.#need(SCALAR_BYTES);
    this.#bytes[this.#at] = 0xdd;
    this.#bytes.writeUInt32BE(length, this.#at + 1);
    this.#at += 5;
  }

  #text(text: string): void {
    const length = Buffer.byteLength(text);
    this.#need(SCALAR_BYTES + length);
    this.#bytes[this.#at] = 0xdb;
    this.#bytes.writeUInt32BE(length, this.#at + 1);
    this.#bytes.write(text, this.#at + 5);
    this.#at += 5 + length;
  }

  #integer(value: number): void {
    this.#need(SCALAR_BYTES);
    this.#putInteger(value);
  }

  /** Of an integer in [0, 2^32), for which there is room. */
  #putInteger(value: number): void {
    const bytes = this.#bytes;
    if (value < 0x80) bytes[this.#at++] = value;
    else if (value < 0x1_0000) {
      bytes[this.#at] = 0xcd;
      bytes[this.#at + 1] = value >>> 8;
      bytes[this.#at + 2] = value;
      this.#at += 3;
    } else {
      bytes[this.#at] = 0xce;
      bytes.writeUInt32BE(value, this.#at + 1);
      this.#at += 5;
    }
  }

  #need(bytes: number): void {
    const end = this.#at + bytes;
    if (end <= this.#bytes.length) return;
    const larger = Buffer.allocUnsafe(Math.max(end, this.#bytes.length * 2));
    this.#bytes.copy(larger, 0, 0, this.#at);
    this.#bytes = larger;
  }
}
