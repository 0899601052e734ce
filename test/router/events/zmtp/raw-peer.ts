/** A peer of ZMTP on loopback that says what a test has it say, byte by byte. */
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
import type { Test } from 'tap';
import { encodeGreeting } from '#millrace/router/events/zmtp/wire.js';

/** A command frame. */
export function command(name: string, data = ''): Buffer {
  const body = Buffer.from(`${String.fromCharCode(name.length)}${name}${data}`, 'latin1');
  return Buffer.concat([Buffer.of(4, body.length), body]);
}

/** READY of a socket of that type. */
export const readyOf = (type: string): Buffer =>
  command('READY', `\x0bSocket-Type\0\0\0${String.fromCharCode(type.length)}${type}`);

/** A greeting of version 3.`minor`. */
export function greetingOf(minor: number, mechanism = 'NULL'): Buffer {
  const greeting = encodeGreeting();
  greeting[11] = minor;
  greeting.fill(0, 12, 32).write(mechanism, 12);
  return greeting;
}

/** See the head of the file. */
export class RawPeer {
  readonly port: number;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #heard = '';
  #wake: () => void = () => {};
  /** Connections since the start. */
  connections = 0;

  private constructor(server: Server, hello: readonly Buffer[]) {
    this.#server = server;
    this.port = (server.address() as { port: number }).port;
    server.on('connection', (socket: Socket) => {
      this.connections += 1;
      this.#sockets.add(socket);
      socket.on('error', () => {}).on('close', () => this.#sockets.delete(socket));
      socket.on('data', chunk => {
        this.#heard += chunk.toString('latin1');
        this.#wake();
      });
      for (const bytes of hello) socket.write(bytes);
      this.#wake();
    });
  }

  /** Listens, and says `hello` to each that connects; closed with the test. */
  static async start(t: Test, ...hello: readonly Buffer[]): Promise<RawPeer> {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const peer = new RawPeer(server, hello);
    t.teardown(() => peer.close());
    return peer;
  }

  get address() {
    return { host: '127.0.0.1', port: this.port };
  }

  /** Everything that was said to it since `forget`, as Latin-1. */
  get heard(): string {
    return this.#heard;
  }

  forget(): void {
    this.#heard = '';
  }

  say(bytes: Buffer): void {
    for (const socket of this.#sockets) socket.write(bytes);
  }

  /** Resolves once `what` was said to it. */
  async hears(what: string): Promise<void> {
    await this.until(() => this.#heard.includes(what));
  }

  /** Resolves once it holds; looked at when something comes. */
  async until(holds: () => boolean): Promise<void> {
    while (!holds())
      await new Promise<void>(resolve => {
        this.#wake = resolve;
      });
  }

  /** Leaves what is said to it unread. */
  stopReading(): void {
    for (const socket of this.#sockets) socket.pause();
  }

  /** Hangs up. */
  hangUp(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async close(): Promise<void> {
    this.hangUp();
    if (this.#server.listening) await new Promise(resolve => this.#server.close(resolve));
  }
}
