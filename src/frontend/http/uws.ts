/**
 * HttpExchange over uWebSockets.js (R1, R7): the fast server. One cork and one write per flush. Its `write` under a cork
 * tells back-pressure one call late, it keeps what the kernel refused without a limit, and once a writable handler is
 * set it drains only when asked: so this file stops feeding it after the first refusal and drains it with an empty cork.
 *
 * What it does by itself and cannot be told otherwise: HTTP/1.1 only (505, also when a segment ends inside the request
 * line); a half-close, or a second request while the first is unanswered, closes the connection; so do 10 s (checked
 * every 4 s) of incomplete headers, of idle keep-alive, of a body that comes slower than 16 KiB/s, or of a client that
 * reads nothing after a refused write. Runs on the socket thread, which owns every exchange.
 */

import type { HttpRequest, HttpResponse, us_listen_socket } from 'uWebSockets.js';
import assert from 'node:assert';
import { ConfigError } from '../../errors.js';
import { type Clock, systemClock } from '../../runtime/clock.js';
import { BodyCollector } from './body-collector.js';
import type { BodyFault, HeaderList, HttpExchange, HttpServer, HttpServerOptions } from './http-exchange.js';
import { headerValue, refuse, requestFault } from './request-rules.js';
import { statusLine } from './status-line.js';

type Phase = 'open' | 'streaming' | 'done';

const LINE_BREAK = /[\r\n\0]/;
/** LIBUS_LISTEN_DEFAULT of uSockets, which sets SO_REUSEPORT, and LIBUS_LISTEN_EXCLUSIVE_PORT, which does not. */
const LISTEN_SHARED = 0;
const LISTEN_EXCLUSIVE = 1;
const drain = (): void => {};

// One list, filled by one callback, so that copying the headers costs no closure per request.
let copied: string[] = [];
const copyHeader = (name: string, value: string): void => {
  copied.push(name, value);
};

class UwsExchange implements HttpExchange {
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly headers: readonly string[];
  readonly #res: HttpResponse;
  readonly #clock: Clock;
  /** True while the uWS handler runs: only then may a data callback be set. */
  inHandler = true;
  #phase: Phase = 'open';
  #body: BodyCollector | null = null;
  #aborted: (() => void) | null = null;
  #writable: (() => void) | null = null;
  #status = 0;
  #responseHeaders: HeaderList = [];
  #headSent = false;
  #blocked = false;
  /** Upper bound of the bytes that uWS holds: all since it last proved to be empty. */
  #unsentBytes = 0;
  #queue: (string | Uint8Array)[] = [];
  #queuedBytes = 0;
  #chunk: string | Uint8Array = '';
  #taken = true;

