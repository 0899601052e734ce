/**
 * The border of the health monitor (R5): what it is told, what it asks and where its findings go. Types and names only;
 * monitor.ts watches all workers, health-watch.ts one of them, health-canary.ts sends its canaries.
 */
import type { Limits } from '../limits.js';
import type { Clock } from '../runtime/clock.js';
import type { Logger } from '../runtime/logger.js';
import type { EngineRequest } from './client.js';
import type { EngineAdapter, EngineLoad, WorkerCapabilities } from './contract.js';
import type { SleepLevel } from './control-contract.js';

/** In the place of an engine's name: the probe finds out. */
export const AUTO_ENGINE = 'auto';

/** A worker to watch; the registry's entries are such. */
export interface MonitoredWorker {
  readonly slot: number;
  readonly generation: number;
  /** Origin of the worker. */
  readonly url: string;
  /** Data-parallel rank behind the URL; null: the server is one worker. */
  readonly rank: number | null;
  /** Name of its engine, or AUTO_ENGINE. */
  readonly engine: string;
}

/** What a probe taught, and the models whose token ids are not ours (`foreignIds` of WorkerView). */
export type ProbedFacts = WorkerCapabilities & { readonly foreignIds: readonly string[] };

/** A worker that goes out of rotation. */
export interface Outage {
  /** What found it dead. */
  readonly cause: Extract<FailureCause, 'unreachable' | 'health' | 'canary'>;
  /** Milliseconds since the last sign of life of the kind that is missing now. */
  readonly silentMs: number;
}

/** Where the monitor's findings go; the WorkerRegistry is one. False: that generation no longer has the slot. */
export interface FindingSink {
  setFacts(slot: number, generation: number, facts: ProbedFacts): boolean;
  /** `outage`: null: it is healthy, or was not found dead. */
  setHealthy(slot: number, generation: number, healthy: boolean, outage: Outage | null): boolean;
  /** It was found asleep, or (null) sleeps no more. */
  setSleeping(slot: number, generation: number, level: SleepLevel | null): boolean;
  setScraped(
    slot: number,
    generation: number,
    load: Pick<EngineLoad, 'running' | 'waiting' | 'kvUsage'>,
    nowSeconds: number,
  ): boolean;
}

/** `EngineClient.ask`, or a stand-in of tests: a request for a small answer that rejects with a MillraceError. */
export type WorkerAsk = (
  request: EngineRequest,
  deadlineMs: number,
  bytesMax: number,
) => Promise<{ status: number; body: string }>;

/**
 * How a request failed on a worker: nothing listened; the connection broke; the answer stopped coming; the answer was
 * none, which says nothing of the worker's health but is counted.
 */
export type DataPathFailure = 'unreachable' | 'reset' | 'stalled' | 'protocol';

/** The signals that speak against a worker: the label `cause` of `millrace_worker_failures_total`. */
export const FAILURE_CAUSES = ['unreachable', 'reset', 'stalled', 'protocol', 'health', 'canary'] as const;
/** One of FAILURE_CAUSES. */
export type FailureCause = (typeof FAILURE_CAUSES)[number];

/**
 * What became of a canary: the label `outcome` of `millrace_canaries_total`. answered: it made its token. late: not within
 * the deadline. failed: no connection, or an error of the engine. refused: the engine does not take such a request (status
 * 4xx), which says nothing.
 */
export const CANARY_OUTCOMES = ['answered', 'late', 'failed', 'refused'] as const;
/** One of CANARY_OUTCOMES. */
export type CanaryOutcome = (typeof CANARY_OUTCOMES)[number];

/** What has been counted of one worker since it was taken in. */
export interface HealthCounts {
  readonly failures: Readonly<Record<FailureCause, number>>;
  readonly canaries: Readonly<Record<CanaryOutcome, number>>;
}

/** What the monitor needs of its plane. */
export interface WorkerMonitorOptions {
  readonly clock: Clock;
  readonly log: Logger;
  readonly ask: WorkerAsk;
  readonly sink: FindingSink;
  /**
   * Compares our token ids with those of a worker that was just probed: the models for which they differ. Part of its
   * coming up, so that no request is sent by ids that the worker would read otherwise. A rejection fails the probe.
   */
  readonly findForeignIds: (worker: MonitoredWorker, facts: WorkerCapabilities) => Promise<readonly string[]>;
  /** The adapter of an engine by its name; every watched worker's engine has one. */
  readonly adapters: ReadonlyMap<string, EngineAdapter>;
  /** A number that is another one after each batch of tokens that a worker brought to requests. */
  readonly readActivity: (slot: number, generation: number) => number;
  readonly limits: Pick<
    Limits,
    | 'probeDeadlineMs'
    | 'probePeriodMs'
    | 'probeBytesMax'
    | 'probeFailuresMax'
    | 'scrapePeriodMs'
    | 'canaryAfterMs'
    | 'canaryDeadlineMs'
  >;
}
