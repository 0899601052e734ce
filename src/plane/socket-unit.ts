/**
 * Everything that one socket thread owns (R1, R5–R7): the HTTP server, the connections to the engines, the frame scanner,
 * the detokenizer tables, the metrics and its SocketThread. It runs on the core's own thread, or in a thread of its own
 * where `socketThreads` is above 1 (unit-thread.ts).
 */

import { strict as assert } from 'node:assert';
import { createAdapters } from '../engines/adapters.js';
import { EngineClient } from '../engines/client.js';
import type { EngineAdapter } from '../engines/contract.js';
import type { EngineExtension } from '../engines/extensions.js';
import { createFrameScanner, type FrameScanner } from '../engines/frame-scanner.js';
import type { Outage } from '../engines/health-contract.js';
import type { LinkServer } from '../engines/link/link-server.js';
import type { LinkTls } from '../engines/link/link-tls.js';
import { LinkedClient } from '../engines/link/linked-client.js';
import { ConfigError } from '../errors.js';
import type { HttpExchange, HttpServer } from '../frontend/http/http-exchange.js';
import { createHttpServer } from '../frontend/http/server.js';
import {
  createMetrics,
  METRICS_CONTENT_TYPE,
  type MetricSamples,
  type MetricSources,
  type Metrics,
} from '../frontend/metrics.js';
import type { ListedModel } from '../frontend/openai/models-response.js';
import type { WorkerView, World } from '../messages/records.js';
import { Ledger } from '../router/ledger.js';
import { LoadTable } from '../router/load-table.js';
import { loadAddon } from '../runtime/addon.js';
import type { Clock } from '../runtime/clock.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import { createAdminRoute } from './admin.js';
import { type Decision, DecisionLog } from './decision-log.js';
import { HttpPort } from './http-port.js';
import { createObserver, metricSources } from './observer.js';
import type { LinkMemory } from './pool-link.js';
import { ProcessBoard } from './process-board.js';
import { createRoutes, isApiPath, refuseUnknown } from './routes.js';
import type { CoreSide, Listening, SocketSide, SocketTask } from './socket-side.js';
import { SocketThread } from './socket-thread.js';
import { WorkerActivity } from './worker-activity.js';

/** Owner epoch of the first socket thread; pool threads count up from 1. */
const SOCKET_EPOCH = 0x8000_0000;

/** What a unit is given by the thread that it runs on. */
export interface UnitServices {
  readonly clock: Clock;
  readonly guard: FaultGuard;
  readonly core: Omit<CoreSide, 'fault' | 'log'>;
  /** As this thread has loaded them. */
  readonly extensions: readonly EngineExtension[];
  /** Loads of the workers, which belong to one thread's metrics only; none elsewhere. */
  readonly readWorkerLoads: MetricSources['readWorkerLoads'];
  /** Of their health, for the same reason. */
  readonly readWorkers: MetricSources['readWorkers'];
  /** Of the prefix index, for the same reason. */
  readonly readIngest: MetricSources['readIngest'];
  /** Where the workers of this thread link in: its lane, or the core's server where it runs in place; null: nowhere. */
  readonly links: LinkServer | null;
}

/** One socket thread and its HTTP server. */
export class SocketUnit implements SocketSide {
  readonly socket: SocketThread;
  readonly metrics: Metrics;
  readonly #task: SocketTask;
  readonly #services: UnitServices;
  readonly #client: EngineClient;
  /** Opened and closed here. */
  readonly #lane: LinkServer | null;
  readonly #scanner: FrameScanner;
  readonly #board: ProcessBoard;
  readonly #route: (exchange: HttpExchange) => void;
  readonly #adapters: ReadonlyMap<string, EngineAdapter>;
  readonly #workers = new Map<number, WorkerView>();
  #listed: readonly ListedModel[] = [];
  #server: HttpServer | null = null;

