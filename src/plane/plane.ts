/**
 * The plane: the one place that composes the stages (design §2). It makes the shared memory, starts the pool under its
 * supervisor and the socket threads, watches the workers and closes everything in order. With one socket thread, that
 * is the thread of the plane itself. It touches nothing of the host process: no signals, no exit, no environment.
 */
import { strict as assert } from 'node:assert';
import type { Config } from '../config.js';
import type { EngineExtension } from '../engines/extensions.js';
import { ConfigError } from '../errors.js';
import { claimPort } from '../frontend/http/claim-port.js';
import type { HttpExchange } from '../frontend/http/http-exchange.js';
import { createMetrics, type Metrics, mergedText } from '../frontend/metrics.js';
import { Ledger } from '../router/ledger.js';
import { LoadTable } from '../router/load-table.js';
import { addonStatus } from '../runtime/addon.js';
import type { Clock } from '../runtime/clock.js';
import { FaultGuard, throwLater } from '../runtime/fault-guard.js';
import type { Logger } from '../runtime/logger.js';
import { namedWorkers, resolveWorker, type WorkerConfig, type WorkerOptions } from '../worker-config.js';
import { carryOutAdmin } from './admin-calls.js';
import { type Decision, mergedDecisions } from './decision-log.js';
import { openExtensions } from './extension-trial.js';
import { Fleet } from './fleet.js';
import { readIngest } from './ingest-metrics.js';
import type { IngestCore } from './ingest-side.js';
import { linkAccess } from './link-access.js';
import type { Replaced } from './membership.js';
import { NO_SOCKET, workerLoads } from './observer.js';
import { createPlaneMemory, type PlaneMemory } from './plane-memory.js';
import { checkNeeds, needsIndex } from './plane-needs.js';
import type { PlaneStatus } from './plane-status.js';
import { startPool } from './pool-side.js';
import { ProcessBoard } from './process-board.js';
import { RemoteIngest } from './remote-ingest.js';
import { RemoteUnit } from './remote-unit.js';
import type { Health } from './routes.js';
import { type CoreSide, type Listening, type SocketSide, socketTasks } from './socket-side.js';
import type { SocketThread } from './socket-thread.js';
import { SocketUnit } from './socket-unit.js';
import type { Supervisor } from './supervisor.js';
import { TextModels } from './text-models.js';
import { WorkerActivity } from './worker-activity.js';
import type { WorkerControl } from './worker-control.js';
import { WorkerLinks } from './worker-links.js';
import { type WorkerReport, workerReadings, workerReports } from './worker-report.js';

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

/** What has to be opened before a plane can be made. */
interface PlaneParts {
  readonly guard: FaultGuard;
  readonly textModels: TextModels;
  readonly extensions: readonly EngineExtension[];
}

/** A running data plane; made by `Plane.start`, ended by `close`. */
export class Plane {
  readonly #options: PlaneOptions;
  readonly #guard: FaultGuard;
  readonly #fleet: Fleet;
  readonly #links: WorkerLinks | null;
  readonly #board: ProcessBoard;
  /** The core's metrics; those of the unit where that runs in place. */
  readonly #metrics: Metrics;
  readonly #poolThreads: number;
  readonly #sides: readonly SocketSide[];
  /** The one socket thread that runs in place; null where they have threads of their own. */
  readonly #local: SocketUnit | null;
  /** What every worker carries; only to be read outside the plane. */
  readonly loadTable: LoadTable;
  /** Who made workers carry it; only to be read outside the plane. */
  readonly ledger: Ledger;
  readonly supervisor: Supervisor;
  /** LoRA adapters and sleep of the workers. */
  readonly control: WorkerControl;
  /** The one writer of the prefix index; null: nothing has use for an index. */
  readonly ingest: RemoteIngest | null;
  #listening: Listening | null = null;
  #closing: Promise<void> | null = null;

