/**
 * Request rules (R1): what a request's headers must satisfy before anyone looks at it, the same for every server.
 * node:http refuses most of these in its parser; uWebSockets.js takes the first of two Content-Lengths and treats any
 * Transfer-Encoding as chunked, which behind a proxy would be request smuggling (RFC 9112 §6.3). What it also lets pass,
 * and no header list can show: a missing chunk size (read as 0), bytes beyond a chunk's size, and a header without a
 * name (which hides the ones after it). Pure, socket thread.
 */
import { ERROR_CODES, type ErrorCode, errorEnvelope } from '../../errors.js';
import type { HttpExchange } from './http-exchange.js';

/** Headers of one request at most; uWebSockets.js has the same bound built in. */
export const HEADERS_MAX = 100;

/** Why a request is refused before it becomes an exchange. The connection is closed after the answer. */
export interface RequestFault {
  readonly code: ErrorCode;
  readonly message: string;
}

const bad = (message: string): RequestFault => ({ code: 'MILLRACE_INVALID_REQUEST', message });
const NOT_ONE_LENGTH = bad('content-length must be given once, as decimal digits');
const LENGTH_AND_ENCODING = bad('content-length and transfer-encoding exclude each other');
const NOT_CHUNKED = bad("transfer-encoding must be 'chunked', given once");
const NOT_ONE_HOST = bad('host must be given exactly once');
const DIGITS = /^[0-9]{1,15}$/;

/**
 * Checks a flat [name, value, name, value …] list with lower-case names. `bytesMax` counts the target, names and
 * values. Returns null when the request may pass.
 */
export function requestFault(
  headers: readonly string[],
  target: number,
  bytesMax: number,
): RequestFault | null {
  let bytes = target;
  let hosts = 0;
  let lengths = 0;
  let encodings = 0;
  for (let i = 0; i < headers.length; i += 2) {
    const name = headers[i]!;
    const value = headers[i + 1]!;
    bytes += name.length + value.length;
    if (name === 'host') hosts++;
    else if (name === 'content-length') {
      lengths++;
      if (!DIGITS.test(value)) return NOT_ONE_LENGTH;
    } else if (name === 'transfer-encoding') {
      encodings++;
      if (value.toLowerCase() !== 'chunked') return NOT_CHUNKED;
    }
  }
  if (bytes > bytesMax || headers.length > 2 * HEADERS_MAX) {
    const message = `request line and headers must stay within ${bytesMax} bytes and ${HEADERS_MAX} headers`;
    return { code: 'MILLRACE_HEADERS_TOO_LARGE', message };
  }
  if (lengths > 1) return NOT_ONE_LENGTH;
  if (encodings > 1) return NOT_CHUNKED;
  if (lengths > 0 && encodings > 0) return LENGTH_AND_ENCODING;
  return hosts === 1 ? null : NOT_ONE_HOST;
}

/** First value of a header in a flat list with lower-case names, or undefined. */
export function headerValue(headers: readonly string[], name: string): string | undefined {
  for (let i = 0; i < headers.length; i += 2) {
    if (headers[i] === name) return headers[i + 1];
  }
  return undefined;
}

/** Answers a faulty request with OpenAI's error envelope and closes its connection. */
export function refuse(exchange: HttpExchange, fault: RequestFault): void {
  const body = JSON.stringify(errorEnvelope(fault.code, fault.message));
  exchange.respond(ERROR_CODES[fault.code].status, [['content-type', 'application/json']], body, true);
}
