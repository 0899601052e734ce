/**
 * The live replay: a workload over HTTP through `millrace serve` to mock engines, one policy after the other, next to the
 * virtual replay of the same requests at the same times. The wall runs `speed` times as fast as the modelled time; all that
 * comes out of here is modelled again. A run that the machine could not keep up with is refused.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { loadAddon } from '#millrace/runtime/addon.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { LoadSamples } from '#millrace/simulate/replay/load-samples.js';
import { replay } from '#millrace/simulate/replay/replay.js';
import { figuresOf, summarize } from '#millrace/simulate/replay/summary.js';
import { startLoad } from './children.js';
import { checkIds, mockMetrics, mocksLagP99Ms, planeLagP99Ms, startFleet, TOKENIZER } from './ttft-fleet.js';
import { idsOf, textOf } from './ttft-prompts.js';

/** Share of the mean TTFT that the latest 1 % of event-loop turns may have. */
export const LAG_SHARE_MAX = 0.05;
/** What two cores with nothing else to do keep below, in wall milliseconds at p99. */
const LAG_EXPECTED_MS = 10;
const SPEED_DEFAULT_MIN = 0.1;
const SPEED_DEFAULT_MAX = 1;
/** Moments at which the load of the workers is looked at. */
const SAMPLES = 60;
const PREPARE_DEADLINE_MS = 120_000;
/** Wall time after the last arrival: the longest answers of a trace take minutes at speed 1. */
const DRAIN_DEADLINE_MS = 300_000;
/** Requests of a run whose ids are followed to the engine. */
const CHECKED_REQUESTS = 5;

/**
 * @typedef {import('#millrace/simulate/replay/workload.js').Workload} Workload
 * @typedef {import('#millrace/simulate/replay/replay.js').ReplayResult} ReplayResult
 * @typedef {import('#millrace/simulate/replay/summary.js').RunRecord} RunRecord
 * @typedef {import('#millrace/simulate/replay/summary.js').PolicyFigures} PolicyFigures
 * @typedef {import('./ttft-fleet.js').Fleet} Fleet
 * @typedef {{ load: number, plane: number, mocks: number }} Lags  Wall milliseconds at p99, the worst process of each kind.
 *
 * @typedef {object} LiveOptions
 * @property {number} workers
 * @property {readonly string[]} policies
 * @property {number} load
 * @property {number} seed
 * @property {number | undefined} speed  Undefined: by the replay, so that the expected lateness is allowed.
 * @property {number} lagShareMax
 * @property {(what: string) => void} onStep
 *
 * @typedef {object} LiveRun
 * @property {RunRecord} record
 * @property {PolicyFigures} figures
 * @property {Lags} lags
 * @property {readonly string[]} errorExamples
 */

/** Requests of one moment of the trace come within this share of the time to the next moment. */
export const TIE_SPREAD = 0.1;

/**
 * The workload with requests of the same moment a little apart, in the order of the trace. Traces count in seconds; which of
 * ten requests of one moment a server has read first is chance, and round-robin's mean TTFT hangs on that order by ±15 %.
 * @param {Workload} workload
 * @returns {Workload}
 */
export function spreadTies(workload) {
  const { requests } = workload;
  /** @type {number[]} */
  const starts = [];
  requests.forEach(({ arrivalMs }, at) => {
    if (at === 0 || arrivalMs > requests[at - 1].arrivalMs) starts.push(at);
  });
  const spread = starts.flatMap((from, group) => {
    const to = starts[group + 1] ?? requests.length;
    const gapMs = (requests[to]?.arrivalMs ?? requests[from].arrivalMs) - requests[from].arrivalMs;
    const stepMs = (TIE_SPREAD * gapMs) / (to - from);
    return requests
      .slice(from, to)
      .map((request, at) => ({ ...request, arrivalMs: request.arrivalMs + at * stepMs }));
  });
  return { ...workload, requests: spread };
}

/**
 * Replays, then runs live. Throws for a run that the machine could not keep up with.
 * @param {Workload} given
 * @param {LiveOptions} options
 */
export async function runLive(given, options) {
  const workload = spreadTies(given);
  const result = replay(workload, {
    ...options,
    engine: {},
    samples: SAMPLES,
    clock: systemClock,
    addon: loadAddon(),
    onRun: () => {},
  });
  options.onStep('replayed');
  const summary = summarize(result);
  const speed = options.speed ?? defaultSpeed(summary, options.lagShareMax);
  const load = startLoad('ttft-load.js');
  try {
    const { requests, traceBlockTokens } = workload;
    const message = {
      type: 'prepare',
      model: 'mock-model',
      tokenizer: TOKENIZER,
      traceBlockTokens,
      requests,
    };
    const { bytes } = await told(load, message, PREPARE_DEADLINE_MS);
    options.onStep('prompts made');
    /** @type {Map<string, LiveRun>} */
    const live = new Map();
    for (const policy of options.policies) {
      live.set(policy, await runPolicy(result, load, policy, { ...options, speed }));
      options.onStep(policy);
    }
    return { result, summary, live, speed, promptBytes: bytes };
  } finally {
    load.stop();
  }
}

/**
 * A careful speed: the slower, the less of a short TTFT is lateness.
 * @param {import('#millrace/simulate/replay/summary.js').ReplaySummary} summary
 * @param {number} lagShareMax
 */
export function defaultSpeed({ policies }, lagShareMax) {
  const means = Object.values(policies).map(({ ttftMs }) => ttftMs.mean ?? 0);
  const speed = (lagShareMax * Math.min(...means)) / LAG_EXPECTED_MS;
  return floorToDigit(Math.min(SPEED_DEFAULT_MAX, Math.max(SPEED_DEFAULT_MIN, speed)));
}

