/** How a check of a worker failed (R5), as its watch judges it. Pure; runs on the registry's thread. */
import { MillraceError } from '../errors.js';

/** See the head of the file. */
export interface Fault {
  readonly reason: string;
  /** Nothing listened. */
  readonly isRefused: boolean;
  /** No answer within the deadline. */
  readonly isLate: boolean;
}

/** What a rejected check says. */
export function faultOf(error: unknown): Fault {
  const code = error instanceof MillraceError ? error.code : null;
  return {
    reason: error instanceof Error ? error.message : String(error),
    isRefused: code === 'MILLRACE_WORKER_UNREACHABLE',
    isLate: code === 'MILLRACE_WORKER_STALLED',
  };
}
