/** What one batch of engine frames brought to an answer; made by the answer, read by its request. */
import type { EngineError } from '../engines/engine-error.js';

/** What a batch of frames brought. */
export interface BatchOutcome {
  /** Tokens that belong to choices still open; frames with text in relay mode. */
  tokens: number;
  /** Every choice of the call has finished and nothing more is wanted of its engine. */
  engineNotNeeded: boolean;
  /** The engine reported an error in its stream. */
  engineError: EngineError | null;
  /** A frame that is not what the engine's protocol allows. */
  malformed: boolean;
}

/** The error of an engine that gave a request up which nobody asked it to. */
export const ABORTED: EngineError = {
  code: 'MILLRACE_WORKER_FAILED',
  message: 'the worker aborted the request',
  param: null,
  httpStatus: 502,
  retryable: true,
};

/** An outcome in which nothing has happened yet. */
export function emptyOutcome(): BatchOutcome {
  return { tokens: 0, engineNotNeeded: false, engineError: null, malformed: false };
}
