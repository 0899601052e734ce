/**
 * The plane: the one place that composes the stages (design §2). It makes the shared memory, starts the pool under its
 * supervisor and the socket threads, watches the workers and closes everything in order. With one socket thread, that
 * is the thread of the plane itself. It touches nothing of the host process: no signals, no exit, no environment.
 */
import { strict as assert } from 'node:assert';
import type { Config } from '../config.js';
import { WorkerRegistry } from '../discovery/registry.js';
import { EngineClient } from '../engines/client.js';
import { WorkerMonitor } from '../engines/monitor.js';
import { createVllmAdapter, VLLM } from '../engines/vllm.js';
import { ConfigError } from '../errors.js';
import { claimPort } from '../frontend/http/claim-port.js';
import type { HttpExchange } from '../frontend/http/http-exchange.js';
import { createMetrics, type Metrics, mergedText } from '../frontend/metrics.js';
import type { ModelView } from '../messages/records.js';
import { createBell } from '../ring/bell.js';
import { createLedgerMemory, Ledger } from '../router/ledger.js';
import { createLoadMemory, LoadTable } from '../router/load-table.js';
import { addonStatus } from '../runtime/addon.js';
import type { Clock } from '../runtime/clock.js';
import { FaultGuard, throwLater } from '../runtime/fault-guard.js';
import type { Logger } from '../runtime/logger.js';
import { type Decision, mergedDecisions } from './decision-log.js';
import { workerLoads } from './observer.js';
import { createLinkMemory } from './pool-link.js';
import { createBoardMemory, ProcessBoard } from './process-board.js';
import { RemoteUnit } from './remote-unit.js';
import type { Health } from './routes.js';
import { listedModels, servedModels } from './served-models.js';
import type { CoreSide, Listening, SocketSide, SocketTask } from './socket-side.js';
import type { SocketThread } from './socket-thread.js';
import { SocketUnit } from './socket-unit.js';
import { Supervisor } from './supervisor.js';
import { TextModels } from './text-models.js';

/** Time that the pool threads get to take their CLOSE. */
const POOL_CLOSE_DEADLINE_MS = 2000;

/** What a plane is made from. */
export interface PlaneOptions {
  readonly config: Config;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Seed of every random choice of the plane. */
  readonly seed: number;
  /**
   * Told of an exception in code that a timer, a socket or a thread called. `fail` keeps it inside the plane; without
   * this option it is thrown anew, outside all callers.
   */
  readonly onFault?: (error: unknown, plane: Plane) => void;
}

/** What runs, for the banner and `/health`. */
export interface PlaneStatus {
  readonly server: 'uws' | 'node';
  /** Why the server is not the first choice, or null. */
  readonly serverNotice: string | null;
  readonly addon: { readonly loaded: boolean; readonly reason: string };
  readonly socketThreads: number;
  readonly poolThreads: number;
}

/** Every worker that the configuration names, once. */
const namedWorkers = ({ workers, models }: Config): ReadonlySet<string> =>
  new Set([...workers, ...Object.values(models).flatMap(model => model.workers)]);

/** Throws ConfigError where the configuration cannot be carried out on this machine. */
function checkOptions({ config, onFault }: PlaneOptions): void {
  const { socketThreads, httpServer, limits } = config;
  if (namedWorkers(config).size > limits.workersMax)
    throw new ConfigError(`more than ${limits.workersMax} workers; raise the limit workersMax`);
  if (socketThreads === 1) return;
  const needs = (what: string): ConfigError =>
    new ConfigError(`socketThreads is ${socketThreads}; above 1 it needs ${what}`);
  if (httpServer === 'node') throw needs('uWebSockets.js: node:http cannot share a port between threads');
  const addon = addonStatus();
  if (!addon.loaded) throw needs(`the addon, without which one thread changes the ledger: ${addon.reason}`);
  if (onFault !== undefined) throw needs('a process of its own; an embedded plane has one');
}

