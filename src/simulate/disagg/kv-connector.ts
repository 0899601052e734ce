/**
 * The KV connector of one mock engine: what a request says about hand-over becomes pinned blocks here, or blocks pulled
 * from another engine. It knows keys, peers, leases and deadlines; how they are spelt on the wire is up to the skins.
 * Owned by one engine, on its thread.
 */
import type { Clock, Timer } from '../../runtime/clock.js';
import type { LoadOutcome, SequenceHandover } from '../sequence.js';
import type { DisaggSettings } from './disagg-settings.js';
import type { HandoverDesk, OfferEnd, OfferFault } from './handover-desk.js';
import { HandoverError, type KvCarrier, type KvPeer } from './kv-carrier.js';

/** Heartbeats in one lease, as vLLM sends them. */
const HEARTBEATS_PER_LEASE = 6;

/** Sequences whose prompt came from elsewhere, by what became of it. */
export interface PullCounters {
  /** Under way. */
  pulling: number;
  pulled: number;
  /** Nothing was missing, so nothing was read. */
  complete: number;
  failed: number;
  /** Given up because the request was. */
  cancelled: number;
  blocks: number;
}

/** Where a request's KV comes from. */
export interface PullSpec {
  readonly peer: KvPeer;
  readonly key: string;
  /** The holder's blocks, first one first; null: all of the offer. */
  readonly blockIds: readonly number[] | null;
  /** No transfer takes place, and whatever is in the blocks is taken for KV. */
  readonly isFake: boolean;
}

/** What a request says about hand-over. */
export interface HandoverSpec {
  /** Name under which its blocks are kept for others; null: they are not. */
  readonly keepAs: string | null;
  readonly pull: PullSpec | null;
  /** The answer waits until the kept blocks have been given back. */
  readonly holdsAnswer?: boolean;
}

/** What an injected fault does to a hand-over, and what is to be called when it happens. */
export interface HandoverFault {
  readonly kind: OfferFault;
  readonly onStrike: () => void;
}

/** Parts of a connector. */
export interface KvConnectorOptions {
  readonly settings: DisaggSettings;
  /** Divides modelled time; infinite: it takes none, and leases and deadlines are real. */
  readonly speed: number;
  readonly blockSize: number;
  /** Bytes of a page; 0 without pages. */
  readonly blockBytes: number;
  readonly desk: HandoverDesk;
  readonly carrier: KvCarrier;
  readonly clock: Clock;
}

/** `ms` of modelled time on the clock; under unlimited speed limits of time stay as they are. */
export function limitMs(ms: number, speed: number): number {
  return Number.isFinite(speed) ? ms / speed : ms;
}

/** See the head of the file. */
export class KvConnector {
  readonly pulls: PullCounters = { pulling: 0, pulled: 0, complete: 0, failed: 0, cancelled: 0, blocks: 0 };
  readonly options: KvConnectorOptions;
  #keys = 0;

  constructor(options: KvConnectorOptions) {
    this.options = options;
  }

  get engineId(): string {
    return this.options.desk.engineId;
  }

  get desk(): HandoverDesk {
    return this.options.desk;
  }

  /** A name for an offer that no other offer of this engine has. */
  newKey(): string {
    return `${this.engineId}-${++this.#keys}`;
  }

  /** The hand-over of one request; has no effect before its first sequence is queued. */
  open(spec: HandoverSpec): RequestHandover {
    return new RequestHandover(this, spec);
  }

  /** Modelled time of a transfer. */
  transferMs(blocks: number): number {
    const { settings, speed, blockSize } = this.options;
    return (blocks * blockSize * settings.kvBytesPerToken * 1000) / settings.kvBytesPerSecond / speed;
  }

  /** Ends all offers. */
  async close(): Promise<void> {
    this.options.desk.close();
    await this.options.carrier.close();
  }
}

/** What was kept for others. */
export interface KeptBlocks {
  readonly blocks: readonly number[];
  /** Positions of the sequence that are in them. */
  readonly tokens: number;
}

/** The hand-over of one request, shared by its choices: one lease at the peer, and one end of it. */
export class RequestHandover {
  readonly connector: KvConnector;
  readonly spec: HandoverSpec;
  /** An injected fault; set before the first sequence is queued. */
  fault: HandoverFault | null = null;
  /** Set when the blocks are kept. */
  kept: KeptBlocks | null = null;
  /** Told once, when the kept blocks have been given back. */
  onKeptEnd: (end: OfferEnd) => void = () => {};
  /** Why a load failed. */
  failure = '';
  #pending = 0;
  #isBroken = false;
  #heartbeat: Timer | null = null;

  constructor(connector: KvConnector, spec: HandoverSpec) {
    this.connector = connector;
    this.spec = spec;
  }

  /** The part of one more choice. */
  sequence(): SequenceHandover {
    return new SequenceTransfer(this);
  }

  /** Gives the kept blocks back, and tells who waits for them that there will be none. */
  withdraw(): void {
    if (this.spec.keepAs !== null) this.connector.desk.withdraw(this.spec.keepAs);
  }

