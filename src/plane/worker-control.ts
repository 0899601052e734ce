/**
 * What operators change of an engine while it serves (R1, R5): its LoRA adapters, and whether it sleeps. One change of a
 * worker at a time; all ranks behind a URL are one engine. Owned by the core, on its thread.
 *
 *     ready ──sleep──► sleeping: nothing new is sent, it is not looked at any more
 *                        │  until it carries nothing; after drainDeadlineMs what is left is moved to other workers
 *                        ▼
 *                      the engine is told to sleep ──wake──► the engine is told to wake ──► probed ──► ready
 */
import { strict as assert } from 'node:assert';
import type { RegisteredWorker, WorkerRegistry } from '../discovery/registry.js';
import type { EngineAdapter } from '../engines/contract.js';
import {
  type AdapterSource,
  type ControlAsk,
  type ControlOutcome,
  controlRequest,
  type SleepLevel,
} from '../engines/control-contract.js';
import type { WorkerAsk } from '../engines/health-contract.js';
import type { WorkerMonitor } from '../engines/monitor.js';
import { InvalidRequestError, MillraceError, RejectedError, WorkerError } from '../errors.js';
import type { Limits } from '../limits.js';
import type { WorkerModel } from '../messages/records.js';
import type { LoadTable } from '../router/load-table.js';
import type { Clock } from '../runtime/clock.js';
import type { Logger } from '../runtime/logger.js';

/** How often a worker that falls asleep or wakes up is looked at. */
const POLL_MS = 200;

/** What it needs of its fleet. */
export interface WorkerControlOptions {
  readonly registry: WorkerRegistry;
  readonly monitor: Pick<WorkerMonitor, 'rest' | 'watchSleep' | 'rise' | 'refresh'>;
  readonly adapters: ReadonlyMap<string, EngineAdapter>;
  readonly ask: WorkerAsk;
  readonly loadTable: LoadTable;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly limits: Pick<Limits, 'controlDeadlineMs' | 'drainDeadlineMs' | 'probeBytesMax'>;
  /** What a worker has cached is gone; resolves when the index knows it. Never rejects. */
  readonly forgetCache: (worker: RegisteredWorker) => Promise<void>;
  /** Has the socket threads move what runs on a worker to other ones. */
  readonly moveAway: (slot: number, generation: number) => void;
  /** A link process looks at the engine by itself. */
  readonly isLinked: (url: string) => boolean;
}

/** What became of an adapter on one worker. */
export interface AdapterResult {
  readonly url: string;
  readonly outcome: 'loaded' | 'unloaded' | 'already' | 'failed';
  /** Why it failed. */
  readonly message?: string;
}

/** The state of a worker after a sleep or a wake. */
export interface SleepResult {
  readonly url: string;
  readonly state: RegisteredWorker['state'];
  readonly sleepLevel: SleepLevel | null;
}

const bad = (message: string, param: string): InvalidRequestError =>
  new InvalidRequestError('MILLRACE_INVALID_REQUEST', message, { param });

/** See the head of the file. */
export class WorkerControl {
  readonly #options: WorkerControlOptions;
  /** Workers that are being changed. */
  readonly #busy = new Set<string>();
  /** Adapters of engines that do not hold them themselves, by URL. */
  readonly #brought = new Map<string, Map<string, string>>();
  #isStopped = false;

  constructor(options: WorkerControlOptions) {
    this.#options = options;
  }

  /** Waits end, without a result. */
  stop(): void {
    this.#isStopped = true;
  }

  /** A worker has left; what was known of its adapters goes with it. */
  forget(url: string): void {
    this.#brought.delete(url);
  }

  /** The models of a worker: those that it lists, and the adapters that requests bring to it. */
  modelsOf(url: string, listed: readonly WorkerModel[]): readonly WorkerModel[] {
    const base = listed.find(model => model.adapter !== true);
    const brought = this.#brought.get(url);
    if (base === undefined || brought === undefined) return listed;
    const { id: parent, contextLength } = base;
    const added = [...brought].map(
      ([id, path]): WorkerModel => ({ id, contextLength, adapter: true, parent, path }),
    );
    return [...listed, ...added];
  }

