/**
 * Why a worker was chosen (R4): the figures of the best candidates, for a request that asks for them. Made from the
 * columns of the decision before they are filled anew; costs nothing for any other request. Pool thread.
 */
import type { Candidates, RequestView, Selector } from './contract.js';

/** Candidates that are told at most. */
const CANDIDATES_MAX = 16;

/** One worker as the policy saw it. */
export interface ScoredCandidate {
  readonly slot: number;
  readonly generation: number;
  /** In the policy's own unit, lowest best; null: the policy has no cost. */
  readonly cost: number | null;
  /** Tokens of the prompt expected in its cache. */
  readonly cachedTokens: number;
  /** Prompt tokens before this request; all that are reserved where the policy has no better estimate. */
  readonly queuedTokens: number;
  /** Requests reserved on it. */
  readonly requests: number;
}

/** The best candidates first, 16 at most; the row that was chosen is always among them. */
export function explain(
  selector: Selector,
  request: RequestView,
  candidates: Candidates,
  chosen: number,
): ScoredCandidate[] {
  const costs = selector.explain?.(request, candidates) ?? null;
  const rows = Array.from({ length: candidates.count }, (_, row) => row);
  if (costs !== null) rows.sort((a, b) => costs[a]! - costs[b]!);
  const told = rows.slice(0, CANDIDATES_MAX);
  if (!told.includes(chosen)) told[told.length - 1] = chosen;
  const queued = selector.usesTiming ? candidates.queuedTokens : candidates.activePrefillTokens;
  return told.map(row => ({
    slot: candidates.slots[row]!,
    generation: candidates.generations[row]!,
    cost: costs === null || !Number.isFinite(costs[row]) ? null : costs[row]!,
    cachedTokens: candidates.cachedTokens[row]!,
    queuedTokens: queued[row]!,
    requests: candidates.requests[row]!,
  }));
}
