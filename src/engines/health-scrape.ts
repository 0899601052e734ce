/**
 * The scrapes of one worker (R5): its metrics at a period while it is up, for the load that it says of itself. Owned by the
 * worker's watch, on its thread.
 */
import type { Timer } from '../runtime/clock.js';
import type { EngineAdapter, EngineLoad, Fetcher } from './contract.js';
import type { MonitoredWorker, WorkerMonitorOptions } from './health-contract.js';

const UNKNOWN_LOAD = { running: null, waiting: null, kvUsage: null };

/** What it needs of its watch. */
export type ScrapeOptions = Pick<WorkerMonitorOptions, 'clock' | 'log' | 'sink' | 'limits'> & {
  readonly get: Fetcher;
};

/** See the head of the file. Does nothing until `start`. */
export class Scrapes {
  readonly #worker: MonitoredWorker;
  readonly #options: ScrapeOptions;
  #timer: Timer | null = null;
  #turn = 0;
  #hasFailed = false;

  constructor(worker: MonitoredWorker, options: ScrapeOptions) {
    this.#worker = worker;
    this.#options = options;
  }

  /** The worker is up: the first one leaves at once. */
  start(adapter: EngineAdapter): void {
    this.stop();
    void this.#scrape(adapter);
  }

  /** Nothing is told any more; an answer on its way is dropped. */
  stop(): void {
    this.#turn++;
    this.#timer?.cancel();
  }

  /** An old figure looks like a fact: unknown is better. */
  clear(): void {
    const { sink, clock } = this.#options;
    sink.setScraped(this.#worker.slot, this.#worker.generation, UNKNOWN_LOAD, clock.nowMs() / 1000);
  }

  async #scrape(adapter: EngineAdapter): Promise<void> {
    const turn = this.#turn;
    const { sink, clock, log, limits, get } = this.#options;
    const { slot, generation, url } = this.#worker;
    let reason: string | null = null;
    let load: EngineLoad | null = null;
    try {
      const { status, body } = await get(adapter.metricsPath);
      if (status === 200) load = adapter.parseMetrics(body);
      else reason = `${adapter.metricsPath} answered ${status}`;
    } catch (error) {
      reason = error instanceof Error ? error.message : String(error);
    }
    if (turn !== this.#turn) return;
    if (load !== null) sink.setScraped(slot, generation, load, clock.nowMs() / 1000);
    else if (!this.#hasFailed) {
      log.warn('worker metrics cannot be read', { worker: url, slot, generation, reason });
      this.clear();
    }
    this.#hasFailed = load === null;
    this.#timer = clock.after(limits.scrapePeriodMs, () => void this.#scrape(adapter));
  }
}
