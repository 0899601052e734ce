/**
 * The fleet of a plane: its workers as the registry knows them, the monitor that watches them, and what follows from a
 * change: a new WORLD for the socket threads, the figures of the process board, and the sources of KV events on the
 * ingest thread. Owned by the core, on its thread.
 */
import { strict as assert } from 'node:assert';
import type { Config } from '../config.js';
import { type RegisteredWorker, type RegistryChange, WorkerRegistry } from '../discovery/registry.js';
import { EngineClient } from '../engines/client.js';
import { WorkerMonitor } from '../engines/monitor.js';
import { createVllmAdapter, VLLM } from '../engines/vllm.js';
import type { ListedModel } from '../frontend/openai/models-response.js';
import type { ModelView, World } from '../messages/records.js';
import type { EventEndpoints } from '../router/events/contract.js';
import type { LoadTable } from '../router/load-table.js';
import type { Clock } from '../runtime/clock.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { Logger } from '../runtime/logger.js';
import { distinctWorkers, endpointOf, type WorkerConfig } from '../worker-config.js';
import type { AttemptFailure } from './attempt.js';
import type { IngestSide } from './ingest-side.js';
import type { ProcessBoard } from './process-board.js';
import { listedModels, servedModels } from './served-models.js';
import type { TextModels } from './text-models.js';

/** Every worker that the configuration names, once. Throws ConfigError where two lists disagree. */
export function configuredWorkers(config: Config): WorkerConfig[] {
  return distinctWorkers([config.workers, ...Object.values(config.models).map(model => model.workers)]);
}

/** What a fleet needs of its plane. */
export interface FleetOptions {
  readonly config: Config;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly guard: FaultGuard;
  readonly textModels: TextModels;
  readonly loadTable: LoadTable;
  readonly board: ProcessBoard;
  /** Told of the workers and of where they publish; null: the plane has no prefix index. */
  readonly ingest: Pick<IngestSide, 'addWorker' | 'removeWorker' | 'suspectWorker'> | null;
  readonly publish: (world: World, listed: readonly ListedModel[]) => void;
}

/** See the head of the file. */
export class Fleet {
  readonly registry: WorkerRegistry;
  readonly #options: FleetOptions;
  readonly #client: EngineClient;
  readonly #monitor: WorkerMonitor;
  readonly #startedSeconds: number;
  /** Where the ranks of a worker publish, by its URL. */
  readonly #configured: ReadonlyMap<string, WorkerConfig>;
  /** Generations that the ingest thread was told of, by slot. */
  readonly #indexed = new Map<number, number>();
  #worldVersion = 0;
  #models: readonly ModelView[] = [];
  #onChange: (() => void) | null = null;