  /** A choice needs the peer's blocks from now on. */
  hold(): void {
    if (this.#pending++ > 0) return;
    const { settings, speed, clock, carrier } = this.connector.options;
    const { peer, key } = this.spec.pull!;
    this.#heartbeat = clock.every(limitMs(settings.leaseMs, speed) / HEARTBEATS_PER_LEASE, () =>
      carrier.notify(peer, key, 'heartbeat'),
    );
  }

  /** A choice needs them no more. After the last one the peer is told, unless a pull failed: then its lease decides. */
  letGo(isBroken: boolean): void {
    if (isBroken) this.#isBroken = true;
    if (--this.#pending > 0) return;
    this.#heartbeat?.cancel();
    const { peer, key, isFake } = this.spec.pull!;
    if (!this.#isBroken && !isFake) this.connector.options.carrier.notify(peer, key, 'done');
  }
}

/** One sequence's part of a hand-over. */
class SequenceTransfer implements SequenceHandover {
  readonly keeps: boolean;
  readonly pulls: boolean;
  readonly #request: RequestHandover;
  readonly #cancel = new AbortController();
  #state: 'new' | 'queued' | 'loading' | 'over' = 'new';

  constructor(request: RequestHandover) {
    this.#request = request;
    this.keeps = request.spec.keepAs !== null;
    this.pulls = request.spec.pull !== null;
  }

  queued(): void {
    this.#state = this.pulls ? 'queued' : 'over';
    if (this.pulls) this.#request.hold();
  }

  offer(blocks: number[], tokens: number): void {
    const { connector, spec, fault } = this.#request;
    this.#request.kept = { blocks: [...blocks], tokens };
    if (fault !== null) fault.onStrike();
    connector.desk.offer(spec.keepAs!, blocks, fault?.kind ?? null, end => this.#request.onKeptEnd(end));
  }

  aborted(): void {
    const { connector } = this.#request;
    this.#request.withdraw();
    if (this.#state === 'queued') {
      this.#state = 'over';
      connector.pulls.cancelled++;
      this.#request.letGo(false);
    } else if (this.#state === 'loading') this.#cancel.abort(new HandoverError('the request was aborted'));
  }

  load(blocks: readonly number[], from: number, settle: (outcome: LoadOutcome) => void): void {
    this.#state = 'loading';
    const { connector, spec } = this.#request;
    const { pulls } = connector;
    if (from === blocks.length || spec.pull!.isFake) {
      pulls.complete++;
      this.#over(false, 'loaded', settle);
      return;
    }
    pulls.pulling++;
    void this.#pull(blocks.slice(from), from).then(
      () => {
        pulls.pulling--;
        pulls.pulled++;
        pulls.blocks += blocks.length - from;
        this.#over(false, 'loaded', settle);
      },
      (error: Error) => {
        pulls.pulling--;
        const isCancelled = this.#cancel.signal.aborted && error === this.#cancel.signal.reason;
        pulls[isCancelled ? 'cancelled' : 'failed']++;
        this.#request.failure = error.message;
        const { loadFailure } = connector.options.settings;
        this.#over(!isCancelled, loadFailure === 'fail' ? 'failed' : 'recompute', settle);
      },
    );
  }

  #over(isBroken: boolean, outcome: LoadOutcome, settle: (outcome: LoadOutcome) => void): void {
    this.#state = 'over';
    settle(outcome);
    this.#request.letGo(isBroken);
  }

  /** Rejects when the pull failed, was late or was cancelled. */
  async #pull(into: readonly number[], from: number): Promise<void> {
    const { connector, spec, fault } = this.#request;
    const { settings, speed, clock, carrier, blockSize, blockBytes } = connector.options;
    const { peer, key, blockIds } = spec.pull!;
    const late = new AbortController();
    const deadlineMs = limitMs(settings.pullDeadlineMs, speed);
    const deadline = clock.after(deadlineMs, () =>
      late.abort(new HandoverError(`the blocks of ${key} did not come in ${deadlineMs} ms`)),
    );
    const signal = AbortSignal.any([late.signal, this.#cancel.signal]);
    try {
      if (fault !== null) await strike(fault, signal);
      const ids = blockIds?.slice(from, from + into.length) ?? null;
      const { engineId } = peer;
      const ask = { engineId, key, blockIds: ids, from, count: into.length, blockSize, blockBytes };
      await carrier.pull(peer, ask, into, signal);
      await waitFor(connector.transferMs(into.length), clock, signal);
    } finally {
      deadline.cancel();
    }
  }
}

async function strike(fault: HandoverFault, signal: AbortSignal): Promise<void> {
  fault.onStrike();
  if (fault.kind === 'fail') throw new HandoverError('injected fault');
  await new Promise((_resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
  });
}

function waitFor(ms: number, clock: Clock, signal: AbortSignal): Promise<void> {
  if (ms === 0) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      timer.cancel();
      reject(signal.reason as Error);
    };
    const timer = clock.after(ms, () => {
      signal.removeEventListener('abort', onAbort);
      resolve();
    });
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
}
