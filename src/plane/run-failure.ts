/** How a run of a plan's call failed, in the terms of its request (R5). Pure; socket thread. */
import type { EngineError } from '../engines/engine-error.js';
import type { ErrorCode, ErrorDetail } from '../errors.js';
import type { AttemptFailure } from './attempt.js';
import { RETRY_AFTER_MS } from './request-asks.js';

/** Longest pause that an engine can ask a client for. */
const RETRY_AFTER_MS_MAX = 60_000;
/** A worker that says so works. */
const BLAMELESS: ReadonlySet<ErrorCode> = new Set(['MILLRACE_OVERLOADED', 'MILLRACE_UNKNOWN_MODEL']);

/** How a run failed, and what its client would be told. */
export interface RunFailure {
  readonly kind: AttemptFailure;
  readonly code: ErrorCode;
  readonly message: string;
  readonly detail: ErrorDetail;
  /** Another worker may do better. */
  readonly retryable: boolean;
  /** It says something about the health of the worker. */
  readonly isOfWorker: boolean;
}

/** A worker that could not be reached, died, fell silent or broke its protocol. */
export function failureOf(kind: AttemptFailure, code: ErrorCode, message: string): RunFailure {
  return { kind, code, message, detail: {}, retryable: true, isOfWorker: true };
}

/** A worker that the health monitor took out, of which it knows more than a request. */
export const OUTAGE: RunFailure = Object.freeze({
  kind: 'stalled',
  code: 'MILLRACE_WORKER_STALLED',
  message: 'the worker is out of rotation and sends nothing',
  detail: {},
  retryable: true,
  isOfWorker: false,
});

/** The last failure of a request, as its client is told. `wasSplit`: it was handed over although it should not have been. */
export function exhausted(failure: RunFailure, wasSplit: boolean): RunFailure {
  if (!wasSplit) return failure;
  const why = 'the rules of the model or its protocol let no decode worker compute the prompt';
  return { ...failure, message: `${failure.message}; ${why}` };
}
/** A worker that is about to sleep: nobody is to blame, and the answer goes on at another one. */
export const SENT_AWAY: RunFailure = {
  kind: 'reset',
  code: 'MILLRACE_WORKER_DIED',
  message: 'the worker was put to sleep',
  detail: {},
  retryable: true,
  isOfWorker: false,
};

/** A worker that answered with an error. `retryAfterMs`: its Retry-After; 0: none. */
export function refusalOf(error: EngineError, retryAfterMs: number): RunFailure {
  const { code, message, param, httpStatus, retryable } = error;
  const toldMs = Math.min(retryAfterMs === 0 ? RETRY_AFTER_MS : retryAfterMs, RETRY_AFTER_MS_MAX);
  const detail = { param, httpStatus, retryAfterMs: code === 'MILLRACE_OVERLOADED' ? toldMs : 0 };
  return { kind: 'protocol', code, message, detail, retryable, isOfWorker: !BLAMELESS.has(code) };
}
