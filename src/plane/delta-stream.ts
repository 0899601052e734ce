/**
 * The answer of `generate()` (R7): a bounded queue of Deltas between a request, which pushes, and an iterator, which
 * takes. A reader that falls behind pauses the engine, and one that stays away is cut off by the request's sweep, as on
 * a connection. Owned by its GeneratePort on the socket thread, which is the reader's own.
 */
import { type ErrorCode, type ErrorDetail, MillraceError } from '../errors.js';
import type { Delta, FinishReason, TokenLogprobs, Usage } from '../messages/delta.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { AnswerStreamHooks } from './answer-port.js';
import { RelayedDeltas } from './relayed-deltas.js';
import type { TokenOutput } from './token-answer.js';

/** Share of the bound at which the engine is paused. */
const PAUSE_SHARE = 0.25;
/** What a Delta counts besides its text, and each log-probability in it. */
const DELTA_BYTES = 64;

interface Waiter {
  resolve(result: IteratorResult<Delta, undefined>): void;
  reject(error: MillraceError): void;
}

/** One streamed answer for a reader in this process. */
export class DeltaStream implements TokenOutput {
  readonly #guard: FaultGuard;
  readonly #onSettled: () => void;
  readonly #relayed = new RelayedDeltas();
  readonly #queue: Delta[] = [];
  readonly #waiters: Waiter[] = [];
  readonly #idsOfChoice: number[][] = [];
  #hooks: AnswerStreamHooks | null = null;
  #bufferBytesMax = 0;
  #pendingBytes = 0;
  #blockedSinceMs: number | null = null;
  #ended = false;
  #error: MillraceError | null = null;

  /** @param onSettled called once, when nothing more will come */
  constructor(guard: FaultGuard, onSettled: () => void) {
    this.#guard = guard;
    this.#onSettled = onSettled;
  }

  /** Connects the request; until then only `fail` and `cancel` are called. */
  open(bufferBytesMax: number, hooks: AnswerStreamHooks): void {
    this.#bufferBytesMax = bufferBytesMax;
    this.#hooks = hooks;
  }

  /** Time since which the reader takes nothing of a queue at its bound, or null. */
  get blockedSinceMs(): number | null {
    return this.#blockedSinceMs;
  }

  /** Never: of an engine that was paused no more comes than one read from its connection had brought. */
  readonly isOverfull = false;

  /** The next Delta; rejects once what came before an error has been taken. */
  next(): Promise<IteratorResult<Delta, undefined>> {
    const delta = this.#queue.shift();
    if (delta !== undefined) {
      this.#guard.run(() => this.#taken(sizeOf(delta)));
      return Promise.resolve({ done: false, value: delta });
    }
    if (!this.#ended) return new Promise((resolve, reject) => this.#waiters.push({ resolve, reject }));
    const error = this.#error;
    this.#error = null;
    return error === null ? Promise.resolve({ done: true, value: undefined }) : Promise.reject(error);
  }

  text(index: number, text: string, logprobs?: readonly TokenLogprobs[]): void {
    const asked = logprobs === undefined ? {} : { logprobs };
    this.#push({ index, ...this.#takeIds(index), text, ...asked });
  }

  ids(index: number, ids: Uint32Array): void {
    this.#idsOfChoice[index] ??= [];
    this.#idsOfChoice[index].push(...ids);
  }

  finish(index: number, finish: FinishReason, stopReason: string | number | null): void {
    const stopped = stopReason === null ? {} : { stopReason };
    this.#push({ index, ...this.#takeIds(index), finish, ...stopped });
  }

  usage(usage: Usage): void {
    this.#push({ index: 0, usage });
  }

  /** Takes relayed frames of the engine. */
  pushBytes(bytes: Uint8Array): void {
    try {
      for (const delta of this.#relayed.push(bytes)) this.#push(delta);
    } catch {
      this.fail('MILLRACE_WORKER_PROTOCOL', 'a frame of the worker is not valid');
    }
  }

  /** A reader in this process needs no sign of life. */
  keepAlive(): void {}

  /** All was pushed; the reader takes the rest at its own pace, and the request need not wait for it. */
  end(): void {
    this.#settle(null);
    this.#hooks?.onFinished();
  }

  /** Ends with an error, after what is queued. */
  fail(code: ErrorCode, message: string, detail: ErrorDetail = {}): void {
    this.#settle(new MillraceError(code, message, detail));
  }

  /** Cuts off a reader that stays away. */
  abort(): void {
    this.#queue.length = 0;
    this.fail('MILLRACE_SLOW_CLIENT', 'the answer was not read in time');
  }

  /** The request has ended and calls no more. */
  close(): void {
    this.#hooks = null;
    this.#blockedSinceMs = null;
  }

  /** The reader wants no more: what is queued is dropped. `error`: what `next` still tells; null: the end. */
  cancel(error: MillraceError | null): void {
    this.#queue.length = 0;
    this.#pendingBytes = 0;
    this.#error = null;
    this.#settle(error);
  }

  #takeIds(index: number): { ids?: readonly number[] } {
    const ids = this.#idsOfChoice[index];
    if (ids === undefined || ids.length === 0) return {};
    this.#idsOfChoice[index] = [];
    return { ids };
  }

  #push(delta: Delta): void {
    if (this.#ended) return;
    const waiter = this.#waiters.shift();
    if (waiter !== undefined) {
      waiter.resolve({ done: false, value: delta });
      return;
    }
    this.#queue.push(delta);
    this.#pendingBytes += sizeOf(delta);
    if (this.#blockedSinceMs !== null || this.#pendingBytes <= PAUSE_SHARE * this.#bufferBytesMax) return;
    this.#blockedSinceMs = this.#hooks!.nowMs();
    this.#hooks!.onPressure();
  }

  #taken(bytes: number): void {
    this.#pendingBytes -= bytes;
    if (this.#blockedSinceMs === null || this.#hooks === null) return;
    if (this.#pendingBytes > (PAUSE_SHARE / 2) * this.#bufferBytesMax) {
      this.#blockedSinceMs = this.#hooks.nowMs();
      return;
    }
    this.#blockedSinceMs = null;
    this.#hooks.onRelief();
  }

  #settle(error: MillraceError | null): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#onSettled();
    for (const waiter of this.#waiters.splice(0)) {
      if (this.#error === null) waiter.resolve({ done: true, value: undefined });
      else waiter.reject(this.#error);
      // An error is told once; later calls find an iterator that has ended.
      this.#error = null;
    }
  }
}

function sizeOf(delta: Delta): number {
  const logprobs = (delta.logprobs ?? []).reduce((sum, { top }) => sum + 1 + top.length, 0);
  return DELTA_BYTES * (1 + logprobs) + (delta.text?.length ?? 0);
}
