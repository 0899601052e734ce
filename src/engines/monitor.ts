/**
 * The health monitor: probes every worker, checks that it stays alive and scrapes its load. A worker is down until it
 * answers its health route and a full probe (tried with back-off), then up: health every `probePeriodMs`, metrics every
 * `scrapePeriodMs`. It goes down after `probeFailuresMax` failed checks in a row, or at once when nothing listens any
 * more. Coming up again is a new probe, because the process may be a new one with another model. Runs on the thread of
 * the registry; the data path tells it of failures, so that a dead worker is out of rotation before the next check.
 */

import { ConfigError, MillraceError } from '../errors.js';
import type { Limits } from '../limits.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { Logger } from '../runtime/logger.js';
import type { EngineAdapter, EngineLoad, WorkerCapabilities } from './contract.js';

/** Wait after the first failed attempt to bring a worker up; doubles up to `probePeriodMs`. */
const BACK_OFF_START_MS = 100;

const UNKNOWN_LOAD = { running: null, waiting: null, kvUsage: null };

/** A worker to watch; the registry's entries are such. */
export interface MonitoredWorker {
  readonly slot: number;
  readonly generation: number;
  /** Origin of the worker. */
  readonly url: string;
  readonly engine: string;
}

/** What a probe taught, and the models whose token ids are not ours (`foreignIds` of WorkerView). */
export type ProbedFacts = WorkerCapabilities & { readonly foreignIds: readonly string[] };

/** Where the monitor's findings go; the WorkerRegistry is one. False: that generation no longer has the slot. */
export interface FindingSink {
  setFacts(slot: number, generation: number, facts: ProbedFacts): boolean;
  setHealthy(slot: number, generation: number, healthy: boolean): boolean;
  setScraped(
    slot: number,
    generation: number,
    load: Pick<EngineLoad, 'running' | 'waiting' | 'kvUsage'>,
    nowSeconds: number,
  ): boolean;
}

/** `EngineClient.get`, or a stand-in of tests: a GET that rejects with a MillraceError. */
export type WorkerGet = (
  origin: string,
  path: string,
  deadlineMs: number,
  bytesMax: number,
) => Promise<{ status: number; body: string }>;

/** How a request failed on a worker: nothing listened; the connection broke; the answer stopped coming. */
export type DataPathFailure = 'unreachable' | 'reset' | 'stalled';

/** What the monitor needs of its plane. */
export interface WorkerMonitorOptions {
  readonly clock: Clock;
  readonly log: Logger;
  readonly get: WorkerGet;
  readonly sink: FindingSink;
  /**
   * Compares our token ids with those of a worker that was just probed: the models for which they differ. Part of its
   * coming up, so that no request is sent by ids that the worker would read otherwise. A rejection fails the probe.
   */
  readonly findForeignIds: (worker: MonitoredWorker, facts: WorkerCapabilities) => Promise<readonly string[]>;
  /** The adapter of an engine by its name; every watched worker's engine has one. */
  readonly adapters: ReadonlyMap<string, EngineAdapter>;
  readonly limits: Pick<
    Limits,
    'probeDeadlineMs' | 'probePeriodMs' | 'probeBytesMax' | 'probeFailuresMax' | 'scrapePeriodMs'
  >;
}

/** All workers of the registry's thread. */
export class WorkerMonitor {
  readonly #options: WorkerMonitorOptions;
  readonly #watches = new Map<number, Watch>();

  constructor(options: WorkerMonitorOptions) {
    this.#options = options;
  }

