/**
 * ZmtpListener (R4): an address of ours to which publishers connect, for engines that do not bind. Tries again while the
 * address is taken: that of a source that was just closed takes a moment to be free. Owned by an event source, on the
 * thread that reads events.
 */
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { createConnection, createServer, type Server } from 'node:net';
import type { Timer } from '../../../runtime/clock.js';
import { ZmtpConnection, type ZmtpConnectionOptions } from './connection.js';
import type { NetAddress } from './endpoint.js';

/** What a listener needs; `onEnd` is told of each connection. */
export interface ZmtpListenerOptions extends ZmtpConnectionOptions {
  readonly address: NetAddress;
  /** It cannot listen now and will try again. */
  readonly onRefused: (reason: string) => void;
}

/** Publishers at one address at a time: an engine, and what is left of its connections before. */
const PEERS_MAX = 64;
const RETRY_MS = 200;

/** See the head of the file. */
export class ZmtpListener {
  readonly #options: ZmtpListenerOptions;
  readonly #connections = new Set<ZmtpConnection>();
  readonly #server: Server;
  #retry: Timer | null = null;
  #isClosed = false;

  /** Begins to listen. */
  constructor(options: ZmtpListenerOptions) {
    this.#options = options;
    this.#server = createServer({ noDelay: true }, socket => {
      const connection = new ZmtpConnection(socket, {
        ...options,
        onEnd: (reason, ended) => {
          this.#connections.delete(ended);
          options.onEnd(reason, ended);
        },
      });
      this.#connections.add(connection);
    });
    this.#server.maxConnections = PEERS_MAX;
    this.#server.on('error', (error: NodeJS.ErrnoException) => this.#refused(error));
    this.#listen();
  }

  /** Nothing is told after this call; resolves when all sockets are closed. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#retry?.cancel();
    const closed = this.#server.listening ? once(this.#server, 'close') : null;
    this.#server.close();
    await Promise.all([closed, ...[...this.#connections].map(connection => connection.close())]);
  }

  #listen(): void {
    this.#server.listen(this.#options.address);
  }

  #refused(error: NodeJS.ErrnoException): void {
    if (this.#isClosed) return;
    const { address, clock, onRefused } = this.#options;
    if (error.code === 'EADDRINUSE' && 'path' in address) removeDead(address.path);
    this.#retry = clock.after(RETRY_MS, () => this.#listen());
    onRefused(error.code ?? error.message);
  }
}

/** A process that was killed leaves the file of its socket behind: it goes when nobody answers there. */
function removeDead(path: string): void {
  const probe = createConnection(path, () => probe.destroy());
  probe.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'ECONNREFUSED') rmSync(path, { force: true });
  });
}
