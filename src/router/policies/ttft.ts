/**
 * `ttft` (R4): cost in milliseconds. What a worker costs is the time until the request's first token there, plus what the
 * work costs everyone else: prompt tokens that another worker holds are computed a second time, later requests wait for
 * them, and the running answers of that worker stand still meanwhile. Lowest cost wins, ties at random. Keeps nothing.
 */
import type { Candidates, RequestView, Selector } from '../contract.js';
import {
  expectedDecodeMs,
  expectedPrefillMs,
  PREFILL_TOKENS_PER_MS,
  prefillPasses,
} from '../prefill-model.js';
import { lowest } from './lowest.js';

/** Weights of the parts that fall on others; a millisecond of the request itself weighs 1. */
export interface TtftOptions {
  /** Per millisecond of prefill that this request adds to the fleet. */
  readonly workWeight: number;
  /** Per millisecond of prefill and running request that is held up by it. */
  readonly decodeWeight: number;
}

const DEFAULTS: TtftOptions = { workWeight: 1, decodeWeight: 0.02 };

/** Makes the selector. */
export function createTtft(options: Partial<TtftOptions> = {}): Selector {
  const weights: TtftOptions = { ...DEFAULTS, ...options };
  let costs = new Float64Array(64);
  return {
    policy: 'ttft',
    usesPrefix: true,
    pick(request, candidates, random) {
      const { count, cachedTokens, queuedTokens } = candidates;
      if (costs.length < count) costs = new Float64Array(candidates.slots.length);
      for (let row = 0; row < count; row += 1) costs[row] = cost(weights, request, candidates, row);
      const { row, score, ties, nextScore } = lowest(costs, count, random);
      const next = Number.isFinite(nextScore) ? `, next ${nextScore.toFixed(0)} ms` : '';
      return {
        row,
        reason:
          `ttft: cost ${score.toFixed(0)} ms, ${queuedTokens[row]!.toFixed(0)} tokens ahead, ` +
          `${cachedTokens[row]} of ${request.promptTokens} cached${next}, ${ties} equal`,
      };
    },
  };
}

function cost(weights: TtftOptions, request: RequestView, candidates: Candidates, row: number): number {
  const own = Math.max(request.promptTokens - candidates.cachedTokens[row]!, 1);
  const ahead = candidates.queuedTokens[row]!;
  const requests = candidates.requests[row]!;
  const capacity = candidates.capacityTokens[row]!;
  const held = candidates.decodeBlocks[row]! * candidates.blockSizes[row]!;
  const decodeMs = requests === 0 ? 0 : expectedDecodeMs(capacity > 0 ? held / capacity : 0);
  const untilFirstMs = expectedPrefillMs(ahead + own) + prefillPasses(ahead + own) * decodeMs;
  const ownMs = own / PREFILL_TOKENS_PER_MS;
  const othersMs = (weights.workWeight + weights.decodeWeight * requests) * ownMs;
  return candidates.slowness[row]! * (untilFirstMs + othersMs);
}
