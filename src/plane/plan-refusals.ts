/** How planning says no (R3, R4): errors for the client where no worker can be had, and the REJECT of any error. Pure; pool thread. */
import { MillraceError, RejectedError } from '../errors.js';
import type { Ask, ModelView, Reject, RoutingHints } from '../messages/records.js';
import { WORKER_HEADER } from './routing-hints.js';

/** What a client is told for which there is no worker, or no room. */
export function notPlaced(
  answer: 'noWorker' | 'full',
  { name }: ModelView,
  { worker }: RoutingHints,
): RejectedError {
  const detail = { retryAfterMs: 1000 };
  if (answer === 'full')
    return new RejectedError('MILLRACE_OVERLOADED', 'all reservations are taken', detail);
  const message =
    worker === ''
      ? `no worker is ready for model "${name}"`
      : `the worker that ${WORKER_HEADER} names is not ready`;
  return new RejectedError('MILLRACE_NO_WORKER', message, detail);
}

/** The REJECT of an ASK whose planning has thrown; what is no error of ours says nothing of itself. */
export function rejectOf(ask: Pick<Ask, 'request' | 'attempt'>, error: unknown): Reject {
  const known = error instanceof MillraceError;
  return {
    request: ask.request,
    attempt: ask.attempt,
    code: known ? error.code : 'MILLRACE_INTERNAL',
    message: known ? error.message : 'internal error while planning the request',
    param: known ? error.param : null,
    retryAfterMs: known ? (error.retryAfterMs ?? 0) : 0,
  };
}
