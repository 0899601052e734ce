/**
 * The side that holds KV for others: which blocks are pinned under which name, for how long, and who reads them. Each
 * offer ends exactly once: its peer is done, its lease ran out, or it was withdrawn; a read under way puts the end off,
 * so nothing is handed out anew while it is being read. Owned by one mock engine, on its thread; its clock comes from outside.
 */
import type { Clock, Timer } from '../../runtime/clock.js';
import type { BlockPool } from '../block-pool.js';
import { HandoverError, type KvAsk, type KvNotice, type KvRead, type KvSource } from './kv-carrier.js';

const EARLY_MAX = 1024;

/** How an offer ended. */
export type OfferEnd = 'released' | 'expired' | 'withdrawn';

/** What an injected fault does to an offer. */
export type OfferFault = 'fail' | 'stall';

/** What a desk is made of. */
export interface DeskOptions {
  readonly engineId: string;
  readonly pool: BlockPool;
  readonly blockSize: number;
  /** Bytes of one page; 0 without pages. */
  readonly blockBytes: number;
  readonly leaseMs: number;
  /** How long a read waits for an offer that is not there yet; 0: not at all. */
  readonly waitMs: number;
  readonly clock: Clock;
  /** Told when blocks were given back. */
  readonly onRoom: () => void;
}

/** Offers, by what became of them; `offered` = `released` + `expired` + `withdrawn` + those that are open. */
export interface DeskCounters {
  offered: number;
  released: number;
  expired: number;
  withdrawn: number;
  /** Reads that were refused. */
  refused: number;
  /** Reads that were begun. */
  reads: number;
  heartbeats: number;
}

interface Offer {
  readonly blocks: number[];
  readonly fault: OfferFault | null;
  readonly onEnd: (end: OfferEnd) => void;
  lease: Timer;
  reads: number;
  end: OfferEnd | null;
}

interface Waiter {
  readonly resolve: (offer: Offer) => void;
  readonly reject: (error: Error) => void;
}

/** See the head of the file. */
export class HandoverDesk implements KvSource {
  readonly engineId: string;
  readonly counters: DeskCounters = {
    offered: 0,
    released: 0,
    expired: 0,
    withdrawn: 0,
    refused: 0,
    reads: 0,
    heartbeats: 0,
  };
  readonly #options: DeskOptions;
  readonly #offers = new Map<string, Offer>();
  /** Names that a peer was done with before there was an offer, oldest first. */
  readonly #early = new Set<string>();
  readonly #waiters = new Map<string, Set<Waiter>>();

  constructor(options: DeskOptions) {
    this.engineId = options.engineId;
    this.#options = options;
  }

  /** Offers that have not ended. */
  get open(): number {
    return this.#offers.size;
  }

