/**
 * BodyCollector (R1): the part of `HttpExchange.readBody` that does not depend on the server. It keeps the chunks of
 * one body, holds them to a byte limit and a deadline, and tells the outcome exactly once. Owned by its exchange on
 * the socket thread.
 */
import type { Clock, Timer } from '../../runtime/clock.js';
import type { BodyFault } from './http-exchange.js';

/** The limits and callbacks of one `readBody` call. */
export interface BodyRequest {
  readonly bytesMax: number;
  readonly deadlineMs: number;
  readonly clock: Clock;
  readonly onBody: (chunks: Uint8Array[], bytes: number) => void;
  readonly onFault: (fault: BodyFault) => void;
}

/** Collects one body. After the outcome was told, or `cancel`, further calls do nothing. */
export class BodyCollector {
  readonly #request: BodyRequest;
  readonly #timer: Timer;
  #chunks: Uint8Array[] = [];
  #bytes = 0;
  #open = true;

  constructor(request: BodyRequest) {
    this.#request = request;
    this.#timer = request.clock.after(request.deadlineMs, () => this.fail('timeout'));
  }

  /** False once the outcome is known: later bytes are not wanted. */
  get open(): boolean {
    return this.#open;
  }

  /** Says whether `bytes` more would still be within the limit; tells 'tooLarge' when not. */
  admits(bytes: number): boolean {
    if (!this.#open) return false;
    if (this.#bytes + bytes <= this.#request.bytesMax) return true;
    this.fail('tooLarge');
    return false;
  }

  /** Adds a chunk, which the collector then owns. */
  push(chunk: Uint8Array): void {
    if (chunk.length === 0 || !this.admits(chunk.length)) return;
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
  }

  /** The body is complete. */
  finish(): void {
    if (!this.#open) return;
    const chunks = this.#chunks;
    this.cancel();
    this.#request.onBody(chunks, this.#bytes);
  }

  /** The body will not come. */
  fail(fault: BodyFault): void {
    if (!this.#open) return;
    this.cancel();
    this.#request.onFault(fault);
  }

  /** Forgets the body without telling anyone. */
  cancel(): void {
    this.#open = false;
    this.#chunks = [];
    this.#timer.cancel();
  }
}
