/**
 * The health monitor (R5): watches every worker, from its first probe to its removal; what that means is in
 * health-watch.ts. Runs on the thread of the registry; the data path tells it of failures, so that a dead worker is out of
 * rotation before the next check.
 */

import { ConfigError } from '../errors.js';
import {
  AUTO_ENGINE,
  type DataPathFailure,
  type HealthCounts,
  type MonitoredWorker,
  type WorkerMonitorOptions,
} from './health-contract.js';
import { HealthWatch } from './health-watch.js';

/** All workers of the registry's thread. */
export class WorkerMonitor {
  readonly #options: WorkerMonitorOptions;
  readonly #watches = new Map<number, HealthWatch>();

  constructor(options: WorkerMonitorOptions) {
    this.#options = options;
  }

  /** Starts to watch a worker; the first probe leaves at once. An older generation in the slot is forgotten. */
  watch(worker: MonitoredWorker): void {
    const { engine, url, slot } = worker;
    if (engine !== AUTO_ENGINE && !this.#options.adapters.has(engine))
      throw new ConfigError(`no adapter for engine "${engine}" of worker ${url}`);
    this.#watches.get(slot)?.stop();
    const watch = new HealthWatch(worker, this.#options);
    this.#watches.set(slot, watch);
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

  /** Probes a worker that is up again, now: its models may be others. Settles when its facts are told, or it does not answer. */
  async refresh(slot: number, generation: number): Promise<void> {
    const watch = this.#watches.get(slot);
    if (watch?.worker.generation === generation) await watch.refresh();
  }

  /** Asks nothing of a worker any more, whose engine is about to sleep. */
  rest(slot: number, generation: number): void {
    const watch = this.#watches.get(slot);
    if (watch?.worker.generation === generation) watch.rest();
  }

  /** Asks a worker that rests whether it is still there and asleep. */
  watchSleep(slot: number, generation: number): void {
    const watch = this.#watches.get(slot);
    if (watch?.worker.generation === generation) watch.watchSleep();
  }

  /** A worker that rested is awake: it is brought up as one that is new. */
  rise(slot: number, generation: number): void {
    const watch = this.#watches.get(slot);
    if (watch?.worker.generation === generation) watch.rise();
  }

  /** What has been counted of a worker; null: it is not watched. */
  counts(slot: number, generation: number): HealthCounts | null {
    const watch = this.#watches.get(slot);
    return watch?.worker.generation === generation ? watch.counts : null;
  }

  /** Ends all timers; nothing reaches the sink any more. */
  stop(): void {
    for (const watch of this.#watches.values()) watch.stop();
    this.#watches.clear();
  }
}
