/** The result of a live replay: figures of every policy beside those of its virtual replay, as JSON and as a table. Pure. */
import { comparePolicies } from '#millrace/simulate/replay/summary.js';

/** Live and replay agree when their mean TTFTs differ by no more than this. */
const AGREEMENT = 0.2;

/**
 * @typedef {import('#millrace/simulate/replay/summary.js').PolicyFigures} PolicyFigures
 * @typedef {Awaited<ReturnType<typeof import('./ttft-run.js').runLive>>} Done
 * @typedef {ReturnType<typeof resultOf>} Result
 */

/**
 * The object that `--json` prints.
 * @param {Pick<Done, 'live' | 'summary'>} done
 * @param {{ commit: string, machine: object, settings: object }} facts
 */
export function resultOf({ live, summary }, facts) {
  const policies = Object.fromEntries(
    [...live].map(([policy, { figures, lags }]) => {
      const replay = summary.policies[policy];
      const liveOverReplay = ratio(figures.ttftMs.mean, replay.ttftMs.mean);
      return [policy, { ...figures, lagP99Ms: lags, replay, liveOverReplay, agrees: agrees(liveOverReplay) }];
    }),
  );
  return { bench: 'ttft', ...facts, policies, ...comparePolicies(policies) };
}

/** @param {number | null} value @param {number | null} base */
const ratio = (value, base) => (value === null || base === null ? null : value / base);

/** @param {number | null} liveOverReplay */
const agrees = liveOverReplay => liveOverReplay !== null && Math.abs(liveOverReplay - 1) <= AGREEMENT;

/** Rows for people: live and replay of each policy. @param {Result} result */
export function tableOf({ policies }) {
  return Object.entries(policies).flatMap(([policy, { replay, liveOverReplay, ...live }]) => [
    { ...rowOf(policy, 'live', live), 'live/replay': liveOverReplay },
    rowOf(policy, 'replay', replay),
  ]);
}

/** @param {string} policy @param {string} run @param {PolicyFigures} figures */
function rowOf(policy, run, { ttftMs, itlMs, e2eMs, ...figures }) {
  return {
    policy,
    run,
    'TTFT mean': ttftMs.mean,
    p50: ttftMs.p50,
    p90: ttftMs.p90,
    p99: ttftMs.p99,
    'ITL mean': itlMs.mean,
    'E2E mean': e2eMs.mean,
    'hit rate': figures.hitRate,
    imbalance: figures.workImbalance,
    'out tok/s': figures.outputTokensPerSecond,
    errors: figures.errors,
  };
}

/** Lines that say which policy is best, and whether live and replay agree. @param {Result} result */
export function verdictOf({ policies, best, ratios }) {
  const times = (/** @type {number | null} */ value) => (value === null ? '-' : `${value.toFixed(2)} ×`);
  const head =
    `best: ${best}; mean TTFT of round-robin ${times(ratios.ttftMeanRoundRobinOverBest)}, ` +
    `of least-loaded ${times(ratios.ttftMeanLeastLoadedOverBest)}; p99 of round-robin ${times(ratios.ttftP99RoundRobinOverBest)}\n`;
  const lines = Object.entries(policies).map(
    ([policy, { liveOverReplay, agrees: within, hitRate, replay }]) =>
      `${policy}: live mean TTFT is ${times(liveOverReplay)} that of the replay, ${within ? '' : 'not '}within ` +
      `${100 * AGREEMENT} %; hit rate ${hitRate.toFixed(3)}, in the replay ${replay.hitRate.toFixed(3)}\n`,
  );
  return head + lines.join('');
}
