/**
 * Calls between the core and a thread of its own (socket, ingest): by message, for what is rare (a new world, the rings of a pool
 * thread, a scrape, the end). Requests and tokens never come this way. One object at each end of a port; arguments and
 * answers are structured-cloned, shared buffers shared, and every call has a deadline.
 */
import { strict as assert } from 'node:assert';
import type { TransferListItem } from 'node:worker_threads';
import { ConfigError, MillraceError } from '../errors.js';
import type { Clock, Timer } from '../runtime/clock.js';

type Method = (...args: never[]) => unknown;
type MethodName<T> = { [K in keyof T]: T[K] extends Method ? K : never }[keyof T] & string;
type Args<T, K extends keyof T> = T[K] extends (...args: infer A) => unknown ? A : never;
type Answer<T, K extends keyof T> = T[K] extends (...args: never[]) => infer R ? Awaited<R> : never;

type Message =
  | { readonly kind: 'call'; readonly id: number; readonly name: string; readonly args: readonly unknown[] }
  | { readonly kind: 'tell'; readonly name: string; readonly args: readonly unknown[] }
  | { readonly kind: 'answer'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly message: string; readonly isConfig: boolean };

/** The part of a MessagePort or a Worker that is used. */
export interface CallPort {
  postMessage(message: unknown, transferList?: readonly TransferListItem[]): void;
  on(event: 'message', listener: (message: Message) => void): unknown;
}

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
  readonly timer: Timer;
}

/** One end; `Theirs` is what the other end offers, `mine` what it may call here. */
export class ThreadCalls<Theirs extends object> {
  readonly #port: CallPort;
  readonly #mine: object;
  readonly #clock: Clock;
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #gone: Error | null = null;

  constructor(port: CallPort, mine: object, clock: Clock) {
    this.#port = port;
    this.#mine = mine;
    this.#clock = clock;
    port.on('message', message => this.#take(message));
  }

  /** Whether a call waits for its answer. */
  get isWaiting(): boolean {
    return this.#pending.size > 0;
  }

  /** Calls and waits for the answer; rejects with its error, or when the deadline passes. */
  call<K extends MethodName<Theirs>>(
    name: K,
    deadlineMs: number,
    ...args: Args<Theirs, K>
  ): Promise<Answer<Theirs, K>> {
    if (this.#gone !== null) return Promise.reject(this.#gone);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const timer = this.#clock.after(deadlineMs, () => {
        this.#pending.delete(id);
        const message = `a thread did not answer "${name}" within ${deadlineMs} ms`;
        reject(new MillraceError('MILLRACE_INTERNAL', message));
      });
      this.#pending.set(id, { resolve: value => resolve(value as Answer<Theirs, K>), reject, timer });
      this.#port.postMessage({ kind: 'call', id, name, args } satisfies Message);
    });
  }

  /** Calls and waits for nothing. */
  tell<K extends MethodName<Theirs>>(name: K, ...args: Args<Theirs, K>): void {
    this.#port.postMessage({ kind: 'tell', name, args } satisfies Message);
  }

  /** As `tell`; what is in `transfer` belongs to the other end from then on. */
  tellWith<K extends MethodName<Theirs>>(
    transfer: readonly TransferListItem[],
    name: K,
    ...args: Args<Theirs, K>
  ): void {
    this.#port.postMessage({ kind: 'tell', name, args } satisfies Message, transfer);
  }

  /** The other end is gone: all calls are rejected, those that wait and later ones. */
  abandon(error: Error): void {
    this.#gone = error;
    for (const { reject, timer } of this.#pending.values()) {
      timer.cancel();
      reject(error);
    }
    this.#pending.clear();
  }

  #take(message: Message): void {
    if (message.kind === 'tell') this.#invoke(message.name, message.args);
    else if (message.kind === 'call') void this.#answer(message.id, message.name, message.args);
    else {
      const pending = this.#pending.get(message.id);
      // Its deadline has passed.
      if (pending === undefined) return;
      this.#pending.delete(message.id);
      pending.timer.cancel();
      if (message.kind === 'answer') pending.resolve(message.value);
      else if (message.isConfig) pending.reject(new ConfigError(message.message));
      else pending.reject(new MillraceError('MILLRACE_INTERNAL', message.message));
    }
  }

  async #answer(id: number, name: string, args: readonly unknown[]): Promise<void> {
    let message: Message;
    try {
      message = { kind: 'answer', id, value: await this.#invoke(name, args) };
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      message = { kind: 'error', id, message: text, isConfig: error instanceof ConfigError };
    }
    this.#port.postMessage(message);
  }

  #invoke(name: string, args: readonly unknown[]): unknown {
    const method: unknown = Reflect.get(this.#mine, name);
    assert(typeof method === 'function', `there is no call "${name}" here`);
    return Reflect.apply(method, this.#mine, args);
  }
}
