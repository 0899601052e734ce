/**
 * The SSE frame scanner (R5, socket thread): finds the complete events in received bytes and where in each the values
 * lie that an adapter needs, in the layout of frame-descriptor.ts. The addon does it in one call per chunk
 * (native/core/frame_scan.cc); the twin below does the same in TypeScript and gives the same words for every input.
 *
 * **Events** (WHATWG HTML, "Server-sent events"). Lines end by "\n", "\r\n" or "\r"; an event ends by a blank line; blank lines between
 * events count as consumed and belong to no row. An event without a `data` line is a `comment`. Exactly `[DONE]` is
 * `done`. Anything else must be one JSON object on one data line, or the row is `malformed` and holds nothing else; so
 * is an event of several data lines, which no engine sends.
 *
 * **Values**. Read are the top-level members `choices`, `usage`, `error` and `prompt_token_ids`; of the first choice
 * `index`, `finish_reason`, `token_ids`, `prompt_token_ids`, `logprobs`, and as the text range the later of `text` and
 * `delta.content`. null is absent, of
 * equal keys the last one counts, keys written with escapes are not recognised. Everything else is skipped by bracket
 * depth (64 at most) and strings. `choices` that is no array of objects, an `index` that is no integer below 2^31 and
 * `token_ids` that is no array of integers below 2^32 make the row malformed. Absent: ranges, choice and idsFirst are
 * -1, idsCount is 0.
 */
import { strict as assert } from 'node:assert';
import type { Addon } from '../runtime/addon.js';
import {
  FRAME,
  FRAME_FLAG,
  FRAME_IDS_MAX,
  FRAME_TABLE_WORDS,
  FRAME_WORDS,
  FRAMES_MAX,
  SCAN_HEADER,
  SCAN_HEADER_WORDS,
} from './frame-descriptor.js';
import { FrameParser } from './frame-parser.js';

/** One scanner per thread serves all streams of the thread: its output is valid until its next scan. */
export interface FrameScanner {
  /** Header and rows of the last scan, FRAME_TABLE_WORDS words. */
  readonly table: Int32Array;
  /** Token ids of the last scan, FRAME_IDS_MAX words; `table[SCAN_HEADER.ids]` of them are set. */
  readonly ids: Uint32Array;
  /**
   * Scans bytes [from, to), `to` at most 2^30. Row offsets count from the start of `bytes`; `consumed` counts from
   * `from`, so the next scan begins at `from + consumed`. With `full` set, rows or ids ran out: handle the rows, then
   * scan on. A single frame with more than FRAME_IDS_MAX ids gets the flag idsOverflow and no ids.
   * Throws RangeError when the range is not inside `bytes`.
   */
  scan(bytes: Uint8Array, from: number, to: number): void;
  /** Gives the scanner's place in the addon back. Nothing may be scanned after that. */
  close(): void;
}

/** Makes the scanner of this thread: the addon's when there is one, else its TypeScript twin. */
export function createFrameScanner(addon: Addon | null): FrameScanner {
  return addon === null ? new ScriptFrameScanner() : new NativeFrameScanner(addon);
}

const OFFSET_MAX = 2 ** 30;
const LF = 0x0a;
const CR = 0x0d;
const SPACE = 0x20;
const COLON = 0x3a;
const DATA = [0x64, 0x61, 0x74, 0x61] as const;
const DONE = [0x5b, 0x44, 0x4f, 0x4e, 0x45, 0x5d] as const;

class NativeFrameScanner implements FrameScanner {
  readonly table = new Int32Array(new SharedArrayBuffer(FRAME_TABLE_WORDS * 4));
  readonly ids = new Uint32Array(new SharedArrayBuffer(FRAME_IDS_MAX * 4));
  readonly #addon: Addon;
  readonly #handle: number;

  constructor(addon: Addon) {
    this.#addon = addon;
    this.#handle = addon.attachFrames(this.table, this.ids);
  }

  scan(bytes: Uint8Array, from: number, to: number): void {
    this.#addon.scanFrames(this.#handle, bytes, from, to);
  }

  close(): void {
    this.#addon.detach(this.#handle);
  }
}

class ScriptFrameScanner implements FrameScanner {
  readonly table = new Int32Array(FRAME_TABLE_WORDS);
  readonly ids = new Uint32Array(FRAME_IDS_MAX);
  readonly #parser = new FrameParser(this.table, this.ids);
  #closed = false;
  #bytes: Uint8Array = new Uint8Array(0);
  #to = 0;
  // Offsets of the next line feed and carriage return: bytes are searched once, however short the lines are.
  #lf = -1;
  #cr = -1;
  // The event that readEvent found.
  #dataLines = 0;
  #data = 0;
  #dataEnd = 0;

