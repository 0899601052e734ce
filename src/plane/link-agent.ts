/**
 * LinkAgent (R4, R5): what runs in the process beside an engine. It watches the engine, and for each data plane keeps a
 * WorkerLink with a subscription of its own to the engine's KV events: a plane that connects needs all events from their
 * begin, which only the engine's replay has. Owned by `millrace worker`; everything runs on its one thread.
 */

import { checkEngines, createAdapters } from '../engines/adapters.js';
import { EngineClient } from '../engines/client.js';
import type { EngineAdapter, EngineStream, WorkerCapabilities } from '../engines/contract.js';
import type { EngineExtension } from '../engines/extensions.js';
import { createFrameScanner } from '../engines/frame-scanner.js';
import type { FindingSink, MonitoredWorker } from '../engines/health-contract.js';
import { Canary, type CanaryResult } from '../engines/link/canary.js';
import type { EngineHealth } from '../engines/link/contract.js';
import { type LinkAddress, showLinkAddress } from '../engines/link/link-secret.js';
import type { LinkTls } from '../engines/link/link-tls.js';
import { WorkerLanes } from '../engines/link/worker-lanes.js';
import { WorkerLink, type WorkerLinkOptions } from '../engines/link/worker-link.js';
import { WorkerMonitor } from '../engines/monitor.js';
import { WorkerError } from '../errors.js';
import type { Limits } from '../limits.js';
import type { EventEndpoints, IndexSink } from '../router/events/contract.js';
import { Ingest } from '../router/events/ingest.js';
import { loadAddon } from '../runtime/addon.js';
import type { Clock } from '../runtime/clock.js';
import type { Logger } from '../runtime/logger.js';
import type { Random } from '../runtime/random.js';
import { AUTO_EVENTS, endpointOf, type WorkerConfig } from '../worker-config.js';
import { sourceLimits, trtllmPolling } from './event-sources.js';
import { probedEndpoints } from './fleet.js';

/** What an agent needs. */
export interface LinkAgentOptions {
  /** Name of the worker in its fleet. */
  readonly id: string;
  /** The engine as it is reached from here, and where it publishes. */
  readonly engine: WorkerConfig;
  /** Loaded in this thread. */
  readonly extensions: readonly EngineExtension[];
  /** Origin by which the planes know it. */
  readonly url: string;
  readonly planes: readonly LinkAddress[];
  readonly secret: Uint8Array | null;
  /** For planes whose address has TLS. */
  readonly tls: LinkTls | null;
  readonly makeNonce: () => Uint8Array;
  /** Time between canaries; 0: none. */
  readonly canaryPeriodMs: number;
  readonly limits: Limits;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
}

/** The engine's only entry in the monitor. */
const SLOT = 0;
const GENERATION = 1;
const CANARY_ANSWER_BYTES_MAX = 65_536;

interface PlaneSide {
  readonly link: WorkerLink;
  /** Its other socket threads. */
  readonly lanes: WorkerLanes;
  /** The subscription; null while the plane is not there. */
  ingest: Ingest | null;
}

