/**
 * Who belongs to the fleet (R4, R5): workers that come and go while the plane runs. A worker that leaves takes no new
 * request from then on; streams that run are left alone, whoever removes it. Owned by the core, on its thread.
 *
 *     add ──► in the registry ──► drain: gets nothing new ──► remove: its slot is free, its metrics end
 *                     │                        ▲
 *                     └── retire: drain, and remove once it carries nothing or drainDeadlineMs have passed
 */
import { strict as assert } from 'node:assert';
import type { RegisteredWorker, WorkerRegistry } from '../discovery/registry.js';
import { checkEngines } from '../engines/adapters.js';
import { ConfigError } from '../errors.js';
import type { Limits } from '../limits.js';
import type { LoadTable } from '../router/load-table.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { Logger } from '../runtime/logger.js';
import { distinctWorkers, type WorkerConfig } from '../worker-config.js';

/** How often a worker that leaves is asked whether it still carries something. */
const LEAVE_POLL_MS = 200;

/** What it needs of its plane. */
export interface MembershipOptions {
  readonly registry: WorkerRegistry;
  /** By the names of the engines that there are adapters for. */
  readonly engines: ReadonlyMap<string, unknown>;
  readonly loadTable: LoadTable;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly limits: Pick<Limits, 'workersMax' | 'drainDeadlineMs'>;
}

/** What `replace` did, by URL. */
export interface Replaced {
  readonly added: readonly string[];
  readonly leaving: readonly string[];
  /** They stay, with the settings that they had. */
  readonly differing: readonly string[];
}

/** See the head of the file. */
export class Membership {
  readonly #options: MembershipOptions;
  readonly #members = new Map<string, WorkerConfig>();
  readonly #leaving = new Map<string, Timer>();

  constructor(options: MembershipOptions) {
    this.#options = options;
  }

  /** How a worker that the registry has is configured. */
  configOf(url: string): WorkerConfig {
    const config = this.#members.get(url);
    assert(config !== undefined, 'a worker of the registry is a member');
    return config;
  }

  /**
   * Takes in a worker; its first probe leaves at once. One that is leaving comes back as a new one. Throws ConfigError where
   * there is no room, or no such engine, or the worker is a member, or would publish its events where another one does.
   */
  add(worker: WorkerConfig): void {
    const { registry, limits, engines } = this.#options;
    checkEngines(engines, [worker]);
    const { url, dpRanks, engine } = worker;
    const isBack = this.#leaving.has(url);
    if (this.#members.has(url) && !isBack) throw new ConfigError(`worker ${url} is there already`);
    const others = [...this.#members.values()].filter(other => other.url !== url);
    distinctWorkers([others, [worker]]);
    const left = isBack ? this.#workersOf(url).length : 0;
    if (registry.size - left + dpRanks > limits.workersMax)
      throw new ConfigError(`more than ${limits.workersMax} workers; raise the limit workersMax`);
    if (isBack) this.remove(url);
    this.#members.set(url, worker);
    for (let rank = 0; rank < dpRanks; rank++) {
      const added = registry.add({ url, engine, rank: dpRanks === 1 ? null : rank });
      assert(added !== 'full' && added !== 'duplicate', 'the room was counted');
    }
  }

  /** Sends a worker nothing new. False: there is none. */
  drain(url: string): boolean {
    const workers = this.#workersOf(url);
    for (const { slot, generation } of workers) this.#options.registry.drain(slot, generation);
    return workers.length > 0;
  }

  /** Takes a worker out at once. False: there is none. */
  remove(url: string): boolean {
    const workers = this.#workersOf(url);
    for (const { slot, generation } of workers) this.#options.registry.remove(slot, generation);
    this.#leaving.get(url)?.cancel();
    this.#leaving.delete(url);
    return this.#members.delete(url);
  }

  /** Drains a worker and takes it out when it carries nothing any more, or after `drainDeadlineMs`. False: there is none. */
  retire(url: string): boolean {
    if (this.#leaving.has(url)) return true;
    if (!this.drain(url)) return false;
    const { clock, loadTable, limits, logger } = this.#options;
    const startMs = clock.nowMs();
    const timer = clock.every(LEAVE_POLL_MS, () => {
      const requests = this.#workersOf(url).reduce(
        (sum, { slot, generation }) => sum + loadTable.readRequests(slot, generation),
        0,
      );
      if (requests > 0 && clock.nowMs() - startMs < limits.drainDeadlineMs) return;
      logger.info('worker has left', { worker: url, requests });
      this.remove(url);
    });
    this.#leaving.set(url, timer);
    return true;
  }

  /**
   * Adds those of `workers` that are no members and retires members that are not among them, unless `isKept` says that they
   * came by themselves. Throws before it changes anything.
   */
  replace(workers: readonly WorkerConfig[], isKept: (url: string) => boolean): Replaced {
    checkEngines(this.#options.engines, workers);
    const wanted = new Map(distinctWorkers([workers]).map(worker => [worker.url, worker]));
    const slots = [...wanted.values()].reduce((sum, { dpRanks }) => sum + dpRanks, 0);
    const staying = [...this.#members.values()].filter(({ url }) => !this.#leaving.has(url));
    const leaving = staying.map(({ url }) => url).filter(url => !wanted.has(url) && !isKept(url));
    const added = [...wanted.values()].filter(({ url }) => !staying.some(member => member.url === url));
    const { workersMax } = this.#options.limits;
    // Those that leave keep their slots for a while.
    const kept = [...this.#members.values()].filter(({ url }) => !wanted.has(url));
    if (kept.reduce((sum, { dpRanks }) => sum + dpRanks, slots) > workersMax)
      throw new ConfigError(`more than ${workersMax} workers; raise the limit workersMax`);
    distinctWorkers([
      [...this.#members.values()].filter(({ url }) => !added.some(one => one.url === url)),
      added,
    ]);
    for (const worker of added) this.add(worker);
    for (const url of leaving) this.retire(url);
    const differing = staying
      .map(member => member.url)
      .filter(
        url => wanted.has(url) && JSON.stringify(wanted.get(url)) !== JSON.stringify(this.#members.get(url)),
      );
    return { added: added.map(({ url }) => url), leaving, differing };
  }

  /** Ends all timers. */
  stop(): void {
    for (const timer of this.#leaving.values()) timer.cancel();
    this.#leaving.clear();
  }

  #workersOf(url: string): RegisteredWorker[] {
    return this.#options.registry.list().filter(worker => worker.url === url);
  }
}