  /** Starts to watch a worker; the first probe leaves at once. An older generation in the slot is forgotten. */
  watch(worker: MonitoredWorker): void {
    const adapter = this.#options.adapters.get(worker.engine);
    if (adapter === undefined) {
      throw new ConfigError(`no adapter for engine "${worker.engine}" of worker ${worker.url}`);
    }
    this.#watches.get(worker.slot)?.stop();
    const watch = new Watch(worker, adapter, this.#options);
    this.#watches.set(worker.slot, watch);
    watch.start();
  }

  /** Forgets a worker; an answer still on its way is dropped. */
  unwatch(slot: number, generation: number): void {
    const watch = this.#watches.get(slot);
    if (watch?.worker.generation !== generation) return;
    watch.stop();
    this.#watches.delete(slot);
  }

  /** Told by the data path, on the monitor's thread. */
  reportFailure(slot: number, generation: number, failure: DataPathFailure): void {
    const watch = this.#watches.get(slot);
    if (watch?.worker.generation === generation) watch.reportFailure(failure);
  }

  /** Ends all timers; nothing reaches the sink any more. */
  stop(): void {
    for (const watch of this.#watches.values()) watch.stop();
    this.#watches.clear();
  }
}

/** One worker. `#turn` counts life changes: an answer that was asked for in an earlier turn is dropped. */
class Watch {
  readonly worker: MonitoredWorker;
  readonly #adapter: EngineAdapter;
  readonly #options: WorkerMonitorOptions;
  #up = false;
  #everUp = false;
  #stopped = false;
  #turn = 0;
  #failures = 0;
  #backOffMs = BACK_OFF_START_MS;
  #checking = false;
  #checkTimer: Timer | null = null;
  #scrapeTimer: Timer | null = null;
  #scrapeFailed = false;
  #lastReason = '';

  constructor(worker: MonitoredWorker, adapter: EngineAdapter, options: WorkerMonitorOptions) {
    this.worker = worker;
    this.#adapter = adapter;
    this.#options = options;
  }

  start(): void {
    void this.#check();
  }

  stop(): void {
    this.#stopped = true;
    this.#turn++;
    this.#checkTimer?.cancel();
    this.#scrapeTimer?.cancel();
  }

  reportFailure(failure: DataPathFailure): void {
    if (this.#up && failure === 'unreachable') this.#goDown('requests cannot reach it');
    // A broken or silent stream may be one request's bad luck: ask the worker itself, now.
    else if (this.#up && !this.#checking) void this.#check();
  }

  /** One attempt to bring the worker up, or one check that it still is; then sets the timer of the next. */
  async #check(): Promise<void> {
    const turn = this.#turn;
    this.#checkTimer?.cancel();
    this.#checking = true;
    let reason: string | null = null;
    let refused = false;
    let facts: ProbedFacts | null = null;
    try {
      const { status } = await this.#get(this.#adapter.healthPath);
      if (status !== 200) reason = `${this.#adapter.healthPath} answered ${status}`;
      else if (!this.#up) {
        const probed = await this.#adapter.probe(path => this.#get(path), this.worker.url);
        facts = { ...probed, foreignIds: await this.#options.findForeignIds(this.worker, probed) };
      }
    } catch (error) {
      reason = error instanceof Error ? error.message : String(error);
      refused = error instanceof MillraceError && error.code === 'MILLRACE_WORKER_UNREACHABLE';
    }
    if (turn !== this.#turn) return;
    this.#checking = false;
    if (reason !== null) this.#failed(reason, refused);
    else if (facts !== null) this.#comeUp(facts);
    else this.#passed();
  }

  #passed(): void {
    this.#failures = 0;
    this.#checkAfter(this.#options.limits.probePeriodMs);
  }

  #failed(reason: string, refused: boolean): void {
    const { limits, log } = this.#options;
    if (this.#up) {
      this.#failures++;
      if (refused || this.#failures >= limits.probeFailuresMax) this.#goDown(reason);
      else this.#checkAfter(limits.probePeriodMs);
      return;
    }
    if (reason !== this.#lastReason)
      log.warn('worker does not answer its probe', { ...this.#name(), reason });
    this.#lastReason = reason;
    this.#checkAfter(this.#backOffMs);
    this.#backOffMs = Math.min(this.#backOffMs * 2, limits.probePeriodMs);
  }

  #comeUp(facts: ProbedFacts): void {
    const { sink, log, limits } = this.#options;
    const { slot, generation } = this.worker;
    this.#up = true;
    this.#failures = 0;
    this.#lastReason = '';
    if (!sink.setFacts(slot, generation, facts) || !sink.setHealthy(slot, generation, true)) {
      this.stop();
      return;
    }
    log.info(this.#everUp ? 'worker is back' : 'worker is ready', {
      ...this.#name(),
      version: facts.version,
      models: facts.models.map(model => model.id).join(','),
      blockSize: facts.blockSize,
      totalBlocks: facts.totalBlocks,
      tokenIds: facts.returnsTokenIds,
    });
    for (const notice of facts.notices) log.warn('worker could serve better', { ...this.#name(), notice });
    this.#everUp = true;
    this.#checkAfter(limits.probePeriodMs);
    void this.#scrape();
  }

  #goDown(reason: string): void {
    const { sink, log } = this.#options;
    const { slot, generation } = this.worker;
    this.#up = false;
    this.#turn++;
    this.#checking = false;
    this.#backOffMs = BACK_OFF_START_MS;
    this.#lastReason = reason;
    this.#scrapeTimer?.cancel();
    log.warn('worker is unavailable', { ...this.#name(), reason });
    this.#clearLoad();
    if (sink.setHealthy(slot, generation, false)) this.#checkAfter(this.#backOffMs);
    else this.stop();
  }

  async #scrape(): Promise<void> {
    const turn = this.#turn;
    const { sink, clock, log, limits } = this.#options;
    const { slot, generation } = this.worker;
    let reason: string | null = null;
    let load: EngineLoad | null = null;
    try {
      const { status, body } = await this.#get(this.#adapter.metricsPath);
      if (status === 200) load = this.#adapter.parseMetrics(body);
      else reason = `${this.#adapter.metricsPath} answered ${status}`;
    } catch (error) {
      reason = error instanceof Error ? error.message : String(error);
    }
    if (turn !== this.#turn) return;
    if (load !== null) sink.setScraped(slot, generation, load, clock.nowMs() / 1000);
    else if (!this.#scrapeFailed) {
      log.warn('worker metrics cannot be read', { ...this.#name(), reason });
      // An old figure looks like a fact: unknown is better.
      this.#clearLoad();
    }
    this.#scrapeFailed = load === null;
    this.#scrapeTimer = clock.after(limits.scrapePeriodMs, () => void this.#scrape());
  }

  #clearLoad(): void {
    const { sink, clock } = this.#options;
    sink.setScraped(this.worker.slot, this.worker.generation, UNKNOWN_LOAD, clock.nowMs() / 1000);
  }

  #checkAfter(delayMs: number): void {
    if (this.#stopped) return;
    this.#checkTimer?.cancel();
    this.#checkTimer = this.#options.clock.after(delayMs, () => void this.#check());
  }

  #get(path: string): Promise<{ status: number; body: string }> {
    const { get, limits } = this.#options;
    return get(this.worker.url, path, limits.probeDeadlineMs, limits.probeBytesMax);
  }

  #name(): { worker: string; slot: number; generation: number } {
    return { worker: this.worker.url, slot: this.worker.slot, generation: this.worker.generation };
  }
}
