/**
 * What the core and its ingest thread say to each other, and what a pool thread is given to read the prefix index and to
 * tell what it has routed. Everything here is rare; predictions go by ring, batches of events never leave their thread
 * (or, without the addon, go to the pool thread by port).
 */
import type { MessagePort } from 'node:worker_threads';
import type { Limits } from '../limits.js';
import type { EventEndpoints, HolderFacts } from '../router/events/contract.js';
import type { EventLag } from '../router/events/ingest.js';
import type { LogFields, LogLevel } from '../runtime/logger.js';

/** What an ingest thread is made from; structured-cloned, shared buffers shared. */
export interface IngestTask {
  readonly limits: Limits;
  readonly seed: number;
  /** The index that it writes; null without the addon: the one pool thread has an index of its own. */
  readonly indexMemory: SharedArrayBuffer | null;
  /** Its doorbell, which pool threads ring. */
  readonly bellMemory: SharedArrayBuffer;
}

/** How one incarnation of a pool thread reaches the prefix index; structured-cloned, a port transferred. */
export type PrefixLink =
  | {
      readonly kind: 'shared';
      readonly indexMemory: SharedArrayBuffer;
      /** Takes its predictions to the ingest thread. */
      readonly ringMemory: SharedArrayBuffer;
      readonly epoch: number;
      /** The doorbell of the ingest thread. */
      readonly bellMemory: SharedArrayBuffer;
    }
  | {
      readonly kind: 'posted';
      /** Brings the events; the index is made anew from them. */
      readonly port: MessagePort;
      /** Takes what it tells of itself. */
      readonly news: MessagePort;
    };

/** Numbers for the metrics. */
export interface IngestCounts {
  /** Series of `millrace_kv_events_total{kind}`. */
  readonly events: Readonly<Record<string, number>>;
  /** How late recent live batches were, in seconds; null: none came. */
  readonly lag: EventLag | null;
  /** Null: the index is elsewhere and has not told yet. */
  readonly index: IndexCounts | null;
}

/** What is told of the index. */
export interface IndexCounts {
  readonly blocks: number;
  readonly blocksMax: number;
  readonly engineHashes: number;
  readonly holders: number;
  readonly predictions: number;
}

/** The ingest thread, as the core sees it. */
export interface IngestSide {
  /** A worker slot has a tenant, with an empty cache; of one that is known everything is forgotten. */
  addWorker(slot: number, facts: HolderFacts, endpoints: EventEndpoints | null): void;
  /** As `addWorker`, for a worker whose batches come by `push`: those of its link. */
  addPushed(slot: number, facts: HolderFacts): void;
  /** The next batch of such a worker; null: what came before is void. Resolves once it is applied. */
  push(slot: number, payload: Uint8Array | null): Promise<void>;
  removeWorker(slot: number): void;
  /** The worker does not answer; what it publishes later may be of another process. */
  suspectWorker(slot: number): void;
  /** A worker that did not answer does again. */
  resumeWorker(slot: number): void;
  /** Pool thread `index` has a new incarnation, whose predictions come by this ring. */
  attachRing(index: number, epoch: number, ringMemory: SharedArrayBuffer): void;
  /** The same without the addon: all events go to `port`, what the index tells comes by `news`. */
  attachPort(port: MessagePort, news: MessagePort): void;
  /** The incarnation is gone. */
  poolLost(index: number): void;
  counts(): Promise<IngestCounts>;
  /** Closes the sockets; the thread then ends by itself. */
  stop(): Promise<void>;
}

/** The core, as the ingest thread sees it. */
export interface IngestCore {
  /** KV events have shown how many tokens a block of this worker has. */
  learnBlockSize(slot: number, generation: number, blockSize: number): void;
  log(level: Exclude<LogLevel, 'silent'>, message: string, fields?: LogFields): void;
  /** An exception that no caller took, as text: nothing updates the index any more. */
  fault(text: string): void;
}
