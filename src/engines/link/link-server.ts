/**
 * LinkServer (R5): where workers link in to one thread. It listens on a unix socket or a TCP port, with or without TLS,
 * makes a LinkClient of each connection and knows which link leads to which engine: `linkTo` for an attempt. One worker
 * side per engine URL counts, the newest: one that connects again has often lost the old connection before we notice.
 */
import { strict as assert } from 'node:assert';
import { once } from 'node:events';
import { chmodSync, unlinkSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:tls';
import { ConfigError } from '../../errors.js';
import type { Clock } from '../../runtime/clock.js';
import type { Logger } from '../../runtime/logger.js';
import type { EngineHealth } from './contract.js';
import { LinkClient, type LinkEvents } from './link-client.js';
import type { LinkTraffic } from './link-connection.js';
import { LINK_LIMITS, type LinkFault, type LinkLimits } from './link-protocol.js';
import { type LinkAddress, requireTrust, showLinkAddress } from './link-secret.js';
import { contextOf, type LinkTls, serverOptions } from './link-tls.js';

/** What a server tells its plane; links are admitted ones only. */
export interface LinkServerEvents {
  /** A worker is linked; `link.worker` says which. Its events begin anew. */
  onLinked(link: LinkClient): void;
  /** See LinkEvents. */
  onEvents(link: LinkClient, rank: number, batch: Uint8Array | null): void;
  onHealth(link: LinkClient, health: EngineHealth): void;
  /** Its streams get their fault after this call. */
  onUnlinked(link: LinkClient, fault: LinkFault): void;
}

/** What a LinkServer needs. */
export interface LinkServerOptions {
  readonly address: LinkAddress;
  /** Of `parseSecret`; null only where no other host can reach the address, or certificates say who is there. */
  readonly secret: Uint8Array | null;
  /** With a certificate, for an address with TLS; null for all others. */
  readonly tls: LinkTls | null;
  /** See LinkClientOptions. */
  readonly lanes: readonly number[];
  /** NONCE_BYTES that nobody can foretell. */
  readonly makeNonce: () => Uint8Array;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly events: LinkServerEvents;
  readonly limits?: LinkLimits;
  /** Connections at one time, those in their handshake included. */
  readonly connectionsMax: number;
}

/** What a server counts since its start; connections: admitted, ended after that, and turned away. */
export interface LinkCounts {
  readonly traffic: LinkTraffic;
  readonly connections: { opened: number; ended: number; refused: number };
}

/** See the head of the file. */
export class LinkServer {
  readonly traffic: LinkTraffic = { bytesIn: 0, bytesOut: 0, framesIn: 0, framesOut: 0 };
  readonly connections: LinkCounts['connections'] = { opened: 0, ended: 0, refused: 0 };
  readonly #options: LinkServerOptions;
  readonly #server: Server;
  /** Every connection, admitted or not. */
  readonly #links = new Set<LinkClient>();
  readonly #byUrl = new Map<string, LinkClient>();
  #isClosed = false;

  /** Throws ConfigError where the address leaves the host and it cannot be told who connects. */
  constructor(options: LinkServerOptions) {
    const { address, secret, tls, limits = LINK_LIMITS, connectionsMax } = options;
    requireTrust('plane', address, secret, tls);
    assert(address.isTls === (tls !== null), 'an address with TLS comes with its certificate');
    this.#options = options;
    const onConnection = (socket: Socket): void => this.#onConnection(socket);
    this.#server =
      tls === null
        ? createServer(onConnection)
        : createTlsServer(serverOptions(tls, limits.handshakeDeadlineMs), onConnection);
    this.#server.on('tlsClientError', (error: Error) => this.#refused(`TLS: ${error.message}`));
    // Those whose TLS handshake has not ended count too.
    if (tls !== null) this.#server.maxConnections = connectionsMax;
  }

  /** Connections from now on are taken with this certificate. Only with TLS; what it is asked of workers stays. */
  renewTls(tls: LinkTls): void {
    assert(this.#options.tls !== null, 'the server has TLS');
    (this.#server as TlsServer).setSecureContext(contextOf(tls));
  }

  /** Listens. Resolves with the address in use, with the port that the system chose. Rejects with ConfigError. */
  async listen(): Promise<LinkAddress> {
    const { address } = this.#options;
    const { path, host, port } = address;
    try {
      if (path !== null) await removeLeftSocket(path);
      this.#server.listen(path !== null ? { path } : { host, port });
      await once(this.#server, 'listening');
      // Whoever may connect can say that it is a worker: where no secret tells them apart, the file system does.
      if (path !== null) chmodSync(path, this.#options.secret === null ? 0o600 : 0o660);
    } catch (cause) {
      const code = (cause as NodeJS.ErrnoException).code ?? (cause as Error).message;
      throw new ConfigError(`cannot listen for worker links at ${showLinkAddress(address)}: ${code}`, {
        cause,
      });
    }
    return path !== null ? address : { ...address, port: (this.#server.address() as AddressInfo).port };
  }

  /** The open link to the engine that planes know by `url`, or null: it has none, or none that takes a call now. */
  linkTo(url: string): LinkClient | null {
    const link = this.#byUrl.get(url);
    return link?.isAccepting === true ? link : null;
  }

  /** Reads what metrics tell of it, with the `calls` of its thread. */
  reader<Calls>(calls: Calls): () => LinkCounts & { readonly calls: Calls } {
    const { traffic, connections } = this;
    return () => ({ traffic, connections, calls });
  }

  /** Every admitted link. */
  get links(): readonly LinkClient[] {
    return [...this.#byUrl.values()];
  }

  /** Closes all links and the socket; resolves when nothing listens any more. */
  async close(): Promise<void> {
    assert(!this.#isClosed, 'a server is closed once');
    this.#isClosed = true;
    const closed = this.#server.listening ? once(this.#server, 'close') : null;
    this.#server.close();
    for (const link of this.#links) link.close();
    await closed;
  }

  #onConnection(socket: Socket): void {
    const { secret, makeNonce, clock, connectionsMax, lanes, limits = LINK_LIMITS } = this.#options;
    if (this.#isClosed || this.#links.size >= connectionsMax) {
      this.#refused(`more than ${connectionsMax} connections`);
      socket.destroy();
      return;
    }
    const events: LinkEvents = {
      onOpen: link => this.#onOpen(link),
      onEvents: (link, rank, batch) => {
        if (this.#isCurrent(link)) this.#options.events.onEvents(link, rank, batch);
      },
      onHealth: (link, health) => {
        if (this.#isCurrent(link)) this.#options.events.onHealth(link, health);
      },
      onClosed: (link, fault) => this.#onClosed(link, fault),
    };
    const { traffic } = this;
    const nonce = makeNonce();
    this.#links.add(new LinkClient({ socket, secret, nonce, clock, limits, events, lanes, traffic }));
  }

  #refused(reason: string): void {
    this.connections.refused += 1;
    this.#options.logger.warn('a worker link was not admitted', { reason });
  }

  #isCurrent(link: LinkClient): boolean {
    return this.#byUrl.get(link.worker!.url) === link;
  }

  #onOpen(link: LinkClient): void {
    const { id, url } = link.worker!;
    const { logger, events } = this.#options;
    this.connections.opened += 1;
    const before = this.#byUrl.get(url);
    before?.close();
    this.#byUrl.set(url, link);
    logger.info('a worker is linked', { worker: url, id });
    events.onLinked(link);
  }

  #onClosed(link: LinkClient, fault: LinkFault): void {
    this.#links.delete(link);
    const { logger, events } = this.#options;
    const { kind, message } = fault;
    const { worker } = link;
    if (worker === null) {
      this.#refused(`${kind}: ${message}`);
      return;
    }
    this.connections.ended += 1;
    logger[kind === 'closed' ? 'info' : 'warn']('a worker link ended', {
      worker: worker.url,
      fault: kind,
      reason: message,
    });
    if (!this.#isCurrent(link)) return;
    this.#byUrl.delete(worker.url);
    events.onUnlinked(link, fault);
  }
}

/** Removes the socket of a process that is gone; a path at which somebody answers is left alone, and `listen` fails. */
async function removeLeftSocket(path: string): Promise<void> {
  const probe = connect(path);
  const isLeft = await new Promise<boolean>(resolve => {
    probe.once('connect', () => resolve(false));
    probe.once('error', error => resolve((error as NodeJS.ErrnoException).code === 'ECONNREFUSED'));
  });
  probe.destroy();
  if (isLeft) unlinkSync(path);
}
