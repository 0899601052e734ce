/**
 * Errors as HTTP answers (R7): OpenAI's envelope with status and retry headers before a stream has begun, and as SSE
 * frames after. Pure, socket thread.
 */
import { ERROR_CODES, type ErrorCode, errorEnvelope } from '../../errors.js';
import type { HeaderList } from '../http/http-exchange.js';
import { DONE_FRAME } from './stream-format.js';

/** What an error may carry besides code and message; a `MillraceError` fits. */
export interface ErrorAnswer {
  /** The request field at fault, in OpenAI's dotted form. */
  readonly param?: string | null;
  /** Milliseconds after which a retry makes sense; undefined or 0: not said. */
  readonly retryAfterMs?: number | undefined;
  /** Status to send instead of the code's own. */
  readonly httpStatus?: number;
}

/** A whole response, ready for `HttpExchange.respond`. */
export interface ErrorResponse {
  readonly status: number;
  readonly headers: HeaderList;
  readonly body: string;
}

/** Renders an error as a whole response. Retry-After is in seconds, rounded up; OpenAI clients prefer retry-after-ms. */
export function errorResponse(code: ErrorCode, message: string, answer: ErrorAnswer = {}): ErrorResponse {
  const headers: [string, string][] = [['content-type', 'application/json']];
  if (answer.retryAfterMs) {
    headers.push(['retry-after', String(Math.ceil(answer.retryAfterMs / 1000))]);
    headers.push(['retry-after-ms', String(Math.ceil(answer.retryAfterMs))]);
  }
  return {
    status: answer.httpStatus ?? ERROR_CODES[code].status,
    headers,
    body: JSON.stringify(errorEnvelope(code, message, answer.param ?? null)),
  };
}

/** Renders an error as the last frames of a stream that has begun: clients throw on `error` and stop at `[DONE]`. */
export function errorFrames(code: ErrorCode, message: string, param: string | null = null): string {
  return `data: ${JSON.stringify(errorEnvelope(code, message, param))}\n\n${DONE_FRAME}`;
}
