/**
 * Ingest (R4): all event sources of the process and the sink that they feed. It opens a source for each worker rank that
 * publishes events, joins it with its RankStream and its ReplayClient, polls those that are polled, passes on what pool threads routed, and ticks the
 * sink. Owns the sources, their counts and the window of event lags; runs on the ingest thread, or on the one pool thread
 * where there is no addon. It does not throw for what engines or discovery send.
 */
import type { Clock, Timer } from '../../runtime/clock.js';
import type { Logger } from '../../runtime/logger.js';
import type { Random } from '../../runtime/random.js';
import {
  type EventEndpoints,
  type HolderFacts,
  type IndexSink,
  isPolled,
  type PolledProtocol,
  type RoutedPrompt,
  SOURCE_COUNTERS,
  type SourceCounts,
} from './contract.js';
import { PolledSource, type PollLimits } from './polled-source.js';
import { RankStream } from './rank-stream.js';
import { ReplayClient } from './replay-client.js';
import { ZmqSource } from './zmq-source.js';

/** Bounds of every source. */
export interface SourceLimits extends PollLimits {
  /** Longest time from a gap to the end of its replay; then the rank is cleared. */
  readonly replayDeadlineMs: number;
  /** Largest batch; the connection of an engine that sends a longer one is made anew. */
  readonly eventBytesMax: number;
  /** Batches, and bytes of them, of one rank that may wait for a replay. */
  readonly waitingBatchesMax: number;
  readonly waitingBytesMax: number;
  /** Batches, and bytes of them, that one replay may bring. */
  readonly replayBatchesMax: number;
  readonly replayBytesMax: number;
}

/** What an Ingest needs. */
export interface IngestOptions {
  readonly sink: IndexSink;
  /** How servers are polled that publish nothing. */
  readonly polling: PolledProtocol;
  readonly limits: SourceLimits;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
}

/** How late live batches were delivered: seconds between the engine's clock then and ours, over the last batches. */
export interface EventLag {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

const TEND_PERIOD_MS = 250;
/** Batches in the window of lags. */
const LAG_WINDOW = 4096;

/** The source of one worker rank. */
interface Rank {
  /** Its events come from the first one on; false: the source says when they do. */
  readonly hasEvents: boolean;
  start(): void;
  /** The worker does not answer; and it does again. */
  suspect(): void;
  resume(): void;
  close(): Promise<unknown>;
}

/** Sources, streams and replays of all worker ranks, in front of one sink. */
export class Ingest {
  readonly #options: IngestOptions;
  readonly #counts = Object.fromEntries(SOURCE_COUNTERS.map(kind => [kind, 0])) as SourceCounts;
  readonly #ranks = new Map<number, Rank>();
  /** Sources that are closing. */
  readonly #closing = new Set<Promise<unknown>>();
  readonly #lags = new Float64Array(LAG_WINDOW);
  #lagCount = 0;
  readonly #ticker: Timer;
  #isClosed = false;

  constructor(options: IngestOptions) {
    this.#options = options;
    this.#ticker = options.clock.every(TEND_PERIOD_MS, () => options.sink.tend(options.clock.nowMs()));
  }

