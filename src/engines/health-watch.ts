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
 * A worker whose engine sleeps is not up and not tried: see health-sleep.ts. A stop that is shorter than one late check takes
 * nothing out. Going out keeps new requests away, and tells since when the missing sign of life is missing: requests move
 * streams that have had no token since, and no others.
 */

import { MillraceError } from '../errors.js';
import type { Timer } from '../runtime/clock.js';
import type { CanaryCall, EngineAdapter } from './contract.js';
import { type ControlAsk, controlRequest } from './control-contract.js';
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
import { type Fault, faultOf } from './health-fault.js';
import { Scrapes } from './health-scrape.js';
import { SleepLook } from './health-sleep.js';
import { readModels } from './probe-answers.js';

/** Wait after the first failed attempt to bring a worker up; doubles up to `probePeriodMs`. */
const BACK_OFF_START_MS = 100;
/** Routes of every engine that is known. */
const HEALTH_PATH = '/health';
const MODELS_PATH = '/v1/models';
const NO_BODY = new Uint8Array(0);

interface Answer {
  readonly status: number;
  readonly body: string;
}

/** What a worker is known by while it is up. */
interface Life {
  readonly adapter: EngineAdapter;
  readonly canary: CanaryCall;
  readonly isAsleep: boolean;
}

/** Of a sleep that this plane has not begun: how deep it is cannot be seen. */
const FOUND_SLEEP_LEVEL = 1;