/** The number of one digit at or below a positive value. @param {number} value */
function floorToDigit(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return Number((Math.floor(value / unit + 1e-9) * unit).toPrecision(1));
}

/** The answer of the load generator, or its error. @param {ReturnType<typeof startLoad>} load @param {object} message @param {number} withinMs */
async function told(load, message, withinMs) {
  const answer = await load.ask(message, withinMs);
  if (answer.failed !== undefined) throw new Error(answer.failed);
  return answer;
}

/**
 * @param {ReplayResult} result
 * @param {ReturnType<typeof startLoad>} load
 * @param {string} policy
 * @param {LiveOptions & { speed: number }} options
 * @returns {Promise<LiveRun>}
 */
async function runPolicy(result, load, policy, { workers, speed, lagShareMax }) {
  const { workload } = result.workload;
  const wallMsPerTraceMs = result.timeScale / speed;
  const spanMs = result.workload.spanMs * wallMsPerTraceMs;
  const fleet = await startFleet({ workers, engine: result.engine, speed, policy });
  try {
    const before = await mockMetrics(fleet);
    await Promise.all([mocksLagP99Ms(fleet, 'lagReset'), planeLagP99Ms(fleet)]);
    const message = { type: 'run', host: fleet.host, port: fleet.port, wallMsPerTraceMs };
    const [seen, watched] = await Promise.all([
      told(load, message, spanMs + DRAIN_DEADLINE_MS),
      watchArrivals(fleet, spanMs, speed),
    ]);
    const after = await mockMetrics(fleet);
    await checkSome(fleet, workload);
    const record = {
      ...seen,
      ttftMs: scaled(seen.ttftMs, speed),
      itlMs: scaled(seen.itlMs, speed),
      e2eMs: scaled(seen.e2eMs, speed),
      spanMs: seen.spanMs * speed,
      computedTokens: Float64Array.from(after, (mock, at) => mock.computedTokens - before[at].computedTokens),
      load: watched.load,
    };
    const lags = { load: seen.lagP99Ms, ...watched.lags };
    const figures = figuresOf(record);
    checkLags(policy, lags, figures.ttftMs.mean, speed, lagShareMax);
    return { record, figures, lags, errorExamples: seen.errorExamples };
  } catch (error) {
    const died =
      fleet.plane.failed() ?? fleet.mocks.map(mock => mock.failed()).find(why => why !== undefined);
    throw died === undefined ? error : new Error(died); // a server that died explains all that failed after it
  } finally {
    await fleet.stop();
  }
}

/** @param {Float64Array} wallMs @param {number} speed */
const scaled = (wallMs, speed) => wallMs.map(ms => ms * speed);

/**
 * Looks at the engines' load while requests arrive, then at the lateness of the servers' event loops. What waits counts
 * as without a first token: engines do not tell of prompts that they have half computed.
 * @param {Fleet} fleet @param {number} spanMs  Wall time. @param {number} speed
 */
async function watchArrivals(fleet, spanMs, speed) {
  const startMs = performance.now();
  const load = new LoadSamples(fleet.mocks.length, SAMPLES, spanMs * speed);
  for (let sample = 1; sample <= SAMPLES; sample += 1) {
    await sleep(Math.max(0, startMs + (sample * spanMs) / SAMPLES - performance.now()));
    const mocks = await mockMetrics(fleet);
    const waiting = mocks.reduce((sum, mock) => sum + mock.waiting, 0);
    const atMs = sample < SAMPLES ? (performance.now() - startMs) * speed : Number.POSITIVE_INFINITY;
    load.record(atMs, waiting, worker => mocks[worker].running + mocks[worker].waiting);
  }
  const [plane, mocks] = await Promise.all([planeLagP99Ms(fleet), mocksLagP99Ms(fleet, 'lag')]);
  return { load, lags: { plane, mocks } };
}

/** Follows the ids of a few requests to the engine, when the run is over and caches do not matter any more. @param {Fleet} fleet @param {Workload} workload */
async function checkSome(fleet, { requests, traceBlockTokens }) {
  for (let check = 0; check < CHECKED_REQUESTS; check += 1) {
    const request = requests[Math.floor((check * requests.length) / CHECKED_REQUESTS)];
    await checkIds(fleet, textOf(request, traceBlockTokens), idsOf(request, traceBlockTokens));
  }
}

/**
 * Throws when an event loop was later than a share of the mean TTFT, both in modelled time.
 * @param {string} policy
 * @param {Lags} lags
 * @param {number | null} ttftMeanMs  Modelled; null when no request had an answer: the errors say why.
 * @param {number} speed
 * @param {number} lagShareMax
 */
export function checkLags(policy, lags, ttftMeanMs, speed, lagShareMax) {
  if (ttftMeanMs === null) return;
  for (const [process, lagMs] of Object.entries(lags)) {
    const share = (lagMs * speed) / ttftMeanMs;
    if (share <= lagShareMax) continue;
    const lower = floorToDigit((0.9 * speed * lagShareMax) / share);
    throw new Error(
      `${policy}: this machine cannot keep up at --speed ${speed}: the event loop of ${WORDS[process]} was late by ` +
        `${lagMs.toFixed(1)} ms at p99, ${(100 * share).toFixed(1)} % of the mean TTFT (allowed: ${100 * lagShareMax} %). ` +
        `Try --speed ${lower}`,
    );
  }
}

/** @type {Record<string, string>} */
const WORDS = { load: 'the load generator', plane: 'the plane', mocks: 'a mock engine' };
