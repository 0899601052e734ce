/**
 * Selector (R4): the pure choice of a worker. filter → score → pick over a snapshot of the load; no clock, no I/O, no
 * state besides what the policy keeps in `memory` (a round-robin cursor). Same inputs and random numbers, same answer.
 */
import type { Random } from '../runtime/random.js';

/** What a selector may know of a request. */
export interface RequestView {
  readonly model: string;
  readonly promptTokens: number;
  readonly excludedSlots: readonly number[];
}

/** One worker that serves the model, with what the load table says of it at this moment. */
export interface Candidate {
  readonly slot: number;
  readonly generation: number;
  /** Requests reserved on it by us. */
  readonly requests: number;
  readonly activePrefillTokens: number;
  readonly decodeBlocks: number;
}

/** The choice of a selector. */
export interface Decision {
  readonly slot: number;
  readonly generation: number;
  /** In words, for the response header and logs: policy and the figure that decided. */
  readonly reason: string;
}

/** One policy. Belongs to one pool thread. */
export interface Selector {
  readonly policy: string;
  /** Picks one of `candidates` (never empty, excluded slots already filtered out). */
  pick(request: RequestView, candidates: readonly Candidate[], random: Random): Decision;
}
