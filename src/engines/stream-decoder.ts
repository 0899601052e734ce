/**
 * The decoder of a streamed engine answer (R5), shared by every engine that speaks OpenAI's SSE: bytes in, batches of
 * scanned frames out. It owns the unfinished tail of one stream; the frame table belongs to the scanner, of which a
 * socket thread has one. Bytes that hold whole frames are scanned where they lie; only a tail is ever copied.
 */
import { strict as assert } from 'node:assert';
import type { EngineStream, FrameBatch, StreamFault } from './contract.js';
import { FRAME, FRAME_FLAG, FRAME_WORDS, SCAN_HEADER, SCAN_HEADER_WORDS } from './frame-descriptor.js';

/** What the decoder needs of a frame scanner; engines/frame-scanner.ts makes them, one per socket thread. */
export interface StreamScanner {
  /** Filled by `scan`; layout in frame-descriptor.ts. */
  readonly table: Int32Array;
  readonly ids: Uint32Array;
  /** Scans bytes [from, to). Offsets in rows count from the start of `bytes`, `consumed` from `from`. */
  scan(bytes: Uint8Array, from: number, to: number): void;
}

/** Bounds of one stream, in bytes. */
export interface StreamLimits {
  /** Bytes of the first frame with data, which may repeat the prompt. */
  readonly firstFrameBytesMax: number;
  readonly frameBytesMax: number;
}

const LF = 10;
const CR = 13;
const TAIL_BYTES_START = 4096;

type MutableBatch = { -readonly [K in keyof FrameBatch]: FrameBatch[K] };

/**
 * Opens a decoder. The callback of `push` must not push to any stream of this thread: all share the scanner's table.
 * Frames after `[DONE]` are ignored. A batch never holds the frame that broke the protocol, but all those before it.
 */
export function openSseStream(scanner: StreamScanner, limits: StreamLimits): EngineStream {
  return new SseStream(scanner, limits);
}

class SseStream implements EngineStream {
  readonly #scanner: StreamScanner;
  readonly #limits: StreamLimits;
  readonly #batch: MutableBatch;
  #tail: Uint8Array | null = null;
  #tailBytes = 0;
  #dataSeen = false;
  #done = false;
  #broken = false;

  constructor(scanner: StreamScanner, limits: StreamLimits) {
    this.#scanner = scanner;
    this.#limits = limits;
    this.#batch = { bytes: new Uint8Array(0), count: 0, table: scanner.table, ids: scanner.ids };
  }

  push(bytes: Uint8Array, onBatch: (batch: FrameBatch) => void): StreamFault | null {
    assert(!this.#broken, 'nothing is pushed after a fault');
    if (this.#done) return null;
    const fault =
      this.#tailBytes === 0
        ? this.#scan(bytes, bytes.byteLength, onBatch)
        : this.#append(bytes)
          ? this.#scan(this.#tail as Uint8Array, this.#tailBytes, onBatch)
          : this.#checkTail();
    if (fault !== null) this.#broken = true;
    return fault;
  }

  end(): StreamFault | null {
    return this.#done ? null : 'truncated';
  }

  /** Scans [0, to) of `bytes` and keeps what is left over as the tail. */
  #scan(bytes: Uint8Array, to: number, onBatch: (batch: FrameBatch) => void): StreamFault | null {
    const { table } = this.#scanner;
    let from = 0;
    for (let full = true; full; ) {
      this.#scanner.scan(bytes, from, to);
      from += table[SCAN_HEADER.consumed]!;
      full = table[SCAN_HEADER.full] === 1;
      const fault = this.#deliver(bytes, table[SCAN_HEADER.frames]!, onBatch);
      if (fault !== null || this.#done) return fault;
    }
    this.#keep(bytes, from, to);
    return this.#checkTail();
  }

  /** Checks the frames of a scan in order and hands on those before the first fault. */
  #deliver(bytes: Uint8Array, frames: number, onBatch: (batch: FrameBatch) => void): StreamFault | null {
    const { table } = this.#scanner;
    let fault: StreamFault | null = null;
    let count = 0;
    while (count < frames && fault === null && !this.#done) {
      const row = SCAN_HEADER_WORDS + count * FRAME_WORDS;
      const flags = table[row + FRAME.flags]!;
      if (table[row + FRAME.end]! - table[row + FRAME.start]! > this.#frameBytesMax()) fault = 'frameTooLong';
      else if ((flags & FRAME_FLAG.malformed) !== 0) fault = 'malformed';
      else {
        if ((flags & FRAME_FLAG.comment) === 0) this.#dataSeen = true;
        this.#done = (flags & FRAME_FLAG.done) !== 0;
        count++;
      }
    }
    if (count > 0) {
      this.#batch.bytes = bytes;
      this.#batch.count = count;
      onBatch(this.#batch);
    }
    return fault;
  }

  #frameBytesMax(): number {
    return this.#dataSeen ? this.#limits.frameBytesMax : this.#limits.firstFrameBytesMax;
  }

  #checkTail(): StreamFault | null {
    return this.#tailBytes > this.#frameBytesMax() ? 'frameTooLong' : null;
  }

  /** Makes [from, to) of `bytes`, which may be the tail itself, the new tail. */
  #keep(bytes: Uint8Array, from: number, to: number): void {
    if (bytes === this.#tail && from === 0) return;
    // Frames that lay in the old tail were handed on and may be kept for a slow reader: its memory is theirs now.
    this.#tail = null;
    this.#tailBytes = 0;
    if (to > from) this.#append(bytes.subarray(from, to));
  }

  /**
   * Adds bytes to the tail. Answers whether a frame can have ended in them: a long frame that comes in many reads is
   * then scanned once, not once per read.
   */
  #append(bytes: Uint8Array): boolean {
    const size = this.#tailBytes + bytes.byteLength;
    let tail = this.#tail;
    if (tail === null || tail.byteLength < size) {
      const grown = new Uint8Array(Math.max(TAIL_BYTES_START, size, 2 * (tail?.byteLength ?? 0)));
      if (tail !== null) grown.set(tail.subarray(0, this.#tailBytes));
      tail = grown;
      this.#tail = tail;
    }
    tail.set(bytes, this.#tailBytes);
    const from = Math.max(0, this.#tailBytes - 1);
    this.#tailBytes = size;
    return hasLineEndPair(tail.subarray(from, size));
  }
}

/** True when two line ends follow each other: LF LF, LF CR or CR CR. */
function hasLineEndPair(bytes: Uint8Array): boolean {
  for (let at = bytes.indexOf(LF); at !== -1; at = bytes.indexOf(LF, at + 1)) {
    const next = bytes[at + 1];
    if (next === LF || next === CR) return true;
  }
  for (let at = bytes.indexOf(CR); at !== -1; at = bytes.indexOf(CR, at + 1)) {
    if (bytes[at + 1] === CR) return true;
  }
  return false;
}
