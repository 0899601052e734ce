/**
 * The fleet of a plane: its workers as the registry knows them, the monitor that watches them, and what follows from a
 * change: a new WORLD for the socket threads, the figures of the process board, and the sources of KV events on the
 * ingest thread. Owned by the core, on its thread.
 */
import type { Config } from '../config.js';
import { bootstrapOf } from '../disagg-config.js';
import {
  type RegisteredWorker,
  type RegistryChange,
  type WorkerFacts,
  WorkerRegistry,
} from '../discovery/registry.js';
import { createAdapters } from '../engines/adapters.js';
import { EngineClient } from '../engines/client.js';
import type { EngineAdapter, RankEvents } from '../engines/contract.js';
import type { EngineExtension } from '../engines/extensions.js';
import type { FindingSink, HealthCounts, Outage, ProbedFacts } from '../engines/health-contract.js';
import { WorkerMonitor } from '../engines/monitor.js';
import type { ListedModel } from '../frontend/openai/models-response.js';
import type { WorkerSplit } from '../messages/disagg.js';
import type { ModelView, WorkerView, World } from '../messages/records.js';
import type { EventEndpoints } from '../router/events/contract.js';
import type { LoadTable } from '../router/load-table.js';
import type { Clock } from '../runtime/clock.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { Logger } from '../runtime/logger.js';
import { AUTO_EVENTS, distinctWorkers, endpointOf, type WorkerConfig } from '../worker-config.js';
import type { AttemptFailure } from './attempt.js';
import { splitOfWorker } from './disagg-models.js';
import type { IngestSide } from './ingest-side.js';
import { Membership } from './membership.js';
import { type BootstrapServer, PeerFacts, type PeerSays } from './peer-facts.js';
import type { ProcessBoard } from './process-board.js';
import { listedModels, servedModels } from './served-models.js';
import type { TextModels } from './text-models.js';
import type { WorkerActivity } from './worker-activity.js';
import { WorkerControl } from './worker-control.js';

/** In the place of endpoints: the events come by the worker's link. */
export const LINK_EVENTS = 'link';

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
  /** As this thread has loaded them. */
  readonly extensions: readonly EngineExtension[];
  readonly loadTable: LoadTable;
  readonly board: ProcessBoard;
  readonly activity: WorkerActivity;
  /** Told of the workers and of where they publish; null: the plane has no prefix index. */
  readonly ingest: Pick<
    IngestSide,
    'addWorker' | 'addPushed' | 'push' | 'removeWorker' | 'suspectWorker' | 'resumeWorker'
  > | null;
  /** Has the socket threads move what runs on a worker to other ones. */
  readonly moveAway: (slot: number, generation: number) => void;
  /** A link process is at the worker. */
  readonly isLinked: (url: string) => boolean;
  readonly publish: (world: World, listed: readonly ListedModel[]) => void;
  /** A worker went out of rotation; null: it is back. */
  readonly setOutage: (slot: number, generation: number, outage: Outage | null) => void;
}

/** See the head of the file. */
export class Fleet {
  readonly registry: WorkerRegistry;
  readonly members: Membership;
  /** What operators change of engines. */
  readonly control: WorkerControl;
  readonly #options: FleetOptions;
  readonly #client: EngineClient;
  readonly #adapters: ReadonlyMap<string, EngineAdapter>;
  readonly #monitor: WorkerMonitor;
  readonly #startedSeconds: number;
  readonly #peers: PeerFacts;
  /** Where the ranks of a worker publish, as its last probe said, by slot. */
  readonly #probedEvents = new Map<number, readonly RankEvents[] | null>();
  /** Generations that the ingest thread was told of, by slot. */
  readonly #indexed = new Map<number, number>();
  /** Those whose events come by a worker link. */
  readonly #pushed = new Map<number, number>();
  #worldVersion = 0;
  /** About the models, as last told. */
  #notices: ReadonlySet<string> = new Set();
  #models: readonly ModelView[] = [];
  #onChange: (() => void) | null = null;

