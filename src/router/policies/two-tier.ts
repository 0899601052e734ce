/**
 * `two-tier` (R4): SGLang's cache-aware rule. While the fleet is out of balance (the counts of reserved requests differ by
 * more than `balanceAbs` and by more than a factor `balanceRel`), the least busy worker; else the deepest prefix, if it
 * covers more than `cacheThreshold` of the prompt; else the least busy one. Defaults of SGLang's library. Keeps nothing.
 */
import type { Candidates, Selector } from '../contract.js';
import { lowest } from './lowest.js';

/** Knobs of the rule. */
export interface TwoTierOptions {
  /** Share of the prompt, 0 to 1. */
  readonly cacheThreshold: number;
  /** Requests. */
  readonly balanceAbs: number;
  /** Factor, ≥ 1. */
  readonly balanceRel: number;
}

const DEFAULTS: TwoTierOptions = { cacheThreshold: 0.5, balanceAbs: 32, balanceRel: 1.1 };

/** Makes the selector. */
export function createTwoTier(options: Partial<TwoTierOptions> = {}): Selector {
  const { cacheThreshold, balanceAbs, balanceRel } = { ...DEFAULTS, ...options };
  return {
    policy: 'two-tier',
    usesPrefix: true,
    usesTiming: false,
    pick(request, candidates, random) {
      const { requests, cachedTokens, count } = candidates;
      const least = lowest(requests, count, random);
      let most = 0;
      for (let row = 0; row < count; row += 1) most = Math.max(most, requests[row]!);
      if (most - least.score > balanceAbs && most > balanceRel * least.score) {
        return { row: least.row, reason: `two-tier: unbalanced, ${least.score} to ${most} requests` };
      }
      const deepest = deepestRow(candidates);
      const share = cachedTokens[deepest]! / request.promptTokens;
      if (share > cacheThreshold) {
        return { row: deepest, reason: `two-tier: ${cachedTokens[deepest]} tokens cached` };
      }
      return { row: least.row, reason: `two-tier: little cached, ${least.score} requests` };
    },
  };
}

/** Row of the deepest prefix; among equals the one with the fewest requests. */
function deepestRow({ cachedTokens, requests, count }: Candidates): number {
  let best = 0;
  for (let row = 1; row < count; row += 1) {
    const deeper = cachedTokens[row]! - cachedTokens[best]!;
    if (deeper > 0 || (deeper === 0 && requests[row]! < requests[best]!)) best = row;
  }
  return best;
}
