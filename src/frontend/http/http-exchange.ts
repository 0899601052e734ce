/**
 * HttpExchange (R1): one request and its response, whatever server carries them. uws.ts and node.ts implement it; the
 * suite in test/contract/http-exchange runs on both. Owned by the socket thread. After `onAborted` fired or `end`,
 * `respond` or `abort` was called, every method is a harmless no-op (`write` then returns true).
 */

export type HeaderList = readonly (readonly [string, string])[];

/** Why a body did not arrive. */
export type BodyFault = 'tooLarge' | 'timeout' | 'aborted';

export interface HttpExchange {
  /** Upper-case method. */
  readonly method: string;
  /** Path without query, as sent (not decoded). */
  readonly path: string;
  readonly query: string;
  /** Value of a request header by lower-case name, or undefined. Valid for the life of the exchange. */
  header(name: string): string | undefined;
  /**
   * Collects the body. Exactly one of the callbacks runs, once. `onBody` gets chunks that the caller may keep.
   * 'tooLarge' is told as soon as Content-Length or the bytes so far pass `bytesMax`.
   */
  readBody(
    bytesMax: number,
    deadlineMs: number,
    onBody: (chunks: Uint8Array[], bytes: number) => void,
    onFault: (fault: BodyFault) => void,
  ): void;
  /** Sends a whole response. With `close`, the connection is closed after it. */
  respond(status: number, headers: HeaderList, body: string | Uint8Array, close?: boolean): void;
  /** Starts a streamed response: status and headers leave with the first write. */
  start(status: number, headers: HeaderList): void;
  /**
   * Adds bytes to a started response; call once per loop turn with all there is. Returns false when the socket did not
   * take them all: they are kept, and nothing should be written until `onWritable` runs.
   */
  write(data: string | Uint8Array): boolean;
  /** Bytes given to `write` that the socket has not taken yet (0 when unknown to the server is not allowed). */
  bufferedBytes(): number;
  /** Runs each time the socket took all that was buffered after a `write` returned false. */
  onWritable(fn: () => void): void;
  /** Ends a started response. */
  end(): void;
  /** Closes the connection at once, without a proper end: the client sees a broken response. */
  abort(): void;
  /** Runs once if the client goes away before the response has ended. */
  onAborted(fn: () => void): void;
}

export interface HttpServerOptions {
  /** Bytes of request line and headers (431 above). */
  headerBytesMax: number;
  /** Deadline for the headers of a request. */
  headerDeadlineMs: number;
  /** Called for each request whose headers arrived. Must not throw. */
  onExchange: (exchange: HttpExchange) => void;
}

export interface HttpServer {
  /** The implementation that runs: 'uws' or 'node'. */
  readonly kind: 'uws' | 'node';
  /** Starts listening; port 0 lets the system choose. Rejects with the reason when the address is taken. */
  listen(host: string, port: number): Promise<{ port: number }>;
  /** Stops accepting new connections; open ones go on. */
  stopListening(): void;
  /** Closes every connection and the server. */
  close(): Promise<void>;
}