  /** Starts a plane that serves nothing yet; `listen` opens its server. Throws ConfigError. */
  static async start(options: PlaneOptions): Promise<Plane> {
    checkNeeds(options.config, options.onFault !== undefined);
    let plane: Plane | null = null;
    const guard = new FaultGuard(error => {
      // Until it has started, an exception is the caller's answer.
      if (plane === null) throw error;
      (options.onFault ?? throwLater)(error, plane);
    });
    const guarded = { ...options, clock: guard.clock(options.clock), logger: guard.logger(options.logger) };
    const extensions = await openExtensions(options.config, guarded.clock);
    const textModels = await TextModels.open(options.config, guarded.clock, guarded.logger);
    plane = new Plane(guarded, { guard, textModels, extensions });
    try {
      await plane.#links?.listen(plane.#local === null ? plane.#sides : []);
    } catch (error) {
      await plane.close(0);
      throw error;
    }
    return plane;
  }

  private constructor(options: PlaneOptions, { guard, textModels, extensions }: PlaneParts) {
    const { config, clock, logger, seed } = options;
    this.#options = options;
    this.#guard = guard;
    const hasAddon = addonStatus().loaded;
    // The twin of the addon's reserve is exact only while one thread reserves.
    this.#poolThreads = hasAddon ? config.poolThreads : 1;
    const hasIndex = needsIndex(config);
    const memory = createPlaneMemory(config, this.#poolThreads, hasIndex && hasAddon, seed);
    this.loadTable = new LoadTable(memory.load);
    this.ledger = new Ledger({
      memory: memory.ledger,
      loadTable: this.loadTable,
      partition: null,
      addon: null,
    });
    this.#board = new ProcessBoard(memory.board);
    this.ingest = hasIndex ? this.#startIngest(memory) : null;
    this.#fleet = new Fleet({
      config,
      clock,
      logger,
      guard,
      textModels,
      extensions,
      loadTable: this.loadTable,
      board: this.#board,
      activity: new WorkerActivity(memory.activity),
      ingest: this.ingest,
      moveAway: (slot, generation) => this.#sides.map(side => side.leaveWorker(slot, generation)),
      isLinked: url => this.#links?.isLinked(url) ?? false,
      publish: (world, listed) => this.#sides.map(side => side.setWorld(world, listed)),
      setOutage: (...news) => this.#sides.map(side => side.setOutage(...news)),
    });
    this.control = this.#fleet.control;
    this.#links = this.#createLinks();
    const sources = {
      readWorkerLoads: workerLoads(this.#fleet.registry, this.loadTable),
      readWorkers: () => workerReadings(this.#fleet, this.loadTable, this.#links),
      readIngest: readIngest(this.ingest, this.#board),
    };
    const tasks = socketTasks(config, textModels, memory);
    const core = this.#coreSide();
    const links = this.#links?.server ?? null;
    const services = { ...sources, clock, guard, core, extensions, links };
    this.#local = tasks.length > 1 ? null : new SocketUnit(tasks[0]!, services);
    this.#sides = this.#local === null ? tasks.map(task => new RemoteUnit(task, core, clock)) : [this.#local];
    const readLinks = links?.reader(null) ?? null;
    this.#metrics =
      this.#local?.metrics ?? createMetrics([], { ...NO_SOCKET, ...sources, readLinks }, 'main');
    this.supervisor = startPool({
      threads: this.#poolThreads,
      limits: config.limits,
      clock,
      logger,
      guard,
      seed,
      folders: textModels.folders,
      extensions: config.extensions,
      memory,
      board: this.#board,
      ledger: this.ledger,
      sides: this.#sides,
      ingest: this.ingest,
      restarted: () => this.#metrics.poolThreadRestarted(),
    });
    this.#fleet.start();
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
    return this.#fleet.workersAnswered(deadlineMs);
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
    this.#guard.run(() => this.#fleet.stop());
  }

  get status(): PlaneStatus {
    const { loaded, reason } = addonStatus();
    return {
      server: this.#listening?.server ?? 'node',
      serverNotice: this.#listening?.notice ?? null,
      addon: { loaded, reason },
      socketThreads: this.#sides.length,
      poolThreads: this.#poolThreads,
      kvEvents: this.#fleet.publishers,
      indexBytes: this.ingest === null ? null : this.#options.config.limits.indexBytes,
      linkAddress: this.#links?.address ?? null,
    };
  }

  /** Models that can be asked for. */
  get models(): readonly { readonly name: string; readonly tokenizer: string | null }[] {
    return this.#fleet.models.map(({ name, tokenizer }) => ({ name, tokenizer }));
  }

  /** The workers and their states. */
  get workers(): readonly { readonly url: string; readonly rank: number | null; readonly state: string }[] {
    return this.#fleet.registry.list().map(({ url, rank, state }) => ({ url, rank, state }));
  }

  /** The workers in full. */
  get workerReports(): readonly WorkerReport[] {
    return workerReports(this.#fleet, this.loadTable, this.#links);
  }

  /**
   * Takes in a worker while the plane runs; it serves once it has answered its probe. One that joined by its link stays
   * from then on when its link has gone. Throws ConfigError where the worker is wrong or known, or there is no room.
   */
  addWorker(worker: WorkerOptions): void {
    for (const named of namedWorkers(worker, 'worker')) {
      const config = resolveWorker(named, this.#options.config);
      if (this.#links?.keep(config) !== true) this.#fleet.members.add(config);
    }
  }

  /** Sends a worker nothing new; it stays. False: there is none at this origin. */
  drainWorker(url: string): boolean {
    return this.#fleet.members.drain(url);
  }

  /** Takes a worker out at once; streams that it serves go on. False as above. */
  removeWorker(url: string): boolean {
    return this.#fleet.members.remove(url);
  }

  /** Drains a worker, and takes it out when it carries nothing or the limit drainDeadlineMs has passed. False as above. */
  retireWorker(url: string): boolean {
    return this.#fleet.members.retire(url);
  }

  /** Has the plane serve with these workers: new ones are added, others retire. Throws ConfigError, and then changes nothing. */
  setWorkers(workers: readonly WorkerConfig[]): Replaced {
    const replaced = this.#fleet.members.replace(workers, url => this.#links?.hasJoined(url) ?? false);
    for (const { url } of workers) this.#links?.stays(url);
    return replaced;
  }

  /** Reads the TLS files of worker links again, for connections from then on. Throws ConfigError, and then changes nothing. */
  renewLinkTls(): void {
    const tls = linkAccess(this.#options.config)?.tls ?? null;
    if (tls === null) return;
    this.#links!.server.renewTls(tls);
    for (const side of this.#sides) side.renewTls(tls);
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
      () => this.#fleet.stop(),
      () => this.#sides.map(side => side.closeRings()),
      () => this.supervisor.close(POOL_CLOSE_DEADLINE_MS),
      () => this.#links?.close(),
      () => Promise.all(this.#sides.map(side => side.stop())),
      () => this.ingest?.stop(),
      () => this.#fleet.close(),
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

  #createLinks(): WorkerLinks | null {
    const { config, clock, logger } = this.#options;
    if (config.linkListen === null) return null;
    return new WorkerLinks({
      config,
      clock,
      logger,
      guard: this.#guard,
      fleet: this.#fleet,
      push: async (slot, batch) => this.ingest?.push(slot, batch),
    });
  }

  #coreSide(): CoreSide {
    return {
      reportFailure: (slot, generation, failure) => this.#fleet.reportFailure(slot, generation, failure),
      metricsText: () => this.metrics(),
      decisions: count => this.decisions(count),
      admin: async call => carryOutAdmin(this, call),
      log: (level, message, fields) => this.#options.logger[level](message, fields),
      fault: text => this.#guard.report(new Error(`a socket thread has failed: ${text}`)),
    };
  }

  #startIngest(memory: PlaneMemory): RemoteIngest {
    const { config, clock, logger, seed } = this.#options;
    const core: IngestCore = {
      learnBlockSize: (slot, generation, blockSize) =>
        this.#guard.run(() => this.#fleet.learnBlockSize(slot, generation, blockSize)),
      log: (level, message, fields) => logger[level](message, fields),
      fault: text =>
        this.#guard.run(() => {
          this.#board.setIndex('failed');
          logger.error('the prefix index has failed, which is a bug: requests are routed by load alone', {
            error: text,
          });
        }),
    };
    this.#board.setIndex('serving');
    const { index: indexMemory, ingestBell: bellMemory } = memory;
    const task = { limits: config.limits, seed, indexMemory, bellMemory };
    return new RemoteIngest(task, core, clock);
  }
}
