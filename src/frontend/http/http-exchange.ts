/**
 * HttpExchange (R1): one request and its response, whatever server carries them. uws.ts and node.ts implement it; the
 * suite in test/contract/http-exchange runs on both. Owned by the socket thread. After `onAborted` fired or `end`,
 * `respond` or `abort` was called, every method is a harmless no-op (`write` then returns true) and no callback runs.
 */
import type { Clock } from '../../runtime/clock.js';

/** Header names and values in order. Never `content-length`, `transfer-encoding` or `connection`: the server adds those. */
export type HeaderList = readonly (readonly [string, string])[];

/**
 * Why a body did not arrive: over `bytesMax`, later than `deadlineMs`, the client went away, or ('consumed', in a host's
 * server only) the host has read it already.
 */
export type BodyFault = 'tooLarge' | 'timeout' | 'aborted' | 'consumed';

/** One request and its response. Belongs to the socket thread. */
export interface HttpExchange {
  /** The method as sent (methods are case-sensitive, so `get` is not `GET`). */
  readonly method: string;
  /** Path without query, as sent (not decoded). */
  readonly path: string;
  /** What follows the first `?`, not decoded; '' when there is none. */
  readonly query: string;
  /** First value of a request header by lower-case name, or undefined. Valid for the life of the exchange. */
  header(name: string): string | undefined;
  /**
   * Collects the body; call it at most once, inside `onExchange` (uWebSockets.js drops a body that nobody waits for).
   * Exactly one of the callbacks runs, once, unless the exchange is ended first. `onBody` gets chunks that the caller
   * may keep. 'tooLarge' is told as soon as Content-Length or the bytes so far pass `bytesMax`; the rest is discarded.
   * uWebSockets.js closes uploads below 16 KiB/s after 10 s, which shows here as 'aborted'.
   */
  readBody(
    bytesMax: number,
    deadlineMs: number,
    onBody: (chunks: Uint8Array[], bytes: number) => void,
    onFault: (fault: BodyFault) => void,
  ): void;
  /** Sends a whole response (without its body for HEAD). With `close`, the connection is closed after it. */
  respond(status: number, headers: HeaderList, body: string | Uint8Array, close?: boolean): void;
  /** Starts a streamed response: status and headers leave with the first write. */
  start(status: number, headers: HeaderList): void;
  /**
   * Adds bytes to a started response; call once per loop turn with all there is. Returns false when the socket did not
   * take them all: they are kept, and nothing should be written until `onWritable` runs. A remainder of under 16 KiB
   * (one cork buffer) may be told only by the next call.
   */
  write(data: string | Uint8Array): boolean;
  /**
   * Bytes given to `write` that the socket has not taken yet: 0 while `write` returns true, and an upper bound of what
   * is kept from the first false to the next `onWritable`.
   */
  bufferedBytes(): number;
  /** Runs each time the socket can take more after a `write` returned false; what was kept has been handed to it first. */
  onWritable(fn: () => void): void;
  /** Ends a started response, with a last piece in the same system call where the server can. */
  end(data?: string | Uint8Array): void;
  /** Closes the connection at once, without a proper end: the client sees a broken response. */
  abort(): void;
  /** Runs once if the connection goes away before `end`, `respond` or `abort` was called. */
  onAborted(fn: () => void): void;
}

/** What a server needs; the limits come from `limits.ts`. */
export interface HttpServerOptions {
  /** Bytes of request line and headers (431 above). */
  headerBytesMax: number;
  /** Deadline for the headers of a request. uWebSockets.js has its own, 10 s, and no other. */
  headerDeadlineMs: number;
  /** Called for each request whose headers arrived. Must not throw. */
  onExchange: (exchange: HttpExchange) => void;
  /** Times body deadlines; the system clock when left out. */
  clock?: Clock;
}

/** A listening server. Belongs to the socket thread. */
export interface HttpServer {
  /** The implementation that runs: 'uws' or 'node'. */
  readonly kind: 'uws' | 'node';
  /** A line for the start banner when 'auto' had to fall back to node:http, else null. */
  readonly notice: string | null;
  /**
   * Starts listening; port 0 lets the system choose. Rejects with the reason when the address is taken. `isShared`: other
   * servers of this process listen on the same port, and the kernel spreads connections over them; not with port 0, and
   * not with node:http.
   */
  listen(host: string, port: number, isShared?: boolean): Promise<{ port: number }>;
  /** Stops accepting new connections; open ones go on. */
  stopListening(): void;
  /** Closes every connection and the server. */
  close(): Promise<void>;
}