/** A running data plane; made by `Plane.start`, ended by `close`. */
export class Plane {
  readonly #options: PlaneOptions;
  readonly #guard: FaultGuard;
  readonly #client: EngineClient;
  readonly #registry: WorkerRegistry;
  readonly #monitor: WorkerMonitor;
  readonly #board: ProcessBoard;
  /** The core's metrics; those of the unit where that runs in place. */
  readonly #metrics: Metrics;
  readonly #textModels: TextModels;
  readonly #startedSeconds: number;
  readonly #poolThreads: number;
  readonly #sides: readonly SocketSide[];
  /** The one socket thread that runs in place; null where they have threads of their own. */
  readonly #local: SocketUnit | null;
  /** What every worker carries; only to be read outside the plane. */
  readonly loadTable: LoadTable;
  /** Who made workers carry it; only to be read outside the plane. */
  readonly ledger: Ledger;
  readonly supervisor: Supervisor;
  #listening: Listening | null = null;
  #worldVersion = 0;
  #models: readonly ModelView[] = [];
  #closing: Promise<void> | null = null;
  #onWorkerChange: (() => void) | null = null;

  /** Starts a plane that serves nothing yet; `listen` opens its server. Throws ConfigError. */
  static async start(options: PlaneOptions): Promise<Plane> {
    checkOptions(options);
    let plane: Plane | null = null;
    const guard = new FaultGuard(error => {
      // Until it has started, an exception is the caller's answer.
      if (plane === null) throw error;
      (options.onFault ?? throwLater)(error, plane);
    });
    const guarded = { ...options, clock: guard.clock(options.clock), logger: guard.logger(options.logger) };
    const textModels = await TextModels.open(options.config, guarded.clock, guarded.logger);
    plane = new Plane(guarded, guard, textModels);
    return plane;
  }