  constructor(options: FleetOptions) {
    const { config, clock, loadTable, guard } = options;
    const { limits } = config;
    this.#options = options;
    this.#startedSeconds = Math.floor(clock.wallMs() / 1000);
    this.#client = new EngineClient({ clock, connectDeadlineMs: limits.connectDeadlineMs });
    this.#configured = new Map(configuredWorkers(config).map(worker => [worker.url, worker]));
    this.registry = new WorkerRegistry({
      workersMax: limits.workersMax,
      table: loadTable,
      onChange: change => guard.run(() => this.#changed(change)),
    });
    this.#monitor = this.#createMonitor();
  }

  /** Takes in every worker that is configured; the first probes leave at once. */
  start(): void {
    for (const { url, dpRanks } of this.#configured.values()) {
      for (let rank = 0; rank < dpRanks; rank++) {
        const worker = this.registry.add({ url, engine: VLLM, rank: dpRanks === 1 ? null : rank });
        assert(worker !== 'full' && worker !== 'duplicate', 'the configuration was checked');
      }
    }
  }

  /** Models that can be asked for. */
  get models(): readonly ModelView[] {
    return this.#models;
  }

  /** Worker slots in use and how many of them publish KV events. */
  get publishers(): { readonly publishing: number; readonly workers: number } {
    const workers = this.registry.list();
    return {
      workers: workers.length,
      publishing: workers.filter(worker => this.#endpoints(worker) !== null).length,
    };
  }

  /** Resolves when every worker has answered its first probe, or after `deadlineMs`. */
  workersAnswered(deadlineMs: number): Promise<void> {
    const areReady = (): boolean => this.registry.list().every(worker => worker.state === 'ready');
    return new Promise(resolve => {
      const finish = (): void => {
        this.#onChange = null;
        timer.cancel();
        resolve();
      };
      const timer = this.#options.clock.after(deadlineMs, finish);
      this.#onChange = () => {
        if (areReady()) finish();
      };
      this.#onChange();
    });
  }

  /** A worker failed a request. */
  reportFailure(slot: number, generation: number, failure: AttemptFailure): void {
    if (failure !== 'protocol') this.#monitor.reportFailure(slot, generation, failure);
  }

  /** What KV events say of a worker that does not say it itself. */
  learnBlockSize(slot: number, generation: number, blockSize: number): void {
    this.registry.learnBlockSize(slot, generation, blockSize);
  }

  /** Ends all probes. */
  stop(): void {
    this.#monitor.stop();
  }

  /** Closes the connections of the probes. */
  close(): Promise<void> {
    return this.#client.close();
  }

  #changed({ kind, worker }: RegistryChange): void {
    const { board, ingest } = this.#options;
    const workers = this.registry.list();
    board.setWorkers(workers.filter(({ state }) => state === 'ready').length, workers.length);
    const { slot, generation, facts } = worker;
    if (kind === 'added') this.#monitor.watch(worker);
    if (kind === 'removed') {
      this.#monitor.unwatch(slot, generation);
      if (this.#indexed.delete(slot)) ingest?.removeWorker(slot);
    }
    // The index knows a worker from its first probe on: its facts say what its events must look like.
    if (kind === 'facts' && this.#indexed.get(slot) !== generation) this.#tellIngest(worker);
    if (kind === 'state' && worker.state === 'unavailable') {
      // It may come back with an empty cache. Where there are events, they tell; else nothing would.
      if (this.#endpoints(worker) === null) this.#tellIngest(worker);
      else ingest?.suspectWorker(slot);
    }
    if (kind === 'facts' || (kind === 'removed' && facts !== null)) this.#publishWorld();
    this.#onChange?.();
  }

  #tellIngest(worker: RegisteredWorker): void {
    const { slot, generation, url, facts } = worker;
    if (facts === null) return;
    const endpoints = this.#endpoints(worker);
    const { blockSize, totalBlocks } = facts;
    const hasEvents = endpoints !== null;
    this.#indexed.set(slot, generation);
    this.#options.ingest?.addWorker(
      slot,
      { generation, blockSize, totalBlocks, hasEvents, name: url },
      endpoints,
    );
  }

  #endpoints({ url, rank }: RegisteredWorker): EventEndpoints | null {
    const { kvEvents, kvEventsReplay, kvEventsTopic } = this.#configured.get(url)!;
    const publish = endpointOf(kvEvents, url, rank ?? 0);
    return publish === null
      ? null
      : { publish, replay: endpointOf(kvEventsReplay, url, rank ?? 0), topic: kvEventsTopic };
  }

  #createMonitor(): WorkerMonitor {
    const { config, clock, logger, textModels } = this.#options;
    const { limits } = config;
    const adapter = createVllmAdapter();
    return new WorkerMonitor({
      clock,
      log: logger,
      get: (origin, path, deadlineMs, bytesMax) => this.#client.get(origin, path, deadlineMs, bytesMax),
      sink: this.registry,
      adapters: new Map([[VLLM, adapter]]),
      findForeignIds: ({ url }, facts) =>
        textModels.findForeignIds(url, facts, adapter, (path, json) =>
          this.#client.post(url, path, json, limits.probeDeadlineMs, limits.probeBytesMax),
        ),
      limits,
    });
  }

  #publishWorld(): void {
    const { config, textModels, publish } = this.#options;
    const workers = this.registry.views();
    this.#models = servedModels(config, workers, textModels);
    const world = { version: ++this.#worldVersion, workers, models: this.#models };
    publish(world, listedModels(this.#models, workers, textModels, this.#startedSeconds));
  }
}
