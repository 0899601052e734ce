/**
 * The client's side of a streamed answer (R7): collects what one loop turn produced and writes it once, keeps what a
 * slow reader does not take within a bound, and asks for the engine to be paused meanwhile. Owned by its request on
 * the socket thread.
 */
import type { ErrorCode } from '../errors.js';
import type { HeaderList, HttpExchange } from '../frontend/http/http-exchange.js';
import { errorFrames } from '../frontend/openai/error-response.js';
import { KEEP_ALIVE_FRAME } from '../frontend/openai/stream-format.js';
import type { AnswerStreamHooks } from './answer-port.js';

/** What a stream needs of its connection. */
export type StreamExchange = Pick<HttpExchange, 'start' | 'write' | 'end' | 'abort' | 'onWritable'>;

/** Share of the buffer bound at which the engine is paused, so that what is already under way still fits. */
const PAUSE_SHARE = 0.25;

/** Buffered writes of one streamed answer; see the top of this file. */
export class ClientStream {
  readonly #exchange: StreamExchange;
  readonly #hooks: AnswerStreamHooks;
  readonly #bufferBytesMax: number;
  #text = '';
  #chunks: Uint8Array[] = [];
  #pendingBytes = 0;
  #dirty = false;
  #paused = false;
  #ending = false;
  #closed = false;
  #blockedSinceMs: number | null = null;
  #lastWriteMs: number;

  constructor(exchange: StreamExchange, bufferBytesMax: number, hooks: AnswerStreamHooks) {
    this.#exchange = exchange;
    this.#bufferBytesMax = bufferBytesMax;
    this.#hooks = hooks;
    this.#lastWriteMs = hooks.nowMs();
    exchange.onWritable(() => this.#onWritable());
  }

  /** Time since which the client takes nothing, or null. */
  get blockedSinceMs(): number | null {
    return this.#blockedSinceMs;
  }

  /**
   * More is kept for a client that does not read than the bound allows: the stream has to be cut. What one loop turn
   * brings to a client that reads does not count: it leaves with the flush.
   */
  get isOverfull(): boolean {
    return this.#blockedSinceMs !== null && this.#pendingBytes > this.#bufferBytesMax;
  }

  start(status: number, headers: HeaderList): void {
    this.#exchange.start(status, headers);
  }

  pushText(text: string): void {
    if (text === '') return;
    if (this.#chunks.length > 0) this.#chunks.push(Buffer.from(text));
    else this.#text += text;
    this.#added(text.length);
  }

  /** Keeps the slice until the flush of this loop turn, or longer for a slow reader: its memory must not be reused. */
  pushBytes(bytes: Uint8Array): void {
    if (this.#text !== '') {
      this.#chunks.push(Buffer.from(this.#text));
      this.#text = '';
    }
    this.#chunks.push(bytes);
    this.#added(bytes.length);
  }

  /** Keeps proxies and clients from taking a silent engine for a dead connection. */
  keepAlive(nowMs: number, periodMs: number): void {
    if (this.#blockedSinceMs === null && nowMs - this.#lastWriteMs >= periodMs)
      this.pushText(KEEP_ALIVE_FRAME);
  }

  /** Ends the stream with an error frame, now. */
  fail(code: ErrorCode, message: string): void {
    if (this.#blockedSinceMs !== null) {
      // What the reader has not taken is dropped, so the response must not look whole.
      this.abort();
      return;
    }
    this.pushText(errorFrames(code, message));
    this.flush();
    this.close();
    this.#exchange.end();
  }

  /** Ends the response once all is written. */
  end(): void {
    this.#ending = true;
    this.#markDirty();
  }

  /** Cuts the connection: the client sees a broken response. */
  abort(): void {
    this.close();
    this.#exchange.abort();
  }

  /** Drops what is kept; nothing is written any more. */
  close(): void {
    this.#closed = true;
    this.#text = '';
    this.#chunks = [];
    this.#pendingBytes = 0;
  }

  /** One write of all that this loop turn produced. */
  flush(): void {
    this.#dirty = false;
    if (this.#closed || this.#blockedSinceMs !== null) return;
    if (this.#ending) {
      this.#closed = true;
      this.#exchange.end(this.#pendingBytes > 0 ? this.#takePending() : undefined);
      this.#hooks.onFinished();
      return;
    }
    if (this.#pendingBytes > 0) {
      this.#lastWriteMs = this.#hooks.nowMs();
      if (!this.#exchange.write(this.#takePending())) this.#blockedSinceMs = this.#lastWriteMs;
    }
    if (this.#paused && this.#blockedSinceMs === null) {
      this.#paused = false;
      this.#hooks.onRelief();
    }
  }

  #takePending(): string | Uint8Array {
    this.#pendingBytes = 0;
    if (this.#chunks.length === 0) {
      const text = this.#text;
      this.#text = '';
      return text;
    }
    const chunks = this.#chunks;
    this.#chunks = [];
    return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
  }

  #added(bytes: number): void {
    this.#pendingBytes += bytes;
    this.#markDirty();
    // Also while nothing is blocked: an engine can send more in one loop turn than the bound allows.
    if (!this.#paused && this.#pendingBytes > PAUSE_SHARE * this.#bufferBytesMax) {
      this.#paused = true;
      this.#hooks.onPressure();
    }
  }

  #markDirty(): void {
    if (this.#dirty || this.#closed) return;
    this.#dirty = true;
    this.#hooks.onDirty(this);
  }

  #onWritable(): void {
    if (this.#closed) return;
    this.#blockedSinceMs = null;
    this.flush();
  }
}