/** See the head of the file. */
export class HealthWatch {
  readonly worker: MonitoredWorker;
  readonly #options: WorkerMonitorOptions;
  readonly #canaries: Canaries;
  readonly #scrapes: Scrapes;
  readonly #counts = {
    failures: Object.fromEntries(FAILURE_CAUSES.map(cause => [cause, 0])) as Record<FailureCause, number>,
    canaries: Object.fromEntries(CANARY_OUTCOMES.map(name => [name, 0])) as Record<CanaryOutcome, number>,
  };
  /** Null: it is not up. */
  #life: Life | null = null;
  /** Not null: its engine sleeps or is about to. */
  #sleep: SleepLook | null = null;
  /** Names of the models that it listed last. */
  #listed = '';
  #everUp = false;
  #stopped = false;
  #turn = 0;
  /** Failed health checks in a row, and canaries; when a check last passed. */
  #failedChecks = 0;
  #failedCanaries = 0;
  #passedMs = 0;
  /** Canaries took it out: only a canary brings it back. */
  #needsCanary = false;
  #saidRefused = false;
  #backOffMs = BACK_OFF_START_MS;
  #checking = false;
  #checkTimer: Timer | null = null;
  #lastReason = '';

  constructor(worker: MonitoredWorker, options: WorkerMonitorOptions) {
    this.worker = worker;
    this.#options = options;
    const { clock, limits, readActivity } = options;
    this.#scrapes = new Scrapes(worker, { ...options, get: path => this.#get(path) });
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
    this.#sleep?.stop();
    this.#checkTimer?.cancel();
    this.#scrapes.stop();
  }

  /** See WorkerMonitor. */
  rest(): void {
    if (this.#life === null) return;
    this.#sleep = new SleepLook({
      clock: this.#options.clock,
      periodMs: this.#options.limits.probePeriodMs,
      adapter: this.#life.adapter,
      ask: this.#askControl,
      onOver: () => this.#wokeByItself(),
    });
    this.#leaveUp();
    this.#checkTimer?.cancel();
    this.#scrapes.clear();
  }

  /** See WorkerMonitor. */
  watchSleep(): void {
    this.#sleep?.start();
  }

  /** See WorkerMonitor. */
  rise(): void {
    if (this.#sleep === null) return;
    this.#sleep.stop();
    this.#sleep = null;
    this.#backOffMs = BACK_OFF_START_MS;
    void this.#check();
  }

  /** See WorkerMonitor. */
  async refresh(): Promise<void> {
    const turn = this.#turn;
    if (this.#life === null) return;
    try {
      const { facts } = await this.#probe();
      if (turn === this.#turn) this.#tellFacts(facts);
    } catch (error) {
      const { reason } = faultOf(error);
      this.#options.log.warn('worker does not tell its models', { ...this.#name(), reason });
    }
  }

  #wokeByItself(): void {
    const { sink, log } = this.#options;
    const { slot, generation } = this.worker;
    log.info('worker sleeps no more, and not because of this plane', this.#name());
    sink.setHealthy(slot, generation, false, null);
    if (sink.setSleeping(slot, generation, null)) this.rise();
    else this.stop();
  }

  /** A request failed on it. */
  reportFailure(failure: DataPathFailure): void {
    this.#counts.failures[failure]++;
    if (this.#life === null || failure === 'protocol') return;
    if (failure === 'unreachable') this.#goDown('requests cannot reach it', 'unreachable', this.#passedMs);
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

  /** Adapters come and go while a worker is up, and not only through this plane. */
  async #lookAtModels(): Promise<void> {
    const turn = this.#turn;
    try {
      const { models } = readModels(await this.#get(MODELS_PATH));
      if (turn === this.#turn && namesOf(models) !== this.#listed) await this.refresh();
    } catch {
      // Its health is judged by the health route; the models stay as they were.
    }
  }

  async #probe(): Promise<{ life: Life; facts: ProbedFacts }> {
    const { adapters, findForeignIds } = this.#options;
    const { url, rank, engine: named } = this.worker;
    const get = (path: string): Promise<Answer> => this.#get(path);
    const adapter = adapters.get(named === AUTO_ENGINE ? await detectEngine(get, adapters) : named)!;
    const probed = await adapter.probe(get, url);
    const facts = { ...probed, foreignIds: await findForeignIds(this.worker, probed) };
    const model = facts.models.find(one => one.adapter !== true) ?? facts.models[0]!;
    const isAsleep = (await adapter.control.isSleeping(this.#askControl)) === true;
    const life = { adapter, canary: adapter.canary(model.id, rank), isAsleep };
    this.#listed = namesOf(probed.models);
    if (this.#needsCanary && !isAsleep) {
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
    void this.#lookAtModels();
  }

  /** False: the slot has another tenant now, and this watch has ended. */
  #tellFacts(facts: ProbedFacts): boolean {
    const { slot, generation } = this.worker;
    const isHeld = this.#options.sink.setFacts(slot, generation, facts);
    if (!isHeld) this.stop();
    return isHeld;
  }

  #failed({ reason, isRefused }: Fault): void {
    const { limits, log } = this.#options;
    if (this.#life !== null) {
      const cause = isRefused ? 'unreachable' : 'health';
      this.#counts.failures[cause]++;
      if (++this.#failedChecks >= limits.probeFailuresMax || isRefused)
        this.#goDown(reason, cause, this.#passedMs);
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
    this.#goDown(reason, 'canary', this.#canaries.silentSinceMs);
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
    if (!this.#tellFacts(facts)) return;
    if (life.isAsleep) {
      log.info('worker sleeps', this.#name());
      sink.setSleeping(slot, generation, FOUND_SLEEP_LEVEL);
      this.rest();
      this.watchSleep();
      return;
    }
    if (!sink.setHealthy(slot, generation, true, null)) {
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
    this.#scrapes.start(life.adapter);
  }

  #goDown(reason: string, cause: Outage['cause'], aliveMs: number): void {
    const { sink, log, clock } = this.#options;
    const { slot, generation } = this.worker;
    this.#leaveUp();
    this.#backOffMs = BACK_OFF_START_MS;
    this.#lastReason = reason;
    log.warn('worker is unavailable', { ...this.#name(), reason });
    this.#scrapes.clear();
    if (sink.setHealthy(slot, generation, false, { cause, silentMs: clock.nowMs() - aliveMs }))
      this.#checkAfter(this.#backOffMs);
    else this.stop();
  }

  /** It is not up any more; answers that are on their way are dropped. */
  #leaveUp(): void {
    this.#life = null;
    this.#turn++;
    this.#checking = false;
    this.#canaries.stop();
    this.#scrapes.stop();
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

  readonly #askControl: ControlAsk = (method, path, body) => {
    const { ask, limits } = this.#options;
    const request = controlRequest(this.worker.url, method, path, body);
    return ask(request, limits.probeDeadlineMs, limits.probeBytesMax);
  };

  #sendCanary(call: CanaryCall): Promise<Answer> {
    const { ask, limits } = this.#options;
    return ask({ origin: this.worker.url, ...call }, limits.canaryDeadlineMs, limits.probeBytesMax);
  }

  #name(): { worker: string; slot: number; generation: number } {
    return { worker: this.worker.url, slot: this.worker.slot, generation: this.worker.generation };
  }
}

const namesOf = (models: readonly { readonly id: string }[]): string =>
  JSON.stringify(models.map(({ id }) => id).sort());
