/**
 * Runs one case of the fault bench: fresh servers, streams up to their middle, the fault, the end of the streams, a second
 * wave that must find only good workers, and the accounts: what failed, what differs from the undisturbed text, what leaks.
 */
import { answers } from './fault-blows.js';
import { leaksOf, placedAgain, planeCounters, startFleet, watchReady } from './fault-fleet.js';
import { FaultStream } from './fault-stream.js';
import { percentile } from './report.js';

/** From the first request to the end of the last: three times what an undisturbed case takes on a busy machine. */
const STREAMS_DEADLINE_MS = 90_000;
const ERROR_EXAMPLES_MAX = 5;

/**
 * @typedef {import('./fault-fleet.js').Ask} Ask
 * @typedef {import('./fault-fleet.js').Server} Server
 * @typedef {import('./fault-fleet.js').Fleet} Fleet
 * @typedef {import('./fault-blows.js').FaultCase} FaultCase
 *
 * @typedef {object} RunOptions
 * @property {import('./fault-fleet.js').Mode} mode
 * @property {number} workers
 * @property {number} speed  Of the engines.
 * @property {number} injectAfter  Chunks that every stream has had when the fault strikes.
 * @property {readonly Ask[]} asks  One per stream.
 * @property {readonly Ask[]} laterAsks  Sent when the streams have ended.
 * @property {ReadonlyMap<string, string>} texts  Undisturbed text by the id of an ask.
 *
 * @typedef {object} CaseResult
 * @property {string} name
 * @property {string} mode
 * @property {boolean} happened  The fault took place, and in the middle of streams.
 * @property {string} proof
 * @property {number} requests
 * @property {number} failed
 * @property {number} textMismatches  Whole answers with another text than the undisturbed one, and failed ones whose text is no beginning of it.
 * @property {number} touched  Streams that the fault has met.
 * @property {{ p50: number | null, p99: number | null }} gapMs  Longest pause between two chunks of each touched stream; of every stream where the fault need not touch any.
 * @property {number | null} gapTargetMs  Wished p99.
 * @property {number} migrations  Choices that went on at another worker.
 * @property {number} retries  Requests that were asked for again because a worker failed.
 * @property {number} readyMin  Fewest ready workers at any look.
 * @property {number} leaked  Kinds of things that did not go back to zero.
 * @property {Record<string, number>} leaks  What they are, and how many.
 * @property {string[]} broken  Further promises of the case that were not kept.
 * @property {string[]} errors  Examples.
 */

/** Opens streams; all of them have ended by the deadline. @param {Fleet} fleet @param {readonly Ask[]} asks */
function openStreams(fleet, asks) {
  const streams = asks.map(ask => new FaultStream(fleet, ask));
  const late = () => {
    for (const stream of streams)
      stream.fail(`no end within ${STREAMS_DEADLINE_MS} ms (${stream.chunks} chunks)`);
  };
  const timer = setTimeout(late, STREAMS_DEADLINE_MS);
  const ended = Promise.all(streams.map(({ done }) => done)).then(() => clearTimeout(timer));
  return { streams, ended };
}

/**
 * Lets the fault happen in the middle of the streams, and waits for their end and for that of a second wave.
 * @param {FaultCase} faultCase @param {Fleet} fleet @param {RunOptions} options
 */
async function disturb({ arm, strike, prove }, fleet, { asks, laterAsks, injectAfter, workers }) {
  const perWorker = Math.ceil(asks.length / workers);
  const armed = (await arm?.({ fleet, streams: [], perWorker, injectAfter })) ?? [];
  const { streams, ended } = openStreams(fleet, asks);
  const rig = { fleet, streams, perWorker, injectAfter };
  await Promise.all(streams.map(stream => stream.reached(injectAfter)));
  const open = streams.filter(stream => !stream.ended);
  const blow = strike === undefined ? null : await strike(rig);
  await ended;
  const later = openStreams(fleet, laterAsks);
  await later.ended;
  const again = await placedAgain(fleet);
  const targets = [...armed, ...(blow === null ? [] : [blow.target])].map(({ listening }) => listening.url);
  const midStream = open.filter(({ worker }) => targets.includes(worker ?? ''));
  const touched = streams.filter(stream => midStream.includes(stream) || again.has(stream.id));
  const proven = prove === undefined ? blow : await prove(rig, blow, armed);
  return { streams: [...streams, ...later.streams], first: streams, touched, blow, proven };
}

