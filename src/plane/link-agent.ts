/**
 * LinkAgent (R4, R5): what runs in the process beside an engine. It watches the engine, and for each data plane keeps a
 * WorkerLink with a subscription of its own to the engine's KV events: a plane that connects needs all events from their
 * begin, which only the engine's replay has. Owned by `millrace worker`; everything runs on its one thread.
 */

import { EngineClient } from '../engines/client.js';
import type { WorkerCapabilities } from '../engines/contract.js';
import { createFrameScanner } from '../engines/frame-scanner.js';
import { Canary, type CanaryResult } from '../engines/link/canary.js';
import type { EngineHealth } from '../engines/link/contract.js';
import { type LinkAddress, showLinkAddress } from '../engines/link/link-secret.js';
import { WorkerLink } from '../engines/link/worker-link.js';
import { type FindingSink, type MonitoredWorker, WorkerMonitor } from '../engines/monitor.js';
import { createVllmAdapter, VLLM } from '../engines/vllm.js';
import type { Limits } from '../limits.js';
import type { IndexSink } from '../router/events/contract.js';
import { Ingest } from '../router/events/ingest.js';
import type { ZeroMqStatus } from '../router/events/zmq-source.js';
import { loadAddon } from '../runtime/addon.js';
import type { Clock } from '../runtime/clock.js';
import type { Logger } from '../runtime/logger.js';
import type { Random } from '../runtime/random.js';
import { endpointOf, type WorkerConfig } from '../worker-config.js';

/** What an agent needs. */
export interface LinkAgentOptions {
  /** Name of the worker in its fleet. */
  readonly id: string;
  /** The engine as it is reached from here, and where it publishes. */
  readonly engine: WorkerConfig;
  /** Origin by which the planes know it. */
  readonly url: string;
  readonly planes: readonly LinkAddress[];
  readonly secret: Uint8Array | null;
  readonly makeNonce: () => Uint8Array;
  /** Time between canaries; 0: none. */
  readonly canaryPeriodMs: number;
  /** Of `loadZeroMq`, where the engine publishes events. */
  readonly zeroMq: ZeroMqStatus;
  readonly limits: Limits;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
}

/** The engine's only entry in the monitor. */
const SLOT = 0;
const GENERATION = 1;
/** A prompt of one id, which every vocabulary has. */
const CANARY_PROMPT = [1];
const CANARY_ANSWER_BYTES_MAX = 65_536;

interface PlaneSide {
  readonly link: WorkerLink;
  /** The subscription; null while the plane is not there. */
  ingest: Ingest | null;
}

/** See the head of the file. */
export class LinkAgent {
  readonly #options: LinkAgentOptions;
  readonly #client: EngineClient;
  readonly #adapter = createVllmAdapter({ scanner: createFrameScanner(loadAddon()) });
  readonly #monitor: WorkerMonitor;
  readonly #canary: Canary | null;
  readonly #planes: PlaneSide[];
  readonly #closing = new Set<Promise<void>>();
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

