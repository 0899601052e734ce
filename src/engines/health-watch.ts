/**
 * The health of one worker (R5): whether it may be sent requests, from every signal that there is. Owned by the monitor, on
 * its thread. `#turn` counts life changes: an answer that was asked for in an earlier turn is dropped.
 *
 *     ┌─────────────┐  health route, probe, ids (and a canary, where    ┌─────────┐ ◄─────────────────┐
 *     │ probing or  │  canaries took it out) ─────────────────────────► │   up    │                   │
 *     │ unavailable │  tried after 100 ms, doubled up to probePeriodMs  └────┬────┘                   │
 *     └──────▲──────┘                                                        │ a check fails          │ the same
 *            │                                                               ▼                        │ check passes
 *            │        probeFailuresMax failures of one kind in a row    ┌─────────┐  still in         │
 *            └───────────────────────────────────────────────────────── │ suspect │  rotation ────────┘
 *                     at once, from up too: nothing listens there       └─────────┘
 *
 *     signal                            seen after, at most
 *     nothing listens                   the next request or health check; out at once
 *     health route wrong or late        (probePeriodMs + probeDeadlineMs) × probeFailuresMax
 *     no token, not of a canary either  1.25 × canaryAfterMs + canaryDeadlineMs × probeFailuresMax
 *     a connection broke                the health route is asked at once; counts if that fails
 *     a stream went silent              firstTokenDeadlineMs or betweenTokensDeadlineMs, then as above, with a canary
 *
 * A stop that is shorter than one late check takes nothing out. Going out keeps new requests away, and tells since when the
 * missing sign of life is missing: requests move streams that have had no token since, and no others.
 */

import { MillraceError } from '../errors.js';
import type { Timer } from '../runtime/clock.js';
import type { CanaryCall, EngineAdapter, EngineLoad } from './contract.js';
import { detectEngine } from './engine-detection.js';
import { Canaries, type CanaryEnd, sendCanary } from './health-canary.js';
import {
  AUTO_ENGINE,
  CANARY_OUTCOMES,
  type CanaryOutcome,
  type DataPathFailure,
  FAILURE_CAUSES,
  type FailureCause,
  type HealthCounts,
  type MonitoredWorker,
  type Outage,
  type ProbedFacts,
  type WorkerMonitorOptions,
} from './health-contract.js';

/** Wait after the first failed attempt to bring a worker up; doubles up to `probePeriodMs`. */
const BACK_OFF_START_MS = 100;
/** The health route of every engine that is known. */
const HEALTH_PATH = '/health';
const NO_BODY = new Uint8Array(0);
const UNKNOWN_LOAD = { running: null, waiting: null, kvUsage: null };

interface Answer {
  readonly status: number;
  readonly body: string;
}

/** How a check failed. */
interface Fault {
  readonly reason: string;
  /** Nothing listened. */
  readonly isRefused: boolean;
  /** No answer within the deadline. */
  readonly isLate: boolean;
}

/** What a worker is known by while it is up. */
interface Life {
  readonly adapter: EngineAdapter;
  readonly canary: CanaryCall;
}

