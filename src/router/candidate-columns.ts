/**
 * The candidates of a decision as columns (R4): typed arrays that are filled anew for each request and grow when the fleet
 * does, so that a decision over a thousand workers allocates nothing. Owned by one decider, on its thread.
 */
import type { Candidates } from './contract.js';

const ROWS_START = 64;

/** See the head of the file. */
export class CandidateColumns implements Candidates {
  count = 0;
  slots = new Uint32Array(ROWS_START);
  generations = new Uint32Array(ROWS_START);
  requests = new Float64Array(ROWS_START);
  activePrefillTokens = new Float64Array(ROWS_START);
  queuedTokens = new Float64Array(ROWS_START);
  decodeBlocks = new Float64Array(ROWS_START);
  blockSizes = new Float64Array(ROWS_START);
  totalBlocks = new Float64Array(ROWS_START);
  decodeMs = new Float64Array(ROWS_START);
  cachedTokens = new Float64Array(ROWS_START);
  slowness = new Float64Array(ROWS_START);

  /** Empties the columns and makes room for `rows` rows. */
  begin(rows: number): void {
    this.count = 0;
    if (rows > this.slots.length) this.#grow(2 ** Math.ceil(Math.log2(rows)));
  }

  #grow(rows: number): void {
    this.slots = new Uint32Array(rows);
    this.generations = new Uint32Array(rows);
    this.requests = new Float64Array(rows);
    this.activePrefillTokens = new Float64Array(rows);
    this.queuedTokens = new Float64Array(rows);
    this.decodeBlocks = new Float64Array(rows);
    this.blockSizes = new Float64Array(rows);
    this.totalBlocks = new Float64Array(rows);
    this.decodeMs = new Float64Array(rows);
    this.cachedTokens = new Float64Array(rows);
    this.slowness = new Float64Array(rows);
  }
}