  constructor(res: HttpResponse, req: HttpRequest, clock: Clock) {
    this.#res = res;
    this.#clock = clock;
    this.method = req.getCaseSensitiveMethod();
    this.path = req.getUrl();
    this.query = req.getQuery() ?? '';
    copied = [];
    req.forEach(copyHeader);
    this.headers = copied;
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
    assert(this.inHandler && this.#body === null, 'readBody must be called once, inside onExchange');
    const body = new BodyCollector({ bytesMax, deadlineMs, clock: this.#clock, onBody, onFault });
    this.#body = body;
    const declared = this.header('content-length');
    if (declared !== undefined && !body.admits(Number(declared))) return;
    this.#res.onData((chunk, isLast) => {
      if (!body.open) return;
      // The buffer is detached when this callback returns, so what is kept must be a copy.
      if (body.admits(chunk.byteLength)) body.push(new Uint8Array(chunk.slice(0)));
      if (isLast) body.finish();
    });
  }

  respond(status: number, headers: HeaderList, body: string | Uint8Array, close = false): void {
    if (this.#phase === 'done') return;
    assert(this.#phase === 'open', 'respond after start');
    this.#finish();
    const res = this.#res;
    res.cork(() => {
      this.#writeHead(status, headers);
      if (this.method === 'HEAD') {
        // Given to endWithoutBody, the length would leave the response open: it waits for the bytes that it announced.
        res.writeHeader('content-length', String(Buffer.byteLength(body)));
        // Its own close flag needs that length; so the client is told to close, and the idle limit closes if it does not.
        if (close) res.writeHeader('connection', 'close');
        res.endWithoutBody();
      } else res.end(body, close);
    });
  }

  start(status: number, headers: HeaderList): void {
    if (this.#phase === 'done') return;
    assert(this.#phase === 'open', 'start twice');
    this.#phase = 'streaming';
    this.#status = status;
    this.#responseHeaders = headers;
    this.#res.onWritable(this.#onSocketWritable);
  }

  write(data: string | Uint8Array): boolean {
    if (this.#phase !== 'streaming' || this.method === 'HEAD') return true;
    if (data.length === 0) return !this.#blocked;
    if (this.#blocked) {
      this.#queue.push(data);
      this.#queuedBytes += Buffer.byteLength(data);
      return false;
    }
    this.#chunk = data;
    this.#res.cork(this.#writeChunk);
    if (this.#taken) {
      this.#unsentBytes = 0;
      return true;
    }
    this.#unsentBytes += Buffer.byteLength(data);
    this.#blocked = true;
    return false;
  }

  bufferedBytes(): number {
    return this.#blocked ? this.#unsentBytes + this.#queuedBytes : 0;
  }

  onWritable(fn: () => void): void {
    this.#writable = fn;
  }

  end(data?: string | Uint8Array): void {
    if (this.#phase === 'done') return;
    assert(this.#phase === 'streaming', 'end before start');
    const res = this.#res;
    const queue = this.#queue;
    if (data !== undefined && data.length > 0) queue.push(data);
    this.#finish();
    res.cork(() => {
      if (!this.#headSent) this.#writeHead(this.#status, this.#responseHeaders);
      if (this.method === 'HEAD') {
        res.endWithoutBody();
        return;
      }
      for (const data of queue) res.write(data);
      res.end();
    });
  }

  abort(): void {
    if (this.#phase === 'done') return;
    this.#finish();
    this.#res.close();
  }

  onAborted(fn: () => void): void {
    this.#aborted = fn;
  }

  /** The connection is gone: `res` must not be touched again. */
  gone(): void {
    if (this.#phase === 'done') return;
    const body = this.#body;
    const aborted = this.#aborted;
    this.#close();
    body?.fail('aborted');
    aborted?.();
  }

  #close(): void {
    this.#phase = 'done';
    this.#blocked = false;
    this.#queue = [];
  }

  #finish(): void {
    this.#close();
    this.#body?.cancel();
  }

  #writeHead(status: number, headers: HeaderList): void {
    this.#headSent = true;
    this.#res.writeStatus(statusLine(status));
    for (const [name, value] of headers) {
      // uWS writes headers as they are; a line break would let a value forge the rest of the response.
      assert(!LINE_BREAK.test(value) && !LINE_BREAK.test(name), 'line break in a response header');
      this.#res.writeHeader(name, value);
    }
  }

  // Made once per exchange, so that a write allocates no closure.
  readonly #writeChunk = (): void => {
    if (!this.#headSent) this.#writeHead(this.#status, this.#responseHeaders);
    this.#taken = this.#res.write(this.#chunk);
  };

  readonly #writeQueue = (): void => {
    for (const data of this.#queue) this.#taken = this.#res.write(data);
  };

  readonly #onSocketWritable = (): boolean => {
    if (this.#phase !== 'streaming') return true;
    if (this.#queue.length === 0) {
      this.#res.cork(drain);
    } else {
      this.#res.cork(this.#writeQueue);
      this.#unsentBytes = (this.#taken ? 0 : this.#unsentBytes) + this.#queuedBytes;
      this.#queue = [];
      this.#queuedBytes = 0;
      if (!this.#taken) return true;
    }
    const wasBlocked = this.#blocked;
    this.#blocked = false;
    if (wasBlocked) this.#writable?.();
    return true;
  };
}

// The package's types lack the option and this overload, which its binary has.
interface ExclusiveListen {
  listen(
    host: string,
    port: number,
    options: number,
    done: (socket: us_listen_socket | false) => void,
  ): unknown;
}

// uWebSockets.js reads its header limit once, when it loads, so the first server of the process sets it for all.
let loadedHeaderBytesMax = 0;

async function loadUws(headerBytesMax: number): Promise<typeof import('uWebSockets.js')> {
  if (loadedHeaderBytesMax === 0) process.env.UWS_HTTP_MAX_HEADERS_SIZE = String(headerBytesMax);
  const uws = await import('uWebSockets.js');
  if (loadedHeaderBytesMax === 0) loadedHeaderBytesMax = headerBytesMax;
  if (headerBytesMax > loadedHeaderBytesMax) {
    const loaded = `${loadedHeaderBytesMax}, the limit that uWebSockets.js was loaded with in this process`;
    throw new ConfigError(`headerBytesMax: ${headerBytesMax} must not be above ${loaded}`);
  }
  return uws;
}

/** Creates the uWebSockets.js server. Rejects where its binary does not load. */
export async function createUwsServer(options: HttpServerOptions): Promise<HttpServer> {
  const uws = await loadUws(options.headerBytesMax);
  const clock = options.clock ?? systemClock;
  const app = uws.App();
  let listenSocket: us_listen_socket | false = false;

  app.any('/*', (res, req) => {
    const exchange = new UwsExchange(res, req, clock);
    res.onAborted(() => exchange.gone());
    const targetBytes = exchange.method.length + exchange.path.length + exchange.query.length;
    const fault = requestFault(exchange.headers, targetBytes, options.headerBytesMax);
    if (fault === null) options.onExchange(exchange);
    else {
      // Answered a turn later: until then uWS closes the connection on whatever it takes for a next request, which
      // after wrong framing may be a smuggled one.
      setImmediate(() => refuse(exchange, fault));
    }
    exchange.inHandler = false;
  });

  const stopListening = (): void => {
    if (listenSocket !== false) uws.us_listen_socket_close(listenSocket);
    listenSocket = false;
  };
  return {
    kind: 'uws',
    notice: null,
    listen(host, port, isShared = false) {
      return new Promise((resolve, reject) => {
        const onListen = (socket: us_listen_socket | false): void => {
          listenSocket = socket;
          if (socket !== false) resolve({ port: uws.us_socket_local_port(socket) });
          else
            reject(
              new ConfigError(`cannot listen on ${host}:${port}: the address is taken or not of this host`),
            );
        };
        // Without the exclusive option a second server would share the port in silence.
        const options = isShared ? LISTEN_SHARED : LISTEN_EXCLUSIVE;
        (app as unknown as ExclusiveListen).listen(host, port, options, onListen);
      });
    },
    stopListening,
    async close() {
      listenSocket = false;
      app.close();
    },
  };
}
