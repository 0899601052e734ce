/**
 * The transfers of one port that have not completed (K3), by their tag in the port's rings. Owned by the TransferPort, on its
 * thread; a transfer's number is its count times the entries of the port plus its tag, so that a number that has ended never
 * names another transfer.
 */
import { TRANSPORTS } from './descriptor.js';
import { codeOf, TransferError, type TransferErrorCode } from './errors.js';
import type { TransferResult } from './flights.js';
import { twoWords } from './layout.js';
import type { TransportName } from './peer.js';
import { PORT_COMPLETION } from './port-descriptor.js';
import type { PortRings } from './port-rings.js';

/** How a transfer ended. Times are nanoseconds of the monotonic clock, as process.hrtime has them; 0: it never began. */
export interface PortCompletion {
  readonly id: number;
  /** Null: it succeeded. */
  readonly error: TransferError | null;
  readonly bytes: number;
  /** How it went; null where none was chosen. */
  readonly transport: TransportName | null;
  readonly postedNs: number;
  readonly begunNs: number;
  readonly doneNs: number;
}

/** Who waits for a transfer; null functions where nobody awaits it. */
export interface Waiting {
  readonly resolve: ((result: TransferResult) => void) | null;
  readonly reject: ((error: TransferError) => void) | null;
  readonly signal: AbortSignal | undefined;
  onAbort: (() => void) | null;
}

/** Transfers in flight by tag. */
export class PortFlights {
  readonly #entries: number;
  readonly #free: Uint16Array;
  #freeCount: number;
  #made = 0;
  /** By tag: the transfer's number (0: none), its turn, and whether its cancel word is set. */
  readonly #ids: Float64Array;
  readonly #turns: Uint32Array;
  readonly #cancelled: Uint8Array;
  readonly #waiting: (Waiting | null)[];
  /** Those that somebody awaits. */
  #awaited = 0;

  constructor(entries: number) {
    this.#entries = entries;
    this.#free = Uint16Array.from({ length: entries }, (_, i) => i);
    this.#freeCount = entries;
    this.#ids = new Float64Array(entries);
    this.#turns = new Uint32Array(entries);
    this.#cancelled = new Uint8Array(entries);
    this.#waiting = new Array(entries).fill(null);
  }

  get size(): number {
    return this.#entries - this.#freeCount;
  }

  get awaited(): number {
    return this.#awaited;
  }

  /** The tag of the next transfer. */
  get nextTag(): number {
    return this.#free[this.#freeCount - 1]!;
  }

  /** The transfer under `nextTag` was submitted. Returns its number. */
  add(turn: number, waiting: Waiting | null): number {
    const tag = this.#free[--this.#freeCount]!;
    const id = ++this.#made * this.#entries + tag;
    this.#ids[tag] = id;
    this.#turns[tag] = turn;
    this.#waiting[tag] = waiting;
    if (waiting !== null && waiting.resolve !== null) this.#awaited++;
    return id;
  }

  /** Asks for the end of a transfer; false when it has completed. */
  cancel(id: number, rings: PortRings): boolean {
    const tag = id % this.#entries;
    if (this.#ids[tag] !== id || id === 0) return false;
    this.#cancelled[tag] = 1;
    rings.cancel(tag, this.#turns[tag]!);
    return true;
  }

  /** Numbers of all. */
  *ids(): Iterable<number> {
    for (const id of this.#ids) if (id !== 0) yield id;
  }

  /** Ends the transfer of the completion at `at`; null where it is settled or none of ours. */
  complete(rings: PortRings, at: number): PortCompletion | null {
    const words = rings.words;
    const tag = words[at + PORT_COMPLETION.tag]!;
    const id = tag < this.#entries ? this.#ids[tag]! : 0;
    if (id === 0) return null;
    if (this.#cancelled[tag] === 1) rings.clearCancel(tag);
    const status = words[at + PORT_COMPLETION.status]! | 0;
    const signal = this.#waiting[tag]?.signal;
    return this.#end(tag, {
      id,
      error: status < 0 ? failure(id, codeOf(status), rings.text(), signal) : null,
      bytes: twoWords(words, at + PORT_COMPLETION.bytes),
      transport: TRANSPORTS[words[at + PORT_COMPLETION.transport]! - 1] ?? null,
      postedNs: twoWords(words, at + PORT_COMPLETION.postedNs),
      begunNs: twoWords(words, at + PORT_COMPLETION.begunNs),
      doneNs: twoWords(words, at + PORT_COMPLETION.doneNs),
    });
  }

  /** Ends one that the agent never took, as the port has ended; null where it is settled. */
  abandon(id: number): PortCompletion | null {
    const error = new TransferError('CLOSED', 'the port ended before it began', { transferId: id });
    const ended = { bytes: 0, transport: null, postedNs: 0, begunNs: 0, doneNs: 0 };
    return this.#end(id % this.#entries, { id, error, ...ended });
  }

  #end(tag: number, completion: PortCompletion): PortCompletion | null {
    const waiting = this.#waiting[tag]!;
    this.#ids[tag] = 0;
    this.#cancelled[tag] = 0;
    this.#waiting[tag] = null;
    this.#free[this.#freeCount++] = tag;
    if (waiting === null) return completion;
    if (waiting.onAbort !== null) waiting.signal!.removeEventListener('abort', waiting.onAbort);
    if (waiting.resolve === null) return completion;
    this.#awaited--;
    if (completion.error !== null) waiting.reject!(completion.error);
    else {
      const { error, transport, ...times } = completion;
      waiting.resolve({ ...times, transport: transport! });
    }
    return null;
  }
}

function failure(
  id: number,
  code: TransferErrorCode,
  text: string,
  signal: AbortSignal | undefined,
): TransferError {
  const cause = code === 'CANCELLED' ? signal?.reason : undefined;
  const message = text === '' ? `transfer ${id} ended as ${code}` : `transfer: ${text}`;
  return new TransferError(code, message, { transferId: id, cause });
}
