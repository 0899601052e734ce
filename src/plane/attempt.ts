/**
 * One attempt at one worker (R5): the engine call, its decoder and, where the answer is no stream, its collected body.
 * Turns what the connection does into one of five events; after `abort` or a final event nothing more is told. Owned
 * by its request on the socket thread.
 */
import type { EngineCall, EngineFault } from '../engines/client.js';
import type { EngineStream, FrameBatch, StreamFault } from '../engines/contract.js';
import type { AnswerClient, RowSink } from '../engines/link/contract.js';
import type { ErrorCode } from '../errors.js';
import type { PlanStep } from '../messages/records.js';
import type { FaultGuard } from '../runtime/fault-guard.js';

/** Bytes of an error answer that are read. */
const ERROR_BODY_BYTES_MAX = 65_536;

/** What went wrong, in the terms of the health monitor. */
export type AttemptFailure = 'unreachable' | 'reset' | 'stalled' | 'protocol';

/** What an attempt tells its request. */
export interface AttemptEvents {
  onBatch(batch: FrameBatch): void;
  /** Final: the event stream ended with its end marker. */
  onStreamEnd(): void;
  /** Final: a whole JSON answer with status 200. */
  onUnary(body: Buffer, contentType: string): void;
  /** Final: the worker answered with an error status. `retryAfterMs`: its Retry-After; 0: none. */
  onRefused(status: number, body: string, retryAfterMs: number): void;
  /** Final: the worker could not be reached, died or broke its protocol. */
  onFailed(failure: AttemptFailure, code: ErrorCode, message: string): void;
}

/** What an attempt is made of. */
export interface AttemptOptions {
  readonly client: AnswerClient;
  readonly origin: string;
  readonly step: PlanStep;
  /** A worker link may bring the ids without their frames. */
  readonly wantsRows: boolean;
  readonly openStream: () => EngineStream;
  readonly answerBytesMax: number;
  /** What the connection calls runs under it. */
  readonly guard: FaultGuard;
}

/** One engine call and the decoding of its answer. */
export class EngineAttempt {
  readonly #options: AttemptOptions;
  readonly #events: AttemptEvents;
  #call: EngineCall | null = null;
  #over = false;
  #status = 0;
  #contentType = '';
  #retryAfterMs = 0;
  #stream: EngineStream | null = null;
  #body: Uint8Array[] = [];
  #bodyBytes = 0;

  constructor(options: AttemptOptions, events: AttemptEvents) {
    this.#options = options;
    this.#events = events;
  }

  /** Sends the request of the step. */
  start(): void {
    const { client, origin, step, wantsRows, guard } = this.#options;
    const { method, path, head, body } = step;
    const sink: RowSink = {
      onHead: (status, contentType, headers) =>
        guard.run(() => this.#onHead(status, contentType, headers['retry-after'])),
      onData: bytes => guard.run(() => this.#onData(bytes)),
      onRows: batch =>
        guard.run(() => {
          if (!this.#over) this.#events.onBatch(batch);
        }),
      onEnd: () => guard.run(() => this.#onEnd()),
      onError: fault => guard.run(() => this.#onError(fault)),
    };
    this.#call = client.send({ origin, method, path, head, body, wantsRows }, sink);
    // A call that fails at once has ended this attempt before it could be kept.
    if (this.#over) this.#call.abort();
  }

  pause(): void {
    if (!this.#over) this.#call?.pause();
  }

  resume(): void {
    if (!this.#over) this.#call?.resume();
  }

  /** Closes the connection, which is how the engine learns that nobody wants the answer. */
  abort(): void {
    if (this.#over) return;
    this.#over = true;
    this.#call?.abort();
  }

  #onHead(status: number, contentType: string, retryAfter: string | string[] | undefined): void {
    if (this.#over) return;
    this.#status = status;
    this.#contentType = contentType;
    // The other form, a date, would need both clocks to agree.
    if (typeof retryAfter === 'string' && /^\d{1,6}$/.test(retryAfter))
      this.#retryAfterMs = Number(retryAfter) * 1000;
    if (status === 200 && contentType.startsWith('text/event-stream'))
      this.#stream = this.#options.openStream();
  }

  #onData(bytes: Uint8Array): void {
    if (this.#over) return;
    if (this.#stream !== null) {
      const fault = this.#stream.push(bytes, batch => {
        if (!this.#over) this.#events.onBatch(batch);
      });
      if (fault !== null) this.#streamFault(fault);
      return;
    }
    this.#bodyBytes += bytes.length;
    const bytesMax = this.#status === 200 ? this.#options.answerBytesMax : ERROR_BODY_BYTES_MAX;
    if (this.#bodyBytes > bytesMax) {
      this.#fail(
        'protocol',
        'MILLRACE_WORKER_PROTOCOL',
        `the worker's answer is longer than ${bytesMax} bytes`,
      );
    } else this.#body.push(bytes);
  }

  #onEnd(): void {
    if (this.#over) return;
    if (this.#stream !== null) {
      const fault = this.#stream.end();
      if (fault !== null) {
        this.#streamFault(fault);
        return;
      }
      this.#over = true;
      this.#events.onStreamEnd();
      return;
    }
    this.#over = true;
    const body = Buffer.concat(this.#body);
    if (this.#status === 200) this.#events.onUnary(body, this.#contentType);
    else this.#events.onRefused(this.#status, body.toString('utf8'), this.#retryAfterMs);
  }

  #onError(fault: EngineFault): void {
    if (fault.kind === 'unreachable') {
      this.#fail('unreachable', 'MILLRACE_WORKER_UNREACHABLE', 'the worker could not be reached');
    } else if (fault.kind === 'protocol') {
      this.#fail('protocol', 'MILLRACE_WORKER_PROTOCOL', 'the worker broke the HTTP protocol');
    } else this.#fail('reset', 'MILLRACE_WORKER_DIED', 'the connection to the worker broke');
  }

  #streamFault(fault: StreamFault): void {
    if (fault === 'truncated') {
      this.#fail('reset', 'MILLRACE_WORKER_DIED', 'the worker ended its answer in the middle');
    } else if (fault === 'frameTooLong') {
      this.#fail('protocol', 'MILLRACE_WORKER_PROTOCOL', 'a frame of the worker is longer than allowed');
    } else this.#fail('protocol', 'MILLRACE_WORKER_PROTOCOL', 'a frame of the worker is not valid');
  }

  #fail(failure: AttemptFailure, code: ErrorCode, message: string): void {
    if (this.#over) return;
    this.abort();
    this.#events.onFailed(failure, code, message);
  }
}
