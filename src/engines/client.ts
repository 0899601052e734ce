/**
 * EngineClient (R5): all I/O of one socket thread towards the workers. One undici pool per worker origin; HTTP/1.1
 * without pipelining, so that closing a connection stops exactly one request: that is how an engine learns of an abort.
 * A call ends once, with `onEnd` or with one `onError`. Timers of undici are off but for the connect deadline: how long
 * an answer may take is the caller's decision, carried out with `abort`.
 */
import { type Dispatcher, errors, Pool } from 'undici';
import { WorkerError } from '../errors.js';
import type { Clock } from '../runtime/clock.js';

/**
 * Milliseconds that an idle connection is kept. Uvicorn, the server inside vLLM and SGLang, closes idle connections
 * after 5 s; closing ours first keeps a request from being written to a connection that is just going away.
 */
const IDLE_CONNECTION_MS = 4_000;

/**
 * Why a call failed.
 * - unreachable: no connection was made; the engine saw nothing of the request.
 * - reset: the connection ended after the request was handed to it; the engine may have begun.
 * - protocol: the answer is not HTTP, or the call could not be written as HTTP.
 * - aborted: ended by this side: `abort()`, `close()`, or an exception thrown by the sink.
 */
export type EngineFaultKind = 'unreachable' | 'reset' | 'protocol' | 'aborted';

/** How a call failed, told once. */
export interface EngineFault {
  readonly kind: EngineFaultKind;
  /** For callers: kind and error code in words, without addresses. */
  readonly message: string;
  /** The underlying error, for logs only. */
  readonly cause: unknown;
}

/** Header values by lower-case name. */
export type EngineHeaders = Readonly<Record<string, string | string[] | undefined>>;

/**
 * Receives one answer on the socket thread. `onHead` at most once, then `onData` any number of times, then exactly one
 * of `onEnd` and `onError`, once, after which nothing more is called. Chunks may be kept: their memory is not reused.
 */
export interface AnswerSink {
  onHead(status: number, contentType: string, headers: EngineHeaders): void;
  onData(chunk: Uint8Array): void;
  onEnd(): void;
  onError(fault: EngineFault): void;
}

/** Handle of a call in flight. Every method is a no-op once the call has ended. */
export interface EngineCall {
  /** Closes the connection; the sink gets `onError` with kind 'aborted' before this returns. */
  abort(): void;
  /** Stops reading from the connection: what the kernel buffers hold then slows the engine down. */
  pause(): void;
  /** Reads again, from the next microtask on. */
  resume(): void;
}

/** One HTTP request to a worker. */
export interface EngineRequest {
  /** Scheme, host and port of the worker: `http://10.0.0.7:8000`. */
  readonly origin: string;
  readonly method: string;
  readonly path: string;
  readonly head: readonly (readonly [string, string])[];
  /** Whole request body; empty for none. Read until the call has ended. */
  readonly body: Uint8Array;
}

/** Settings of a client; the clock bounds probes and scrapes. */
export interface EngineClientOptions {
  readonly clock: Clock;
  /** Deadline for a connection, in milliseconds. undici keeps it with its own timers, up to about 0.5 s late. */
  readonly connectDeadlineMs: number;
}

/** Codes by which undici says "ended by this side" and "not valid HTTP"; the rest name the peer or the network. */
const OWN_CODES = new Set(['UND_ERR_ABORTED', 'UND_ERR_DESTROYED', 'UND_ERR_CLOSED']);
const PROTOCOL_CODES = new Set(['UND_ERR_HEADERS_OVERFLOW', 'UND_ERR_INVALID_ARG']);
/** The parser's words for a connection that ended inside a body: a dead peer, not a wrong one. */
const CUT_BODY = /invalid eof/i;

const REASONS: Readonly<Record<EngineFaultKind, string>> = {
  unreachable: 'the worker could not be reached',
  reset: 'the connection to the worker ended before its answer was complete',
  protocol: 'the worker did not answer in valid HTTP',
  aborted: 'the call was ended on this side',
};

