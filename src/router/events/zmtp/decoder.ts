/**
 * ZmtpDecoder (R4): the bytes of one ZMTP connection, as they come, into greeting, commands and messages. It is pure: no
 * socket, no clock. A message that lies whole in what is pushed is handed on where it lies, without a copy; one that is
 * cut is put together once. Owned by one connection, on the thread that reads it.
 */
import { FRAME_FLAG, GREETING_AT, GREETING_BYTES, text } from './wire.js';

/** Most frames of a message: topic, sequence and payload, or an envelope and those, and as many again. */
export const FRAMES_MAX = 8;
/** Most bytes of a command; the longest that is known, READY, has about fifty. */
const COMMAND_BYTES_MAX = 4096;
/** What a message may have besides its largest frame: heads, topic, sequence, commands between its frames. */
const REST_BYTES_MAX = 8192;
/** Room for a cut message is made at once up to this many bytes; a longer one gets more as its bytes come. */
const ROOM_BYTES = 64 * 1024;

const EMPTY: Uint8Array = new Uint8Array(0);

/** What a decoder needs and whom it tells. No callback may push; each may `stop`. */
export interface ZmtpDecoderOptions {
  /** Largest frame. */
  readonly frameBytesMax: number;
  /** The peer has greeted: it speaks version 3.`minor` or later, with this mechanism. */
  readonly onGreeting: (minor: number, mechanism: string) => void;
  /** A command whose name and data are `bytes[start, end)`, valid during the call. */
  readonly onCommand: (bytes: Uint8Array, start: number, end: number) => void;
  /** A message; the object is used again, the bytes are not: they are the receiver's. */
  readonly onMessage: (message: ZmtpMessage) => void;
}

/** The frames of one message: `bytes[starts[i], ends[i])` for i below `frames`. */
export interface ZmtpMessage {
  readonly bytes: Uint8Array;
  readonly frames: number;
  readonly starts: Int32Array;
  readonly ends: Int32Array;
}

