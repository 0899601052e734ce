/**
 * Selector (R4): the pure choice of a worker, filter → score → pick. A selector sees columns of figures, one row per worker
 * that may serve the request, and answers a row; no clock, no I/O, no state besides what the policy keeps in memory (a
 * round-robin cursor). Same inputs and random numbers, same answer. Runs on a pool thread and in replay, once per request.
 */
import type { Random } from '../runtime/random.js';

/** What a selector may know of a request. */
export interface RequestView {
  readonly model: string;
  readonly promptTokens: number;
  readonly excludedSlots: readonly number[];
  /** The only slot that may serve it; null or absent: any. */
  readonly pinnedSlot?: number | null;
  /** Requests of one session go to one worker while it is there; null or absent: no session. */
  readonly session?: string | null;
}

/**
 * The workers that serve a request, as columns; row `i` of each is one worker, rows from `count` on mean nothing. Owned
 * and used again by the decider: valid only during `pick`.
 */
export interface Candidates {
  readonly count: number;
  readonly slots: Uint32Array;
  readonly generations: Uint32Array;
  /** Requests that we have reserved on it. */
  readonly requests: Float64Array;
  /** Prompt tokens, less those expected in its cache, of reserved requests whose first token has not come. */
  readonly activePrefillTokens: Float64Array;
  /** KV blocks of its memory; Infinity: it does not say. */
  readonly totalBlocks: Float64Array;
  /** What is probably left of `activePrefillTokens` at this moment: a prompt is computed long before its first token. */
  readonly queuedTokens: Float64Array;
  /** KV blocks that the reserved requests are expected to need. */
  readonly decodeBlocks: Float64Array;
  /** Tokens per KV block; 16 for a worker that does not say. */
  readonly blockSizes: Float64Array;
  /** Expected milliseconds of a decode step at that load, by the constants of `prefill-model.ts`. */
  readonly decodeMs: Float64Array;
  /** Tokens of the prompt that need no computing there; 0 for a selector that does not use the prefix index. */
  readonly cachedTokens: Float64Array;
  /** Time that it needs for a prefill ÷ time by the constants of `prefill-model.ts`; 1 until measured. */
  readonly slowness: Float64Array;
}

/** The choice of a selector. */
export interface Decision {
  /** Row of the candidate, below `count`. */
  readonly row: number;
  /** In words, for the response header and logs: policy and the figures that decided. */
  readonly reason: string;
}

/** One policy. Belongs to one pool thread. */
export interface Selector {
  readonly policy: string;
  /** It reads `cachedTokens`: the decider asks the prefix index only then. */
  readonly usesPrefix: boolean;
  /** It reads `queuedTokens`, `decodeMs` and `slowness`, which mean nothing else. */
  readonly usesTiming: boolean;
  /** Picks one of `candidates` (never empty, excluded slots already filtered out). */
  pick(request: RequestView, candidates: Candidates, random: Random): Decision;
  /**
   * The cost of each row, in the policy's own unit, lowest best; valid until the next call. Only for a request that asks
   * why; absent for a policy that has no cost.
   */
  explain?(request: RequestView, candidates: Candidates): Float64Array;
}
