/** How planning says no (R3, R4): errors for the client where no worker can be had, and the REJECT of any error. Pure; pool thread. */
import { type ErrorCode, MillraceError, RejectedError } from '../errors.js';
import type { SplitReason } from '../messages/disagg.js';
import type { Ask, ModelView, Reject, RoutingHints } from '../messages/records.js';
import { WORKER_HEADER } from './routing-hints.js';

const RETRY_AFTER_MS = 1000;

/** No prefill worker can take the prompt, and the rules let nobody else compute it. */
export type PrefillRefusal = RejectedError & { readonly split: SplitReason };

/** Makes one, for the client to be told `message`. */
export function prefillRefusal(code: ErrorCode, message: string, split: SplitReason): PrefillRefusal {
  return Object.assign(new RejectedError(code, message, { retryAfterMs: RETRY_AFTER_MS }), { split });
}

const isPrefillRefusal = (error: MillraceError): error is PrefillRefusal => 'split' in error;

/** What a client is told for which there is no worker, or no room. */
export function notPlaced(
  answer: 'noWorker' | 'full',
  { name }: ModelView,
  { worker }: RoutingHints,
): RejectedError {
  const detail = { retryAfterMs: RETRY_AFTER_MS };
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
    split: known && isPrefillRefusal(error) ? error.split : null,
  };
}
