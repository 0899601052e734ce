/** Candidates of a decision from rows that name only the figures that a test cares about. */
import { CandidateColumns } from '#millrace/router/candidate-columns.js';

/** One worker; what is left out is 0, the block size 64, the decode step 6 ms and the slowness 1. */
export interface CandidateRow {
  readonly slot: number;
  readonly requests?: number;
  readonly activePrefillTokens?: number;
  readonly queuedTokens?: number;
  readonly decodeBlocks?: number;
  readonly cachedTokens?: number;
  readonly slowness?: number;
}

/** The rows as columns, in their order. */
export function candidateColumns(rows: readonly CandidateRow[]): CandidateColumns {
  const columns = new CandidateColumns();
  columns.begin(rows.length);
  for (const [at, row] of rows.entries()) {
    columns.slots[at] = row.slot;
    columns.generations[at] = 1;
    columns.requests[at] = row.requests ?? 0;
    columns.activePrefillTokens[at] = row.activePrefillTokens ?? 0;
    columns.queuedTokens[at] = row.queuedTokens ?? row.activePrefillTokens ?? 0;
    columns.decodeBlocks[at] = row.decodeBlocks ?? 0;
    columns.decodeMs[at] = 6;
    columns.blockSizes[at] = 64;
    columns.totalBlocks[at] = 1000;
    columns.cachedTokens[at] = row.cachedTokens ?? 0;
    columns.slowness[at] = row.slowness ?? 1;
  }
  columns.count = rows.length;
  return columns;
}
