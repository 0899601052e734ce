/**
 * The transfers of one agent that have not completed (K3): each is settled once, by its completion event. A signal or the
 * closing of the agent only asks for the end; the promise waits until the engine says that the bytes are quiet. Owned by the
 * TransferAgent, on its JS thread.
 */
import { TRANSFER_EVENT, TRANSPORTS } from './descriptor.js';
import { codeOf, TransferError } from './errors.js';
import { putTwoWords, twoWords } from './layout.js';
import type { NativeAgent } from './native-agent.js';

/** A transfer that succeeded. Times are nanoseconds of the monotonic clock, as process.hrtime has them. */
export interface TransferResult {
  readonly id: number;
  readonly bytes: number;
  /** How it went. */
  readonly transport: (typeof TRANSPORTS)[number];
  readonly postedNs: number;
  /** When its first bytes were moved. */
  readonly begunNs: number;
  readonly doneNs: number;
}

interface Flight {
  readonly resolve: (result: TransferResult) => void;
  readonly reject: (error: TransferError) => void;
  readonly signal: AbortSignal | undefined;
  readonly onAbort: (() => void) | undefined;
}

/** Transfers in flight. */
export class Flights {
  readonly #native: NativeAgent;
  readonly #flights = new Map<number, Flight>();
  readonly #idWords = new Uint32Array(2);
  #whenEmpty: (() => void) | null = null;

  constructor(native: NativeAgent) {
    this.#native = native;
  }

  /** How many have not completed. */
  get size(): number {
    return this.#flights.size;
  }

  /** A transfer has begun. */
  add(id: number, resolve: Flight['resolve'], reject: Flight['reject'], signal?: AbortSignal): void {
    const onAbort = signal === undefined ? undefined : () => this.#cancel(id);
    if (onAbort !== undefined) signal!.addEventListener('abort', onAbort, { once: true });
    this.#flights.set(id, { resolve, reject, signal, onAbort });
  }

  #cancel(id: number): void {
    putTwoWords(this.#idWords, 0, id);
    this.#native.addon.transferCancel(this.#native.handle, this.#idWords[0]!, this.#idWords[1]!);
  }

  /** Settles the transfer of the completion event at word `at`. */
  complete(events: Uint32Array, at: number): void {
    const id = twoWords(events, at + TRANSFER_EVENT.id);
    const flight = this.#flights.get(id);
    if (flight === undefined) throw new RangeError(`the engine completed the unknown transfer ${id}`);
    this.#flights.delete(id);
    if (flight.onAbort !== undefined) flight.signal!.removeEventListener('abort', flight.onAbort);
    const status = events[at + TRANSFER_EVENT.status]! | 0;
    if (status < 0) {
      const code = codeOf(status);
      const cause = code === 'CANCELLED' ? flight.signal?.reason : undefined;
      flight.reject(new TransferError(code, `transfer ${id} ended as ${code}`, { transferId: id, cause }));
    } else {
      flight.resolve({
        id,
        bytes: twoWords(events, at + TRANSFER_EVENT.bytes),
        transport: TRANSPORTS[events[at + TRANSFER_EVENT.transport]! - 1]!,
        postedNs: twoWords(events, at + TRANSFER_EVENT.postedNs),
        begunNs: twoWords(events, at + TRANSFER_EVENT.begunNs),
        doneNs: twoWords(events, at + TRANSFER_EVENT.doneNs),
      });
    }
    if (this.#flights.size === 0) this.#whenEmpty?.();
  }

  /** Cancels all, and is resolved when the last has completed. */
  async drain(): Promise<void> {
    for (const id of this.#flights.keys()) this.#cancel(id);
    if (this.#flights.size > 0) await new Promise<void>(resolve => (this.#whenEmpty = resolve));
  }
}