/** See the head of the file. */
export class HealthWatch {
  readonly worker: MonitoredWorker;
  readonly #options: WorkerMonitorOptions;
  readonly #canaries: Canaries;
  readonly #counts = {
    failures: Object.fromEntries(FAILURE_CAUSES.map(cause => [cause, 0])) as Record<FailureCause, number>,
    canaries: Object.fromEntries(CANARY_OUTCOMES.map(name => [name, 0])) as Record<CanaryOutcome, number>,
  };
  /** Null: it is not up. */
  #life: Life | null = null;
  #everUp = false;
  #stopped = false;
  #turn = 0;
  /** Failed health checks in a row, and canaries. */
  #failedChecks = 0;
  #failedCanaries = 0;
  /** When it last passed a health check. */
  #passedMs = 0;
  /** Canaries took it out: only a canary brings it back. */
  #needsCanary = false;
  #saidRefused = false;
  #backOffMs = BACK_OFF_START_MS;
  #checking = false;
  #checkTimer: Timer | null = null;
  #scrapeTimer: Timer | null = null;
  #scrapeFailed = false;
  #lastReason = '';

  constructor(worker: MonitoredWorker, options: WorkerMonitorOptions) {
    this.worker = worker;
    this.#options = options;
    const { clock, limits, readActivity } = options;
    this.#canaries = new Canaries({
      clock,
      afterMs: limits.canaryAfterMs,
      deadlineMs: limits.canaryDeadlineMs,
      send: () => this.#sendCanary(this.#life!.canary),
      readActivity: () => readActivity(worker.slot, worker.generation),
      onTokens: () => {
        this.#failedCanaries = 0;
      },
      onEnd: (end, isSilent) => this.#onCanary(end, isSilent),
    });
  }

  /** What has been counted since `start`. */
  get counts(): HealthCounts {
    return this.#counts;
  }

  start(): void {
    void this.#check();
  }

  stop(): void {
    this.#stopped = true;
    this.#turn++;
    this.#canaries.stop();
    this.#checkTimer?.cancel();
    this.#scrapeTimer?.cancel();
  }

  /** A request failed on it. */
  reportFailure(failure: DataPathFailure): void {
    this.#counts.failures[failure]++;
    if (this.#life === null || failure === 'protocol') return;
    if (failure === 'unreachable')
      this.#goDown('requests cannot reach it', { cause: 'unreachable', silentMs: this.#uncheckedMs });
    else {
      // A broken or silent stream may be one request's bad luck: ask the worker itself, now.
      if (!this.#checking) void this.#check();
      if (failure === 'stalled') this.#canaries.askNow();
    }
  }

  /** One attempt to bring the worker up, or one check that it still is; then sets the timer of the next. */
  async #check(): Promise<void> {
    const turn = this.#turn;
    const { slot, generation } = this.worker;
    const activity = this.#options.readActivity(slot, generation);
    this.#checkTimer?.cancel();
    this.#checking = true;
    let fault: Fault | null = null;
    let found: { life: Life; facts: ProbedFacts } | null = null;
    try {
      const path = this.#life?.adapter.healthPath ?? HEALTH_PATH;
      const { status } = await this.#get(path);
      if (status !== 200) fault = { reason: `${path} answered ${status}`, isRefused: false, isLate: false };
      else if (this.#life === null) found = await this.#probe();
    } catch (error) {
      fault = faultOf(error);
    }
    if (turn !== this.#turn) return;
    this.#checking = false;
    // A busy server may be late with its health route; one that makes tokens is alive.
    const isAlive = fault?.isLate === true && this.#options.readActivity(slot, generation) !== activity;
    if (fault !== null && !(isAlive && this.#life !== null)) this.#failed(fault);
    else if (found !== null) this.#comeUp(found.life, found.facts);
    else this.#passed();
  }

  async #probe(): Promise<{ life: Life; facts: ProbedFacts }> {
    const { adapters, findForeignIds } = this.#options;
    const { url, rank, engine: named } = this.worker;
    const get = (path: string): Promise<Answer> => this.#get(path);
    const adapter = adapters.get(named === AUTO_ENGINE ? await detectEngine(get, adapters) : named)!;
    const probed = await adapter.probe(get, url);
    const facts = { ...probed, foreignIds: await findForeignIds(this.worker, probed) };
    const model = facts.models.find(one => one.adapter !== true) ?? facts.models[0]!;
    const life = { adapter, canary: adapter.canary(model.id, rank) };
    if (this.#needsCanary) {
      const { outcome, reason } = await sendCanary(() => this.#sendCanary(life.canary));
      this.#counts.canaries[outcome]++;
      if (outcome === 'late' || outcome === 'failed')
        throw new MillraceError('MILLRACE_WORKER_STALLED', reason);
    }
    return { life, facts };
  }

  #passed(): void {
    this.#failedChecks = 0;
    this.#passedMs = this.#options.clock.nowMs();
    this.#checkAfter(this.#options.limits.probePeriodMs);
  }

  /** Milliseconds since the last health check that passed. */
  get #uncheckedMs(): number {
    return this.#options.clock.nowMs() - this.#passedMs;
  }

  #failed({ reason, isRefused }: Fault): void {
    const { limits, log } = this.#options;
    if (this.#life !== null) {
      this.#failedChecks++;
      const cause = isRefused ? 'unreachable' : 'health';
      this.#counts.failures[cause]++;
      if (isRefused || this.#failedChecks >= limits.probeFailuresMax)
        this.#goDown(reason, { cause, silentMs: this.#uncheckedMs });
      else this.#checkAfter(limits.probePeriodMs);
      return;
    }
    if (reason !== this.#lastReason)
      log.warn('worker does not answer its probe', { ...this.#name(), reason });
    this.#lastReason = reason;
    this.#checkAfter(this.#backOffMs);
    this.#backOffMs = Math.min(this.#backOffMs * 2, limits.probePeriodMs);
  }

  #onCanary({ outcome, reason }: CanaryEnd, isSilent: boolean): void {
    const { limits, log } = this.#options;
    this.#counts.canaries[outcome]++;
    if (outcome === 'refused' && !this.#saidRefused) {
      this.#saidRefused = true;
      log.warn('worker does not take canary requests: only its health route is watched', {
        ...this.#name(),
        reason,
      });
    }
    if (!isSilent) {
      this.#failedCanaries = 0;
      return;
    }
    this.#counts.failures.canary++;
    if (++this.#failedCanaries < limits.probeFailuresMax) return;
    this.#needsCanary = true;
    const silentMs = this.#options.clock.nowMs() - this.#canaries.silentSinceMs;
    this.#goDown(reason, { cause: 'canary', silentMs });
  }

  #comeUp(life: Life, facts: ProbedFacts): void {
    const { sink, log, limits, clock } = this.#options;
    const { slot, generation } = this.worker;
    this.#life = life;
    this.#failedChecks = 0;
    this.#passedMs = clock.nowMs();
    this.#failedCanaries = 0;
    this.#needsCanary = false;
    this.#lastReason = '';
    if (!sink.setFacts(slot, generation, facts) || !sink.setHealthy(slot, generation, true, null)) {
      this.stop();
      return;
    }
    log.info(this.#everUp ? 'worker is back' : 'worker is ready', {
      ...this.#name(),
      engine: facts.engine,
      version: facts.version,
      models: facts.models.map(model => model.id).join(','),
      blockSize: facts.blockSize,
      totalBlocks: facts.totalBlocks,
      tokenIds: facts.returnsTokenIds,
    });
    if (!this.#everUp)
      for (const notice of facts.notices) log.warn('worker could serve better', { ...this.#name(), notice });
    this.#everUp = true;
    this.#checkAfter(limits.probePeriodMs);
    this.#canaries.start();
    void this.#scrape();
  }

  #goDown(reason: string, outage: Outage): void {
    const { sink, log } = this.#options;
    const { slot, generation } = this.worker;
    this.#life = null;
    this.#turn++;
    this.#checking = false;
    this.#backOffMs = BACK_OFF_START_MS;
    this.#lastReason = reason;
    this.#canaries.stop();
    this.#scrapeTimer?.cancel();
    log.warn('worker is unavailable', { ...this.#name(), reason });
    this.#clearLoad();
    if (sink.setHealthy(slot, generation, false, outage)) this.#checkAfter(this.#backOffMs);
    else this.stop();
  }

  async #scrape(): Promise<void> {
    const turn = this.#turn;
    const { sink, clock, log, limits } = this.#options;
    const { slot, generation } = this.worker;
    const { adapter } = this.#life!;
    let reason: string | null = null;
    let load: EngineLoad | null = null;
    try {
      const { status, body } = await this.#get(adapter.metricsPath);
      if (status === 200) load = adapter.parseMetrics(body);
      else reason = `${adapter.metricsPath} answered ${status}`;
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

  #get(path: string): Promise<Answer> {
    const { ask, limits } = this.#options;
    const request = { origin: this.worker.url, method: 'GET', path, head: [], body: NO_BODY };
    return ask(request, limits.probeDeadlineMs, limits.probeBytesMax);
  }

  #sendCanary(call: CanaryCall): Promise<Answer> {
    const { ask, limits } = this.#options;
    return ask({ origin: this.worker.url, ...call }, limits.canaryDeadlineMs, limits.probeBytesMax);
  }

  #name(): { worker: string; slot: number; generation: number } {
    return { worker: this.worker.url, slot: this.worker.slot, generation: this.worker.generation };
  }
}

function faultOf(error: unknown): Fault {
  const code = error instanceof MillraceError ? error.code : null;
  return {
    reason: error instanceof Error ? error.message : String(error),
    isRefused: code === 'MILLRACE_WORKER_UNREACHABLE',
    isLate: code === 'MILLRACE_WORKER_STALLED',
  };
}
