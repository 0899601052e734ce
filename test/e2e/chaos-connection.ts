/** A client's connection under chaos: one raw socket that is kept from request to request until somebody breaks it. */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { parseResponses } from '../frontend/http/raw-client.js';

const CHUNKED_END = '\r\n0\r\n\r\n';

/** A response as far as it came. */
export interface Answer {
  readonly status: number;
  readonly body: string;
  /** Its end came, in the way that HTTP wants it. */
  readonly isWhole: boolean;
}

export class ChaosConnection {
  readonly #port: number;
  #socket: Socket | null = null;
  #text = '';
  #tail = '';
  /** Characters of the whole response: known with its head, infinite for one in chunks. */
  #length: number | null = null;
  #isWhole = false;
  #wake: (() => void) | null = null;
  #pauseMs = 0;

  constructor(port: number) {
    this.#port = port;
  }

  /** Connects where there is no connection, and sends the first bytes of a new request. */
  async begin(bytes: string): Promise<void> {
    if (this.#socket === null) {
      const socket = connect({ port: this.#port, host: '127.0.0.1', noDelay: true });
      await once(socket, 'connect');
      socket.setEncoding('latin1');
      socket.on('error', () => {});
      socket.on('data', (chunk: unknown) => this.#take(chunk as string, socket));
      socket.on('close', () => this.#gone(socket));
      this.#socket = socket;
    }
    this.#text = '';
    this.#tail = '';
    this.#length = null;
    this.#isWhole = false;
    this.#pauseMs = 0;
    this.#socket.write(bytes, 'latin1');
  }

  /** Resolves once `chars` of the response came, or it is whole, or the connection is gone. */
  async received(chars: number): Promise<void> {
    while (this.#socket !== null && !this.#isWhole && this.#text.length < chars)
      await new Promise<void>(resolve => {
        this.#wake = resolve;
      });
  }

  /** Waits for the rest of the response. */
  async answer(): Promise<Answer> {
    await this.received(Number.POSITIVE_INFINITY);
    const { responses } = parseResponses(this.#text);
    const [response] = responses;
    if (/\r\nconnection: close\r\n/i.test(this.#text.slice(0, 2048))) this.leave();
    if (response === undefined) return { status: 0, body: this.#text, isWhole: false };
    const body = Buffer.from(response.body, 'latin1').toString('utf8');
    return { status: response.status, body, isWhole: this.#isWhole && responses.length === 1 };
  }

  /** From now on stops reading for a while after each piece that comes; 0: no more. */
  readSlowly(pauseMs: number): void {
    this.#pauseMs = pauseMs;
  }

  /** Stops reading. */
  pause(): void {
    this.#socket?.pause();
  }

  resume(): void {
    this.#socket?.resume();
  }

  /** Closes the connection as a client does that exits. */
  leave(): void {
    this.#socket?.destroy();
    this.#socket = null;
  }

  /** Breaks the connection with a TCP reset. */
  reset(): void {
    this.#socket?.resetAndDestroy();
    this.#socket = null;
  }

  #take(chunk: string, socket: Socket): void {
    if (socket !== this.#socket) return;
    this.#text += chunk;
    this.#tail = (this.#tail + chunk.slice(-CHUNKED_END.length)).slice(-CHUNKED_END.length);
    if (this.#length === null) this.#readHead();
    if (this.#length !== null)
      this.#isWhole = this.#text.length >= this.#length || this.#tail === CHUNKED_END;
    if (this.#pauseMs > 0 && !this.#isWhole) {
      socket.pause();
      setTimeout(() => socket.resume(), this.#pauseMs);
    }
    this.#wakeUp();
  }

  #readHead(): void {
    const end = this.#text.indexOf('\r\n\r\n');
    if (end < 0) return;
    const length = /\r\ncontent-length: *(\d+)/i.exec(this.#text.slice(0, end))?.[1];
    this.#length = length === undefined ? Number.POSITIVE_INFINITY : end + 4 + Number(length);
  }

  #gone(socket: Socket): void {
    if (socket === this.#socket) this.#socket = null;
    this.#wakeUp();
  }

  #wakeUp(): void {
    this.#wake?.();
    this.#wake = null;
  }
}
