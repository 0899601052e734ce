/**
 * Worker links as the plane has them (R4, R5): where they are taken, and what follows from one. A worker that nobody has
 * configured joins the fleet with its link and leaves it some time after; what a worker tells of its load goes to the
 * registry, its KV events to the ingest thread. Owned by the core, on its thread. Streams come here too where the one
 * socket thread runs there; several have lanes of their own (link-access.ts).
 */
import type { Config } from '../config.js';
import type { RegisteredWorker } from '../discovery/registry.js';
import type { EngineHealth } from '../engines/link/contract.js';
import type { LinkClient } from '../engines/link/link-client.js';
import { showLinkAddress } from '../engines/link/link-secret.js';
import type { LinkServer } from '../engines/link/link-server.js';
import { ConfigError } from '../errors.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { Logger } from '../runtime/logger.js';
import { namedWorkers, resolveWorker, type WorkerConfig } from '../worker-config.js';
import type { Fleet } from './fleet.js';
import { createLinkServer, linkAccess } from './link-access.js';
import type { SocketSide } from './socket-side.js';

/** What the links need of their plane. */
export interface WorkerLinksOptions {
  /** With a `linkListen`. */
  readonly config: Config;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly guard: FaultGuard;
  readonly fleet: Pick<Fleet, 'registry' | 'members' | 'takeEvents' | 'endEvents' | 'reportFailure'>;
  /** Has a batch of a slot applied, as `IngestSide.push`. */
  readonly push: (slot: number, batch: Uint8Array | null) => Promise<void>;
}

/** The tenant of a slot whose events come by a link; null: they are not wanted. */
type EventTaker = Pick<RegisteredWorker, 'slot' | 'generation'> | null;

/** The link of a worker, as operators see it. */
export interface LinkReport {
  /** What the worker side calls itself. */
  readonly id: string;
  readonly state: 'up' | 'gone';
  /** Times that it came again. */
  readonly reconnects: number;
  /** As in EngineHealth; null: not told. */
  readonly canary: { readonly ms: number | null; readonly failures: number } | null;
}

/** See the head of the file. */
export class WorkerLinks {
  readonly server: LinkServer;
  readonly #options: WorkerLinksOptions;
  /** URLs of the workers that joined by a link; the timer runs while it is gone. */
  readonly #joined = new Map<string, Timer | null>();
  /** By URL and rank, since the link was opened. */
  readonly #takers = new Map<string, Map<number, EventTaker>>();
  /** Bytes of events that the ingest thread has not applied yet. */
  #waitingBytes = 0;
  readonly #reports = new Map<string, LinkReport>();
  readonly #lanes: number[] = [];
  #address: string | null = null;
  #isClosed = false;

