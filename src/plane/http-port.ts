/**
 * HttpPort (R1, R7): a request that came over HTTP, with OpenAI's error bodies and event streams. Everything that the
 * server calls back runs under the plane's guard. Owned by its request on the socket thread.
 */
import type { ErrorCode, ErrorDetail } from '../errors.js';
import type { BodyFault, HeaderList, HttpExchange } from '../frontend/http/http-exchange.js';
import { errorResponse } from '../frontend/openai/error-response.js';
import { EVENT_STREAM_HEADERS } from '../frontend/openai/stream-format.js';
import type { RoutingHints } from '../messages/records.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { AnswerPort, AnswerStreamHooks } from './answer-port.js';
import { ClientStream, type StreamExchange } from './client-stream.js';
import { type HintFault, hintsOfHeaders } from './routing-hints.js';

/** The port of one exchange. */
export class HttpPort implements AnswerPort, StreamExchange {
  readonly #exchange: HttpExchange;
  readonly #guard: FaultGuard;
  #announced: HeaderList = [];

  constructor(exchange: HttpExchange, guard: FaultGuard) {
    this.#exchange = exchange;
    this.#guard = guard;
  }

  header(name: string): string | undefined {
    return this.#exchange.header(name);
  }

  hints(sessionHeader: string): RoutingHints | HintFault {
    return hintsOfHeaders(name => this.#exchange.header(name), sessionHeader);
  }

  announce(headers: HeaderList): void {
    this.#announced = headers;
  }

  /** `headers`, what was announced, and the client's own request id, which OpenAI's clients show with an error. */
  #named(headers: HeaderList): HeaderList {
    const id = this.#exchange.header('x-request-id');
    const all = [...headers, ...this.#announced];
    return id === undefined ? all : [...all, ['x-request-id', id]];
  }

  readBody(
    bytesMax: number,
    deadlineMs: number,
    onBody: (chunks: Uint8Array[], bytes: number) => void,
    onFault: (fault: BodyFault) => void,
  ): void {
    this.#exchange.readBody(
      bytesMax,
      deadlineMs,
      (chunks, bytes) => this.#guard.run(() => onBody(chunks, bytes)),
      fault => this.#guard.run(() => onFault(fault)),
    );
  }

  onAborted(fn: () => void): void {
    this.#exchange.onAborted(() => this.#guard.run(fn));
  }

  respond(contentType: string, body: string | Uint8Array): void {
    this.#exchange.respond(200, this.#named([['content-type', contentType]]), body);
  }

  refuse(code: ErrorCode, message: string, detail: ErrorDetail, close: boolean): void {
    const { status, headers, body } = errorResponse(code, message, detail);
    this.#exchange.respond(status, this.#named(headers), body, close);
  }

  openStream(bufferBytesMax: number, hooks: AnswerStreamHooks): ClientStream {
    const stream = new ClientStream(this, bufferBytesMax, hooks);
    stream.start(200, this.#named(EVENT_STREAM_HEADERS));
    return stream;
  }

  abort(): void {
    this.#exchange.abort();
  }

  start(status: number, headers: HeaderList): void {
    this.#exchange.start(status, headers);
  }

  write(data: string | Uint8Array): boolean {
    return this.#exchange.write(data);
  }

  onWritable(fn: () => void): void {
    this.#exchange.onWritable(() => this.#guard.run(fn));
  }

  end(data?: string | Uint8Array): void {
    this.#exchange.end(data);
  }
}
