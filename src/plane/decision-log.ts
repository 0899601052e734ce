/**
 * The last decisions of a socket thread, for `GET /debug/decisions`: which worker each request was sent to, why, and what
 * became of it. A ring of fixed length; an entry is written on by its request as long as that runs. Holds no prompt, no
 * token ids and no addresses of clients. Owned by one socket thread.
 */
import type { EndCause, Plan } from '../messages/records.js';
import { workerName } from './routing-hints.js';

/** Decisions that a socket thread keeps. */
export const DECISIONS_KEPT = 256;
/** Longest request id that is kept, in UTF-16 units. */
const REQUEST_ID_UNITS_MAX = 128;

/** One decision as `/debug/decisions` tells it. */
export interface Decision {
  /** Unix milliseconds at which the PLAN came. */
  readonly timeMs: number;
  /** Number of the request in this process; `requestId`: the client's own, or null. */
  readonly request: number;
  readonly requestId: string | null;
  readonly attempt: number;
  readonly model: string;
  /** Origin of the worker, and `#rank` where it is one of several. */
  readonly worker: string;
  readonly policy: string;
  readonly reason: string;
  readonly promptTokens: number;
  /** One of IDS_SOURCES (messages/records.ts). */
  readonly ids: string;
  readonly expectedCachedTokens: number;
  /** As the engine reports it; null: it does not, or not yet. */
  readonly reportedCachedTokens: number | null;
  /** From the arrival of the request to its first token; null: none has come. */
  readonly ttftMs: number | null;
  /** How the attempt ended: `retried` when another one followed, `migrated` when it went on with the answer, `outrun` when it gave the first token sooner; null: it runs, or it was a pick. */
  readonly end: EndCause | 'retried' | 'migrated' | 'outrun' | null;
}

/** An entry as its request writes on. */
export type OpenDecision = { -readonly [K in keyof Decision]: Decision[K] };

/** Closes the entries of a request that has ended. `cachedTokens`: as in `reportedCachedTokens`. */
export function endDecisions(
  decisions: readonly OpenDecision[],
  cause: EndCause,
  cachedTokens: number | null,
): void {
  for (const decision of decisions) {
    if (decision.end !== null) continue;
    decision.end = cause;
    decision.reportedCachedTokens = cachedTokens;
  }
}

/** See the head of the file. */
export class DecisionLog {
  readonly #ring: OpenDecision[] = [];
  #next = 0;

  /** Enters the decision of a plan that is carried out now, on the worker with the origin `worker`. */
  add(timeMs: number, plan: Plan, worker: string, requestId: string | undefined): OpenDecision {
    const { policy, reason, rank, ids, cachedTokens } = plan.placement;
    const decision: OpenDecision = {
      timeMs,
      request: plan.request,
      requestId: requestId?.slice(0, REQUEST_ID_UNITS_MAX) ?? null,
      attempt: plan.attempt,
      model: plan.model,
      worker: workerName(worker, rank),
      policy,
      reason,
      promptTokens: plan.promptTokens,
      ids,
      expectedCachedTokens: cachedTokens,
      reportedCachedTokens: null,
      ttftMs: null,
      end: null,
    };
    this.#ring[this.#next] = decision;
    this.#next = (this.#next + 1) % DECISIONS_KEPT;
    return decision;
  }

  /** The newest `count` decisions, newest first. */
  newest(count: number): Decision[] {
    const { length } = this.#ring;
    return Array.from({ length: Math.min(count, length) }, (_, back) => ({
      ...this.#ring[(this.#next - 1 - back + DECISIONS_KEPT) % DECISIONS_KEPT]!,
    }));
  }
}

/** The newest `count` decisions of several socket threads together, newest first. */
export function mergedDecisions(lists: readonly (readonly Decision[])[], count: number): Decision[] {
  return lists
    .flat()
    .sort((a, b) => b.timeMs - a.timeMs)
    .slice(0, count);
}