  /** Throws ConfigError for an address or a secret that cannot be used. */
  constructor(options: WorkerLinksOptions) {
    const { config, clock, logger, guard } = options;
    this.#options = options;
    this.server = createLinkServer(linkAccess(config)!, config, {
      clock,
      logger,
      lanes: this.#lanes,
      events: {
        onLinked: link => guard.run(() => this.#onLinked(link)),
        onEvents: (link, rank, batch) => guard.run(() => this.#onEvents(link, rank, batch)),
        onHealth: (link, health) => guard.run(() => this.#onHealth(link, health)),
        onUnlinked: link => guard.run(() => this.#onUnlinked(link)),
      },
    });
  }

  /** Where it listens, with the port that the system chose; null before. */
  get address(): string | null {
    return this.#address;
  }

  /** The worker is here because of its link; nobody has configured it. */
  hasJoined(url: string): boolean {
    return this.#joined.has(url);
  }

  /** A link process is at the worker. */
  isLinked(url: string): boolean {
    return this.#takers.has(url);
  }

  /** The configuration names the worker now: it stays when its link has gone. */
  stays(url: string): void {
    this.#joined.get(url)?.cancel();
    this.#joined.delete(url);
  }

  /** As `stays`, where the worker has joined; false: it has not. Throws ConfigError where it has other settings than these. */
  keep(worker: WorkerConfig): boolean {
    const { url } = worker;
    if (!this.#joined.has(url)) return false;
    if (JSON.stringify(this.#options.fleet.members.configOf(url)) !== JSON.stringify(worker))
      throw new ConfigError(`worker ${url} has joined by its link with other settings: remove it first`);
    this.stays(url);
    return true;
  }

  /** The link of a worker; null: it never had one. */
  reportOf(url: string): LinkReport | null {
    return this.#reports.get(url) ?? null;
  }

  /** Opens the lanes of the socket threads in `sides`, and then the address, which tells of them. Rejects with ConfigError. */
  async listen(sides: readonly Pick<SocketSide, 'listenLane'>[]): Promise<void> {
    this.#lanes.push(...(await Promise.all(sides.map(side => side.listenLane()))));
    this.#address = showLinkAddress(await this.server.listen());
    this.#options.logger.info('worker links are taken', { address: this.#address });
  }

  /** Closes all links; the fleet stays as it is. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const timer of this.#joined.values()) timer?.cancel();
    await this.server.close();
  }

  #onLinked(link: LinkClient): void {
    const { fleet } = this.#options;
    const { id, url, capabilities } = link.worker!;
    const before = this.#reports.get(url);
    const reconnects = before === undefined ? 0 : before.reconnects + 1;
    this.#reports.set(url, { id, state: 'up', reconnects, canary: null });
    this.#takers.set(url, new Map());
    this.#joined.get(url)?.cancel();
    if (fleet.registry.list().some(worker => worker.url === url)) {
      if (this.#joined.has(url)) this.#joined.set(url, null);
      return;
    }
    // New, or an operator took it out: its side asks to be here again.
    this.#joined.delete(url);
    this.#join(url, capabilities.dpRanks ?? 1);
  }

  #join(url: string, dpRanks: number): void {
    const { fleet, config, logger } = this.#options;
    try {
      const [named] = namedWorkers({ url, dpRanks }, 'a worker link');
      fleet.members.add(resolveWorker(named!, config));
      this.#joined.set(url, null);
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      logger.error('a linked worker is left out', { worker: url, reason: error.message });
    }
  }

  #onUnlinked(link: LinkClient): void {
    const { fleet, clock, config } = this.#options;
    const { url } = link.worker!;
    for (const taker of this.#takers.get(url)?.values() ?? [])
      if (taker !== null) fleet.endEvents(taker.slot, taker.generation);
    this.#takers.delete(url);
    this.#reports.set(url, { ...this.#reports.get(url)!, state: 'gone' });
    this.#forgetGone();
    if (!this.#joined.has(url) || this.#isClosed) return;
    this.#joined.set(
      url,
      clock.after(config.limits.linkGoneDeadlineMs, () => this.#leave(url)),
    );
  }

  #leave(url: string): void {
    this.#joined.delete(url);
    if (!this.#options.fleet.members.remove(url)) return;
    this.#options.logger.warn('a worker has left: its link did not come again', { worker: url });
  }

  /** Links without a worker: of one that was taken out, or for which there was no room. */
  #forgetGone(): void {
    const urls = new Set(this.#options.fleet.registry.list().map(({ url }) => url));
    for (const [url, { state }] of this.#reports)
      if (state === 'gone' && !urls.has(url)) this.#reports.delete(url);
  }

  #onHealth(link: LinkClient, health: EngineHealth): void {
    const { fleet, clock } = this.#options;
    const report = this.#reports.get(link.worker!.url)!;
    const canary = { ms: health.canaryMs, failures: health.canaryFailures };
    this.#reports.set(link.worker!.url, { ...report, canary });
    // Figures of all ranks together say nothing of one.
    const worker = fleet.registry.find(link.worker!.url);
    if (worker === null) return;
    const { slot, generation } = worker;
    fleet.registry.setScraped(slot, generation, health, clock.nowMs() / 1000);
    // No verdict, only a reason to look now.
    if (health.state === 'down') fleet.reportFailure(slot, generation, 'reset');
  }

  #onEvents(link: LinkClient, rank: number, batch: Uint8Array | null): void {
    const { fleet, config, logger } = this.#options;
    const { url, capabilities } = link.worker!;
    const { registry } = fleet;
    const worker = registry.find(url, rank) ?? (rank === 0 ? registry.find(url) : null);
    const takers = this.#takers.get(url)!;
    let taker = takers.get(rank);
    if (taker === undefined) {
      taker = worker !== null && fleet.takeEvents(worker, capabilities) ? worker : null;
      takers.set(rank, taker);
    }
    if (taker === null) return;
    const bytes = batch?.length ?? 0;
    const isFull = this.#waitingBytes + bytes > config.limits.eventQueueBytesMax;
    if (isFull) logger.warn('too many events wait: a worker has to link again', { worker: url });
    // A link that comes again brings all events from their begin, for the slot's tenant of then.
    if (isFull || worker?.generation !== taker.generation) link.close();
    else this.#push(taker.slot, batch, bytes);
  }

  #push(slot: number, batch: Uint8Array | null, bytes: number): void {
    this.#waitingBytes += bytes;
    const settle = (): void => {
      this.#waitingBytes -= bytes;
    };
    // An ingest thread that is gone has been told of elsewhere; the index is not asked any more then.
    this.#options.push(slot, batch).then(settle, settle);
  }
}