  constructor(options: FleetOptions) {
    const { config, clock, loadTable, guard, extensions } = options;
    const { limits } = config;
    this.#options = options;
    this.#startedSeconds = Math.floor(clock.wallMs() / 1000);
    this.#client = new EngineClient({ clock, connectDeadlineMs: limits.connectDeadlineMs });
    this.#adapters = createAdapters(extensions);
    this.registry = new WorkerRegistry({
      workersMax: limits.workersMax,
      table: loadTable,
      onChange: change => guard.run(() => this.#changed(change)),
    });
    const { logger } = options;
    this.#peers = new PeerFacts({
      ...{ clock, guard, logger, limits },
      ask: (request, deadlineMs, bytesMax) => this.#client.ask(request, deadlineMs, bytesMax),
      onChange: () => this.#publishWorld(),
    });
    const adapters = this.#adapters;
    this.members = new Membership({
      ...{ registry: this.registry, engines: adapters, loadTable, clock, logger, limits },
    });
    this.#monitor = this.#createMonitor();
    this.control = new WorkerControl({
      ...options,
      limits,
      registry: this.registry,
      monitor: this.#monitor,
      adapters,
      ask: (request, deadlineMs, bytesMax) => this.#client.ask(request, deadlineMs, bytesMax),
      forgetCache: worker => this.#forgetCache(worker),
    });
  }

  /** Takes in every worker that is configured; the first probes leave at once. */
  start(): void {
    for (const worker of configuredWorkers(this.#options.config)) this.members.add(worker);
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
      publishing: workers.filter(worker => this.eventsOf(worker) !== null).length,
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
    this.#monitor.reportFailure(slot, generation, failure);
  }

  /** What the monitor has counted of a worker; null: it has just left. */
  countsOf({ slot, generation }: RegisteredWorker): HealthCounts | null {
    return this.#monitor.counts(slot, generation);
  }

  /** What KV events say of a worker that does not say it itself. */
  learnBlockSize(slot: number, generation: number, blockSize: number): void {
    this.registry.learnBlockSize(slot, generation, blockSize);
  }

  /**
   * The KV events of a worker come by its link from now on, all from their begin, and no more from where its probe says: the
   * index knows it at once, empty. False: nobody wants them, because there is no index, or the configuration names where the
   * worker publishes or says that no events are taken.
   */
  takeEvents(worker: RegisteredWorker, said: Pick<WorkerFacts, 'blockSize' | 'totalBlocks'>): boolean {
    const { ingest } = this.#options;
    const { slot, generation, url } = worker;
    if (ingest === null || this.members.configOf(url).kvEvents !== AUTO_EVENTS) return false;
    this.#indexed.set(slot, generation);
    this.#pushed.set(slot, generation);
    const { blockSize, totalBlocks } = worker.facts ?? said;
    ingest.addPushed(slot, { generation, blockSize, totalBlocks, hasEvents: true, name: url });
    return true;
  }

  /** They do not come any more: it counts as empty, and is known from then on as a worker without a link is. */
  endEvents(slot: number, generation: number): void {
    if (this.#pushed.get(slot) !== generation) return;
    this.#pushed.delete(slot);
    const worker = this.registry.get(slot, generation);
    if (worker?.facts !== null && worker !== null) this.#tellIngest(worker);
    else if (this.#indexed.delete(slot)) this.#options.ingest?.removeWorker(slot);
  }

  /** Ends all probes. */
  stop(): void {
    this.members.stop();
    this.control.stop();
    this.#monitor.stop();
    this.#peers.stop();
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
      if (!workers.some(({ url }) => url === worker.url)) this.control.forget(worker.url);
      this.#pushed.delete(slot);
      this.#probedEvents.delete(slot);
      this.#peers.forget(slot);
      if (this.#indexed.delete(slot)) ingest?.removeWorker(slot);
    }
    // The index knows a worker from its first probe on: its facts say what its events must look like.
    if (kind === 'facts' && this.#indexed.get(slot) !== generation) this.#tellIngest(worker);
    if (kind === 'state' && worker.state === 'unavailable') {
      // It may come back with an empty cache. Where there are events, they tell; else nothing would.
      if (this.eventsOf(worker) === null) this.#tellIngest(worker);
      else ingest?.suspectWorker(slot);
    }
    if (kind === 'state' && worker.state === 'ready') ingest?.resumeWorker(slot);
    if (kind === 'facts' || (kind === 'removed' && facts !== null)) this.#publishWorld();
    this.#onChange?.();
  }

  #tellIngest(worker: RegisteredWorker): void {
    const { slot, generation, url, facts } = worker;
    if (facts === null) return;
    const endpoints = this.#endpointsOf(worker);
    const { blockSize, totalBlocks } = facts;
    const hasEvents = endpoints !== null;
    this.#indexed.set(slot, generation);
    this.#options.ingest?.addWorker(
      slot,
      { generation, blockSize, totalBlocks, hasEvents, name: url },
      endpoints,
    );
  }

  #isPushed({ slot, generation }: RegisteredWorker): boolean {
    return this.#pushed.get(slot) === generation;
  }

  /** Where the KV events of a worker are taken from: its link or where it publishes; null: it has none, or they are not wanted. */
  eventsOf(worker: RegisteredWorker): EventEndpoints | typeof LINK_EVENTS | null {
    return this.#isPushed(worker) ? LINK_EVENTS : this.#endpointsOf(worker);
  }

  #endpointsOf({ slot, url, rank }: RegisteredWorker): EventEndpoints | null {
    const { kvEvents, kvEventsReplay, kvEventsTopic } = this.members.configOf(url);
    if (kvEvents === AUTO_EVENTS) return probedEndpoints(this.#probedEvents.get(slot) ?? null, rank);
    const publish = endpointOf(kvEvents, url, rank ?? 0);
    return publish === null
      ? null
      : { publish, replay: endpointOf(kvEventsReplay, url, rank ?? 0), topic: kvEventsTopic };
  }

  /** Its engine has dropped its KV cache, whatever its events have said so far. */
  async #forgetCache({ slot, generation, url }: RegisteredWorker): Promise<void> {
    const { ingest, logger } = this.#options;
    if (ingest === null || this.#indexed.get(slot) !== generation) return;
    try {
      await ingest.push(slot, null);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      logger.warn('what a worker had cached before its sleep may still be counted', { worker: url, reason });
    }
  }

  #createMonitor(): WorkerMonitor {
    const { config, clock, logger, textModels, activity, setOutage } = this.#options;
    const { limits } = config;
    const adapters = this.#adapters;
    const { registry } = this;
    const sink: FindingSink = {
      setFacts: (slot, generation, facts) => this.#setFacts(slot, generation, facts),
      setHealthy: (slot, generation, healthy, outage) => {
        const held = registry.setHealthy(slot, generation, healthy);
        if (held) setOutage(slot, generation, outage);
        return held;
      },
      setSleeping: (slot, generation, level) => registry.setSleeping(slot, generation, level),
      setScraped: (slot, generation, load, nowSeconds) =>
        registry.setScraped(slot, generation, load, nowSeconds),
    };
    return new WorkerMonitor({
      clock,
      log: logger,
      ask: (request, deadlineMs, bytesMax) => this.#client.ask(request, deadlineMs, bytesMax),
      sink,
      adapters,
      readActivity: (slot, generation) => activity.read(slot, generation),
      findForeignIds: ({ url }, facts) =>
        textModels.findForeignIds(url, facts, adapters.get(facts.engine)!, (path, json) =>
          this.#client.post(url, path, json, limits.probeDeadlineMs, limits.probeBytesMax),
        ),
      limits,
    });
  }

  /** The registry's `setFacts`, and what a probe says of the worker's events. */
  #setFacts(slot: number, generation: number, facts: ProbedFacts): boolean {
    const known = this.registry.get(slot, generation);
    if (known === null) return false;
    const before = this.#endpointsOf(known);
    this.#probedEvents.set(slot, facts.events);
    this.#sayRanks(known, facts);
    const wasIndexed = this.#indexed.get(slot) === generation;
    const models = this.control.modelsOf(known.url, facts.models);
    const saysOther = this.#peers.learn(known, facts, this.#bootstrapServerOf(known, facts));
    const told = this.#worldVersion;
    if (!this.registry.setFacts(slot, generation, { ...facts, models })) return false;
    if (saysOther && told === this.#worldVersion) this.#publishWorld();
    const now = this.registry.get(slot, generation)!;
    const isElsewhere = JSON.stringify(before) !== JSON.stringify(this.#endpointsOf(now));
    if (wasIndexed && isElsewhere && !this.#isPushed(now)) this.#tellIngest(now);
    return true;
  }

  /** Whom to ask for the id of a worker's engine; null: nobody needs it, or it is configured. */
  #bootstrapServerOf({ url }: RegisteredWorker, { models }: ProbedFacts): BootstrapServer | null {
    const { role, bootstrap, kvEngineId } = this.members.configOf(url);
    const served = this.#options.config.models;
    const isMooncake = models.some(({ id }) => served[id]?.disaggregation?.protocol === 'mooncake');
    return isMooncake && role !== 'decode' && kvEngineId === null ? bootstrapOf(bootstrap, url) : null;
  }

  /** The part that a worker has, as it is configured or says itself; undefined: it does all for nobody but itself. */
  splitOf({ slot, url }: Pick<RegisteredWorker, 'slot' | 'url'>): WorkerSplit | undefined {
    return splitOfWorker(this.members.configOf(url), this.#peers.says(slot));
  }

  /** A rank is a worker of its own: events and load of several cannot be told apart behind one. */
  #sayRanks({ url, rank, facts: before }: RegisteredWorker, { dpRanks }: ProbedFacts): void {
    if (before !== null || rank !== null || dpRanks === null || dpRanks === 1) return;
    const message =
      'worker has several data-parallel ranks: set its dpRanks, so that each is routed to by itself';
    this.#options.logger.warn(message, { worker: url, dpRanks });
  }

  #publishWorld(): void {
    const { config, logger, textModels, publish } = this.#options;
    const workers = this.registry.views().map(view => {
      const split = this.splitOf(view);
      return split === undefined ? view : { ...view, split };
    });
    const notices = new Set<string>();
    const says = ({ slot }: WorkerView): PeerSays => this.#peers.says(slot);
    const isWhole = this.registry.list().every(({ state }) => state !== 'probing');
    const note = (notice: string): void => void notices.add(notice);
    this.#models = servedModels(config, workers, textModels, says, { note, isWhole });
    for (const notice of notices) if (!this.#notices.has(notice)) logger.warn(notice);
    this.#notices = notices;
    const world = { version: ++this.#worldVersion, workers, models: this.#models };
    publish(world, listedModels(this.#models, workers, textModels, this.#startedSeconds));
  }
}

/** The endpoints of a rank among those that a probe has found; one server has to have exactly one. */
export function probedEndpoints(
  events: readonly RankEvents[] | null,
  rank: number | null,
): EventEndpoints | null {
  if (events === null || (rank === null && events.length !== 1)) return null;
  return events[rank ?? 0] ?? null;
}