/** See the head of the file. */
export class ZmtpDecoder {
  readonly #options: ZmtpDecoderOptions;
  readonly #message = {
    bytes: EMPTY,
    frames: 0,
    starts: new Int32Array(FRAMES_MAX),
    ends: new Int32Array(FRAMES_MAX),
  };
  readonly #greeting = new Uint8Array(GREETING_BYTES);
  #greetingBytes = 0;
  /** A message that was cut, from its first byte; the capacity may be larger than what has come. */
  #held = EMPTY;
  #heldBytes = 0;
  /** Of the message in hand: bytes of whole frames that were read, and bytes that the next step needs. */
  #readBytes = 0;
  #needBytes = 0;
  #fault: string | null = null;
  #isStopped = false;

  constructor(options: ZmtpDecoderOptions) {
    this.#options = options;
  }

  /**
   * Reads on. `chunk` is the decoder's from here on. Returns what the peer did wrong, in words for a log line, or null;
   * after a fault, and after `stop`, nothing is read any more.
   */
  push(chunk: Uint8Array): string | null {
    if (this.#fault !== null || this.#isStopped) return this.#fault;
    let at = this.#greetingBytes < GREETING_BYTES ? this.#greet(chunk) : 0;
    while (this.#heldBytes > 0 && !this.#isStopped) {
      at += this.#hold(chunk, at, this.#needBytes - this.#heldBytes);
      if (this.#heldBytes < this.#needBytes) return null;
      // What a step needs ends with a frame, so that nothing of a next message is held.
      if (this.#scan(this.#held, 0, this.#heldBytes) > 0) this.#release();
    }
    if (at < chunk.length && !this.#isStopped) {
      const begun = this.#scan(chunk, at, chunk.length);
      if (begun < chunk.length && !this.#isStopped) this.#keep(chunk, begun);
    }
    return this.#fault;
  }

  /** Nothing is told any more, not even of what was pushed already. */
  stop(): void {
    this.#isStopped = true;
    this.#release();
  }

  /** Reads of the greeting what the chunk has; returns where the rest begins. A wrong byte is told as soon as it comes. */
  #greet(chunk: Uint8Array): number {
    const greeting = this.#greeting;
    const taken = chunk.subarray(0, GREETING_BYTES - this.#greetingBytes);
    greeting.set(taken, this.#greetingBytes);
    this.#greetingBytes += taken.length;
    const has = (at: number): boolean => this.#greetingBytes > at;
    // The last byte of the signature has its lowest bit where the peer has a version at all.
    if ((has(0) && greeting[0] !== 0xff) || (has(9) && (greeting[GREETING_AT.signatureEnd]! & 1) === 0))
      this.#fail('does not speak ZMTP 3: its greeting has another signature');
    else if (has(GREETING_AT.major) && greeting[GREETING_AT.major]! < 3)
      this.#fail(`speaks ZMTP ${greeting[GREETING_AT.major]}; 3.0 or later is needed`);
    else if (this.#greetingBytes === GREETING_BYTES) {
      const minor = greeting[GREETING_AT.major]! > 3 ? 1 : greeting[GREETING_AT.minor]!;
      const mechanism = text(greeting.subarray(GREETING_AT.mechanism, GREETING_AT.asServer));
      this.#options.onGreeting(minor, mechanism.replace(/\0+$/, ''));
    }
    return taken.length;
  }

  /** Reads the frames in `bytes[begin, end)`, at a message's begin; returns where the first unfinished message begins. */
  #scan(bytes: Uint8Array, begin: number, end: number): number {
    const message = this.#message;
    const { frameBytesMax, onCommand, onMessage } = this.#options;
    const { starts, ends } = message;
    let first = begin;
    let at = begin + this.#readBytes;
    for (;;) {
      const left = end - at;
      const flags = left > 0 ? bytes[at]! : 0;
      const headBytes = (flags & FRAME_FLAG.long) === 0 ? 2 : 9;
      if (left < headBytes) {
        this.#needBytes = at - first + headBytes;
        break;
      }
      const body = at + headBytes;
      const size = headBytes === 2 ? bytes[at + 1]! : readSize(bytes, at + 1);
      const fault = this.#checkFrame(flags, size, body + size - first, frameBytesMax);
      if (fault !== null) {
        this.#fail(fault);
        return first;
      }
      if (body + size > end) {
        this.#needBytes = body + size - first;
        break;
      }
      at = body + size;
      if ((flags & FRAME_FLAG.command) !== 0) {
        onCommand(bytes, body, at);
        if (message.frames === 0) first = at;
      } else {
        starts[message.frames] = body;
        ends[message.frames] = at;
        message.frames += 1;
        if ((flags & FRAME_FLAG.more) !== 0) continue;
        message.bytes = bytes;
        onMessage(message);
        message.frames = 0;
        first = at;
      }
      if (this.#isStopped) return first;
    }
    this.#readBytes = at - first;
    return first;
  }

  #checkFrame(flags: number, size: number, messageBytes: number, frameBytesMax: number): string | null {
    if (flags > 7) return `sent a frame with the reserved flags ${flags}`;
    if ((flags & FRAME_FLAG.command) !== 0) {
      if ((flags & FRAME_FLAG.more) !== 0) return `sent a command with the flags ${flags}`;
      if (size > COMMAND_BYTES_MAX) return `sent a command of ${size} bytes; at most ${COMMAND_BYTES_MAX}`;
    } else if (size > frameBytesMax) return `sent a frame of ${size} bytes; at most ${frameBytesMax}`;
    else if (this.#message.frames === FRAMES_MAX) return `sent a message of more than ${FRAMES_MAX} frames`;
    return messageBytes > frameBytesMax + REST_BYTES_MAX
      ? `sent a message of ${messageBytes} bytes; at most ${frameBytesMax + REST_BYTES_MAX}`
      : null;
  }

  /** Keeps the message that begins at `first` and has no end in the chunk. */
  #keep(chunk: Uint8Array, first: number): void {
    const { starts, ends, frames } = this.#message;
    for (let i = 0; i < frames; i += 1) {
      starts[i]! -= first;
      ends[i]! -= first;
    }
    this.#hold(chunk, first, chunk.length - first);
  }

  /** Appends at most `bytes` of the chunk to what is held; returns how many there were. */
  #hold(chunk: Uint8Array, at: number, bytes: number): number {
    const part = chunk.subarray(at, at + bytes);
    const total = this.#heldBytes + part.length;
    if (total > this.#held.length) {
      // A size alone is not believed: who names many bytes must send them.
      const room = Math.min(this.#needBytes, Math.max(total, 2 * this.#held.length, ROOM_BYTES));
      const held = Buffer.allocUnsafeSlow(room);
      held.set(this.#held.subarray(0, this.#heldBytes));
      this.#held = held;
    }
    this.#held.set(part, this.#heldBytes);
    this.#heldBytes = total;
    return part.length;
  }

  /** What was held is the receiver's now. */
  #release(): void {
    this.#held = EMPTY;
    this.#heldBytes = 0;
  }

  #fail(fault: string): void {
    this.#fault = fault;
    this.stop();
  }
}

/** Eight bytes, big-endian; inexact above 2^53, which is over every limit. */
function readSize(bytes: Uint8Array, at: number): number {
  const high = bytes[at]! * 2 ** 24 + ((bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!);
  const low = bytes[at + 4]! * 2 ** 24 + ((bytes[at + 5]! << 16) | (bytes[at + 6]! << 8) | bytes[at + 7]!);
  return high * 2 ** 32 + low;
}
