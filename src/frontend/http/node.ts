/**
 * HttpExchange over node:http (R1, R7): the server that runs everywhere, and the way into a host's own server through
 * `exchangeFromNode`. Each write is corked and flushed at once, so that `write` can tell whether the kernel took it.
 * Runs on the socket thread, which owns every exchange.
 */
import assert from 'node:assert';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { ConfigError, ERROR_CODES, type ErrorCode, errorEnvelope } from '../../errors.js';
import { type Clock, systemClock } from '../../runtime/clock.js';
import { BodyCollector } from './body-collector.js';
import type { BodyFault, HeaderList, HttpExchange, HttpServer, HttpServerOptions } from './http-exchange.js';
import { headerValue, type RequestFault, refuse, requestFault } from './request-rules.js';
import { reasonPhrase, statusLine } from './status-line.js';

/** For the last bytes of a response that the client does not take. */
const LAST_BYTES_MS = 15_000;
const KEEP_ALIVE_MS = 75_000;
/** Second line of defence behind the body deadline of `readBody`: node's own bound for a whole request. */
const REQUEST_DEADLINE_MS = 300_000;

// Node's parser lets 'HTTP/2.0' in a request line pass.
const NOT_HTTP_1: RequestFault = {
  code: 'MILLRACE_INVALID_REQUEST',
  message: 'the version in the request line must be HTTP/1.0 or HTTP/1.1',
};

type Phase = 'open' | 'streaming' | 'done';

class NodeExchange implements HttpExchange {
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly headers: readonly string[];
  readonly #req: IncomingMessage;
  readonly #res: ServerResponse;
  readonly #clock: Clock;
  #phase: Phase = 'open';
  #body: BodyCollector | null = null;
  #aborted: (() => void) | null = null;
  #writable: (() => void) | null = null;
  #blocked = false;

