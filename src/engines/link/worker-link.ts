/**
 * WorkerLink (R5): the worker side towards one data plane. It connects, proves itself, registers the engine, carries out
 * what the plane opens and forwards KV events and health; when the connection ends it drops its streams and connects
 * again with back-off. One per plane in the `millrace worker` process, all over one EngineClient.
 */
import type { Clock, Timer } from '../../runtime/clock.js';
import type { Logger } from '../../runtime/logger.js';
import type { Random } from '../../runtime/random.js';
import type { EngineClient, EngineFault } from '../client.js';
import type { EngineStream } from '../contract.js';
import type { EngineHealth, LinkedWorker } from './contract.js';
import { LINK_LIMITS, type LinkFault, type LinkLimits } from './link-protocol.js';
import { type LinkAddress, requireTrust, showLinkAddress } from './link-secret.js';
import { connectLink, type LinkTls } from './link-tls.js';
import { WorkerSession } from './worker-session.js';

/** What a WorkerLink needs. */
export interface WorkerLinkOptions {
  /** Of the plane. */
  readonly address: LinkAddress;
  /** Of `parseSecret`; null only where the plane is on this host, or its certificate says that it is the one. */
  readonly secret: Uint8Array | null;
  /** Asked at each connection, where the address has TLS. */
  readonly tls: () => LinkTls | null;
  /** NONCE_BYTES that nobody can foretell. */
  readonly makeNonce: () => Uint8Array;
  readonly client: EngineClient;
  /** Origin at which the engine is reached from here; planes know it by `worker().url`. */
  readonly origin: string;
  /** What to register, asked at each connection. */
  readonly worker: () => LinkedWorker;
  /** Decoder of an answer that the plane takes as rows; null: this engine's frames give none, and their bytes are relayed. */
  readonly openStream: () => EngineStream | null;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  readonly limits?: LinkLimits;
  /** The plane has admitted us; its lanes as in WELCOME. */
  readonly onUp: (lanes: readonly number[]) => void;
  /** The plane wants the KV events of all ranks from their begin: it has admitted us, or lost some. */
  readonly onEventsWanted: () => void;
  /** The plane is gone, and what it knew of events with it. */
  readonly onDown: () => void;
  /** An engine call failed at the engine: news for the health monitor. */
  readonly onEngineFault: (fault: EngineFault) => void;
}

/** See the head of the file. */
export class WorkerLink {
  readonly #options: WorkerLinkOptions;
  readonly #limits: LinkLimits;
  #session: WorkerSession | null = null;
  #retry: Timer | null = null;
  #failures = 0;
  #upSinceMs = 0;
  #health: EngineHealth | null = null;
  #isDraining = false;
  #onIdle: (() => void) | null = null;

  /** Throws ConfigError where the plane is on another host and there is neither secret nor TLS. */
  constructor(options: WorkerLinkOptions) {
    requireTrust('worker', options.address, options.secret, null);
    this.#options = options;
    this.#limits = options.limits ?? LINK_LIMITS;
  }

  /** Connects, and goes on to connect until `drain`. */
  start(): void {
    this.#connect();
  }

  /** The plane has admitted us. */
  get isUp(): boolean {
    return this.#session?.isUp === true;
  }

  /** Streams in flight. */
  get streams(): number {
    return this.#session?.streams ?? 0;
  }

  /** Registers anew, because the engine is another one: running streams end. */
  renew(): void {
    this.#session?.close();
  }

  /** Sends the next batch of a rank, or null: what came before is void. Dropped while `isUp` is false. */
  sendEvents(rank: number, batch: Uint8Array | null): void {
    this.#session?.sendEvents(rank, batch);
  }

  /** Tells the plane how the engine does, now and at each connection to come. */
  sendHealth(health: EngineHealth): void {
    this.#health = health;
    this.#session?.sendHealth(health);
  }

  /**
   * Takes no new streams, waits for those that run, at most `deadlineMs`, and closes. Resolves with the streams that were
   * cut off.
   */
  async drain(deadlineMs: number): Promise<number> {
    this.#isDraining = true;
    this.#retry?.cancel();
    const session = this.#session;
    if (session === null) return 0;
    session.goAway();
    if (session.streams > 0) {
      await new Promise<void>(resolve => {
        const timer = this.#options.clock.after(deadlineMs, resolve);
        this.#onIdle = () => {
          timer.cancel();
          resolve();
        };
      });
    }
    const cut = session.streams;
    session.close();
    return cut;
  }

  #connect(): void {
    const { address, secret, tls, makeNonce, client, origin, worker, openStream, clock } = this.#options;
    this.#session = new WorkerSession({
      socket: connectLink(address, tls()),
      secret,
      nonce: makeNonce(),
      client,
      origin,
      worker: worker(),
      openStream,
      clock,
      limits: this.#limits,
      onUp: lanes => this.#onUp(lanes),
      onEventsLost: () => this.#options.onEventsWanted(),
      onStreamOver: fault => {
        if (fault !== null && fault.kind !== 'aborted') this.#options.onEngineFault(fault);
        if (this.streams === 0) this.#onIdle?.();
      },
      onClosed: fault => this.#onClosed(fault),
    });
  }

  #onUp(lanes: readonly number[]): void {
    const { address, logger, clock, onUp, onEventsWanted } = this.#options;
    this.#upSinceMs = clock.nowMs();
    logger.info('linked to a data plane', { plane: showLinkAddress(address) });
    if (this.#health !== null) this.#session!.sendHealth(this.#health);
    onUp(lanes);
    onEventsWanted();
  }

  #onClosed({ kind, message }: LinkFault): void {
    const { address, logger, clock, random, onDown } = this.#options;
    const wasUp = this.isUp;
    this.#session = null;
    this.#onIdle?.();
    if (wasUp) onDown();
    if (this.#isDraining) return;
    const { backOffFirstMs, backOffMaxMs } = this.#limits;
    // A plane that admits us and closes at once, as for the twin of a worker, is no reason to hurry.
    if (wasUp && clock.nowMs() - this.#upSinceMs >= backOffMaxMs) this.#failures = 0;
    // Said once per outage: an attempt that fails like the one before is no news.
    if (this.#failures === 0)
      logger.warn('no link to a data plane; trying again', {
        plane: showLinkAddress(address),
        fault: kind,
        reason: message,
      });
    const pauseMs = Math.min(backOffMaxMs, backOffFirstMs * 2 ** this.#failures);
    this.#failures += 1;
    // Spread out, so that the workers of a plane that comes back do not all connect at once.
    this.#retry = clock.after(pauseMs * (0.5 + random() / 2), () => this.#connect());
  }
}