  /**
   * Loads an adapter on the workers at `urls`, or on all that serve; null. Every one of them is in the answer. Rejects with
   * InvalidRequestError where the workers do not go together with it.
   */
  async load(adapter: AdapterSource, urls: readonly string[] | null): Promise<readonly AdapterResult[]> {
    const targets = this.#targets(urls);
    const bases = new Set(targets.flatMap(({ facts }) => facts!.models.filter(isBase).map(({ id }) => id)));
    if (bases.has(adapter.name)) throw bad(`name is "${adapter.name}", which is a model of its own`, 'name');
    if (urls === null && bases.size > 1)
      throw bad('workers must be given: they serve several models, and an adapter is for one', 'workers');
    return Promise.all(targets.map(worker => this.#change(worker, () => this.#load(worker, adapter))));
  }

  /** Unloads an adapter from the workers at `urls`, or from all that have it; null. As `load`. */
  async unload(name: string, urls: readonly string[] | null): Promise<readonly AdapterResult[]> {
    const holds = ({ facts }: RegisteredWorker): boolean =>
      facts!.models.some(model => model.id === name && model.adapter === true);
    const targets = this.#targets(urls).filter(worker => urls !== null || holds(worker));
    if (targets.length === 0)
      throw new InvalidRequestError('MILLRACE_NOT_FOUND', `no worker has an adapter "${name}"`, {
        param: 'name',
      });
    return Promise.all(targets.map(worker => this.#change(worker, () => this.#unload(worker, name))));
  }

  /** Puts the worker at a URL to sleep. Rejects with MillraceError; it serves as before then. */
  async sleep(url: string, level: SleepLevel): Promise<SleepResult> {
    const [worker] = this.#at(url);
    if (worker!.state === 'sleeping' && worker!.sleepLevel === level && !this.#busy.has(url))
      return this.#resultOf(url);
    if (worker!.state !== 'ready')
      throw bad(`the worker is ${worker!.state}; only a ready one can sleep`, 'url');
    if (level === 2 && worker!.facts!.models.some(model => model.adapter === true))
      throw bad(
        'level must be 1 for a worker with adapters: level 2 loses them; or unload them first',
        'level',
      );
    // A link process sends canaries of its own, which end an engine that sleeps and cannot say so.
    if (worker!.facts!.engine === 'sglang' && this.#options.isLinked(url))
      throw bad('the worker is linked: its link process would still send it canaries', 'url');
    await this.#alone(url, () => this.#fallAsleep(url, level));
    return this.#resultOf(url);
  }

  /** Wakes the worker at a URL; `level`: how deep it sleeps, null for what is known. Rejects with MillraceError. */
  async wake(url: string, level: SleepLevel | null): Promise<SleepResult> {
    const [worker] = this.#at(url);
    if (worker!.state === 'ready') return this.#resultOf(url);
    if (worker!.sleepLevel === null)
      throw bad(`the worker is ${worker!.state}; only a sleeping one wakes`, 'url');
    await this.#alone(url, () => this.#wakeUp(url, level ?? worker!.sleepLevel!));
    return this.#resultOf(url);
  }

  async #fallAsleep(url: string, level: SleepLevel): Promise<void> {
    const { registry, monitor, logger } = this.#options;
    const workers = this.#at(url);
    for (const { slot, generation } of workers) {
      monitor.rest(slot, generation);
      registry.setSleeping(slot, generation, level);
    }
    try {
      await this.#carriesNothing(workers);
      await this.#tellSleep(workers[0]!, level);
    } catch (error) {
      this.#bringUp(workers);
      throw error;
    }
    for (const { slot, generation } of workers) monitor.watchSleep(slot, generation);
    await Promise.all(workers.map(this.#options.forgetCache));
    logger.info('worker sleeps', { worker: url, level });
  }

  async #tellSleep(worker: RegisteredWorker, level: SleepLevel): Promise<void> {
    const { control } = this.#engineOf(worker);
    const ask = this.#askOf(worker);
    try {
      must(await control.sleep(ask, level), 'sleep');
    } catch (error) {
      // Late is not never: what counts is how the engine is now.
      if ((await control.isSleeping(ask).catch(() => null)) !== true) throw error;
    }
  }

  async #wakeUp(url: string, level: SleepLevel): Promise<void> {
    const { clock, limits, logger, forgetCache, registry } = this.#options;
    const workers = this.#at(url);
    must(await this.#engineOf(workers[0]!).control.wake(this.#askOf(workers[0]!), level), 'wake');
    logger.info('worker wakes up', { worker: url });
    // Events from before the sleep may have come after it was forgotten.
    await Promise.all(workers.map(forgetCache));
    this.#bringUp(workers);
    const endMs = clock.nowMs() + limits.controlDeadlineMs;
    const isUp = (): boolean =>
      workers.every(({ slot, generation }) => {
        const state = registry.get(slot, generation)?.state;
        return state === undefined || state === 'ready' || state === 'draining';
      });
    await this.#until(() => isUp() || clock.nowMs() >= endMs);
  }

  /** Its engine is awake, or was never asleep: it serves again once it has answered a probe. */
  #bringUp(workers: readonly RegisteredWorker[]): void {
    const { registry, monitor } = this.#options;
    for (const { slot, generation } of workers) {
      registry.setHealthy(slot, generation, false);
      registry.setSleeping(slot, generation, null);
      monitor.rise(slot, generation);
    }
  }

  /** Resolves when the workers carry no request: at first of themselves, then because all are moved. */
  async #carriesNothing(workers: readonly RegisteredWorker[]): Promise<void> {
    const { clock, limits, loadTable, moveAway } = this.#options;
    const startMs = clock.nowMs();
    const carried = (): number =>
      workers.reduce((sum, { slot, generation }) => sum + loadTable.readRequests(slot, generation), 0);
    const lastMs = limits.drainDeadlineMs + limits.controlDeadlineMs;
    await this.#until(() => {
      const waitedMs = clock.nowMs() - startMs;
      if (carried() === 0 || waitedMs >= lastMs) return true;
      if (waitedMs >= limits.drainDeadlineMs)
        for (const { slot, generation } of workers) moveAway(slot, generation);
      return false;
    });
    if (carried() > 0)
      throw new WorkerError('MILLRACE_WORKER_FAILED', `the worker still carries ${carried()} requests`);
  }

  async #load(worker: RegisteredWorker, adapter: AdapterSource): Promise<AdapterResult> {
    const { url } = worker;
    const { control } = this.#engineOf(worker);
    const outcome = await control.loadAdapter(this.#askOf(worker), adapter);
    if (isFailure(outcome)) return { url, outcome: 'failed', message: outcome.message };
    const before = control.holdsAdapters ? undefined : this.#brought.get(url)?.get(adapter.name);
    if (!control.holdsAdapters && before === undefined)
      this.#brought.set(url, new Map(this.#brought.get(url)).set(adapter.name, adapter.path));
    await this.#refresh(url);
    const held = this.#at(url)[0]!.facts!.models.find(({ id }) => id === adapter.name);
    // The servers tell their names apart, not their weights.
    if (held?.path !== undefined && held.path !== adapter.path) {
      const message = `it has an adapter "${adapter.name}" already, from ${held.path}: unload that first`;
      return { url, outcome: 'failed', message };
    }
    return { url, outcome: outcome.kind === 'already' || before !== undefined ? 'already' : 'loaded' };
  }

  async #unload(worker: RegisteredWorker, name: string): Promise<AdapterResult> {
    const { url } = worker;
    const { registry } = this.#options;
    const { control } = this.#engineOf(worker);
    const had = this.#brought.get(url)?.delete(name) === true;
    // No request is sent for it from here on; those that run end first, where the engine waits for them.
    for (const { slot, generation, facts } of this.#at(url)) {
      if (facts === null) continue;
      const models = facts.models.filter(({ id }) => id !== name);
      registry.setFacts(slot, generation, { ...facts, models });
    }
    try {
      const outcome = await control.unloadAdapter(this.#askOf(worker), name);
      if (isFailure(outcome)) return { url, outcome: 'failed', message: outcome.message };
      const isNew = control.holdsAdapters ? outcome.kind === 'done' : had;
      return { url, outcome: isNew ? 'unloaded' : 'already' };
    } finally {
      await this.#refresh(url);
    }
  }

  /** One change of one worker, whose failure is its result. */
  async #change(
    { url, state }: RegisteredWorker,
    carryOut: () => Promise<AdapterResult>,
  ): Promise<AdapterResult> {
    try {
      if (state === 'sleeping') throw bad('it sleeps: wake it first', 'workers');
      return await this.#alone(url, carryOut);
    } catch (error) {
      if (!(error instanceof MillraceError)) throw error;
      return { url, outcome: 'failed', message: error.message };
    }
  }

  async #alone<Result>(url: string, change: () => Promise<Result>): Promise<Result> {
    if (this.#busy.has(url)) throw bad('another change of this worker is under way', 'url');
    this.#busy.add(url);
    try {
      return await change();
    } finally {
      this.#busy.delete(url);
    }
  }

  async #refresh(url: string): Promise<void> {
    const { registry, monitor } = this.#options;
    const workers = registry.list().filter(worker => worker.url === url);
    await Promise.all(workers.map(({ slot, generation }) => monitor.refresh(slot, generation)));
  }

