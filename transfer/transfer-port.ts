/**
 * A transfer port as the thread that opened it uses it: transfers through the agent of another thread (K2, K3), with no call
 * of the addon while the agent's progress thread is awake. The thread learns of completions as it likes: it spins on `poll`,
 * blocks in `wait`, or awaits `post`, whose promises are settled by one wake-up of its event loop for all that has happened.
 * Settled once and only when the bytes are quiet, as on the agent's thread.
 *
 * A thread that ends, by itself or terminated, ends its port: what it had in flight is cancelled and nothing of it stays.
 */
import { markAsUntransferable } from 'node:worker_threads';
import { systemClock } from '../runtime/clock.js';
import { native } from './agent.js';
import type { PortDescription } from './agent-port.js';
import { wholeNumber } from './checks.js';
import { TRANSFER_BLOCKS_MAX, TRANSFER_REQUEST } from './descriptor.js';
import { codeOf, invalid, TransferError } from './errors.js';
import type { TransferResult } from './flights.js';
import type { TransferNative } from './native-agent.js';
import { NO_OPTIONS, type PlanOptions, type PostOptions, putPostOptions, requestWords } from './peer.js';
import { PORT_ENTRIES_MAX, PORT_ENTRIES_MIN, PORT_WAITING } from './port-descriptor.js';
import { type PortCompletion, PortFlights, type Waiting } from './port-flights.js';
import { arenaWords, PortRings, portWords, splitRequest } from './port-rings.js';

const WAIT_MS_MAX = 3_600_000;
/** A thread in a native wait cannot be terminated, so it comes back this often. */
const WAIT_SLICE_MS = 50;
/** Looks at the ring before a thread blocks: about as long as a wake-up costs. */
const SPINS = 2000;

/** What a port moves; `Peer.plan`, but pools and the peer by their numbers. */
export interface PortPlanOptions extends Omit<PlanOptions, 'local'> {
  /** `Peer.id` at the agent. */
  readonly peer: number;
  readonly local: {
    /** `Pool.id` of the agent's pool. */
    readonly pool: number;
    readonly blocks: Uint32Array | readonly number[];
  };
}

/** Two lists of blocks, ready to be posted by any port. */
export class PortPlan {
  /** Words of a request before its lists. */
  readonly head: Uint32Array;
  /** Its lists. */
  readonly lists: Uint32Array;

  constructor({ peer, local, ...rest }: PortPlanOptions) {
    const words = requestWords(wholeNumber('peer', peer, 1, 2 ** 32 - 1), {
      ...rest,
      local: { ...local, pool: { id: local.pool } },
    });
    const { head, lists } = splitRequest(words);
    this.head = head;
    this.lists = lists;
  }

  /** Blocks of either list. */
  get blocks(): number {
    return this.lists.length / (2 + this.head[TRANSFER_REQUEST.generations]!);
  }
}

/**
 * Opens a port that another thread of this process has described, once in the port's life. Throws UNSUPPORTED without the
 * addon, NOT_FOUND where the port is of another process or gone, BUSY where it was opened, CLOSED where it has ended.
 */
export function openTransferPort(description: PortDescription): TransferPort {
  return new TransferPort(native(), description);
}

/** An open port; made by `openTransferPort`. */
export class TransferPort {
  readonly #addon: TransferNative;
  readonly #handle: number;
  readonly #rings: PortRings;
  readonly #flights: PortFlights;
  readonly #entries: number;
  /** Of `submit`, and met while promises were settled: `poll` has not returned them yet. */
  readonly #unclaimed: PortCompletion[] = [];
  #isOpen = true;
  /** The next completion wakes the event loop. */
  #isArmed = false;
  #isHeld = false;
  #whenEmpty: (() => void) | null = null;
  #closing: Promise<void> | null = null;

