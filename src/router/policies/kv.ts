/**
 * `kv` (R4): the cost function of Dynamo's router, with its knobs and defaults (`lib/kv-router/src/scheduling/selector`):
 * prompt blocks that the worker must still compute, plus blocks that its requests hold. Lowest cost wins, or with a
 * temperature a draw by softmax over the costs. Keeps nothing.
 */
import type { Random } from '../../runtime/random.js';
import type { Candidates, RequestView, Selector } from '../contract.js';
import { lowest, tiesText } from './lowest.js';

/** Dynamo's knobs, by its names. */
export interface KvOptions {
  /** What a cached block takes off the cost, in blocks; ≥ 0. */
  readonly overlapScoreCredit: number;
  /** Shrinks the credit where more prefill is outstanding than on the idlest worker; 0: never. */
  readonly overlapScoreCreditDecay: number;
  /** Weight of the prefill part; ≥ 0. */
  readonly prefillLoadScale: number;
  /** Cost of one reserved request, in blocks; ≥ 0. */
  readonly decodeActiveRequestWeight: number;
  /** 0: the lowest cost; above: softmax over costs that are scaled to [0, 1]. */
  readonly routerTemperature: number;
}

const DEFAULTS: KvOptions = {
  overlapScoreCredit: 1,
  overlapScoreCreditDecay: 0,
  prefillLoadScale: 1,
  decodeActiveRequestWeight: 0,
  routerTemperature: 0,
};

/** Makes the selector. */
export function createKv(options: Partial<KvOptions> = {}): Selector {
  const knobs: KvOptions = { ...DEFAULTS, ...options };
  let costs = new Float64Array(64);
  const fill = (request: RequestView, candidates: Candidates): Float64Array => {
    if (costs.length < candidates.count) costs = new Float64Array(candidates.slots.length);
    score(knobs, request, candidates, costs);
    return costs;
  };
  return {
    policy: 'kv',
    usesPrefix: true,
    usesTiming: false,
    pick(request, candidates, random) {
      const { count, cachedTokens, blockSizes } = candidates;
      const costs = fill(request, candidates);
      const best = lowest(costs, count, random);
      const row =
        knobs.routerTemperature > 0 ? drawSoftmax(costs, count, knobs.routerTemperature, random) : best.row;
      const overlap = Math.floor(cachedTokens[row]! / blockSizes[row]!);
      const next = Number.isFinite(best.nextScore) ? `, next ${best.nextScore.toFixed(1)}` : '';
      return {
        row,
        reason: `kv: cost ${costs[row]!.toFixed(1)} blocks, overlap ${overlap}${next}${tiesText(best.ties)}`,
      };
    },
    explain: fill,
  };
}

function score(knobs: KvOptions, request: RequestView, candidates: Candidates, costs: Float64Array): void {
  const { count, activePrefillTokens, decodeBlocks, requests, blockSizes, cachedTokens } = candidates;
  let least = Number.POSITIVE_INFINITY;
  for (let row = 0; row < count; row += 1) least = Math.min(least, activePrefillTokens[row]!);
  for (let row = 0; row < count; row += 1) {
    const blockSize = blockSizes[row]!;
    const active = activePrefillTokens[row]!;
    const excess = (active - least) / Math.max(request.promptTokens, 1);
    const decay = 1 / (1 + knobs.overlapScoreCreditDecay * excess);
    const credit = knobs.overlapScoreCredit * decay * Math.floor(cachedTokens[row]! / blockSize);
    const prefill = Math.max((active + request.promptTokens) / blockSize - credit, 0);
    costs[row] =
      knobs.prefillLoadScale * prefill +
      decodeBlocks[row]! +
      knobs.decodeActiveRequestWeight * requests[row]!;
  }
}

function drawSoftmax(costs: Float64Array, count: number, temperature: number, random: Random): number {
  let least = Number.POSITIVE_INFINITY;
  let most = Number.NEGATIVE_INFINITY;
  for (let row = 0; row < count; row += 1) {
    least = Math.min(least, costs[row]!);
    most = Math.max(most, costs[row]!);
  }
  const scale = most > least ? 1 / ((most - least) * temperature) : 0;
  const weight = (row: number): number => Math.exp((least - costs[row]!) * scale);
  let sum = 0;
  for (let row = 0; row < count; row += 1) sum += weight(row);
  let left = random() * sum;
  for (let row = 0; row < count; row += 1) {
    left -= weight(row);
    if (left < 0) return row;
  }
  return count - 1;
}
