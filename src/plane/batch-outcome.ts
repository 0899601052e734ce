/** What one batch of engine frames brought to an answer; made by the answer, read by its request. */
import type { EngineError } from '../engines/engine-error.js';

/** What a batch of frames brought. */
export interface BatchOutcome {
  /** Tokens that belong to choices still open; frames with text in relay mode. */
  tokens: number;
  /** Every choice has finished and nothing more is wanted of the engine. */
  engineNotNeeded: boolean;
  /** The engine reported an error in its stream. */
  engineError: EngineError | null;
  /** A frame that is not what the engine's protocol allows. */
  malformed: boolean;
}

/** An outcome in which nothing has happened yet. */
export function emptyOutcome(): BatchOutcome {
  return { tokens: 0, engineNotNeeded: false, engineError: null, malformed: false };
}
