/**
 * The fleets that `bench/disagg.js` compares, all of the same workers, and one run of such a fleet at a rate of arrivals: the
 * virtual replay with the router that serves use. Nothing here waits or measures real time.
 */
import { readDisaggregation } from '#millrace/disagg-config.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { runFleet } from '#millrace/simulate/replay/fleet.js';
import { distribution, figuresOf } from '#millrace/simulate/replay/summary.js';

export const POLICY = 'ttft';
/** Of the target's two times. */
export const PERCENTILE = 90;
const SAMPLES = 100;
const TOKENS_MAX = 1_000_000_000;

/** The decision that serves use where nothing is set. */
export const DEFAULT_RULES = readDisaggregation({}, 'disaggregation');
/** Every prompt goes to a prefill worker, however many wait there. */
const ALWAYS = /** @type {const} */ ({ policy: 'always', prefillQueueTokensMax: TOKENS_MAX });

/**
 * @typedef {import('#millrace/simulate/replay/fleet.js').FleetResult} FleetResult
 * @typedef {import('#millrace/simulate/replay/workload.js').PreparedWorkload} PreparedWorkload
 * @typedef {import('#millrace/simulate/engine-settings.js').EngineSettings} EngineSettings
 * @typedef {import('#millrace/simulate/replay/handover-links.js').HandoverCost} HandoverCost
 * @typedef {'aggregated' | 'disaggregated' | 'conditional'} Mode
 *
 * @typedef {object} Fleet  `prefill` and `decode` are numbers of workers, 0 for the aggregated fleet.
 * @property {Mode} mode
 * @property {number} prefill
 * @property {number} decode
 *
 * @typedef {object} Stage  What all runs share.
 * @property {PreparedWorkload} workload
 * @property {EngineSettings} engine
 * @property {number} workers
 * @property {number} seed
 * @property {HandoverCost} cost
 * @property {{ ttftMs: number, itlMs: number }} target
 *
 * @typedef {object} Point  A run in figures; times of the target's percentile.
 * @property {number} requestsPerSecond
 * @property {number} ttftMs
 * @property {number} itlMs
 * @property {number} e2eMeanMs
 * @property {number} outputTokensPerSecond
 * @property {boolean} met
 */

/** Every fleet of so many workers, the aggregated one first. @param {number} workers @returns {Fleet[]} */
export function fleetsOf(workers) {
  const splits = Array.from({ length: workers - 1 }, (_, at) => ({
    prefill: at + 1,
    decode: workers - at - 1,
  }));
  const modes = /** @type {const} */ (['disaggregated', 'conditional']);
  return [
    { mode: 'aggregated', prefill: 0, decode: 0 },
    ...modes.flatMap(mode => splits.map(split => ({ mode, ...split }))),
  ];
}

/** @param {Fleet} fleet */
export const nameOf = ({ mode, prefill, decode }) =>
  mode === 'aggregated' ? mode : `${mode} ${prefill}P+${decode}D`;

/** Runs a fleet with this many arrivals per second. @param {Stage} stage @param {Fleet} fleet @param {number} requestsPerSecond */
export function runAt({ workload, engine, workers, seed, cost }, { mode, prefill }, requestsPerSecond) {
  const roles = Array.from({ length: workers }, (_, slot) =>
    slot < prefill ? /** @type {const} */ ('prefill') : /** @type {const} */ ('decode'),
  );
  const rules = mode === 'disaggregated' ? { ...DEFAULT_RULES, ...ALWAYS } : DEFAULT_RULES;
  return runFleet(workload, {
    workers,
    engine,
    policy: POLICY,
    split: mode === 'aggregated' ? null : { roles, rules, cost },
    seed,
    timeScale: (1000 * workload.requests.length) / requestsPerSecond / workload.spanMs,
    samples: SAMPLES,
    clock: systemClock,
    addon: loadAddon(),
  });
}

/** @param {Stage} stage @param {FleetResult} run @param {number} requestsPerSecond @returns {Point} */
export function pointOf({ target }, run, requestsPerSecond) {
  const { ttftMs, itlMs, e2eMs, outputTokensPerSecond, errors } = figuresOf(run);
  const [ttft, itl] = [ttftMs.p90 ?? 0, itlMs.p90 ?? 0];
  return {
    requestsPerSecond,
    ttftMs: ttft,
    itlMs: itl,
    e2eMeanMs: e2eMs.mean ?? 0,
    outputTokensPerSecond,
    met: errors === 0 && ttft <= target.ttftMs && itl <= target.itlMs,
  };
}

/** Figures of a run as a mode shows them. @param {FleetResult} run */
export function modeFiguresOf(run) {
  const handoverMs = distribution(run.handoverMs);
  const handedOver = run.handoverMs.filter(ms => !Number.isNaN(ms)).length;
  const share = handedOver / run.handoverMs.length;
  return { ...figuresOf(run), handedOver, handedOverShare: share, handoverMs };
}