  scan(bytes: Uint8Array, from: number, to: number): void {
    assert(!this.#closed, 'the scanner is closed');
    checkRange(bytes, from, to);
    this.#begin(bytes, from, to);
    let frames = 0;
    let at = from;
    let full = false;
    for (;;) {
      // A blank line between events, and the '\n' of a "\r\n" whose '\r' ended the last scan, belong to no event.
      while (at < to && (bytes[at] === LF || bytes[at] === CR)) at++;
      if (at === to) break;
      full = frames === FRAMES_MAX;
      if (full) break;
      const end = this.#readEvent(at);
      if (end < 0) break;
      const row = SCAN_HEADER_WORDS + frames * FRAME_WORDS;
      full = !this.#writeRow(row, frames === 0);
      if (full) break;
      this.table[row + FRAME.start] = at;
      this.table[row + FRAME.end] = end;
      frames++;
      at = end;
    }
    this.table[SCAN_HEADER.frames] = frames;
    this.table[SCAN_HEADER.consumed] = at - from;
    this.table[SCAN_HEADER.ids] = this.#parser.idsUsed;
    this.table[SCAN_HEADER.full] = full ? 1 : 0;
  }

  close(): void {
    this.#closed = true;
  }

  #begin(bytes: Uint8Array, from: number, to: number): void {
    this.#bytes = bytes;
    this.#to = to;
    this.#lf = from - 1;
    this.#cr = from - 1;
    this.#parser.begin(bytes);
  }

  /** Reads the event at `from` into #data…; gives the byte after its blank line, -1 while there is none. */
  #readEvent(from: number): number {
    const bytes = this.#bytes;
    this.#dataLines = 0;
    for (let line = from; ; ) {
      const end = this.#lineEnd(line);
      if (end === this.#to) return -1;
      const next = bytes[end] === CR && end + 1 < this.#to && bytes[end + 1] === LF ? end + 2 : end + 1;
      if (end === line) return next;
      this.#readLine(line, end);
      line = next;
    }
  }

  #readLine(line: number, end: number): void {
    const bytes = this.#bytes;
    if (end - line < DATA.length || !startsWith(bytes, line, DATA)) return;
    if (end - line > DATA.length && bytes[line + DATA.length] !== COLON) return;
    this.#dataLines++;
    this.#data = Math.min(line + DATA.length + 1, end);
    if (this.#data < end && bytes[this.#data] === SPACE) this.#data++;
    this.#dataEnd = end;
  }

  /** False: the frame's ids do not fit beside those of earlier frames, and the row does not count. */
  #writeRow(row: number, first: boolean): boolean {
    const parser = this.#parser;
    if (this.#dataLines === 0) {
      this.#writePlainRow(row, FRAME_FLAG.comment);
    } else if (this.#isDone()) {
      this.#writePlainRow(row, FRAME_FLAG.done);
    } else if (this.#dataLines > 1) {
      this.#writePlainRow(row, FRAME_FLAG.malformed);
    } else if (parser.parse(this.#data, this.#dataEnd, row) && parser.overflowed) {
      parser.dropIds();
      if (!first) return false;
      this.table[row + FRAME.idsFirst] = -1;
      this.table[row + FRAME.idsCount] = 0;
      this.table[row + FRAME.flags]! |= FRAME_FLAG.idsOverflow;
    }
    return true;
  }

  #isDone(): boolean {
    const length = this.#dataEnd - this.#data;
    return this.#dataLines === 1 && length === DONE.length && startsWith(this.#bytes, this.#data, DONE);
  }

  #writePlainRow(row: number, flags: number): void {
    this.table.fill(-1, row + FRAME.flags, row + FRAME_WORDS);
    this.table[row + FRAME.flags] = flags;
    this.table[row + FRAME.idsCount] = 0;
  }

  #lineEnd(at: number): number {
    if (this.#lf < at) this.#lf = this.#find(LF, at);
    if (this.#cr < at) this.#cr = this.#find(CR, at);
    return Math.min(this.#lf, this.#cr);
  }

  #find(byte: number, at: number): number {
    const hit = this.#bytes.indexOf(byte, at);
    return hit < 0 || hit > this.#to ? this.#to : hit;
  }
}

function startsWith(bytes: Uint8Array, at: number, expected: readonly number[]): boolean {
  for (let i = 0; i < expected.length; i++) {
    if (bytes[at + i] !== expected[i]) return false;
  }
  return true;
}

function checkRange(bytes: Uint8Array, from: number, to: number): void {
  if (!Number.isInteger(to) || to < 0 || to > bytes.length || to > OFFSET_MAX) {
    throw new RangeError('to must be an integer of at most the length of bytes and 2^30');
  }
  if (!Number.isInteger(from) || from < 0 || from > to) {
    throw new RangeError('from must be an integer of at most to');
  }
}
