/**
 * Between the rows of a frame batch and the entries of a STEP frame (R5). The worker side asks which rows an entry can
 * carry whole; the plane side writes entries as rows of a batch whose ids lie in the received frame itself. Pure.
 */

import type { FrameBatch } from '../contract.js';
import { rowStart } from '../event-rows.js';
import {
  FRAME,
  FRAME_FLAG,
  FRAME_TABLE_WORDS,
  FRAME_WORDS,
  FRAMES_MAX,
  SCAN_HEADER,
  SCAN_HEADER_WORDS,
} from '../frame-descriptor.js';
import { FINISH_CODES, STEP_CHOICE_MAX, STEP_IDS_MAX } from './link-protocol.js';

/** The row says more than an entry can: it travels as the bytes that it is. */
export const NOT_AN_ENTRY = -1;

/** The values of `finish_reason` as JSON, one after the other: the bytes of every batch of rows. */
const FINISH_BYTES = Buffer.from(FINISH_CODES.map(code => JSON.stringify(code)).join(''));
const FINISH_STARTS = FINISH_CODES.map((_, code) =>
  FINISH_CODES.slice(0, code).reduce((sum, text) => sum + JSON.stringify(text).length, 0),
);
/** Codes by the bytes of the value, as Latin-1. */
const CODE_OF = new Map(FINISH_CODES.map((text, code) => [JSON.stringify(text), code]));

/**
 * The finish code of a row that holds a choice, ids, maybe a finish reason of those known, and nothing else that a reader
 * in token mode looks at; else NOT_AN_ENTRY. The prompt's ids do not count: whoever asks for ids out has put them in.
 */
export function entryFinish(batch: FrameBatch, row: number): number {
  const { table, bytes } = batch;
  const at = rowStart(row);
  const flags = table[at + FRAME.flags]!;
  const choice = table[at + FRAME.choice]!;
  const fits = choice >= 0 && choice <= STEP_CHOICE_MAX && table[at + FRAME.idsCount]! <= STEP_IDS_MAX;
  if ((flags & ~FRAME_FLAG.finish) !== 0 || !fits) return NOT_AN_ENTRY;
  if (table[at + FRAME.idsFirst]! < 0 || table[at + FRAME.logprobsStart]! >= 0) return NOT_AN_ENTRY;
  if ((flags & FRAME_FLAG.finish) === 0) return 0;
  const from = table[at + FRAME.finishStart]!;
  const text = Buffer.from(bytes.buffer, bytes.byteOffset + from, table[at + FRAME.finishEnd]! - from);
  return CODE_OF.get(text.toString('latin1')) ?? NOT_AN_ENTRY;
}

type MutableBatch = { -readonly [K in keyof FrameBatch]: FrameBatch[K] };

/** Builds batches of rows. One per connection; a batch is valid until `clear`. */
export class RowBatch {
  readonly #table = new Int32Array(FRAME_TABLE_WORDS).fill(-1);
  readonly #batch: MutableBatch;
  readonly #finish = new Uint8Array(FRAMES_MAX);

  constructor() {
    this.#batch = { bytes: FINISH_BYTES, count: 0, table: this.#table, ids: new Uint32Array(0) };
  }

  get batch(): FrameBatch {
    return this.#batch;
  }

  get isFull(): boolean {
    return this.#batch.count === FRAMES_MAX;
  }

  /** Begins a batch whose rows index `ids`. */
  clear(ids: Uint32Array): void {
    this.#batch.count = 0;
    this.#batch.ids = ids;
  }

  /** Adds a row; not when `isFull`. */
  add(choice: number, finish: number, idsFirst: number, idsCount: number): void {
    const table = this.#table;
    const at = SCAN_HEADER_WORDS + this.#batch.count * FRAME_WORDS;
    this.#finish[this.#batch.count] = finish;
    // All other words of a row are absent in every row of this table, and stay so.
    table[at + FRAME.start] = 0;
    table[at + FRAME.end] = 0;
    table[at + FRAME.flags] = finish === 0 ? 0 : FRAME_FLAG.finish;
    table[at + FRAME.choice] = choice;
    table[at + FRAME.idsFirst] = idsFirst;
    table[at + FRAME.idsCount] = idsCount;
    table[at + FRAME.finishStart] = finish === 0 ? -1 : FINISH_STARTS[finish]!;
    table[at + FRAME.finishEnd] =
      finish === 0 ? -1 : FINISH_STARTS[finish]! + FINISH_CODES[finish]!.length + '""'.length;
    this.#batch.count += 1;
    table[SCAN_HEADER.frames] = this.#batch.count;
  }

  /** Calls `visit` for each row; the ids are a view. */
  each(visit: (choice: number, finish: number, ids: Uint32Array) => void): void {
    const { table, ids, count } = this.#batch;
    for (let row = 0; row < count; row++) {
      const at = rowStart(row);
      const first = table[at + FRAME.idsFirst]!;
      const end = first + table[at + FRAME.idsCount]!;
      visit(table[at + FRAME.choice]!, this.#finish[row]!, ids.subarray(first, end));
    }
  }
}
