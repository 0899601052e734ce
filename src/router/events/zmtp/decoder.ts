/**
 * ZmtpDecoder (R4): the bytes of one ZMTP connection, as they come, into greeting, commands and messages. It is pure: no
 * socket, no clock. It owns the memory that the socket reads into, and hands on messages where they lie there: nothing is
 * copied but the begin of a message that was cut, and nothing is allocated, so that a busy source makes no garbage. Owned
 * by one connection, on the thread that reads it.
 */
import { FRAME_FLAG, GREETING_AT, GREETING_BYTES, text } from './wire.js';

/** Most frames of a message: topic, sequence and payload, or an envelope and those, and as many again. */
export const FRAMES_MAX = 8;
/** Most bytes of a command; the longest that is known, READY, has about fifty. */
const COMMAND_BYTES_MAX = 4096;
/** What a message may have besides its largest frame: heads, topic, sequence, commands between its frames. */
const REST_BYTES_MAX = 8192;
/** Memory until the peer has greeted (peers that are away are tried all the time), after that, and kept at most. */
const GREETING_MEMORY_BYTES = 256;
const MEMORY_BYTES = 64 * 1024;
const KEPT_BYTES_MAX = 1024 * 1024;

/** What a decoder needs and whom it tells. No callback may advance; each may `stop`. */
export interface ZmtpDecoderOptions {
  /** Largest frame. */
  readonly frameBytesMax: number;
  /** The peer has greeted: it speaks version 3.`minor` or later, with this mechanism. */
  readonly onGreeting: (minor: number, mechanism: string) => void;
  /** A command whose name and data are `bytes[start, end)`, valid during the call. */
  readonly onCommand: (bytes: Uint8Array, start: number, end: number) => void;
  /** A message; the object and its bytes are valid during the call. */
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
    bytes: Buffer.allocUnsafeSlow(GREETING_MEMORY_BYTES) as Uint8Array,
    frames: 0,
    starts: new Int32Array(FRAMES_MAX),
    ends: new Int32Array(FRAMES_MAX),
  };
  /** In the memory: where the message in hand begins, where its next frame does, and where what was read ends. */
  #begin = 0;
  #next = 0;
  #end = 0;
  /** Bytes from `#begin` on that the next step needs. */
  #needBytes = GREETING_BYTES;
  #isGreeted = false;
  #fault: string | null = null;
  #isStopped = false;

  constructor(options: ZmtpDecoderOptions) {
    this.#options = options;
  }

  /** Where the next bytes are to be put: some, never none. Valid until `advance`. */
  room(): Uint8Array {
    const message = this.#message;
    const held = this.#end - this.#begin;
    let { bytes } = message;
    // A size alone is not believed: who names many bytes must send them, and memory doubles as they come.
    if (this.#isGreeted && bytes.length < MEMORY_BYTES) bytes = Buffer.allocUnsafeSlow(MEMORY_BYTES);
    else if (this.#needBytes > bytes.length && held === bytes.length)
      bytes = Buffer.allocUnsafeSlow(Math.min(this.#needBytes, 2 * held));
    else if (held === 0 && bytes.length > KEPT_BYTES_MAX) bytes = Buffer.allocUnsafeSlow(MEMORY_BYTES);
    if (bytes !== message.bytes) bytes.set(message.bytes.subarray(this.#begin, this.#end));
    else if (this.#begin > 0) bytes.copyWithin(0, this.#begin, this.#end);
    for (let i = 0; i < message.frames; i += 1) {
      message.starts[i]! -= this.#begin;
      message.ends[i]! -= this.#begin;
    }
    message.bytes = bytes;
    this.#next -= this.#begin;
    this.#begin = 0;
    this.#end = held;
    return bytes.subarray(held);
  }

  /**
   * Reads on: `count` bytes were put where `room` said. Returns what the peer did wrong, in words for a log line, or null;
   * after a fault, and after `stop`, nothing is read any more.
   */
  advance(count: number): string | null {
    if (this.#isStopped) return this.#fault;
    this.#end += count;
    if (!this.#isGreeted) this.#greet();
    if (this.#isGreeted && !this.#isStopped && this.#end - this.#begin >= this.#needBytes) this.#scan();
    return this.#fault;
  }

  /** The same with bytes that lie elsewhere: they are copied. */
  push(chunk: Uint8Array): string | null {
    for (let at = 0; at < chunk.length && !this.#isStopped; ) {
      const room = this.room();
      const part = chunk.subarray(at, at + room.length);
      room.set(part);
      at += part.length;
      this.advance(part.length);
    }
    return this.#fault;
  }

  /** Nothing is told any more, not even of what was read already. */
  stop(): void {
    this.#isStopped = true;
  }

  /** A wrong byte is told as soon as it is there. */
  #greet(): void {
    const { bytes } = this.#message;
    const has = (at: number): boolean => this.#end > at;
    // The last byte of the signature has its lowest bit where the peer has a version at all.
    const isOther = bytes[0] !== 0xff || (has(9) && (bytes[GREETING_AT.signatureEnd]! & 1) === 0);
    if (isOther) this.#fail('does not speak ZMTP 3: its greeting has another signature');
    else if (has(GREETING_AT.major) && bytes[GREETING_AT.major]! < 3)
      this.#fail('speaks a version of ZMTP before 3.0');
    else if (this.#end >= GREETING_BYTES) {
      this.#isGreeted = true;
      this.#begin = GREETING_BYTES;
      this.#next = GREETING_BYTES;
      this.#needBytes = 2;
      const minor = bytes[GREETING_AT.major]! > 3 ? 1 : bytes[GREETING_AT.minor]!;
      const mechanism = text(bytes.subarray(GREETING_AT.mechanism, GREETING_AT.asServer));
      this.#options.onGreeting(minor, mechanism.replace(/\0+$/, ''));
    }
  }

  /** Reads all frames that are there. */
  #scan(): void {
    const message = this.#message;
    const { frameBytesMax, onCommand, onMessage } = this.#options;
    const { bytes, starts, ends } = message;
    const end = this.#end;
    let begin = this.#begin;
    let at = this.#next;
    while (!this.#isStopped) {
      const left = end - at;
      const flags = left > 0 ? bytes[at]! : 0;
      const headBytes = (flags & FRAME_FLAG.long) === 0 ? 2 : 9;
      if (left < headBytes) {
        this.#needBytes = at - begin + headBytes;
        break;
      }
      const body = at + headBytes;
      const size = headBytes === 2 ? bytes[at + 1]! : readSize(bytes, at + 1);
      const fault = this.#checkFrame(flags, size, body + size - begin, frameBytesMax);
      if (fault !== null) {
        this.#fail(fault);
        return;
      }
      if (body + size > end) {
        this.#needBytes = body + size - begin;
        break;
      }
      at = body + size;
      if ((flags & FRAME_FLAG.command) !== 0) {
        onCommand(bytes, body, at);
        if (message.frames === 0) begin = at;
        continue;
      }
      starts[message.frames] = body;
      ends[message.frames] = at;
      message.frames += 1;
      if ((flags & FRAME_FLAG.more) !== 0) continue;
      onMessage(message);
      message.frames = 0;
      begin = at;
    }
    this.#begin = begin;
    this.#next = at;
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