/** How `get` reports a fault. */
const FAULT_CODES = {
  unreachable: 'MILLRACE_WORKER_UNREACHABLE',
  reset: 'MILLRACE_WORKER_DIED',
  protocol: 'MILLRACE_WORKER_PROTOCOL',
  aborted: 'MILLRACE_WORKER_UNREACHABLE',
} as const;

function faultKind(error: unknown, code: unknown, sent: boolean): EngineFaultKind {
  if (error instanceof errors.HTTPParserError) return CUT_BODY.test(error.message) ? 'reset' : 'protocol';
  // Everything else that undici and the system report has a code; an error without one was thrown by the sink.
  if (typeof code !== 'string' || OWN_CODES.has(code)) return 'aborted';
  if (PROTOCOL_CODES.has(code)) return 'protocol';
  return sent ? 'reset' : 'unreachable';
}

function faultOf(error: unknown, sent: boolean): EngineFault {
  const code = (error as { code?: unknown }).code;
  const kind = faultKind(error, code, sent);
  return { kind, message: `${REASONS[kind]}${typeof code === 'string' ? ` (${code})` : ''}`, cause: error };
}

class AbortedError extends Error {
  readonly code = 'UND_ERR_ABORTED';
}

/** One call: undici's handler and the caller's handle in one object, so that a call costs no closures. */
class Call implements EngineCall, Dispatcher.DispatchHandler {
  readonly #sink: AnswerSink;
  #controller: Dispatcher.DispatchController | null = null;
  #ended = false;
  #paused = false;

  constructor(sink: AnswerSink) {
    this.#sink = sink;
  }