  constructor(task: SocketTask, services: UnitServices) {
    this.#task = task;
    this.#services = services;
    const { clock, guard, core, links } = services;
    const { index, threads, config, tables } = task;
    const { limits } = config;
    const addon = loadAddon();
    this.#client = new EngineClient({ clock, connectDeadlineMs: limits.connectDeadlineMs });
    this.#lane = threads > 1 ? links : null;
    const linked = links === null ? null : new LinkedClient(links, this.#client);
    this.#scanner = createFrameScanner(addon);
    this.#adapters = createAdapters(services.extensions, this.#scanner);
    this.#board = new ProcessBoard(task.boardMemory);
    const { readIngest, readWorkers } = services;
    const sources = {
      ...metricSources(() => this.socket, services.readWorkerLoads),
      readIngest,
      readWorkers,
      readLinks: links?.reader(linked!.counts) ?? null,
    };
    this.metrics = createMetrics(Object.keys(config.models), sources, `socket-${index}`);
    const loadTable = new LoadTable(task.loadMemory);
    this.socket = new SocketThread({
      index,
      threads,
      clock,
      guard,
      // An equal part each: what a thread retains is counted without looking at the others.
      limits: { ...limits, retainedBytesMax: Math.ceil(limits.retainedBytesMax / threads) },
      epoch: SOCKET_EPOCH + index,
      bellMemory: task.bellMemory,
      board: this.#board,
      ledger: new Ledger({ memory: task.ledgerMemory, loadTable, partition: null, addon }),
      client: linked ?? this.#client,
      observer: createObserver(this.metrics),
      activity: new WorkerActivity(task.activityMemory),
      decisions: new DecisionLog(),
      sessionHeader: config.sessionHeader,
      hedgeAfterMs: model => config.models[model]?.hedgeAfterMs ?? limits.hedgeAfterMs,
      originOf: (slot, generation) => this.#worker(slot, generation)?.url ?? null,
      adapterOf: (slot, generation) => this.#adapters.get(this.#worker(slot, generation)!.engine)!,
      detokenizerTable: tokenizer => tables.get(tokenizer)!,
      reportFailure: (slot, generation, failure) => core.reportFailure(slot, generation, failure),
    });
    this.#route = createRoutes({
      accept: (api, exchange) => this.socket.accept(api, new HttpPort(exchange, guard)),
      health: () => this.#board.health(),
      models: () => this.#listed,
      metrics: async () => ({ text: await core.metricsText(), contentType: METRICS_CONTENT_TYPE }),
      decisions: limit => core.decisions(limit),
      admin:
        config.adminToken === null
          ? null
          : createAdminRoute({
              token: config.adminToken,
              bodyDeadlineMs: limits.bodyDeadlineMs,
              call: call => core.admin(call),
            }),
    });
  }

  /** Takes one HTTP request of any server, and answers it in every case. A host's server gets the API only. Never throws. */
  handle(exchange: HttpExchange, isOfHost = false): void {
    const { guard } = this.#services;
    let isTaken = false;
    guard.run(() => {
      if (isOfHost && !isApiPath(exchange.path)) refuseUnknown(exchange);
      else this.#route(exchange);
      isTaken = true;
    });
    if (isTaken) return;
    const port = new HttpPort(exchange, guard);
    guard.run(() => port.refuse('MILLRACE_PLANE_FAILED', 'the plane has failed', {}, true));
  }

  setWorld(world: World, listed: readonly ListedModel[]): void {
    this.#workers.clear();
    for (const worker of world.workers) this.#workers.set(worker.slot, worker);
    for (const { name } of world.models) this.metrics.addModel(name);
    this.#listed = listed;
    this.socket.link.setWorld(world);
  }

  setOutage(slot: number, generation: number, outage: Outage | null): void {
    this.socket.lostWorkers.set(slot, generation, outage);
  }

  attach(index: number, memory: LinkMemory): void {
    this.socket.link.attach(index, memory);
    this.socket.poolThreadUp();
  }

  lost(index: number): undefined {
    this.socket.link.lost(index);
  }

  poolIsOff(): void {
    this.socket.poolIsOff();
  }

  leaveWorker(slot: number, generation: number): void {
    this.socket.leaveWorker(slot, generation);
  }

  async listen(host: string, port: number, isShared: boolean): Promise<Listening> {
    const { httpServer, limits } = this.#task.config;
    let server: HttpServer;
    try {
      server = await createHttpServer(isShared ? 'uws' : httpServer, {
        clock: this.#services.clock,
        headerBytesMax: limits.headerBytesMax,
        headerDeadlineMs: limits.headerDeadlineMs,
        onExchange: exchange => this.handle(exchange),
      });
    } catch (cause) {
      if (!isShared || cause instanceof ConfigError) throw cause;
      const needs = `socketThreads is ${this.#task.threads}; above 1 it needs uWebSockets.js`;
      throw new ConfigError(`${needs}, which does not load: ${(cause as Error).message}`, { cause });
    }
    const listening = await server.listen(host, port, isShared);
    this.#server = server;
    return { port: listening.port, server: server.kind, notice: server.notice };
  }

  async listenLane(): Promise<number> {
    assert(this.#lane !== null, 'this unit has a lane');
    return (await this.#lane.listen()).port;
  }

  renewTls(tls: LinkTls): void {
    this.#lane?.renewTls(tls);
  }

  drain(deadlineMs: number): Promise<void> {
    return this.socket.drain(deadlineMs);
  }

  closeRings(): void {
    this.socket.link.close();
  }

  async stop(): Promise<void> {
    const { guard } = this.#services;
    const steps: (() => unknown)[] = [
      () => this.socket.stop(),
      () => this.#lane?.close(),
      () => this.#client.close(),
      () => this.#server?.close(),
      () => this.metrics.close(),
      () => this.#scanner.close(),
    ];
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        // The later steps free what they can, whatever a failed plane cannot do any more.
        guard.report(error);
      }
    }
  }

  samples(): Promise<MetricSamples> {
    return this.metrics.samples();
  }

  async decisions(count: number): Promise<readonly Decision[]> {
    return this.socket.decisions.newest(count);
  }

  #worker(slot: number, generation: number): WorkerView | null {
    const worker = this.#workers.get(slot);
    return worker?.generation === generation ? worker : null;
  }
}