/** See the head of the file. */
export class LinkAgent {
  readonly #options: LinkAgentOptions;
  readonly #client: EngineClient;
  readonly #adapters: ReadonlyMap<string, EngineAdapter>;
  readonly #monitor: WorkerMonitor;
  readonly #canary: Canary | null;
  readonly #planes: PlaneSide[];
  readonly #closing = new Set<Promise<void>>();
  #tls: LinkTls | null;
  #facts: WorkerCapabilities | null = null;
  #health: EngineHealth = {
    state: 'down',
    running: null,
    waiting: null,
    kvUsage: null,
    canaryMs: null,
    canaryFailures: 0,
  };
  #isEnding = false;

  /**
   * Throws ConfigError where a plane is on another host and there is neither secret nor TLS, and for an engine that
   * nobody knows.
   */
  constructor(options: LinkAgentOptions) {
    const { clock, limits, logger, canaryPeriodMs } = options;
    this.#options = options;
    this.#tls = options.tls;
    this.#adapters = createAdapters(options.extensions, createFrameScanner(loadAddon()));
    checkEngines(this.#adapters, [options.engine]);
    this.#client = new EngineClient({ clock, connectDeadlineMs: limits.connectDeadlineMs });
    this.#planes = options.planes.map(address => this.#createPlane(address));
    this.#monitor = new WorkerMonitor({
      clock,
      log: logger,
      ask: (request, deadlineMs, bytesMax) => this.#client.ask(request, deadlineMs, bytesMax),
      sink: this.#findings(),
      adapters: this.#adapters,
      // The plane compares ids itself: it has the tokenizer.
      findForeignIds: () => Promise.resolve([]),
      // The planes watch for silence; canaries from here say how long one takes, at a period of their own.
      limits: { ...limits, canaryAfterMs: 0 },
      readActivity: () => 0,
    });
    this.#canary =
      canaryPeriodMs === 0
        ? null
        : new Canary({
            send: () => this.#sendCanary(),
            periodMs: canaryPeriodMs,
            clock,
            onResult: result => this.#onCanary(result),
          });
  }

  /** Begins to watch the engine; the links are made once it has answered its first probe. */
  start(): void {
    this.#monitor.watch(this.#watched());
    this.#canary?.start();
  }

  /** Connections from now on are made with these; those that are open stay. */
  renewTls(tls: LinkTls | null): void {
    this.#tls = tls;
  }

  /**
   * Takes no new streams, waits for those that run, at most `deadlineMs`, and closes everything. Resolves with the number
   * of streams that were cut off.
   */
  async close(deadlineMs: number): Promise<number> {
    this.#isEnding = true;
    this.#monitor.stop();
    this.#canary?.stop();
    const cut = await Promise.all(
      this.#planes.flatMap(({ link, lanes }) => [lanes.drain(deadlineMs), link.drain(deadlineMs)]),
    );
    for (const plane of this.#planes) this.#closeEvents(plane);
    await Promise.all(this.#closing);
    await this.#client.close();
    return cut.reduce((sum, streams) => sum + streams, 0);
  }

  #watched(): MonitoredWorker {
    const { url, engine } = this.#options.engine;
    return { slot: SLOT, generation: GENERATION, url, rank: null, engine };
  }

  #createPlane(address: LinkAddress): PlaneSide {
    const plane: PlaneSide = {
      ingest: null,
      link: new WorkerLink({
        ...this.#linkOptions(address),
        onUp: lanes => plane.lanes.set(lanes),
        onEventsWanted: () => this.#openEvents(plane, showLinkAddress(address)),
        onDown: () => this.#closeEvents(plane),
      }),
      lanes: new WorkerLanes({ address, open: lane => new WorkerLink(this.#linkOptions(lane)) }),
    };
    return plane;
  }

  /** A link that carries streams and nothing else. */
  #linkOptions(address: LinkAddress): WorkerLinkOptions {
    const { id, url, engine, secret, makeNonce, clock, random, logger } = this.#options;
    return {
      address,
      secret,
      tls: () => this.#tls,
      makeNonce,
      client: this.#client,
      origin: engine.url,
      worker: () => ({ id, url, capabilities: { ...this.#facts!, dpRanks: engine.dpRanks } }),
      openStream: () => this.#openStream(),
      clock,
      random,
      logger,
      onUp: () => {},
      onEventsWanted: () => {},
      onDown: () => {},
      onEngineFault: ({ kind }) => {
        if (kind === 'unreachable' || kind === 'reset') this.#monitor.reportFailure(SLOT, GENERATION, kind);
      },
    };
  }

  /** The engine's adapter; it has answered its first probe. */
  #adapter(): EngineAdapter {
    return this.#adapters.get(this.#facts!.engine)!;
  }

  /** Opens the decoder that makes rows; null for an engine with frames of its own, whose bytes the plane itself decodes. */
  #openStream(): EngineStream | null {
    const { sseFirstFrameBytesMax: firstFrameBytesMax, sseFrameBytesMax: frameBytesMax } =
      this.#options.limits;
    const adapter = this.#adapter();
    return adapter.hasOpenAiFrames
      ? adapter.openStream({ firstFrameBytesMax, frameBytesMax }, 'token')
      : null;
  }

  /** Where a rank publishes; null: the engine was to say it and does not. */
  #endpointsOf(rank: number): EventEndpoints | null {
    const { kvEvents, kvEventsReplay, kvEventsTopic, url, dpRanks } = this.#options.engine;
    if (kvEvents === AUTO_EVENTS) return probedEndpoints(this.#facts!.events, dpRanks === 1 ? null : rank);
    const replay = endpointOf(kvEventsReplay, url, rank);
    return { publish: endpointOf(kvEvents, url, rank)!, replay, topic: kvEventsTopic };
  }

  /** Subscribes anew for a plane: with all ranks' events from their begin. */
  #openEvents(plane: PlaneSide, name: string): void {
    this.#closeEvents(plane);
    const { engine, limits, clock, random, logger } = this.#options;
    if (engine.kvEvents === null || this.#isEnding) return;
    const { link } = plane;
    const sink: IndexSink = {
      addHolder: () => {},
      removeHolder: () => {},
      clear: rank => link.sendEvents(rank, null),
      // Sent later than this call, for which the bytes are lent.
      apply: (rank, payload) => link.sendEvents(rank, new Uint8Array(payload)),
      route: () => {},
      tend: () => {},
    };
    plane.ingest = new Ingest({
      sink,
      polling: trtllmPolling({ clock, connectDeadlineMs: limits.connectDeadlineMs }),
      limits: sourceLimits(limits),
      clock,
      random,
      logger,
    });
    const { blockSize, totalBlocks } = this.#facts!;
    for (let rank = 0; rank < engine.dpRanks; rank++) {
      const facts = { generation: GENERATION, blockSize, totalBlocks, hasEvents: true, name };
      const endpoints = this.#endpointsOf(rank);
      if (endpoints !== null) plane.ingest.addWorker(rank, facts, endpoints);
    }
  }

  #closeEvents(plane: PlaneSide): void {
    if (plane.ingest === null) return;
    const closed = plane.ingest.close().finally(() => this.#closing.delete(closed));
    this.#closing.add(closed);
    plane.ingest = null;
  }

  #findings(): FindingSink {
    return {
      setFacts: (_slot, _generation, { foreignIds: _, ...found }) => {
        const before = this.#facts;
        // Adapters come and go without another engine; planes learn of them by their own probes.
        const facts = { ...found, models: found.models.filter(({ adapter }) => adapter !== true) };
        this.#facts = facts;
        for (const { link, lanes } of this.#planes) {
          if (before === null) link.start();
          // The engine came back as another one.
          else if (JSON.stringify(before) !== JSON.stringify(facts)) {
            lanes.renew();
            link.renew();
          }
        }
        return true;
      },
      setHealthy: (_slot, _generation, isHealthy) => {
        this.#tell({ state: isHealthy ? 'ready' : 'down' });
        return true;
      },
      // Planes that have not put it to sleep find it so by their own probes.
      setSleeping: () => true,
      setScraped: (_slot, _generation, { running, waiting, kvUsage }) => {
        this.#tell({ running, waiting, kvUsage });
        return true;
      },
    };
  }

  #tell(change: Partial<EngineHealth>): void {
    this.#health = { ...this.#health, ...change };
    for (const { link } of this.#planes) link.sendHealth(this.#health);
  }

  async #sendCanary(): Promise<{ status: number }> {
    const { engine, limits } = this.#options;
    const model = this.#facts?.models.find(({ adapter }) => adapter !== true)?.id;
    if (model === undefined)
      throw new WorkerError('MILLRACE_WORKER_UNREACHABLE', 'the engine was not probed yet');
    const call = this.#adapter().canary(model, null);
    return this.#client.ask({ origin: engine.url, ...call }, limits.probeDeadlineMs, CANARY_ANSWER_BYTES_MAX);
  }

  #onCanary({ ms, failures }: CanaryResult): void {
    if (failures === 1) this.#options.logger.warn('a canary request failed', { worker: this.#options.url });
    this.#tell({ canaryMs: ms, canaryFailures: failures });
  }
}
