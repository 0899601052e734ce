/**
 * LinkReader (R5): cuts the bytes of a worker link into frames. It copies what the socket brings into one aligned buffer
 * of its own, so that token ids can be read in place and a socket buffer is never kept for a few bytes. Only whole frames
 * are told. Owned by one LinkConnection, on its thread.
 */
import { strict as assert } from 'node:assert';
import { endianness } from 'node:os';
import { frameSpanBytes, LINK_ALIGN_BYTES, LINK_HEADER, LINK_HEADER_BYTES } from './link-protocol.js';

assert(endianness() === 'LE', 'token ids are read in place: a little-endian machine is needed');

/** A received frame: where its payload lies in the reader's buffer. Valid during the call that tells of it. */
export interface LinkFrame {
  readonly kind: number;
  readonly flags: number;
  readonly stream: number;
  /** Of the payload in `bytes` and `view`; a multiple of 4. */
  readonly start: number;
  readonly end: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** The same memory as words. */
  readonly words: Uint32Array;
}

/** The payload of a frame as bytes of the reader's buffer: copy what is kept. */
export function payloadOf(frame: LinkFrame): Uint8Array {
  return frame.bytes.subarray(frame.start, frame.end);
}

type MutableFrame = { -readonly [K in keyof LinkFrame]: LinkFrame[K] };

const BUFFER_BYTES_START = 128 * 1024;

/** See the head of the file. */
export class LinkReader {
  /** Longest payload that is taken; the connection raises it after the handshake. */
  frameBytesMax: number;
  #frame: MutableFrame = frameOver(BUFFER_BYTES_START);
  /** Bytes [at, fill) are received and not yet told. */
  #at = 0;
  #fill = 0;
  #frames = 0;
  #isStopped = false;

  constructor(frameBytesMax: number) {
    this.frameBytesMax = frameBytesMax;
  }

  /** Frames told so far; the lower 32 bits are the sequence of the next one. */
  get frames(): number {
    return this.#frames;
  }

  /** Nothing more is told. */
  stop(): void {
    this.#isStopped = true;
  }

  /**
   * Takes received bytes and tells the frames that they complete, in order. Returns what is wrong with them in words, after
   * which nothing more may be pushed; null while nothing is.
   */
  push(chunk: Uint8Array, onFrame: (frame: LinkFrame) => void): string | null {
    this.#append(chunk);
    while (!this.#isStopped && this.#fill - this.#at >= LINK_HEADER_BYTES) {
      const frame = this.#frame;
      const { view } = frame;
      const at = this.#at;
      const length = view.getUint32(at + LINK_HEADER.length, true);
      if (length > this.frameBytesMax) return `a frame of ${length} bytes; ${this.frameBytesMax} are allowed`;
      const sequence = view.getUint32(at + LINK_HEADER.sequence, true);
      if (sequence !== this.#frames >>> 0)
        return `frame ${sequence} came where frame ${this.#frames >>> 0} was due`;
      const spanBytes = frameSpanBytes(length);
      if (this.#fill - at < spanBytes) break;
      this.#frames += 1;
      this.#at = at + spanBytes;
      frame.kind = view.getUint16(at + LINK_HEADER.kind, true);
      frame.flags = view.getUint16(at + LINK_HEADER.flags, true);
      frame.stream = view.getUint32(at + LINK_HEADER.stream, true);
      frame.start = at + LINK_HEADER_BYTES;
      frame.end = frame.start + length;
      onFrame(frame);
    }
    if (this.#at === this.#fill) this.#at = this.#fill = 0;
    return null;
  }

  #append(chunk: Uint8Array): void {
    if (this.#frame.bytes.length - this.#fill < chunk.length)
      this.#reserve(this.#fill - this.#at + chunk.length);
    this.#frame.bytes.set(chunk, this.#fill);
    this.#fill += chunk.length;
  }

  /** Moves what is not told yet to the begin of a buffer with room for `bytes` in all. */
  #reserve(bytes: number): void {
    const { bytes: old } = this.#frame;
    if (bytes > old.length) {
      // By what has come, not by the length that a frame claims, and not far beyond the longest frame.
      this.#frame = frameOver(Math.max(bytes, Math.min(old.length * 2, frameSpanBytes(this.frameBytesMax))));
      this.#frame.bytes.set(old.subarray(this.#at, this.#fill));
    } else if (old.length - this.#at < bytes) old.copyWithin(0, this.#at, this.#fill);
    else return;
    this.#fill -= this.#at;
    this.#at = 0;
  }
}

function frameOver(size: number): MutableFrame {
  const memory = new ArrayBuffer((size + (LINK_ALIGN_BYTES - 1)) & -LINK_ALIGN_BYTES);
  return {
    kind: 0,
    flags: 0,
    stream: 0,
    start: 0,
    end: 0,
    bytes: new Uint8Array(memory),
    view: new DataView(memory),
    words: new Uint32Array(memory),
  };
}
