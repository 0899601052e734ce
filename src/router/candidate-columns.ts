/**
 * The candidates of a decision as columns (R4): typed arrays that are filled anew for each request and grow when the fleet
 * does, so that a decision over a thousand workers allocates nothing. What does not change from request to request lies
 * ready in `ServingWorkers`. Owned by one decider, on its thread.
 */
import type { WorkerView } from '../messages/records.js';
import { allocateShared } from '../runtime/shared-memory.js';
import type { Candidates, RequestView } from './contract.js';
import { LOAD, LOAD_LINE_WORDS, SLOT_STATE } from './load-descriptor.js';
import { loadLine } from './load-table.js';

/** Tokens per KV block of a worker that does not say. */
export const BLOCK_SIZE_UNKNOWN = 16;
const ROWS_START = 64;

/** Words that the addon can keep the address of from one look-up to the next. */
const lookupWords = (words: number): Uint32Array =>
  new Uint32Array(allocateShared(words * Uint32Array.BYTES_PER_ELEMENT, 'candidates'), 0, words);

/** The workers of a fleet that serve a model, in its order: their figures that never change. */
export class ServingWorkers {
  readonly count: number;
  readonly slots: Uint32Array;
  readonly generations: Uint32Array;
  /** Word of each worker's line in the load table. */
  readonly lines: Uint32Array;
  readonly blockSizes: Float64Array;
  readonly totalBlocks: Float64Array;

  constructor(workers: readonly WorkerView[], model: string) {
    const serving = workers.filter(({ models }) => models.some(({ id }) => id === model));
    this.count = serving.length;
    this.slots = Uint32Array.from(serving, ({ slot }) => slot);
    this.generations = Uint32Array.from(serving, ({ generation }) => generation);
    this.lines = Uint32Array.from(
      serving,
      ({ slot, generation }) => loadLine(slot, generation) * LOAD_LINE_WORDS,
    );
    this.blockSizes = Float64Array.from(serving, ({ blockSize }) => blockSize ?? BLOCK_SIZE_UNKNOWN);
    this.totalBlocks = Float64Array.from(
      serving,
      ({ totalBlocks }) => totalBlocks ?? Number.POSITIVE_INFINITY,
    );
  }
}

/** See the head of the file. */
export class CandidateColumns implements Candidates {
  count = 0;
  slots = lookupWords(ROWS_START);
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
  /** Word of each row's line in the load table. */
  lines = new Uint32Array(ROWS_START);
  /** What the last look-up found: two words per row, see PrefixIndexReader. */
  depths = lookupWords(2 * ROWS_START);

  /** Empties the columns and makes room for `rows` rows. */
  begin(rows: number): void {
    this.count = 0;
    if (rows > this.slots.length) this.#grow(2 ** Math.ceil(Math.log2(rows)));
  }

  /**
   * A row for each of `serving` that is ready now and that the request allows, with its load from the load table's words.
   * These are read plainly, which Atomics would make several times slower: they are advisory, a word never tears, and
   * `Ledger.reserve` checks the generation of the row that is chosen.
   */
  fill(serving: ServingWorkers, words: Uint32Array, request: RequestView): void {
    this.begin(serving.count);
    const {
      slots,
      generations,
      requests,
      activePrefillTokens,
      decodeBlocks,
      blockSizes,
      totalBlocks,
      lines,
    } = this;
    const pinned = request.pinnedSlot ?? null;
    const { excludedSlots } = request;
    let count = 0;
    for (let at = 0; at < serving.count; at += 1) {
      const line = serving.lines[at]!;
      if (words[line + LOAD.generation] !== serving.generations[at]) continue;
      if (words[line + LOAD.state] !== SLOT_STATE.ready) continue;
      const slot = serving.slots[at]!;
      if (pinned !== null && pinned !== slot) continue;
      if (excludedSlots.length > 0 && excludedSlots.includes(slot)) continue;
      slots[count] = slot;
      generations[count] = serving.generations[at]!;
      requests[count] = words[line + LOAD.requests]!;
      activePrefillTokens[count] = words[line + LOAD.activePrefillTokens]!;
      decodeBlocks[count] = words[line + LOAD.decodeBlocks]!;
      blockSizes[count] = serving.blockSizes[at]!;
      totalBlocks[count] = serving.totalBlocks[at]!;
      lines[count] = line;
      count += 1;
    }
    this.count = count;
  }

  #grow(rows: number): void {
    this.slots = lookupWords(rows);
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
    this.lines = new Uint32Array(rows);
    this.depths = lookupWords(2 * rows);
  }
}
