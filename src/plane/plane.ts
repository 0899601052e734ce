/**
 * The plane: the one place that composes the stages (design §2). It makes the shared memory, starts the pool under its
 * supervisor, watches the workers, opens the HTTP server and closes everything in order. It touches nothing of the
 * host process: no signals, no exit, no environment.
 */
import { strict as assert } from 'node:assert';
import type { Config } from '../config.js';
import { WorkerRegistry } from '../discovery/registry.js';
import { EngineClient } from '../engines/client.js';
import { createFrameScanner, type FrameScanner } from '../engines/frame-scanner.js';
import { WorkerMonitor } from '../engines/monitor.js';
import { createVllmAdapter, VLLM } from '../engines/vllm.js';
import { ConfigError } from '../errors.js';
import type { HttpExchange, HttpServer } from '../frontend/http/http-exchange.js';
import { createHttpServer } from '../frontend/http/server.js';
import { createMetrics, type Metrics } from '../frontend/metrics.js';
import type { ListedModel } from '../frontend/openai/models-response.js';
import type { ModelView, World } from '../messages/records.js';
import { createLedgerMemory, Ledger } from '../router/ledger.js';
import { createLoadMemory, LoadTable } from '../router/load-table.js';
import { addonStatus, loadAddon } from '../runtime/addon.js';
import type { Clock } from '../runtime/clock.js';
import { FaultGuard } from '../runtime/fault-guard.js';
import type { Logger } from '../runtime/logger.js';
import type { AttemptFailure } from './attempt.js';
import { HttpPort } from './http-port.js';
import { createObserver, metricSources } from './observer.js';
import { createRoutes, type Health, isApiPath, refuseUnknown } from './routes.js';
import { SocketThread } from './socket-thread.js';
import { Supervisor } from './supervisor.js';
import { TextModels } from './text-models.js';

/** Owner epoch of the socket thread; pool threads count up from 1. */
const SOCKET_EPOCH = 0x8000_0000;
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
  readonly poolThreads: number;
}

/** Every worker that the configuration names, once. */
function namedWorkers(config: Config): ReadonlySet<string> {
  return new Set([...config.workers, ...Object.values(config.models).flatMap(model => model.workers)]);
}

const throwLater = (error: unknown): void =>
  queueMicrotask(() => {
    throw error;
  });

/** A running data plane; made by `Plane.start`, ended by `close`. */
export class Plane {
  readonly #options: PlaneOptions;
  readonly #guard: FaultGuard;
  readonly #client: EngineClient;
  readonly #scanner: FrameScanner;
  readonly #registry: WorkerRegistry;
  readonly #monitor: WorkerMonitor;
  readonly #metrics: Metrics;
  readonly #textModels: TextModels;
  readonly #startedSeconds: number;
  readonly #poolThreads: number;
  /** What every worker carries; only to be read outside the plane. */
  readonly loadTable: LoadTable;
  readonly socket: SocketThread;
  readonly supervisor: Supervisor;
  #server: HttpServer | null = null;
  #worldVersion = 0;
  #models: readonly ModelView[] = [];
  #closing: Promise<void> | null = null;
  #hasFailed = false;
  #onWorkerChange: (() => void) | null = null;
  readonly #route: (exchange: HttpExchange) => void;

  /** Starts a plane that serves nothing yet; `listen` opens its server. Throws ConfigError. */
  static async start(options: PlaneOptions): Promise<Plane> {
    const { config } = options;
    const { workersMax } = config.limits;
    if (namedWorkers(config).size > workersMax)
      throw new ConfigError(`more than ${workersMax} workers; raise the limit workersMax`);
    let plane: Plane | null = null;
    const guard = new FaultGuard(error => {
      // Until it has started, an exception is the caller's answer.
      if (plane === null) throw error;
      (options.onFault ?? throwLater)(error, plane);
    });
    const guarded = { ...options, clock: guard.clock(options.clock), logger: guard.logger(options.logger) };
    plane = new Plane(guarded, guard, await TextModels.open(config, guarded.clock, guarded.logger));
    return plane;
  }

