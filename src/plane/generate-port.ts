/**
 * GeneratePort (R1, R7): a request that the host process makes by `generate()`: its body is given, its answer is an
 * iterator of Deltas. Abort signal, `return()` and a reader that stays away end it as a closed connection would. Owned by
 * its request on the socket thread, which is the host's own.
 */
import { type ErrorCode, type ErrorDetail, EvictedError } from '../errors.js';
import type { BodyFault } from '../frontend/http/http-exchange.js';
import type { Delta } from '../messages/delta.js';
import type { RoutingHints } from '../messages/records.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { AnswerPort, AnswerStreamHooks } from './answer-port.js';
import { DeltaStream } from './delta-stream.js';
import type { EncodedRequest } from './embed/generate-request.js';

/** The port of one `generate()` call, and the iterator that the caller reads. */
export class GeneratePort implements AnswerPort, AsyncIterableIterator<Delta, undefined, undefined> {
  readonly #body: Uint8Array;
  readonly #hints: RoutingHints;
  readonly #signal: AbortSignal | null;
  readonly #guard: FaultGuard;
  readonly #stream: DeltaStream;
  readonly #onAbort = (): void => this.#cancel('the caller aborted the request', this.#signal?.reason);
  #begin: ((port: GeneratePort) => void) | null;
  #onGone: (() => void) | null = null;

  /** @param begin hands the port to the plane; called at the first `next()`, so that an unread call costs nothing */
  constructor(
    { body, hints }: Pick<EncodedRequest, 'body' | 'hints'>,
    signal: AbortSignal | null,
    guard: FaultGuard,
    begin: (port: GeneratePort) => void,
  ) {
    this.#body = body;
    this.#hints = hints;
    this.#signal = signal;
    this.#guard = guard;
    this.#begin = begin;
    this.#stream = new DeltaStream(guard, () => this.#signal?.removeEventListener('abort', this.#onAbort));
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<Delta, undefined>> {
    const begin = this.#begin;
    if (begin !== null) {
      this.#begin = null;
      if (this.#signal?.aborted === true) this.#onAbort();
      else {
        this.#signal?.addEventListener('abort', this.#onAbort, { once: true });
        this.#guard.run(() => begin(this));
      }
    }
    return this.#stream.next();
  }

  /** Stops the engine: what `break` in a `for await` calls. */
  return(): Promise<IteratorResult<Delta, undefined>> {
    this.#begin = null;
    this.#stream.cancel(null);
    this.#gone();
    return Promise.resolve({ done: true, value: undefined });
  }

  header(name: string): string | undefined {
    return name === 'content-type' ? 'application/json' : undefined;
  }

  hints(): RoutingHints {
    return this.#hints;
  }

  /** An iterator has no headers. */
  announce(): void {}

  readBody(
    bytesMax: number,
    _deadlineMs: number,
    onBody: (chunks: Uint8Array[], bytes: number) => void,
    onFault: (fault: BodyFault) => void,
  ): void {
    if (this.#body.length > bytesMax) onFault('tooLarge');
    else onBody([this.#body], this.#body.length);
  }

  onAborted(fn: () => void): void {
    this.#onGone = fn;
  }

  respond(): never {
    throw new Error('generate() always asks for a stream');
  }

  refuse(code: ErrorCode, message: string, detail: ErrorDetail): void {
    this.#onGone = null;
    this.#stream.fail(code, message, detail);
  }

  openStream(bufferBytesMax: number, hooks: AnswerStreamHooks): DeltaStream {
    this.#stream.open(bufferBytesMax, hooks);
    return this.#stream;
  }

  abort(): void {
    this.#onGone = null;
    this.#stream.fail('MILLRACE_PLANE_FAILED', 'the plane has failed');
  }

  #cancel(message: string, cause: unknown): void {
    this.#stream.cancel(new EvictedError('MILLRACE_CANCELED', message, { cause }));
    this.#gone();
  }

  #gone(): void {
    const fn = this.#onGone;
    this.#onGone = null;
    if (fn !== null) this.#guard.run(fn);
  }
}
