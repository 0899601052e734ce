/**
 * LinkWriter (R5): builds the frames of a worker link, all that is said in one turn of the event loop in one run of
 * bytes. Token ids of any number of streams are gathered in one STEP frame, which ends by itself before the next frame
 * of another kind, so that the order of calls is the order on the wire. Owned by one LinkConnection, on its thread.
 */
import {
  frameSpanBytes,
  LINK_ALIGN_BYTES,
  LINK_HEADER,
  LINK_HEADER_BYTES,
  LINK_KIND,
  STEP_BYTES_MAX,
  STEP_ENTRY,
  STEP_ENTRY_BYTES,
} from './link-protocol.js';

const BUFFER_BYTES_START = 16 * 1024;
const NONE = -1;

/** See the head of the file. */
export class LinkWriter {
  #bytes = new Uint8Array(BUFFER_BYTES_START);
  #view = new DataView(this.#bytes.buffer);
  #words = new Uint32Array(this.#bytes.buffer);
  #at = 0;
  #frames = 0;
  /** Where the STEP frame that is being filled begins, or NONE; and the last entry in it. */
  #stepAt = NONE;
  #entryAt = NONE;

  /** Bytes that `take` would give. */
  get size(): number {
    return this.#at;
  }

  /** Frames so far; the lower 32 bits are the sequence of the next one. */
  get frames(): number {
    return this.#frames;
  }

  /** Appends a frame whose payload is `parts`, one after the other; copied. */
  frame(kind: number, flags: number, stream: number, parts: readonly Uint8Array[]): void {
    this.#endStep();
    let length = 0;
    for (const part of parts) length += part.length;
    this.#reserve(frameSpanBytes(length));
    let at = this.#begin(kind, flags, stream, length);
    for (const part of parts) {
      this.#bytes.set(part, at);
      at += part.length;
    }
    this.#at = align(at);
  }

  /** Appends a frame with one 32-bit word as payload. */
  word(kind: number, stream: number, value: number): void {
    this.#endStep();
    this.#reserve(frameSpanBytes(4));
    const at = this.#begin(kind, 0, stream, 4);
    this.#view.setUint32(at, value, true);
    this.#at = at + 4;
  }

  /**
   * Appends ids [first, first + count) of `ids` for a stream to the STEP frame of this turn, to its last entry where that
   * is of the same choice and goes on. Returns the bytes that they take there.
   */
  entry(
    stream: number,
    choice: number,
    finish: number,
    ids: Uint32Array,
    first: number,
    count: number,
  ): number {
    const entryBytes = STEP_ENTRY_BYTES + count * 4;
    if (this.#stepAt !== NONE && this.#at - this.#stepAt + entryBytes > STEP_BYTES_MAX) this.#endStep();
    this.#reserve(LINK_HEADER_BYTES + entryBytes);
    if (this.#goesOn(stream, choice)) {
      const at = this.#entryAt;
      this.#bytes[at + STEP_ENTRY.finish] = finish;
      this.#view.setUint16(
        at + STEP_ENTRY.count,
        this.#view.getUint16(at + STEP_ENTRY.count, true) + count,
        true,
      );
      this.#at = this.#putIds(this.#at, ids, first, count);
      return count * 4;
    }
    if (this.#stepAt === NONE) {
      this.#stepAt = this.#at;
      this.#at = this.#begin(LINK_KIND.step, 0, 0, 0);
    }
    const at = this.#at;
    const view = this.#view;
    view.setUint32(at + STEP_ENTRY.stream, stream, true);
    this.#bytes[at + STEP_ENTRY.choice] = choice;
    this.#bytes[at + STEP_ENTRY.finish] = finish;
    view.setUint16(at + STEP_ENTRY.count, count, true);
    this.#entryAt = at;
    this.#at = this.#putIds(at + STEP_ENTRY_BYTES, ids, first, count);
    return entryBytes;
  }

  /** Whether the last entry is of this choice and has not finished. A STEP is too short for the count to overflow. */
  #goesOn(stream: number, choice: number): boolean {
    const at = this.#entryAt;
    return (
      at !== NONE &&
      this.#bytes[at + STEP_ENTRY.finish] === 0 &&
      this.#bytes[at + STEP_ENTRY.choice] === choice &&
      this.#view.getUint32(at + STEP_ENTRY.stream, true) === stream
    );
  }

  /** Returns where they end. */
  #putIds(at: number, ids: Uint32Array, first: number, count: number): number {
    let word = at >> 2;
    // Mostly one id: a loop beats `subarray` and `set`.
    for (let from = first; from < first + count; from++) this.#words[word++] = ids[from]!;
    return at + count * 4;
  }

  /** Everything since the last call, or null; the bytes are the caller's. */
  take(): Uint8Array | null {
    this.#endStep();
    if (this.#at === 0) return null;
    const taken = this.#bytes.subarray(0, this.#at);
    this.#grow(Math.max(BUFFER_BYTES_START, Math.min(this.#at, STEP_BYTES_MAX)), 0);
    this.#at = 0;
    return taken;
  }

  #begin(kind: number, flags: number, stream: number, length: number): number {
    const view = this.#view;
    const at = this.#at;
    view.setUint32(at + LINK_HEADER.length, length, true);
    view.setUint16(at + LINK_HEADER.kind, kind, true);
    view.setUint16(at + LINK_HEADER.flags, flags, true);
    view.setUint32(at + LINK_HEADER.stream, stream, true);
    view.setUint32(at + LINK_HEADER.sequence, this.#frames, true);
    this.#frames += 1;
    return at + LINK_HEADER_BYTES;
  }

  #endStep(): void {
    if (this.#stepAt === NONE) return;
    const length = this.#at - this.#stepAt - LINK_HEADER_BYTES;
    this.#view.setUint32(this.#stepAt + LINK_HEADER.length, length, true);
    this.#stepAt = NONE;
    this.#entryAt = NONE;
  }

  #reserve(more: number): void {
    const needed = this.#at + more;
    if (needed > this.#bytes.length) this.#grow(Math.max(needed, this.#bytes.length * 2), this.#at);
  }

  #grow(size: number, keep: number): void {
    const old = this.#bytes;
    this.#bytes = new Uint8Array(align(size));
    this.#bytes.set(old.subarray(0, keep));
    this.#view = new DataView(this.#bytes.buffer);
    this.#words = new Uint32Array(this.#bytes.buffer);
  }
}

const align = (at: number): number => (at + (LINK_ALIGN_BYTES - 1)) & -LINK_ALIGN_BYTES;