  /** One rank of each worker that is meant; those that never answered are left out, unless they are named. */
  #targets(urls: readonly string[] | null): RegisteredWorker[] {
    const { registry } = this.#options;
    const named = urls ?? [...new Set(registry.list().map(({ url }) => url))];
    const workers = named.map(url => this.#at(url)[0]!);
    const known = workers.filter(({ facts }) => facts !== null);
    const silent = workers.find(({ facts }) => facts === null);
    if (urls !== null && silent !== undefined)
      throw bad(`worker ${silent.url} has not answered its probe yet`, 'workers');
    if (known.length === 0)
      throw new RejectedError('MILLRACE_NO_WORKER', 'no worker has answered its probe yet');
    return known;
  }

  /** All ranks of a worker. Throws where there is none. */
  #at(url: string): RegisteredWorker[] {
    const workers = this.#options.registry.list().filter(worker => worker.url === url);
    if (workers.length > 0) return workers;
    throw new InvalidRequestError('MILLRACE_NOT_FOUND', `there is no worker at ${url}`, { param: 'url' });
  }

  #resultOf(url: string): SleepResult {
    const { state, sleepLevel } = this.#at(url)[0]!;
    return { url, state, sleepLevel };
  }

  #engineOf({ facts }: RegisteredWorker): EngineAdapter {
    assert(facts !== null, 'a worker that is changed was probed');
    return this.#options.adapters.get(facts.engine)!;
  }

  #askOf({ url }: RegisteredWorker): ControlAsk {
    const { ask, limits } = this.#options;
    return (method, path, body) =>
      ask(controlRequest(url, method, path, body), limits.controlDeadlineMs, limits.probeBytesMax);
  }

  #until(isOver: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        if (!this.#isStopped && !isOver()) return;
        timer.cancel();
        if (this.#isStopped) reject(new MillraceError('MILLRACE_DRAINING', 'the plane is closing'));
        else resolve();
      };
      const timer = this.#options.clock.every(POLL_MS, look);
      look();
    });
  }
}

const isBase = ({ adapter }: WorkerModel): boolean => adapter !== true;

const isFailure = (outcome: ControlOutcome): outcome is Extract<ControlOutcome, { message: string }> =>
  'message' in outcome;

function must(outcome: ControlOutcome, what: string): void {
  if (!isFailure(outcome)) return;
  const message = `the engine did not ${what}: ${outcome.message}`;
  throw outcome.kind === 'unsupported'
    ? bad(message, 'url')
    : new WorkerError('MILLRACE_WORKER_FAILED', message);
}
