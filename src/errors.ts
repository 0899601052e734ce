/**
 * The error tree: every failure that leaves Millrace has one class, one stable code and one HTTP status.
 * Inner layers return status values; these classes are thrown or rendered only at the public edge.
 * Messages are for the caller: they never hold prompt text, tokens, keys, peer addresses or stacks.
 */

type ErrorClass =
  | 'InvalidRequestError'
  | 'RejectedError'
  | 'EvictedError'
  | 'WorkerError'
  | 'ConfigError'
  | 'InternalError';

interface CodeFacts {
  readonly class: ErrorClass;
  /** HTTP status of the response when nothing was sent yet. */
  readonly status: number;
  /** `error.type` of OpenAI's envelope. */
  readonly type: string;
  /** A retry of the same request may succeed and cannot double any work. */
  readonly retryable: boolean;
  /** OpenAI's own `error.code`, where it has one; else the Millrace code is shown. */
  readonly openaiCode?: string;
}

const invalid = (status: number, openaiCode?: string): CodeFacts => ({
  class: 'InvalidRequestError',
  status,
  type: 'invalid_request_error',
  retryable: false,
  ...(openaiCode === undefined ? {} : { openaiCode }),
});
const rejected = (status: number, type: string): CodeFacts => ({
  class: 'RejectedError',
  status,
  type,
  retryable: true,
});
const evicted = (status: number, type: string): CodeFacts => ({
  class: 'EvictedError',
  status,
  type,
  retryable: false,
});
const worker = (status: number): CodeFacts => ({
  class: 'WorkerError',
  status,
  type: 'worker_error',
  retryable: true,
});

/** Every stable code, with what it means on the wire. */
export const ERROR_CODES = {
  MILLRACE_INVALID_REQUEST: invalid(400),
  MILLRACE_INVALID_JSON: invalid(400),
  MILLRACE_CONTEXT_LENGTH: invalid(400, 'context_length_exceeded'),
  MILLRACE_UNKNOWN_MODEL: invalid(404, 'model_not_found'),
  MILLRACE_NOT_FOUND: invalid(404),
  MILLRACE_METHOD_NOT_ALLOWED: invalid(405),
  MILLRACE_BODY_TIMEOUT: invalid(408),
  MILLRACE_BODY_TOO_LARGE: invalid(413),
  MILLRACE_UNSUPPORTED_MEDIA_TYPE: invalid(415),
  MILLRACE_HEADERS_TOO_LARGE: invalid(431),
  MILLRACE_OVERLOADED: rejected(529, 'overloaded_error'),
  MILLRACE_NO_WORKER: rejected(503, 'service_unavailable'),
  MILLRACE_DRAINING: rejected(503, 'service_unavailable'),
  MILLRACE_CANCELED: evicted(499, 'canceled'),
  MILLRACE_SLOW_CLIENT: evicted(499, 'slow_client'),
  MILLRACE_DEADLINE_EXCEEDED: evicted(504, 'timeout'),
  MILLRACE_WORKER_UNREACHABLE: worker(502),
  MILLRACE_WORKER_FAILED: worker(502),
  MILLRACE_WORKER_PROTOCOL: worker(502),
  MILLRACE_WORKER_DIED: worker(502),
  MILLRACE_WORKER_STALLED: worker(504),
  MILLRACE_CANNOT_MIGRATE: worker(502),
  MILLRACE_POOL_LOST: { class: 'InternalError', status: 503, type: 'internal_error', retryable: true },
  MILLRACE_PLANE_FAILED: { class: 'InternalError', status: 503, type: 'internal_error', retryable: true },
  MILLRACE_INTERNAL: { class: 'InternalError', status: 500, type: 'internal_error', retryable: false },
  MILLRACE_CONFIG: { class: 'ConfigError', status: 500, type: 'config_error', retryable: false },
} as const satisfies Record<string, CodeFacts>;

/** The name of a stable code. */
export type ErrorCode = keyof typeof ERROR_CODES;

const BRAND = Symbol.for('millrace.error');

/** What an error says beyond its code and message. */
export interface ErrorDetail {
  /** The request field at fault, in OpenAI's dotted form (`messages[0].content`). */
  param?: string | null;
  /** Milliseconds after which a retry makes sense; becomes Retry-After and retry-after-ms. */
  retryAfterMs?: number;
  /** The status an engine gave, where it is passed on instead of the code's own. */
  httpStatus?: number;
  cause?: unknown;
}

/** Root of the tree. `instanceof` also holds across two copies of the package in one process. */
export class MillraceError extends Error {
  readonly code: ErrorCode;
  readonly httpStatus: number;
  readonly type: string;
  readonly retryable: boolean;
  readonly param: string | null;
  readonly retryAfterMs: number | undefined;

  constructor(code: ErrorCode, message: string, detail: ErrorDetail = {}) {
    super(message, detail.cause === undefined ? undefined : { cause: detail.cause });
    const facts: CodeFacts = ERROR_CODES[code];
    this.name = facts.class;
    this.code = code;
    this.httpStatus = detail.httpStatus ?? facts.status;
    this.type = facts.type;
    this.retryable = facts.retryable;
    this.param = detail.param ?? null;
    this.retryAfterMs = detail.retryAfterMs;
    Object.defineProperty(this, BRAND, { value: true });
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    if (typeof value !== 'object' || value === null || !(BRAND in value)) return false;
    const wanted = this.prototype.constructor.name;
    return wanted === 'MillraceError' || (value as unknown as Error).name === wanted;
  }
}

/** The request is wrong; sending it again will not help. */
export class InvalidRequestError extends MillraceError {}
/** Never reached an engine (capacity, draining, no worker): safe to retry. */
export class RejectedError extends MillraceError {}
/** Was dispatched and then stopped (client gone, deadline, slow reader). */
export class EvictedError extends MillraceError {}
/** The engine died, stalled, refused or broke its protocol. */
export class WorkerError extends MillraceError {}

/** A configuration value is wrong; the message names the key, the value and the allowed range. */
export class ConfigError extends MillraceError {
  constructor(message: string, detail: ErrorDetail = {}) {
    super('MILLRACE_CONFIG', message, detail);
  }
}

/** The body of OpenAI's error envelope. */
export interface ErrorEnvelope {
  error: { message: string; type: string; param: string | null; code: string };
}

/** Renders the envelope for a code; `code` is OpenAI's own name where it has one. */
export function errorEnvelope(code: ErrorCode, message: string, param: string | null = null): ErrorEnvelope {
  const facts: CodeFacts = ERROR_CODES[code];
  return { error: { message, type: facts.type, param, code: facts.openaiCode ?? code } };
}
