/** Reads the numbers of the ingest thread for the metrics (R7). Runs on the core. */
import type { ReadIndex } from '../frontend/index-metrics.js';
import type { IngestSide } from './ingest-side.js';
import type { ProcessBoard } from './process-board.js';

/** Makes the reader; null for null: there is no index to read. */
export function readIngest(ingest: IngestSide | null, board: ProcessBoard): ReadIndex | null {
  if (ingest === null) return null;
  return async () => {
    const { predictionsDropped } = board;
    try {
      return { ...(await ingest.counts()), predictionsDropped };
    } catch {
      // Its thread is gone or does not answer: `/health` says so, and the other metrics are still wanted.
      return { events: {}, lag: null, index: null, predictionsDropped };
    }
  };
}