  abort(): void {
    if (this.#ended) return;
    this.#ended = true;
    const error = new AbortedError('aborted by the caller');
    // Not connected yet: onRequestStart sees `#ended` and ends the request before a byte of it is written.
    this.#controller?.abort(error);
    this.#sink.onError(faultOf(error, this.#controller !== null));
  }

  pause(): void {
    if (this.#ended) return;
    this.#paused = true;
    this.#controller?.pause();
  }

  resume(): void {
    if (this.#ended || !this.#paused) return;
    this.#paused = false;
    // undici's parser is not re-entrant, and the caller may be inside the data callback of another call.
    queueMicrotask(() => {
      if (!this.#ended && !this.#paused) this.#controller?.resume();
    });
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#ended) controller.abort(new AbortedError('aborted by the caller'));
    else if (this.#paused) controller.pause();
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: Record<string, string | string[] | undefined>,
  ): void {
    if (status < 200 || this.#ended) return;
    const contentType = headers['content-type'];
    this.#sink.onHead(status, typeof contentType === 'string' ? contentType : '', headers);
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Uint8Array): void {
    if (!this.#ended) this.#sink.onData(chunk);
  }

  onResponseEnd(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#sink.onEnd();
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#sink.onError(faultOf(error, this.#controller !== null));
  }
}

/** The connections of one socket thread to all workers. Not shared between threads. */
export class EngineClient {
  readonly #clock: Clock;
  readonly #connectDeadlineMs: number;
  readonly #pools = new Map<string, Pool>();
  /** Pools of forgotten origins whose calls still run. */
  readonly #leaving = new Set<Pool>();
  #closed = false;

  constructor(options: EngineClientOptions) {
    this.#clock = options.clock;
    this.#connectDeadlineMs = options.connectDeadlineMs;
  }

  /**
   * Starts a call. The sink is never called before this returns, but for a request that cannot be written as HTTP
   * ('protocol') or a closed client ('aborted'). Connections have no cap of their own: `requestsMax` bounds them.
   */
  send(request: EngineRequest, sink: AnswerSink): EngineCall {
    const call = new Call(sink);
    if (this.#closed) {
      call.abort();
      return call;
    }
    const headers: string[] = [];
    for (const [name, value] of request.head) headers.push(name, value);
    this.#pool(request.origin).dispatch(
      {
        method: request.method,
        path: request.path,
        headers,
        body: request.body.byteLength === 0 ? null : request.body,
      },
      call,
    );
    return call;
  }

  /**
   * GET of a small answer, for probes and scrapes. Rejects with a WorkerError: MILLRACE_WORKER_UNREACHABLE,
   * MILLRACE_WORKER_STALLED after `deadlineMs`, MILLRACE_WORKER_PROTOCOL for bad HTTP or more than `bytesMax`
   * bytes, MILLRACE_WORKER_DIED for a connection that ended early.
   */
  get(
    origin: string,
    path: string,
    deadlineMs: number,
    bytesMax: number,
  ): Promise<{ status: number; body: string }> {
    const call = { origin, method: 'GET', path, head: [], body: new Uint8Array(0) };
    return this.ask(call, deadlineMs, bytesMax);
  }

  /** As `get`, with a JSON body. */
  post(
    origin: string,
    path: string,
    json: string,
    deadlineMs: number,
    bytesMax: number,
  ): Promise<{ status: number; body: string }> {
    const head = [['content-type', 'application/json']] as const;
    return this.ask({ origin, method: 'POST', path, head, body: Buffer.from(json) }, deadlineMs, bytesMax);
  }

  /** As `get`, for any request with a small answer. */
  ask(asked: EngineRequest, deadlineMs: number, bytesMax: number): Promise<{ status: number; body: string }> {
    const name = `${asked.method} ${asked.path}`;
    return new Promise((resolve, reject) => {
      const chunks: Uint8Array[] = [];
      let bytes = 0;
      let status = 0;
      let broken: WorkerError | null = null;
      const stop = (error: WorkerError): void => {
        broken = error;
        call.abort();
      };
      const timer = this.#clock.after(deadlineMs, () =>
        stop(new WorkerError('MILLRACE_WORKER_STALLED', `${name} took longer than ${deadlineMs} ms`)),
      );
      const call = this.send(asked, {
        onHead: code => {
          status = code;
        },
        onData: chunk => {
          bytes += chunk.byteLength;
          if (bytes <= bytesMax) chunks.push(chunk);
          else
            stop(
              new WorkerError(
                'MILLRACE_WORKER_PROTOCOL',
                `the answer to ${name} is longer than ${bytesMax} bytes`,
              ),
            );
        },
        onEnd: () => {
          timer.cancel();
          resolve({ status, body: Buffer.concat(chunks).toString('utf8') });
        },
        onError: fault => {
          timer.cancel();
          reject(broken ?? new WorkerError(FAULT_CODES[fault.kind], `${name}: ${fault.message}`));
        },
      });
    });
  }

  /** Forgets a worker: running calls finish, idle connections close, a later call to the origin connects anew. */
  closeOrigin(origin: string): void {
    const pool = this.#pools.get(origin);
    if (pool === undefined) return;
    this.#pools.delete(origin);
    this.#leaving.add(pool);
    void pool.close().then(() => this.#leaving.delete(pool));
  }

  /** Closes every connection; running calls get 'aborted'. Resolves when all sockets are closed. */
  async close(): Promise<void> {
    this.#closed = true;
    const pools = [...this.#pools.values(), ...this.#leaving];
    this.#pools.clear();
    this.#leaving.clear();
    await Promise.all(pools.map(pool => pool.destroy()));
  }

  #pool(origin: string): Pool {
    let pool = this.#pools.get(origin);
    if (pool === undefined) {
      pool = new Pool(origin, {
        connections: null,
        pipelining: 1,
        keepAliveTimeout: IDLE_CONNECTION_MS,
        connectTimeout: this.#connectDeadlineMs,
        headersTimeout: 0,
        bodyTimeout: 0,
      });
      this.#pools.set(origin, pool);
    }
    return pool;
  }
}