/**
 * Runs one case. Rejects when the servers do not start, or when the plane itself ends.
 * @param {FaultCase} faultCase
 * @param {RunOptions} options
 * @returns {Promise<CaseResult>}
 */
export async function runCase(faultCase, options) {
  const { split, linked } = faultCase;
  const fleet = await startFleet({ ...options, split, linked });
  try {
    const before = await planeCounters(fleet);
    const stopWatch = watchReady(fleet);
    const seen = await disturb(faultCase, fleet, options).finally(() => stopWatch().catch(() => {}));
    const readyMin = await stopWatch();
    const after = await planeCounters(fleet);
    const answering = [...fleet.mocks, ...fleet.prefills].filter(answers);
    const leaks = await leaksOf(fleet, answering);
    return resultOf(faultCase, options, {
      ...seen,
      readyMin,
      leaks,
      migrations: after.migrations - before.migrations,
      retries: after.retries - before.retries,
    });
  } catch (error) {
    const died = fleet.plane.failed(); // explains all that failed after it
    throw died === undefined ? error : new Error(died);
  } finally {
    await fleet.stop();
  }
}

/**
 * @param {FaultCase} faultCase
 * @param {RunOptions} options
 * @param {Awaited<ReturnType<typeof disturb>> & { readyMin: number, leaks: Record<string, number>, migrations: number, retries: number }} seen
 * @returns {CaseResult}
 */
function resultOf(faultCase, { mode, workers, texts }, seen) {
  const { name, gapTargetMs = null, untouchable = false, touchesNone = false, split = false } = faultCase;
  const engines = split ? 2 * workers : workers;
  const { streams, first, touched, proven, readyMin, leaks, migrations, retries } = seen;
  const failed = streams.filter(({ error }) => error !== null);
  const mismatched = streams.filter(({ id, text, error }) => {
    const whole = texts.get(id) ?? '';
    return error === null ? text !== whole : !whole.startsWith(text);
  });
  const gaps = (touchesNone ? first : touched).map(({ longestGapMs }) => longestGapMs);
  const broken = [];
  if (untouchable && migrations + retries > 0)
    broken.push(`${migrations} migrations and ${retries} retries, where nothing may be aborted`);
  if (untouchable && readyMin < engines) broken.push(`only ${readyMin} of ${engines} workers were ready`);
  return {
    name,
    mode,
    happened: proven?.happened === true && (touchesNone || touched.length > 0),
    proof: proven?.proof ?? 'nothing was done',
    requests: streams.length,
    failed: failed.length,
    textMismatches: mismatched.length,
    touched: touched.length,
    gapMs: { p50: finite(percentile(gaps, 50)), p99: finite(percentile(gaps, 99)) },
    gapTargetMs,
    migrations,
    retries,
    readyMin,
    leaked: Object.keys(leaks).length,
    leaks,
    broken,
    errors: [
      ...failed.slice(0, ERROR_EXAMPLES_MAX).map(({ id, error }) => `${id}: ${error}`),
      ...mismatched
        .slice(0, ERROR_EXAMPLES_MAX)
        .map(({ id, text }) => differenceOf(id, text, texts.get(id) ?? '')),
    ],
  };
}

/** @param {number} value */
const finite = value => (Number.isFinite(value) ? value : null);

/** Where a text leaves the undisturbed one. @param {string} id @param {string} text @param {string} whole */
function differenceOf(id, text, whole) {
  let at = 0;
  while (at < text.length && text[at] === whole[at]) at += 1;
  const shown = (/** @type {string} */ of) => JSON.stringify(of.slice(at, at + 40));
  return `${id}: differs at character ${at} of ${whole.length}: ${shown(text)}, undisturbed ${shown(whole)}`;
}

/** Whether all that a case promises was kept. @param {CaseResult} result */
export const isKept = ({ happened, failed, textMismatches, leaked, broken }) =>
  happened && failed === 0 && textMismatches === 0 && leaked === 0 && broken.length === 0;