  /**
   * Makes a worker rank known and opens its event sources; one that is known is replaced. `endpoints` null: it publishes
   * none. An endpoint that is no address is logged, and the worker is taken as one without events.
   */
  addWorker(holder: number, facts: HolderFacts, endpoints: EventEndpoints | null): void {
    if (this.#isClosed) return;
    this.#closeRank(holder);
    const rank = endpoints === null || !facts.hasEvents ? null : this.#openRank(holder, facts, endpoints);
    this.#options.sink.addHolder(holder, { ...facts, hasEvents: rank?.hasEvents === true });
    if (rank === null) return;
    this.#ranks.set(holder, rank);
    rank.start();
  }

  /** Makes a worker rank known whose batches come by `push`, in order and without gaps; one that is known is replaced. */
  addPushed(holder: number, facts: HolderFacts): void {
    if (this.#isClosed) return;
    this.#closeRank(holder);
    this.#options.sink.addHolder(holder, { ...facts, hasEvents: true });
  }

  /** The next batch of a rank of `addPushed`; null: what came before is void. */
  push(holder: number, payload: Uint8Array | null): void {
    if (this.#isClosed) return;
    if (payload === null) this.#options.sink.clear(holder);
    else this.#options.sink.apply(holder, payload);
  }

  /** Forgets a worker rank and closes its sources; no batch of it is applied after this call. */
  removeWorker(holder: number): void {
    if (this.#isClosed) return;
    this.#closeRank(holder);
    this.#options.sink.removeHolder(holder);
  }

  /** A worker rank does not answer: what comes from it later may be of another process. */
  suspect(holder: number): void {
    this.#ranks.get(holder)?.suspect();
  }

  /** A worker rank that did not answer does again. */
  resume(holder: number): void {
    this.#ranks.get(holder)?.resume();
  }

  /** Passes on what a pool thread sent to a worker. */
  route(prompt: RoutedPrompt): void {
    if (!this.#isClosed) this.#options.sink.route(prompt);
  }

  /** The counts of all sources since the start; a copy. */
  counts(): SourceCounts {
    return { ...this.#counts };
  }

  /** Lags of the last live batches, or null before the first one. Negative where the engine's clock is ahead. */
  lag(): EventLag | null {
    const count = Math.min(this.#lagCount, LAG_WINDOW);
    if (count === 0) return null;
    const sorted = this.#lags.slice(0, count).sort();
    const at = (share: number): number => sorted[Math.ceil(share * count) - 1]!;
    return { p50: at(0.5), p99: at(0.99), max: at(1) };
  }

  /** Stops everything; resolves when every socket is closed and no timer is left. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#ticker.cancel();
    for (const holder of [...this.#ranks.keys()]) this.#closeRank(holder);
    await Promise.all(this.#closing);
  }

  #openRank(holder: number, facts: HolderFacts, endpoints: EventEndpoints): Rank | null {
    return isPolled(endpoints)
      ? this.#openPolled(holder, facts, endpoints.publish)
      : this.#openSubscribed(holder, facts, endpoints);
  }

  #openPolled(holder: number, facts: HolderFacts, url: string): Rank {
    const { polling: protocol, limits, clock, random, logger, sink } = this.#options;
    const source = new PolledSource({
      url,
      name: facts.name,
      protocol,
      limits,
      blockSize: facts.blockSize,
      counts: this.#counts,
      clock,
      random,
      logger,
      follow: hasEvents => sink.addHolder(holder, { ...facts, hasEvents }),
      deliver: payload => sink.apply(holder, payload),
      clear: () => sink.clear(holder),
    });
    return {
      hasEvents: false,
      start: () => source.start(),
      suspect: () => source.pause(),
      resume: () => source.resume(),
      close: () => source.close(),
    };
  }

  #openSubscribed(holder: number, facts: HolderFacts, endpoints: EventEndpoints): Rank | null {
    const { limits, clock, random, logger, sink } = this.#options;
    const shared = { messageBytesMax: limits.eventBytesMax, counts: this.#counts, clock, random };
    try {
      // Made first: it opens no socket before it is asked, and so needs no closing when the source is refused.
      const replays =
        endpoints.replay === null
          ? null
          : new ReplayClient({
              ...shared,
              endpoint: endpoints.replay,
              deadlineMs: limits.replayDeadlineMs,
              batchesMax: limits.replayBatchesMax,
              bytesMax: limits.replayBytesMax,
              replayed: (id, sequence, payload) => stream.replayed(id, sequence, payload),
              ended: id => stream.replayEnded(id),
              failed: (id, reason) => {
                logger.warn('a replay of KV events failed', { worker: facts.name, reason });
                stream.replayFailed(id);
              },
            });
      const stream = new RankStream({
        hasReplay: replays !== null,
        waitingBatchesMax: limits.waitingBatchesMax,
        waitingBytesMax: limits.waitingBytesMax,
        counts: this.#counts,
        deliver: (payload, timestampS, isLive) => {
          if (isLive) this.#noteLag(timestampS);
          sink.apply(holder, payload);
        },
        clear: () => sink.clear(holder),
        askReplay: (from, id) => replays?.ask(from, id) ?? false,
        dropReplay: () => replays?.drop(),
      });
      const source = new ZmqSource({
        ...shared,
        endpoints,
        name: facts.name,
        logger,
        onBatch: (sequence, payload) => stream.live(sequence, payload),
        onReturn: () => stream.suspect(),
      });
      return {
        hasEvents: true,
        start: () => stream.start(),
        suspect: () => stream.suspect(),
        resume: () => {},
        close: () => Promise.all([source.close(), replays?.close()]),
      };
    } catch (error) {
      logger.error('the event endpoints of a worker are wrong: what it holds is guessed', {
        worker: facts.name,
        reason: (error as Error).message,
      });
      return null;
    }
  }

  #closeRank(holder: number): void {
    const rank = this.#ranks.get(holder);
    if (rank === undefined) return;
    this.#ranks.delete(holder);
    const closed = rank.close().finally(() => this.#closing.delete(closed));
    this.#closing.add(closed);
  }

  #noteLag(timestampS: number): void {
    if (Number.isNaN(timestampS)) return;
    this.#lags[this.#lagCount % LAG_WINDOW] = this.#options.clock.wallMs() / 1000 - timestampS;
    this.#lagCount += 1;
  }
}