  /** Throws ConfigError where a plane is on another host and there is no secret. */
  constructor(options: LinkAgentOptions) {
    const { clock, limits, logger, canaryPeriodMs } = options;
    this.#options = options;
    this.#client = new EngineClient({ clock, connectDeadlineMs: limits.connectDeadlineMs });
    this.#planes = options.planes.map(address => this.#createPlane(address));
    this.#monitor = new WorkerMonitor({
      clock,
      log: logger,
      get: (origin, path, deadlineMs, bytesMax) => this.#client.get(origin, path, deadlineMs, bytesMax),
      sink: this.#findings(),
      adapters: new Map([[VLLM, this.#adapter]]),
      // The plane compares ids itself: it has the tokenizer.
      findForeignIds: () => Promise.resolve([]),
      limits,
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

  /**
   * Takes no new streams, waits for those that run, at most `deadlineMs`, and closes everything. Resolves with the number
   * of streams that were cut off.
   */
  async close(deadlineMs: number): Promise<number> {
    this.#isEnding = true;
    this.#monitor.stop();
    this.#canary?.stop();
    const cut = await Promise.all(this.#planes.map(({ link }) => link.drain(deadlineMs)));
    for (const plane of this.#planes) this.#closeEvents(plane);
    await Promise.all(this.#closing);
    await this.#client.close();
    return cut.reduce((sum, streams) => sum + streams, 0);
  }

  #watched(): MonitoredWorker {
    return { slot: SLOT, generation: GENERATION, url: this.#options.engine.url, engine: VLLM };
  }

  #createPlane(address: LinkAddress): PlaneSide {
    const { id, url, engine, secret, makeNonce, clock, random, logger, limits } = this.#options;
    const plane: PlaneSide = {
      ingest: null,
      link: new WorkerLink({
        address,
        secret,
        makeNonce,
        client: this.#client,
        origin: engine.url,
        worker: () => ({ id, url, capabilities: { ...this.#facts!, dpRanks: engine.dpRanks } }),
        openStream: () =>
          this.#adapter.openStream({
            firstFrameBytesMax: limits.sseFirstFrameBytesMax,
            frameBytesMax: limits.sseFrameBytesMax,
          }),
        clock,
        random,
        logger,
        onEventsWanted: () => this.#openEvents(plane, showLinkAddress(address)),
        onDown: () => this.#closeEvents(plane),
        onEngineFault: ({ kind }) => {
          if (kind === 'unreachable' || kind === 'reset') this.#monitor.reportFailure(SLOT, GENERATION, kind);
        },
      }),
    };
    return plane;
  }

  /** Subscribes anew for a plane: with all ranks' events from their begin. */
  #openEvents(plane: PlaneSide, name: string): void {
    this.#closeEvents(plane);
    const { engine, zeroMq, limits, clock, random, logger } = this.#options;
    if (engine.kvEvents === null || this.#isEnding) return;
    const { link } = plane;
    const sink: IndexSink = {
      addHolder: () => {},
      removeHolder: () => {},
      clear: rank => link.sendEvents(rank, null),
      apply: (rank, payload) => link.sendEvents(rank, payload),
      route: () => {},
      tend: () => {},
    };
    plane.ingest = new Ingest({
      sink,
      zeroMq,
      limits: {
        replayDeadlineMs: limits.replayDeadlineMs,
        eventBytesMax: limits.eventBatchBytesMax,
        waitingBatchesMax: limits.eventQueueMax,
        waitingBytesMax: limits.eventQueueBytesMax,
        replayBatchesMax: limits.eventQueueMax,
        replayBytesMax: limits.replayBytesMax,
      },
      clock,
      random,
      logger,
    });
    const { blockSize, totalBlocks } = this.#facts!;
    for (let rank = 0; rank < engine.dpRanks; rank++) {
      const facts = { generation: GENERATION, blockSize, totalBlocks, hasEvents: true, name };
      plane.ingest.addWorker(rank, facts, {
        publish: endpointOf(engine.kvEvents, engine.url, rank)!,
        replay: endpointOf(engine.kvEventsReplay, engine.url, rank),
        topic: engine.kvEventsTopic,
      });
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
      setFacts: (_slot, _generation, { foreignIds: _, ...facts }) => {
        const before = this.#facts;
        this.#facts = facts;
        for (const { link } of this.#planes) {
          if (before === null) link.start();
          // The engine came back as another one.
          else if (JSON.stringify(before) !== JSON.stringify(facts)) link.renew();
        }
        return true;
      },
      setHealthy: (_slot, _generation, isHealthy) => {
        this.#tell({ state: isHealthy ? 'ready' : 'down' });
        return true;
      },
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

  #sendCanary(): Promise<{ status: number }> {
    const { engine, limits } = this.#options;
    const model = this.#facts?.models.find(({ adapter }) => adapter !== true)?.id;
    const json = JSON.stringify({ model, prompt: CANARY_PROMPT, max_tokens: 1 });
    return this.#client.post(
      engine.url,
      '/v1/completions',
      json,
      limits.probeDeadlineMs,
      CANARY_ANSWER_BYTES_MAX,
    );
  }

  #onCanary({ ms, failures }: CanaryResult): void {
    if (failures === 1) this.#options.logger.warn('a canary request failed', { worker: this.#options.url });
    this.#tell({ canaryMs: ms, canaryFailures: failures });
  }
}
