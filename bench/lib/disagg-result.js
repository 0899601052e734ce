/** The result of `bench/disagg.js`: the three modes, each with its best split, what is asked of the conditional one, and a table. Pure. */
import { modeFiguresOf, nameOf } from './disagg-fleets.js';

/** The conditional mode may be worse than the better pure one by this share. */
export const MARGIN = 0.03;

/**
 * @typedef {import('./disagg-fleets.js').Mode} Mode
 * @typedef {import('./disagg-fleets.js').FleetResult} FleetResult
 * @typedef {import('./disagg-search.js').Found} Found
 * @typedef {Found & { run: FleetResult }} Compared  `run`: at the rate at which all fleets are compared.
 * @typedef {ReturnType<typeof resultOf>} Result
 */

/** Of one fleet within the target; 0 where it never is. @param {Found} found */
const rateOf = ({ best }) => best?.requestsPerSecond ?? 0;
/** @param {Compared} compared */
const e2eOf = ({ run }) => modeFiguresOf(run).e2eMs.mean ?? Number.POSITIVE_INFINITY;

/** The fleet of a mode that carries most within the target. @param {readonly Compared[]} all @param {Mode} mode */
export function bestOf(all, mode) {
  return all.filter(({ fleet }) => fleet.mode === mode).reduce((a, b) => (rateOf(b) > rateOf(a) ? b : a));
}

/**
 * The object that `--json` prints.
 * @param {readonly Compared[]} all  Every fleet.
 * @param {{ workers: number, requestsPerSecond: number }} common  The rate of the comparison.
 * @param {{ commit: string, machine: object, settings: object }} facts
 */
export function resultOf(all, { workers, requestsPerSecond }, facts) {
  const modes = /** @type {const} */ (['aggregated', 'disaggregated', 'conditional']);
  const shown = modes.map(mode => [mode, modeOf(bestOf(all, mode), workers, requestsPerSecond)]);
  const splits = all.map(compared => ({
    mode: compared.fleet.mode,
    prefill: compared.fleet.prefill,
    decode: compared.fleet.decode,
    requestsPerSecondPerWorkerAtTarget: rateOf(compared) / workers,
    e2eMeanMs: e2eOf(compared),
    curve: compared.points,
  }));
  /** @type {Record<Mode, ReturnType<typeof modeOf>>} */
  const byMode = Object.fromEntries(shown);
  return { bench: 'disagg', ...facts, modes: byMode, headline: headlineOf(all), splits };
}

/** @param {Compared} compared @param {number} workers @param {number} requestsPerSecond */
function modeOf({ fleet, best, run }, workers, requestsPerSecond) {
  const { prefill, decode } = fleet;
  return {
    prefillWorkers: prefill,
    decodeWorkers: decode,
    requestsPerSecond,
    ...modeFiguresOf(run),
    atTarget: best && {
      requestsPerSecondPerWorker: best.requestsPerSecond / workers,
      outputTokensPerSecondPerWorker: best.outputTokensPerSecond / workers,
      ttftMs: best.ttftMs,
      itlMs: best.itlMs,
    },
  };
}

/** @param {readonly Compared[]} all */
function headlineOf(all) {
  const aggregated = bestOf(all, 'aggregated');
  const disaggregated = bestOf(all, 'disaggregated');
  const conditional = bestOf(all, 'conditional');
  const split = rateOf(conditional) >= rateOf(disaggregated) ? conditional : disaggregated;
  const pure = all.filter(({ fleet }) => fleet.mode !== 'conditional');
  const quickest = pure.reduce((a, b) => (e2eOf(b) < e2eOf(a) ? b : a));
  const pureRate = Math.max(rateOf(aggregated), rateOf(disaggregated));
  const throughput = rateOf(conditional) / pureRate;
  const e2e = e2eOf(conditional) / e2eOf(quickest);
  return {
    bestSplit: nameOf(split.fleet),
    throughputRatioAtSla: rateOf(split) / rateOf(aggregated),
    disaggregatedOverAggregated: rateOf(disaggregated) / rateOf(aggregated),
    conditionalOverAggregated: rateOf(conditional) / rateOf(aggregated),
    conditionalThroughputOverBetterPure: throughput,
    conditionalE2eOverBetterPure: e2e,
    betterPureByE2e: nameOf(quickest.fleet),
    conditionalHolds: throughput >= 1 - MARGIN && e2e <= 1 + MARGIN,
  };
}

/** Rows for people: the three modes at one rate, and what each carries within the target. @param {Result} result */
export function tableOf({ modes }) {
  return Object.entries(modes).map(
    ([mode, { prefillWorkers, decodeWorkers, ttftMs, itlMs, e2eMs, ...run }]) => ({
      mode,
      fleet: prefillWorkers === 0 ? 'all alike' : `${prefillWorkers}P+${decodeWorkers}D`,
      'TTFT mean': ttftMs.mean,
      p90: ttftMs.p90,
      p99: ttftMs.p99,
      'ITL mean': itlMs.mean,
      'ITL p90': itlMs.p90,
      'E2E mean': e2eMs.mean,
      'hit rate': run.hitRate,
      'handed over': `${run.handedOver} (${(100 * run.handedOverShare).toFixed(0)} %)`,
      'out tok/s': run.outputTokensPerSecond,
      'req/s/worker in target': run.atTarget?.requestsPerSecondPerWorker,
      errors: run.errors,
    }),
  );
}

/** Lines that say what the figures come to. @param {Result} result */
export function verdictOf({ headline }) {
  const times = (/** @type {number} */ value) => `${value.toFixed(3)} ×`;
  const { conditionalThroughputOverBetterPure, conditionalE2eOverBetterPure, conditionalHolds } = headline;
  return (
    `best split: ${headline.bestSplit}, ${times(headline.throughputRatioAtSla)} the requests/s/worker of aggregated within the target\n` +
    `disaggregated ${times(headline.disaggregatedOverAggregated)}, conditional ${times(headline.conditionalOverAggregated)} those of aggregated\n` +
    `conditional against the better pure mode: throughput within the target ${times(conditionalThroughputOverBetterPure)}, ` +
    `mean E2E at the same load ${times(conditionalE2eOverBetterPure)} that of ${headline.betterPureByE2e}: ` +
    `${conditionalHolds ? 'within' : 'NOT within'} ${100 * MARGIN} %\n`
  );
}