  constructor(addon: TransferNative, { port, memory, entries, blocksMax }: PortDescription) {
    wholeNumber('entries', entries, PORT_ENTRIES_MIN, PORT_ENTRIES_MAX);
    if (!(memory instanceof SharedArrayBuffer)) invalid('memory', memory, 'the SharedArrayBuffer of a port');
    const shape = {
      entries,
      arenaWords: arenaWords(wholeNumber('blocksMax', blocksMax, 1, TRANSFER_BLOCKS_MAX)),
    };
    const words = portWords(memory, shape);
    if (words === null) invalid('memory.byteLength', memory.byteLength, 'as large as the description says');
    const handle = addon.transferPortOpen(port, words, () => this.#wake());
    if (handle < 0) throw new TransferError(codeOf(handle), `port: ${addon.transferError()}`);
    this.#addon = addon;
    this.#handle = handle;
    this.#entries = entries;
    this.#rings = new PortRings(words, shape);
    this.#flights = new PortFlights(entries);
  }

  /** Transfers that have not completed, and completions that `poll` has not returned. */
  get inFlight(): number {
    return this.#flights.size + this.#unclaimed.length;
  }

  /** False once it was closed by either side; what is in flight still completes. */
  get isOpen(): boolean {
    return this.#isOpen && this.#closing === null && !this.#rings.hasEnded;
  }

  /** Checks the lists and makes them ready; whether they are right is said when it is posted. Throws INVALID. */
  plan(plan: PortPlanOptions): PortPlan {
    return new PortPlan(plan);
  }

  /**
   * Begins a transfer and returns its number, or 0 when the port is full: nothing was begun, and there is room after a
   * completion. Its end is told by `poll` or `wait`. Throws CLOSED, or INVALID for a wrong option.
   */
  submit(plan: PortPlan, given: PostOptions = NO_OPTIONS): number {
    return this.#begin(plan, given, null, null);
  }

  /** As `Plan.post`: settles once the transfer has completed. Rejected with FULL where `submit` returns 0. */
  post(plan: PortPlan, given: PostOptions = NO_OPTIONS): Promise<TransferResult> {
    return new Promise((resolve, reject) => {
      if (!this.#isArmed) {
        // Before the submission: its completion finds the wish.
        this.#isArmed = true;
        this.#rings.arm(PORT_WAITING.loop);
      }
      if (this.#begin(plan, given, resolve, reject) === 0)
        throw new TransferError(
          'FULL',
          `port: ${this.inFlight} transfers or their lists are all it has room for`,
        );
      this.#hold();
    });
  }

  #begin(plan: PortPlan, given: PostOptions, resolve: Waiting['resolve'], reject: Waiting['reject']): number {
    const signal = putPostOptions(plan.head, given);
    if (!this.isOpen) throw new TransferError('CLOSED', 'the port is closed');
    if (signal?.aborted)
      throw new TransferError('CANCELLED', 'aborted before it began', { cause: signal.reason });
    if (this.inFlight >= this.#entries) return 0;
    const turn = this.#rings.submit(plan.head, plan.lists, this.#flights.nextTag, given.notification);
    if (turn < 0) return 0;
    const waiting: Waiting | null =
      resolve === null && signal === undefined ? null : { resolve, reject, signal, onAbort: null };
    const id = this.#flights.add(turn, waiting);
    if (signal !== undefined) {
      waiting!.onAbort = () => this.cancel(id);
      signal.addEventListener('abort', waiting!.onAbort, { once: true });
    }
    if (this.#rings.mustKick) this.#addon.transferPortKick(this.#handle);
    return id;
  }

  /** Asks for the end of a transfer, which comes as its completion: CANCELLED, or what was first. */
  cancel(id: number): void {
    if (this.#flights.cancel(id, this.#rings) && this.#rings.mustKick && this.#isOpen)
      this.#addon.transferPortKick(this.#handle);
  }

  /** The next transfer of `submit` that has completed, or null; settles what `post` has promised on the way. */
  poll(): PortCompletion | null {
    return this.#unclaimed.shift() ?? this.#next();
  }

  #next(): PortCompletion | null {
    for (let at = this.#rings.peek(); at >= 0; at = this.#rings.peek()) {
      const completion = this.#flights.complete(this.#rings, at);
      this.#rings.release();
      if (completion !== null) return completion;
    }
    if (this.#flights.size === 0) this.#tellEmpty();
    else if (this.#rings.hasEnded && this.#rings.peek() < 0) return this.#abandon();
    return null;
  }

  /** The agent will take and complete nothing more. */
  #abandon(): PortCompletion | null {
    for (const id of this.#flights.ids()) {
      const completion = this.#flights.abandon(id);
      if (completion !== null) return completion;
    }
    this.#tellEmpty();
    return null;
  }

  /**
   * Blocks the thread until a transfer of `submit` has completed, at most `timeoutMs` (0 to an hour). Null when the time is
   * over or no such transfer is in flight.
   */
  wait(timeoutMs: number): PortCompletion | null {
    const untilMs = systemClock.nowMs() + wholeNumber('timeoutMs', timeoutMs, 0, WAIT_MS_MAX);
    for (;;) {
      const completion = this.poll();
      if (completion !== null || this.#flights.size === this.#flights.awaited) return completion;
      const leftMs = untilMs - systemClock.nowMs();
      if (leftMs <= 0) return null;
      if (!this.#spin()) this.#block(Math.min(Math.ceil(leftMs), WAIT_SLICE_MS));
    }
  }

  /** There is something to take, or will never be. */
  get #isReady(): boolean {
    return this.#rings.peek() >= 0 || this.#rings.hasEnded;
  }

  #spin(): boolean {
    for (let spins = 0; spins < SPINS; spins++) if (this.#rings.peek() >= 0) return true;
    return false;
  }

  #block(timeoutMs: number): void {
    const waiting = this.#rings.arm(PORT_WAITING.blocked);
    if (!this.#isReady) this.#addon.transferPortWait(this.#handle, waiting, timeoutMs);
    this.#rings.disarmBlocked();
  }

  /** Something has completed since the event loop asked. */
  #wake(): void {
    this.#isArmed = false;
    this.#settle();
    // In a later turn, as who awaited may post again: holding and releasing are calls of the addon.
    if (this.#isHeld && this.#isIdle) setImmediate(() => this.#release());
  }

  get #isIdle(): boolean {
    return this.#flights.awaited === 0 && this.#whenEmpty === null;
  }

  /** Takes all that has completed, and asks for the next wake-up where somebody awaits more. */
  #settle(): void {
    do {
      for (let next = this.#next(); next !== null; next = this.#next()) this.#unclaimed.push(next);
      if (this.#isArmed || this.#isIdle) return;
      this.#isArmed = true;
      this.#rings.arm(PORT_WAITING.loop);
    } while (this.#isReady);
  }

  #hold(): void {
    if (this.#isHeld) return;
    this.#isHeld = true;
    this.#addon.transferPortHold(this.#handle, 1);
  }

  #release(): void {
    if (!this.#isHeld || !this.#isIdle) return;
    this.#isHeld = false;
    if (this.#isOpen) this.#addon.transferPortHold(this.#handle, 0);
  }

  /**
   * A pool of the agent as this thread can read and write it: mapped once more, at another address, for as long as the buffer
   * lives, whatever becomes of the pool. Not the pool's own `buffer`, which another thread only gets as a copy. NOT_FOUND for a
   * pool that is closed; UNSUPPORTED for a registered one, whose SharedArrayBuffer can be posted, and for over 4 GiB.
   */
  openPool(pool: number): ArrayBuffer {
    if (!this.#isOpen) throw new TransferError('CLOSED', 'the port is closed');
    const buffer = this.#addon.transferPortPool(this.#handle, wholeNumber('pool', pool, 1, 2 ** 32 - 1));
    if (typeof buffer === 'number')
      throw new TransferError(codeOf(buffer), `pool: ${this.#addon.transferError()}`);
    markAsUntransferable(buffer);
    return buffer;
  }

  /** Cancels what is in flight and is resolved when the last of it has completed. `poll` still tells of them. */
  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  async #end(): Promise<void> {
    for (const id of this.#flights.ids()) this.cancel(id);
    if (this.#flights.size > 0) {
      this.#hold();
      await new Promise<void>(resolve => {
        this.#whenEmpty = resolve;
        this.#settle();
      });
    }
    this.#isOpen = false;
    this.#addon.detach(this.#handle);
  }

  #tellEmpty(): void {
    this.#whenEmpty?.();
    this.#whenEmpty = null;
  }
}
