/**
 * Keeps the pool threads running: one endless piscina task per thread. A thread that throws, runs out of heap or dies
 * is replaced under a new epoch after a back-off; one that keeps dying has its slot switched off, which `/health`
 * shows. Runs on the main thread.
 */
import { Piscina } from 'piscina';
import type { Limits } from '../limits.js';
import type { ModelFolder } from '../preprocess/model-folder/model-folder.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { Logger } from '../runtime/logger.js';
import type { PrefixLink } from './ingest-side.js';
import type { LinkMemory } from './pool-link.js';
import type { PoolTask } from './pool-thread.js';
import type { MissingIds } from './remote-ids.js';

/** Time in which poolRestartsMax deaths switch a slot off. */
const RESTART_WINDOW_MS = 10_000;
const BACKOFF_FIRST_MS = 10;
const BACKOFF_MAX_MS = 1000;

/** What the supervisor needs; the callbacks run on the main thread. */
export interface SupervisorOptions {
  readonly threads: number;
  readonly limits: Limits;
  /** The model folders that models may name. */
  readonly folders: readonly ModelFolder[];
  /** Modules that each thread loads: Config.extensions. */
  readonly extensions: readonly string[];
  readonly loadMemory: SharedArrayBuffer;
  readonly ledgerMemory: SharedArrayBuffer;
  readonly boardMemory: SharedArrayBuffer;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly seed: number;
  /**
   * Makes the rings of a new incarnation, one pair per socket thread, and its way to the prefix index; it can be asked from
   * then on.
   */
  readonly attach: (
    index: number,
    epoch: number,
  ) => { readonly links: readonly LinkMemory[]; readonly prefixes: PrefixLink | null };
  /** The incarnation with this epoch is gone. */
  readonly lost: (index: number, epoch: number) => void;
  /** A dead incarnation will be replaced. */
  readonly restarted: () => void;
  /** The counts have changed. */
  readonly changed: (state: SupervisorState) => void;
}

/** Counts for `/health` and metrics. */
export interface SupervisorState {
  /** Threads that run now. */
  readonly running: number;
  /** Slots switched off after too many deaths. */
  readonly off: number;
  readonly restarts: number;
}

const BYTES_PER_MIB = 1_048_576;

/**
 * Owns the threads and their endless tasks. Each incarnation has a piscina of its own: one that is shared gives up, with
 * its tasks unsettled, when a thread dies before it is ready.
 */
export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #pools = new Map<number, Piscina>();
  /** Pools of dead incarnations on their way out. */
  readonly #leaving = new Set<Promise<void>>();
  readonly #deaths: number[][];
  readonly #tasks = new Set<Promise<void>>();
  readonly #timers = new Set<Timer>();
  /** Models whose missing ids were said: each pool thread finds out by itself. */
  readonly #saidMissing = new Set<string>();
  #nextEpoch = 1;
  #running = 0;
  #off = 0;
  #restarts = 0;
  #closing = false;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.#deaths = Array.from({ length: options.threads }, () => []);
    for (let index = 0; index < options.threads; index++) this.#start(index);
  }

  get state(): SupervisorState {
    return { running: this.#running, off: this.#off, restarts: this.#restarts };
  }

  /** The operating-system threads, for tests that kill one. */
  get threads(): Piscina['threads'] {
    return [...this.#pools.values()].flatMap(pool => pool.threads);
  }

  /** Waits for the tasks to end after their CLOSE records, then ends the threads; the wait has a deadline. */
  async close(deadlineMs: number): Promise<void> {
    this.#closing = true;
    for (const timer of this.#timers) timer.cancel();
    let timer: Timer | undefined;
    const late = new Promise<void>(resolve => {
      timer = this.#options.clock.after(deadlineMs, resolve);
    });
    await Promise.race([Promise.allSettled([...this.#tasks]), late]);
    timer?.cancel();
    await Promise.all([...this.#leaving, ...[...this.#pools.values()].map(pool => pool.destroy())]);
  }

  #start(index: number): void {
    const epoch = this.#nextEpoch++;
    const { threads, limits, folders, extensions, loadMemory, ledgerMemory, boardMemory, seed } =
      this.#options;
    const { links, prefixes } = this.#options.attach(index, epoch);
    const task: PoolTask = {
      index,
      threads,
      links,
      prefixes,
      loadMemory,
      ledgerMemory,
      boardMemory,
      limits,
      folders,
      extensions,
      seed: seed + epoch,
    };
    this.#running++;
    this.#options.changed(this.state);
    const pool = createPool(limits);
    this.#pools.set(index, pool);
    pool.on('message', (missing: MissingIds) => this.#sayMissing(missing));
    const transferList = prefixes?.kind === 'posted' ? [prefixes.port, prefixes.news] : [];
    const running = pool.run(task, { transferList }).then(
      () => this.#ended(index, epoch, null),
      (error: Error) => this.#ended(index, epoch, error),
    );
    this.#tasks.add(running);
    void running.finally(() => this.#tasks.delete(running));
  }

  /** The one message that a pool thread sends besides its rings' records. */
  #sayMissing(missing: MissingIds): void {
    if (this.#saidMissing.has(missing.model)) return;
    this.#saidMissing.add(missing.model);
    const message =
      'a worker makes no prompt ids in time: prompts are routed by load where no other makes them';
    this.#options.logger.warn(message, { ...missing });
  }

  #ended(index: number, epoch: number, error: Error | null): void {
    this.#running--;
    this.#options.lost(index, epoch);
    if (this.#closing) return;
    this.#options.changed(this.state);
    const leaving = this.#pools.get(index)!.destroy();
    this.#pools.delete(index);
    this.#leaving.add(leaving);
    void leaving.finally(() => this.#leaving.delete(leaving));
    const { clock, logger, limits } = this.#options;
    const deaths = this.#deaths[index]!;
    deaths.push(clock.nowMs());
    while (deaths.length > 0 && deaths[0]! < clock.nowMs() - RESTART_WINDOW_MS) deaths.shift();
    const code = (error as NodeJS.ErrnoException | null)?.code;
    if (deaths.length >= limits.poolRestartsMax) {
      this.#off++;
      logger.error('pool thread keeps dying and stays off; restart the process once the cause is found', {
        thread: index,
        deaths: deaths.length,
        cause: code ?? error?.message,
      });
      this.#options.changed(this.state);
      return;
    }
    const delayMs = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 4 ** (deaths.length - 1));
    logger.warn('pool thread died and is replaced', {
      thread: index,
      cause: code ?? error?.message,
      delayMs,
    });
    this.#restarts++;
    this.#options.restarted();
    const timer = clock.after(delayMs, () => {
      this.#timers.delete(timer);
      if (!this.#closing) this.#start(index);
    });
    this.#timers.add(timer);
  }
}

function createPool(limits: Limits): Piscina {
  const pool = new Piscina({
    filename: new URL('./pool-thread.js', import.meta.url).href,
    // The host's loaders and its `--input-type` are not for our files.
    execArgv: [],
    // Made at once, so that its task is its own from the start and settles however early it dies.
    minThreads: 1,
    maxThreads: 1,
    idleTimeout: Number.POSITIVE_INFINITY,
    // The endless task sleeps on its own doorbell; piscina's blocking wait between tasks would only delay it.
    atomics: 'disabled',
    resourceLimits: { maxOldGenerationSizeMb: Math.ceil(limits.poolHeapBytesMax / BYTES_PER_MIB) },
  });
  // A thread without a task is one that piscina made after a death: what becomes of it does not matter.
  pool.on('error', () => {});
  return pool;
}