  private constructor(options: PlaneOptions, guard: FaultGuard, textModels: TextModels) {
    const { config, clock, logger } = options;
    const { limits } = config;
    this.#options = options;
    this.#guard = guard;
    this.#textModels = textModels;
    this.#startedSeconds = Math.floor(clock.wallMs() / 1000);
    const addon = loadAddon();
    const loadMemory = createLoadMemory(limits.workersMax);
    const ledgerMemory = createLedgerMemory(limits.ledgerEntries);
    this.loadTable = new LoadTable(loadMemory);
    const ledger = new Ledger({ memory: ledgerMemory, loadTable: this.loadTable, partition: null, addon });
    this.#client = new EngineClient({ clock, connectDeadlineMs: limits.connectDeadlineMs });
    this.#scanner = createFrameScanner(addon);
    const adapter = createVllmAdapter({ scanner: this.#scanner });
    this.#registry = new WorkerRegistry({
      workersMax: limits.workersMax,
      table: this.loadTable,
      onChange: ({ kind }) =>
        guard.run(() => {
          if (kind === 'facts' || kind === 'removed') this.#publishWorld();
          this.#onWorkerChange?.();
        }),
    });
    this.#monitor = new WorkerMonitor({
      clock,
      log: logger,
      get: (origin, path, deadlineMs, bytesMax) => this.#client.get(origin, path, deadlineMs, bytesMax),
      sink: this.#registry,
      adapters: new Map([[VLLM, adapter]]),
      findForeignIds: ({ url }, facts) =>
        textModels.findForeignIds(url, facts, adapter, (path, json) =>
          this.#client.post(url, path, json, limits.probeDeadlineMs, limits.probeBytesMax),
        ),
      limits,
    });
    this.#metrics = createMetrics(
      Object.keys(config.models),
      metricSources(this.#registry, this.loadTable, () => this.socket),
    );
    this.#route = this.#createRoutes();
    this.socket = new SocketThread({
      clock,
      guard,
      limits,
      epoch: SOCKET_EPOCH,
      ledger,
      client: this.#client,
      adapter,
      observer: createObserver(this.#metrics),
      originOf: (slot, generation) => this.#registry.get(slot, generation)?.url ?? null,
      detokenizerTable: key => textModels.table(key),
      reportFailure: (slot, generation, failure) => this.#reportFailure(slot, generation, failure),
      poolIsOff: () => this.supervisor.state.off === this.#poolThreads,
    });
    // The twin of the addon's reserve is exact only while one thread reserves.
    this.#poolThreads = addon === null ? 1 : config.poolThreads;
    this.supervisor = this.#createSupervisor(loadMemory, ledgerMemory);
    for (const url of namedWorkers(config)) this.#addWorker(url);
  }

  /** Opens the HTTP server. Rejects with ConfigError when the address is taken. */
  async listen(host: string, port: number): Promise<{ port: number }> {
    const { clock, config } = this.#options;
    if (this.#server !== null) throw new ConfigError('the plane listens already');
    const server = await createHttpServer(config.httpServer, {
      clock,
      headerBytesMax: config.limits.headerBytesMax,
      headerDeadlineMs: config.limits.headerDeadlineMs,
      onExchange: exchange => this.handle(exchange),
    });
    const address = await server.listen(host, port);
    this.#server = server;
    return address;
  }

  /** Takes one HTTP request of any server, and answers it in every case. A host's server gets the API only. Never throws. */
  handle(exchange: HttpExchange, isOfHost = false): void {
    let isTaken = false;
    this.#guard.run(() => {
      if (isOfHost && !isApiPath(exchange.path)) refuseUnknown(exchange);
      else this.#route(exchange);
      isTaken = true;
    });
    if (isTaken) return;
    const port = new HttpPort(exchange, this.#guard);
    this.#guard.run(() => port.refuse('MILLRACE_PLANE_FAILED', 'the plane has failed', {}, true));
  }

  /** The exposition text of `/metrics`. */
  metrics(): Promise<string> {
    return this.#metrics.text();
  }

  /** What the outside calls has to run under it; see PlaneOptions.onFault. */
  get guard(): FaultGuard {
    return this.#guard;
  }

  /** Resolves when every worker has answered its first probe, or after `deadlineMs`. */
  workersAnswered(deadlineMs: number): Promise<void> {
    const areReady = (): boolean => this.workers.every(worker => worker.state === 'ready');
    return new Promise(resolve => {
      const finish = (): void => {
        this.#onWorkerChange = null;
        timer.cancel();
        resolve();
      };
      const timer = this.#options.clock.after(deadlineMs, finish);
      this.#onWorkerChange = () => {
        if (areReady()) finish();
      };
      this.#onWorkerChange();
    });
  }

  /**
   * Ends all service after a fault in shared state: open requests end with MILLRACE_PLANE_FAILED, new ones are refused with
   * it, `/health` says 'failed'. Threads and connections stay until `close`. Never throws.
   */
  fail(error: unknown): void {
    if (this.#hasFailed) return;
    this.#hasFailed = true;
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.#options.logger.error('the plane has failed, which is a bug: it answers 503 until it is closed', {
      error: text,
    });
    this.socket.fail('the plane has failed');
    this.#guard.run(() => this.#monitor.stop());
  }

  get status(): PlaneStatus {
    const { loaded, reason } = addonStatus();
    return {
      server: this.#server?.kind ?? 'node',
      serverNotice: this.#server?.notice ?? null,
      addon: { loaded, reason },
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
    const { running, off } = this.supervisor.state;
    const ready = this.workers.filter(worker => worker.state === 'ready').length;
    const total = this.#registry.size;
    let status: Health['status'] = running < this.#poolThreads || ready < total ? 'degraded' : 'ok';
    if (ready === 0 || off === this.#poolThreads) status = 'unavailable';
    if (this.#closing !== null) status = 'draining';
    if (this.#hasFailed) status = 'failed';
    return {
      status,
      workers: { ready, total },
      poolThreads: { running, off },
      requestsInFlight: this.socket.requestsInFlight,
    };
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
    const steps: (() => unknown)[] = [
      () => this.socket.drain(drainDeadlineMs),
      () => this.#monitor.stop(),
      () => this.socket.link.close(),
      () => this.supervisor.close(POOL_CLOSE_DEADLINE_MS),
      () => this.socket.stop(),
      () => this.#client.close(),
      () => this.#server?.close(),
      () => this.#metrics.close(),
      () => this.#scanner.close(),
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

  #createRoutes(): (exchange: HttpExchange) => void {
    return createRoutes({
      accept: (api, exchange) => this.socket.accept(api, new HttpPort(exchange, this.#guard)),
      health: () => this.health(),
      models: () => this.#listModels(),
      metrics: async () => ({ text: await this.#metrics.text(), contentType: this.#metrics.contentType }),
    });
  }

  #createSupervisor(loadMemory: SharedArrayBuffer, ledgerMemory: SharedArrayBuffer): Supervisor {
    const { clock, logger, config, seed } = this.#options;
    const guard = this.#guard;
    return new Supervisor({
      threads: this.#poolThreads,
      limits: config.limits,
      folders: this.#textModels.folders,
      loadMemory,
      ledgerMemory,
      clock,
      logger,
      seed,
      attach: (index, epoch) => this.socket.link.attach(index, epoch),
      up: () => guard.run(() => this.socket.poolThreadUp()),
      lost: (index, epoch) => guard.run(() => this.socket.poolThreadLost(index, epoch)),
      off: () => guard.run(() => this.#onPoolSlotOff()),
      restarted: () => this.#metrics.poolThreadRestarted(),
    });
  }

  #onPoolSlotOff(): void {
    if (this.supervisor.state.off === this.#poolThreads) this.socket.poolIsOff();
  }

  #addWorker(url: string): void {
    const worker = this.#registry.add({ url, engine: VLLM });
    assert(worker !== 'full' && worker !== 'duplicate', 'start checked the workers');
    this.#monitor.watch(worker);
  }

  #reportFailure(slot: number, generation: number, failure: AttemptFailure): void {
    if (failure !== 'protocol') this.#monitor.reportFailure(slot, generation, failure);
  }

  #publishWorld(): void {
    const { config } = this.#options;
    const workers = this.#registry.views();
    const names = new Set([
      ...Object.keys(config.models),
      ...workers.flatMap(worker => worker.models.map(model => model.id)),
    ]);
    this.#models = [...names].map(name => {
      const own = config.models[name];
      this.#metrics.addModel(name);
      return {
        name,
        policy: own?.policy ?? config.policy,
        tokenizer: this.#textModels.keyOf(name),
        contextLength: own?.contextLength ?? null,
      };
    });
    const world: World = { version: ++this.#worldVersion, workers, models: this.#models };
    this.socket.link.setWorld(world);
  }

  #listModels(): ListedModel[] {
    const lengths = new Map<string, number>();
    for (const { models } of this.#registry.views()) {
      for (const { id, contextLength } of models) {
        if (contextLength !== null)
          lengths.set(id, Math.min(contextLength, lengths.get(id) ?? contextLength));
      }
    }
    return this.#models.map(model => ({
      id: model.name,
      created: this.#startedSeconds,
      contextLength:
        model.contextLength ?? lengths.get(model.name) ?? this.#textModels.contextLength(model.name),
    }));
  }
}