  constructor(req: IncomingMessage, res: ServerResponse, clock: Clock, url = req.url ?? '/') {
    this.#req = req;
    this.#res = res;
    this.#clock = clock;
    const mark = url.indexOf('?');
    this.method = req.method ?? 'GET';
    this.path = mark < 0 ? url : url.slice(0, mark);
    this.query = mark < 0 ? '' : url.slice(mark + 1);
    const headers = req.rawHeaders.slice();
    for (let i = 0; i < headers.length; i += 2) headers[i] = headers[i]!.toLowerCase();
    this.headers = headers;
    res.on('close', () => this.#gone());
    // A write that races with the client's reset would otherwise be an uncaught 'error'; 'close' follows it.
    res.on('error', () => {});
  }

  header(name: string): string | undefined {
    return headerValue(this.headers, name);
  }

  readBody(
    bytesMax: number,
    deadlineMs: number,
    onBody: (chunks: Uint8Array[], bytes: number) => void,
    onFault: (fault: BodyFault) => void,
  ): void {
    if (this.#phase === 'done') return;
    assert(this.#body === null, 'readBody must be called once');
    const body = new BodyCollector({ bytesMax, deadlineMs, clock: this.#clock, onBody, onFault });
    this.#body = body;
    const declared = this.header('content-length');
    if (declared !== undefined && !body.admits(Number(declared))) return;
    if (this.#req.readableDidRead) {
      takeHostBody(this.#req, body);
      return;
    }
    // After the outcome the listener stays and throws bytes away, so that the rest of a body does not block the socket.
    this.#req.on('data', (chunk: Uint8Array) => body.push(chunk));
    this.#req.on('end', () => body.finish());
  }

  respond(status: number, headers: HeaderList, body: string | Uint8Array, close = false): void {
    if (this.#phase === 'done') return;
    assert(this.#phase === 'open', 'respond after start');
    this.#finish();
    const head = flatten(headers);
    head.push('content-length', String(Buffer.byteLength(body)));
    if (close) head.push('connection', 'close');
    this.#res.writeHead(status, reasonPhrase(status), head);
    this.#endResponse(body);
  }

  start(status: number, headers: HeaderList): void {
    if (this.#phase === 'done') return;
    assert(this.#phase === 'open', 'start twice');
    this.#phase = 'streaming';
    this.#res.writeHead(status, reasonPhrase(status), flatten(headers));
    this.#res.on('drain', () => {
      if (!this.#blocked || this.#phase !== 'streaming') return;
      this.#blocked = false;
      this.#writable?.();
    });
  }

  write(data: string | Uint8Array): boolean {
    if (this.#phase !== 'streaming' || this.method === 'HEAD') return true;
    if (data.length === 0) return !this.#blocked;
    const res = this.#res;
    const socket = res.socket;
    // One flush per call, now: left to itself node waits for the end of the tick, and we could not see what was taken.
    socket?.cork();
    const roomLeft = res.write(data);
    socket?.uncork();
    if (!this.#blocked) this.#blocked = !roomLeft && res.writableLength > 0;
    return !this.#blocked;
  }

  bufferedBytes(): number {
    return this.#phase === 'streaming' && this.#blocked ? this.#res.writableLength : 0;
  }

  onWritable(fn: () => void): void {
    this.#writable = fn;
  }

  end(data?: string | Uint8Array): void {
    if (this.#phase === 'done') return;
    assert(this.#phase === 'streaming', 'end before start');
    this.#finish();
    this.#endResponse(data);
  }

  abort(): void {
    if (this.#phase === 'done') return;
    this.#finish();
    this.#req.socket.destroy();
  }

  onAborted(fn: () => void): void {
    this.#aborted = fn;
  }

  #endResponse(data?: string | Uint8Array): void {
    this.#res.end(data);
    // Node gives a client that never takes the last bytes for ever; with the next request it sets its own limit again.
    if (this.#res.writableLength > 0) this.#res.socket?.setTimeout(LAST_BYTES_MS);
  }

  #finish(): void {
    this.#phase = 'done';
    this.#body?.cancel();
  }

  #gone(): void {
    if (this.#phase === 'done') return;
    this.#phase = 'done';
    this.#body?.fail('aborted');
    this.#aborted?.();
  }
}

function flatten(headers: HeaderList): string[] {
  const flat: string[] = [];
  for (const [name, value] of headers) flat.push(name, value);
  return flat;
}

/** A body that the host has read: what its parser made of it is turned into bytes again. */
function takeHostBody(req: IncomingMessage & { readonly body?: unknown }, collector: BodyCollector): void {
  const { body } = req;
  if (body === undefined) {
    collector.fail('consumed');
    return;
  }
  const isBytes = body instanceof Uint8Array;
  collector.push(isBytes ? body : Buffer.from(typeof body === 'string' ? body : JSON.stringify(body)));
  collector.finish();
}

/**
 * Makes an exchange of a request that a host's own node:http server received. `target`: path and query, where the host
 * has mounted us below a prefix; the request's own when left out.
 */
export function exchangeFromNode(
  req: IncomingMessage,
  res: ServerResponse,
  { clock = systemClock, target }: { readonly clock?: Clock; readonly target?: string } = {},
): HttpExchange {
  return new NodeExchange(req, res, clock, target);
}

/** Answers bytes that never became a request, and closes their connection. */
function refuseBytes(socket: Socket, error: NodeJS.ErrnoException, headerBytesMax: number): void {
  let code: ErrorCode = 'MILLRACE_INVALID_REQUEST';
  let message = 'malformed HTTP request';
  if (error.code === 'HPE_HEADER_OVERFLOW') {
    code = 'MILLRACE_HEADERS_TOO_LARGE';
    message = `request line and headers must stay within ${headerBytesMax} bytes`;
  } else if (error.code === 'ERR_HTTP_REQUEST_TIMEOUT') {
    code = 'MILLRACE_BODY_TIMEOUT';
    message = 'the request did not arrive in time';
  }
  const body = JSON.stringify(errorEnvelope(code, message));
  const head = `HTTP/1.1 ${statusLine(ERROR_CODES[code].status)}\r\ncontent-type: application/json\r\n`;
  const tail = `content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n`;
  socket.end(head + tail + body, () => socket.destroy());
}

/** Creates the node:http server; `notice` is passed through to `HttpServer.notice`. */
export function createNodeServer(options: HttpServerOptions, notice: string | null): HttpServer {
  const clock = options.clock ?? systemClock;
  // Sockets with an unfinished response: an error answer in the middle of one would be read as part of it.
  const busy = new WeakSet<Socket>();
  const server = createServer({
    maxHeaderSize: options.headerBytesMax,
    headersTimeout: options.headerDeadlineMs,
    requestTimeout: Math.max(REQUEST_DEADLINE_MS, options.headerDeadlineMs),
    connectionsCheckingInterval: Math.min(options.headerDeadlineMs, 5_000),
    keepAliveTimeout: KEEP_ALIVE_MS,
    noDelay: true,
  });
  // Node drops headers over its own count in silence; ours refuses them.
  server.maxHeadersCount = 0;

  server.on('request', (req, res) => {
    busy.add(req.socket);
    res.on('close', () => busy.delete(req.socket));
    const exchange = new NodeExchange(req, res, clock);
    const targetBytes = exchange.method.length + (req.url ?? '').length;
    const fault =
      req.httpVersionMajor === 1
        ? requestFault(exchange.headers, targetBytes, options.headerBytesMax)
        : NOT_HTTP_1;
    if (fault === null) options.onExchange(exchange);
    else refuse(exchange, fault);
  });
  server.on('clientError', (error: NodeJS.ErrnoException, stream) => {
    const socket = stream as Socket;
    if (!socket.writable || busy.has(socket) || error.code === 'ECONNRESET') socket.destroy();
    else refuseBytes(socket, error, options.headerBytesMax);
  });

  let closed: Promise<void> | null = null;
  const stopListening = (): void => {
    closed ??= new Promise(resolve => server.close(() => resolve()));
  };
  return {
    kind: 'node',
    notice,
    listen(host, port, isShared = false) {
      assert(!isShared, 'node:http cannot share a port');
      return new Promise((resolve, reject) => {
        const onError = (error: NodeJS.ErrnoException): void =>
          reject(
            new ConfigError(`cannot listen on ${host}:${port}: ${error.code ?? error.message}`, {
              cause: error,
            }),
          );
        server.once('error', onError);
        server.listen(port, host, () => {
          server.off('error', onError);
          resolve({ port: (server.address() as AddressInfo).port });
        });
      });
    },
    stopListening,
    async close() {
      stopListening();
      server.closeAllConnections();
      await closed;
    },
  };
}
