// A client that sends bytes as they are and reads the answer only as fast as it is told to; used by the HTTP suites.
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import type { Test } from 'tap';
import type { HttpExchange, HttpServer } from '#millrace/frontend/http/http-exchange.js';
import { createHttpServer } from '#millrace/frontend/http/server.js';
import { ManualClock } from '#millrace/runtime/clock.js';

export interface ParsedResponse {
  status: number;
  headers: Map<string, string>;
  body: string;
}

/** Reads as many whole responses as `text` holds; `rest` is what follows them. */
export function parseResponses(text: string): { responses: ParsedResponse[]; rest: string } {
  const responses: ParsedResponse[] = [];
  let rest = text;
  for (;;) {
    const headEnd = rest.indexOf('\r\n\r\n');
    if (headEnd < 0) return { responses, rest };
    const [line, ...fields] = rest.slice(0, headEnd).split('\r\n');
    const headers = new Map<string, string>();
    for (const field of fields) {
      const colon = field.indexOf(':');
      headers.set(field.slice(0, colon).toLowerCase(), field.slice(colon + 1).trim());
    }
    const status = Number(line!.split(' ')[1]);
    let at = headEnd + 4;
    let body = '';
    if (headers.get('transfer-encoding') === 'chunked') {
      for (;;) {
        const lineEnd = rest.indexOf('\r\n', at);
        if (lineEnd < 0) return { responses, rest };
        const size = Number.parseInt(rest.slice(at, lineEnd), 16);
        if (rest.length < lineEnd + 4 + size) return { responses, rest };
        body += rest.slice(lineEnd + 2, lineEnd + 2 + size);
        at = lineEnd + 4 + size;
        if (size === 0) break;
      }
    } else {
      const length = Number(headers.get('content-length') ?? 0);
      if (rest.length < at + length) return { responses, rest };
      body = rest.slice(at, at + length);
      at += length;
    }
    if (status !== 100) responses.push({ status, headers, body });
    rest = rest.slice(at);
  }
}

export class RawClient {
  readonly socket: Socket;
  /** The last few characters received: cheap to look at while megabytes arrive. */
  tail = '';
  /** The server has closed the connection, or broken it. */
  closed = false;
  #wake: (() => void)[] = [];
  #pieces: string[] = [];

  private constructor(socket: Socket) {
    this.socket = socket;
    const wake = (): void => {
      for (const fn of this.#wake.splice(0)) fn();
    };
    socket.on('data', chunk => {
      this.#pieces.push(chunk.toString('latin1'));
      this.tail = (this.tail + chunk.toString('latin1', Math.max(0, chunk.length - 16))).slice(-16);
      wake();
    });
    socket.on('error', () => {});
    const close = (): void => {
      this.closed = true;
      socket.destroy();
      wake();
    };
    socket.on('end', close);
    socket.on('close', close);
  }

  static async connect(port: number): Promise<RawClient> {
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
    await once(socket, 'connect');
    return new RawClient(socket);
  }

  /** All that was received. */
  get text(): string {
    if (this.#pieces.length > 1) this.#pieces = [this.#pieces.join('')];
    return this.#pieces[0] ?? '';
  }

  /** Writes bytes (latin1 when a string) and resolves when a server in this process has read them. */
  async send(data: string | Uint8Array): Promise<void> {
    const bytes = typeof data === 'string' ? Buffer.from(data, 'latin1') : data;
    await new Promise<void>(resolve => this.socket.write(bytes, () => resolve()));
    // The kernel hands them over at once; the server, on this very loop, accepts in one turn and reads in the next.
    for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate);
  }

  /** Resolves when `done` holds or the connection is closed. */
  async until(done: () => boolean): Promise<void> {
    while (!done() && !this.closed) await new Promise<void>(resolve => this.#wake.push(resolve));
  }

  /** The first `count` responses, or as many as came before the connection closed. */
  async responses(count = 1): Promise<ParsedResponse[]> {
    await this.until(() => parseResponses(this.text).responses.length >= count);
    return parseResponses(this.text).responses;
  }

  destroy(): void {
    this.socket.destroy();
  }
}

/** A server of one kind on a free port, closed when the test ends, with a clock that the test moves. */
export async function serve(
  t: Pick<Test, 'teardown'>,
  kind: 'uws' | 'node',
  onExchange: (exchange: HttpExchange) => void,
): Promise<{ port: number; server: HttpServer; clock: ManualClock }> {
  const clock = new ManualClock();
  const server = await createHttpServer(kind, {
    headerBytesMax: 16_384,
    headerDeadlineMs: 10_000,
    onExchange,
    clock,
  });
  const { port } = await server.listen('127.0.0.1', 0);
  t.teardown(() => server.close());
  return { port, server, clock };
}
