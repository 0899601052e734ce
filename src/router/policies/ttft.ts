/**
 * `ttft` (R4): cost in milliseconds. What a worker costs is the time until the request's first token there, plus what the
 * work costs everyone else: prompt tokens that another worker holds are computed a second time, later requests wait for
 * them, and the running answers of that worker stand still meanwhile. Lowest cost wins, ties at random. Keeps nothing.
 */
import type { Candidates, RequestView, Selector } from '../contract.js';
import { expectedPrefillMs, FULL_PASS_TOKEN_MS } from '../prefill-model.js';
import { lowest, tiesText } from './lowest.js';

/** Weights of the parts that fall on others; a millisecond of the request itself weighs 1. */
export interface TtftOptions {
  /**
   * Per millisecond of prefill that this request adds, while all workers have prompts waiting; less in proportion when
   * fewer have: time of an idle worker costs nobody anything, and a prefix that is in demand spreads to it.
   */
  readonly workWeight: number;
  /**
   * Per millisecond of prefill and request of the worker that is held up by it. Requests that wait for their own prefill
   * count with the running ones, so a large weight sends work to few long prompts instead of many short ones: at 0.005
   * the mean time to first token near saturation is 12 to 17 % above `least-loaded`, at 0.002 at most 4 %.
   */
  readonly decodeWeight: number;
}

const DEFAULTS: TtftOptions = { workWeight: 0.5, decodeWeight: 0.002 };

/** Makes the selector. */
export function createTtft(options: Partial<TtftOptions> = {}): Selector {
  const { workWeight, decodeWeight } = { ...DEFAULTS, ...options };
  let costs = new Float64Array(64);
  const fill = (request: RequestView, candidates: Candidates): Float64Array => {
    const { count } = candidates;
    if (costs.length < count) costs = new Float64Array(candidates.slots.length);
    const weight = workWeight * busyShare(candidates);
    for (let row = 0; row < count; row += 1)
      costs[row] = cost(request, candidates, row, weight, decodeWeight);
    return costs;
  };
  return {
    policy: 'ttft',
    usesPrefix: true,
    usesTiming: true,
    pick(request, candidates, random) {
      const { count, cachedTokens, queuedTokens } = candidates;
      const costs = fill(request, candidates);
      const { row, score, ties, nextScore } = lowest(costs, count, random);
      const next = Number.isFinite(nextScore) ? `, next ${Math.round(nextScore)} ms` : '';
      return {
        row,
        reason:
          `ttft: cost ${Math.round(score)} ms, ${Math.round(queuedTokens[row]!)} tokens ahead, ` +
          `${cachedTokens[row]} of ${request.promptTokens} cached${next}${tiesText(ties)}`,
      };
    },
    explain: fill,
  };
}

/** Share of the workers that have prompts to compute, 0 to 1. */
function busyShare({ count, queuedTokens }: Candidates): number {
  let busy = 0;
  for (let row = 0; row < count; row += 1) if (queuedTokens[row]! > 0) busy += 1;
  return busy / count;
}

function cost(
  request: RequestView,
  candidates: Candidates,
  row: number,
  workWeight: number,
  decodeWeight: number,
): number {
  const own = Math.max(request.promptTokens - candidates.cachedTokens[row]!, 1);
  const requests = candidates.requests[row]!;
  const decodeMs = requests === 0 ? 0 : candidates.decodeMs[row]!;
  const untilFirstMs = expectedPrefillMs(candidates.queuedTokens[row]! + own, decodeMs);
  const othersMs = (workWeight + decodeWeight * requests) * own * FULL_PASS_TOKEN_MS;
  return candidates.slowness[row]! * (untilFirstMs + othersMs);
}
