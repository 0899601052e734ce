/**
 * AnswerPort (R1, R7): where a request comes from and where its answer goes. `HttpPort` is an HTTP exchange with
 * OpenAI's bodies and frames, `GeneratePort` an iterator in this process. Owned by its request on the socket thread.
 */
import type { ErrorCode, ErrorDetail } from '../errors.js';
import type { HeaderList, HttpExchange } from '../frontend/http/http-exchange.js';
import type { RoutingHints } from '../messages/records.js';
import type { ClientStream } from './client-stream.js';
import type { DeltaStream } from './delta-stream.js';
import type { HintFault } from './routing-hints.js';

/** A streamed answer on its way: SSE on a connection, or Deltas for an iterator. */
export type AnswerStream = ClientStream | DeltaStream;

/** What a streamed answer tells its request. */
export interface AnswerStreamHooks {
  nowMs(): number;
  /** An SSE stream has something to write; `flush` is due once in this loop turn. */
  onDirty(stream: ClientStream): void;
  /** The reader is slower than the engine: stop reading from the engine. */
  onPressure(): void;
  /** The reader has caught up. */
  onRelief(): void;
  /** Everything was handed over after `end`. */
  onFinished(): void;
}

/** Both ends of one request as seen from the plane. After `respond`, `refuse` or `abort` nothing more is called. */
export interface AnswerPort extends Pick<HttpExchange, 'header' | 'readBody' | 'onAborted'> {
  /** Where the client wants its request to go. `sessionHeader`: the header that names a session. */
  hints(sessionHeader: string): RoutingHints | HintFault;
  /** Headers for the answer that is still to begin; they replace those of an earlier call. */
  announce(headers: HeaderList): void;
  /** Sends the whole answer of a request that asked for no stream. */
  respond(contentType: string, body: string | Uint8Array): void;
  /** Ends a request that has no answer yet with an error. `close`: its body was not read to the end. */
  refuse(code: ErrorCode, message: string, detail: ErrorDetail, close: boolean): void;
  /** Starts a streamed answer; called once. `bufferBytesMax` bounds what is kept for a slow reader. */
  openStream(bufferBytesMax: number, hooks: AnswerStreamHooks): AnswerStream;
  /** Cuts the request off at once, in whatever state it is. */
  abort(): void;
}