  /**
   * Takes over pinned blocks. `onEnd` is told once. Under a name that an open offer has it ends at once: two requests
   * were given the same id.
   */
  offer(
    key: string,
    blocks: number[],
    fault: OfferFault | null,
    onEnd: (end: OfferEnd) => void = () => {},
  ): void {
    this.counters.offered++;
    if (this.#offers.has(key)) {
      this.#options.pool.unpin(blocks);
      this.counters.withdrawn++;
      onEnd('withdrawn');
      return;
    }
    const offer: Offer = { blocks, fault, onEnd, lease: this.#lease(key), reads: 0, end: null };
    this.#offers.set(key, offer);
    const waiters = this.#waiters.get(key);
    this.#waiters.delete(key);
    for (const waiter of waiters ?? []) waiter.resolve(offer);
    if (this.#early.delete(key)) this.#end(key, offer, 'released');
  }

  /** Ends an offer, or says that there will be none: who waits for it fails at once. */
  withdraw(key: string): void {
    const offer = this.#offers.get(key);
    if (offer !== undefined) this.#end(key, offer, 'withdrawn');
    const waiters = this.#waiters.get(key);
    this.#waiters.delete(key);
    for (const waiter of waiters ?? []) waiter.reject(new HandoverError(`the prefill of ${key} was aborted`));
  }

  /** Ends everything: the engine closes. */
  close(): void {
    for (const key of [...this.#offers.keys(), ...this.#waiters.keys()]) this.withdraw(key);
  }

  notice(engineId: string | null, key: string, notice: KvNotice): boolean {
    if (engineId !== null && engineId !== this.engineId) return false;
    const offer = this.#offers.get(key);
    if (offer === undefined && notice === 'done' && this.#options.waitMs > 0) this.#rememberEarly(key);
    if (offer === undefined || offer.end !== null) return false;
    if (notice === 'done') {
      this.#end(key, offer, 'released');
      return true;
    }
    this.counters.heartbeats++;
    offer.lease.cancel();
    offer.lease = this.#lease(key);
    return true;
  }

  async read(ask: KvAsk, signal: AbortSignal): Promise<KvRead> {
    try {
      this.#checkLayout(ask);
      const offer = this.#offers.get(ask.key) ?? (await this.#awaitOffer(ask.key, signal));
      if (offer.end !== null) throw new HandoverError(`the offer ${ask.key} has ended`);
      if (offer.fault === 'fail') throw new HandoverError('injected fault');
      return this.#begin(ask, offer);
    } catch (error) {
      this.counters.refused++;
      throw error;
    }
  }

  /** A decode that was sent together with its prefill may have been given up before that ended. */
  #rememberEarly(key: string): void {
    this.#early.add(key);
    const [oldest] = this.#early;
    if (this.#early.size > EARLY_MAX) this.#early.delete(oldest!);
  }

  #checkLayout(ask: KvAsk): void {
    const { blockSize, blockBytes } = this.#options;
    if (ask.engineId !== null && ask.engineId !== this.engineId)
      throw new HandoverError(`this engine is ${this.engineId}, not ${ask.engineId}`);
    if (ask.blockSize !== blockSize)
      throw new HandoverError(`the puller has ${ask.blockSize} tokens per block, the holder ${blockSize}`);
    if (ask.blockBytes !== blockBytes)
      throw new HandoverError(`the puller has ${ask.blockBytes} bytes per block, the holder ${blockBytes}`);
  }

  #begin(ask: KvAsk, offer: Offer): KvRead {
    const { key, blockIds, from, count } = ask;
    const blocks = blockIds ?? offer.blocks.slice(from, from + count);
    if (blocks.length !== count)
      throw new HandoverError(`${key} has ${offer.blocks.length} blocks; ${from + count} were wanted`);
    const stranger = blocks.find(block => !offer.blocks.includes(block));
    if (stranger !== undefined) throw new HandoverError(`block ${stranger} is not offered as ${key}`);
    this.counters.reads++;
    offer.reads++;
    let open = true;
    const end = (): void => {
      if (!open) return;
      open = false;
      offer.reads--;
      if (offer.end !== null && offer.reads === 0) this.#giveBack(key, offer);
    };
    const stallAfter = offer.fault === 'stall' ? Math.floor(count / 2) : Number.POSITIVE_INFINITY;
    return { blocks, stallAfter, end };
  }

  #awaitOffer(key: string, signal: AbortSignal): Promise<Offer> {
    const { waitMs, clock } = this.#options;
    if (waitMs === 0) throw new HandoverError(`there is no offer ${key}, or its lease has run out`);
    return new Promise<Offer>((resolve, reject) => {
      const settle = (): void => {
        timer.cancel();
        signal.removeEventListener('abort', onAbort);
        const waiters = this.#waiters.get(key);
        waiters?.delete(waiter);
        if (waiters?.size === 0) this.#waiters.delete(key);
      };
      const waiter: Waiter = {
        resolve: offer => {
          settle();
          resolve(offer);
        },
        reject: error => {
          settle();
          reject(error);
        },
      };
      const onAbort = (): void => waiter.reject(signal.reason);
      const timer = clock.after(waitMs, () =>
        waiter.reject(new HandoverError(`no prefill offered ${key} in ${waitMs} ms`)),
      );
      signal.addEventListener('abort', onAbort);
      const waiters = this.#waiters.get(key) ?? new Set<Waiter>();
      this.#waiters.set(key, waiters.add(waiter));
      if (signal.aborted) onAbort();
    });
  }

  #lease(key: string): Timer {
    return this.#options.clock.after(this.#options.leaseMs, () =>
      this.#end(key, this.#offers.get(key)!, 'expired'),
    );
  }

  #end(key: string, offer: Offer, end: OfferEnd): void {
    if (offer.end !== null) return;
    offer.end = end;
    offer.lease.cancel();
    if (offer.reads === 0) this.#giveBack(key, offer);
  }

  #giveBack(key: string, offer: Offer): void {
    this.#offers.delete(key);
    this.#options.pool.unpin(offer.blocks);
    this.counters[offer.end!]++;
    offer.onEnd(offer.end!);
    this.#options.onRoom();
  }
}