  private constructor(options: PlaneOptions, guard: FaultGuard, textModels: TextModels) {
    const { config, clock } = options;
    const { limits } = config;
    this.#options = options;
    this.#guard = guard;
    this.#textModels = textModels;
    this.#startedSeconds = Math.floor(clock.wallMs() / 1000);
    // The twin of the addon's reserve is exact only while one thread reserves.
    this.#poolThreads = addonStatus().loaded ? config.poolThreads : 1;
    const loadMemory = createLoadMemory(limits.workersMax);
    const ledgerMemory = createLedgerMemory(limits.ledgerEntries);
    const boardMemory = createBoardMemory(this.#poolThreads);
    this.loadTable = new LoadTable(loadMemory);
    this.ledger = new Ledger({
      memory: ledgerMemory,
      loadTable: this.loadTable,
      partition: null,
      addon: null,
    });
    this.#board = new ProcessBoard(boardMemory);
    this.#client = new EngineClient({ clock, connectDeadlineMs: limits.connectDeadlineMs });
    this.#registry = this.#createRegistry();
    this.#monitor = this.#createMonitor();
    const bells = Array.from({ length: config.socketThreads }, (_, index) =>
      createBell(`socket thread ${index}`),
    );
    const tasks = bells.map(
      (bellMemory, index): SocketTask => ({
        index,
        threads: bells.length,
        config,
        tables: textModels.tables,
        loadMemory,
        ledgerMemory,
        boardMemory,
        bellMemory,
      }),
    );
    const core = this.#coreSide();
    const readWorkerLoads = workerLoads(this.#registry, this.loadTable);
    this.#local =
      tasks.length > 1 ? null : new SocketUnit(tasks[0]!, { clock, guard, core, readWorkerLoads });
    this.#sides = this.#local === null ? tasks.map(task => new RemoteUnit(task, core, clock)) : [this.#local];
    const coreSources = { readRetainedBytes: () => 0, readRingDepths: () => [], readWorkerLoads };
    this.#metrics = this.#local?.metrics ?? createMetrics([], coreSources, 'main');
    this.supervisor = this.#createSupervisor(loadMemory, ledgerMemory, bells);
    for (const url of namedWorkers(config)) this.#addWorker(url);
  }

  /** Opens the HTTP server of each socket thread, all on one port. Rejects with ConfigError. */
  async listen(host: string, port: number): Promise<{ port: number }> {
    if (this.#listening !== null) throw new ConfigError('the plane listens already');
    const isShared = this.#local === null;
    const chosen = isShared ? await claimPort(host, port) : port;
    // One after the other: the first to load uWebSockets.js sets its header limit for the process.
    for (const side of this.#sides) this.#listening = await side.listen(host, chosen, isShared);
    return { port: this.#listening!.port };
  }

  /** The socket thread of this thread. Only for a plane with one. */
  get socket(): SocketThread {
    return this.#inPlace().socket;
  }

  /** Takes one HTTP request of a host's server; see SocketUnit. Only for a plane with one socket thread. */
  handle(exchange: HttpExchange, isOfHost = false): void {
    this.#inPlace().handle(exchange, isOfHost);
  }

  /** The exposition text of `/metrics`, of all threads. */
  async metrics(): Promise<string> {
    if (this.#local !== null) return this.#metrics.text();
    const samples = [this.#metrics.samples(), ...this.#sides.map(side => side.samples())];
    return mergedText(await Promise.all(samples));
  }

  /** The newest decisions of all threads, newest first, `count` at most. */
  async decisions(count: number): Promise<readonly Decision[]> {
    return mergedDecisions(await Promise.all(this.#sides.map(side => side.decisions(count))), count);
  }

  /** What the outside calls has to run under it; see PlaneOptions.onFault. */
  get guard(): FaultGuard {
    return this.#guard;
  }

  /** Resolves when every worker has answered its first probe, or after `deadlineMs`. */
  workersAnswered(deadlineMs: number): Promise<void> {
    return new Promise(resolve => {
      const finish = (): void => {
        this.#onWorkerChange = null;
        timer.cancel();
        resolve();
      };
      const timer = this.#options.clock.after(deadlineMs, finish);
      this.#onWorkerChange = () => {
        if (this.workers.every(worker => worker.state === 'ready')) finish();
      };
      this.#onWorkerChange();
    });
  }

  /**
   * Ends all service after a fault in shared state: open requests end with MILLRACE_PLANE_FAILED, new ones are refused with
   * it, `/health` says 'failed'. Threads and connections stay until `close`. Never throws. Only with one socket thread.
   */
  fail(error: unknown): void {
    if (this.health().status === 'failed') return;
    this.#board.setPhase('failed');
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    const message = 'the plane has failed, which is a bug: it answers 503 until it is closed';
    this.#options.logger.error(message, { error: text });
    this.#inPlace().socket.fail('the plane has failed');
    this.#guard.run(() => this.#monitor.stop());
  }

  get status(): PlaneStatus {
    const { loaded, reason } = addonStatus();
    return {
      server: this.#listening?.server ?? 'node',
      serverNotice: this.#listening?.notice ?? null,
      addon: { loaded, reason },
      socketThreads: this.#sides.length,
      poolThreads: this.#poolThreads,
    };
  }

  /** Models that can be asked for. */
  get models(): readonly { readonly name: string; readonly tokenizer: string | null }[] {
    return this.#models.map(({ name, tokenizer }) => ({ name, tokenizer }));
  }

  /** The workers and their states. */
  get workers(): readonly { readonly url: string; readonly state: string }[] {
    return this.#registry.list().map(({ url, state }) => ({ url, state }));
  }

  health(): Health {
    return this.#board.health();
  }

  /**
   * Closes in order: not ready at once, no new requests, open ones finish until the deadline, then the pool, the
   * workers' connections and the server.
   */
  close(drainDeadlineMs: number): Promise<void> {
    this.#closing ??= this.#close(drainDeadlineMs);
    return this.#closing;
  }

  async #close(drainDeadlineMs: number): Promise<void> {
    this.#board.setPhase('draining');
    const steps: (() => unknown)[] = [
      () => Promise.all(this.#sides.map(side => side.drain(drainDeadlineMs))),
      () => this.#monitor.stop(),
      () => this.#sides.map(side => side.closeRings()),
      () => this.supervisor.close(POOL_CLOSE_DEADLINE_MS),
      () => Promise.all(this.#sides.map(side => side.stop())),
      () => this.#client.close(),
      () => this.#metrics.close(),
    ];
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        // The later steps free what they can, whatever a failed plane cannot do any more.
        this.#guard.report(error);
      }
    }
  }

  #inPlace(): SocketUnit {
    assert(this.#local !== null, 'the socket threads of this plane are not on its own thread');
    return this.#local;
  }

  #coreSide(): CoreSide {
    return {
      reportFailure: (slot, generation, failure) => {
        if (failure !== 'protocol') this.#monitor.reportFailure(slot, generation, failure);
      },
      metricsText: () => this.metrics(),
      decisions: count => this.decisions(count),
      fault: text => this.#guard.report(new Error(`a socket thread has failed: ${text}`)),
    };
  }

  #createRegistry(): WorkerRegistry {
    return new WorkerRegistry({
      workersMax: this.#options.config.limits.workersMax,
      table: this.loadTable,
      onChange: ({ kind }) =>
        this.#guard.run(() => {
          const workers = this.#registry.list();
          this.#board.setWorkers(workers.filter(worker => worker.state === 'ready').length, workers.length);
          if (kind === 'facts' || kind === 'removed') this.#publishWorld();
          this.#onWorkerChange?.();
        }),
    });
  }

  #createMonitor(): WorkerMonitor {
    const { config, clock, logger } = this.#options;
    const { limits } = config;
    const adapter = createVllmAdapter();
    return new WorkerMonitor({
      clock,
      log: logger,
      get: (origin, path, deadlineMs, bytesMax) => this.#client.get(origin, path, deadlineMs, bytesMax),
      sink: this.#registry,
      adapters: new Map([[VLLM, adapter]]),
      findForeignIds: ({ url }, facts) =>
        this.#textModels.findForeignIds(url, facts, adapter, (path, json) =>
          this.#client.post(url, path, json, limits.probeDeadlineMs, limits.probeBytesMax),
        ),
      limits,
    });
  }

  #createSupervisor(
    loadMemory: SharedArrayBuffer,
    ledgerMemory: SharedArrayBuffer,
    bells: readonly SharedArrayBuffer[],
  ): Supervisor {
    const { config, clock, logger, seed } = this.#options;
    const { limits } = config;
    return new Supervisor({
      threads: this.#poolThreads,
      limits,
      folders: this.#textModels.folders,
      loadMemory,
      ledgerMemory,
      clock,
      logger,
      seed,
      attach: (index, epoch) => {
        const links = createLinkMemory(index, epoch, limits.ringBytes, bells);
        this.#guard.run(() => {
          for (const [at, side] of this.#sides.entries()) side.attach(index, links[at]!);
        });
        return links;
      },
      lost: (index, epoch) => this.#guard.run(() => this.#poolThreadLost(index, epoch)),
      changed: ({ running, off }) =>
        this.#guard.run(() => {
          this.#board.setPool(running, off);
          if (this.#board.poolIsOff) for (const side of this.#sides) side.poolIsOff();
        }),
      restarted: () => this.#metrics.poolThreadRestarted(),
    });
  }

  /** Once its last answers have been taken everywhere, what the dead incarnation still owns is freed. */
  #poolThreadLost(index: number, epoch: number): void {
    const waits = this.#sides.map(side => side.lost(index)).filter(wait => wait !== undefined);
    const reap = (): void => this.#guard.run(() => void this.ledger.reap(epoch));
    if (waits.length === 0) reap();
    else void Promise.allSettled(waits).then(reap);
  }

  #addWorker(url: string): void {
    const worker = this.#registry.add({ url, engine: VLLM });
    assert(worker !== 'full' && worker !== 'duplicate', 'start checked the workers');
    this.#monitor.watch(worker);
  }

  #publishWorld(): void {
    const workers = this.#registry.views();
    this.#models = servedModels(this.#options.config, workers, this.#textModels);
    const world = { version: ++this.#worldVersion, workers, models: this.#models };
    const listed = listedModels(this.#models, workers, this.#textModels, this.#startedSeconds);
    for (const side of this.#sides) side.setWorld(world, listed);
  }
}
