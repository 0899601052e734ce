/**
 * The faults of the fault bench, one entry each: how it is committed, how it is proven to have happened (by the kernel, the
 * exit status or the engine's own counters, never by the plane), and what the case promises beyond whole answers.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fetched } from './fault-fleet.js';

const EXIT_DEADLINE_MS = 5000;
/** Shorter than one probe deadline and than the silence that a stream may have: no check can have failed. */
const SHORT_STOP_MS = 700;
/** More requests than any run sends. */
const ALL_REQUESTS = 1_000_000;

/**
 * @typedef {import('./fault-fleet.js').Server} Server
 *
 * @typedef {object} Rig  A running case.
 * @property {import('./fault-fleet.js').Fleet} fleet
 * @property {readonly import('./fault-stream.js').FaultStream[]} streams  Empty until the load has begun.
 * @property {number} perWorker  Streams that each worker gets first, rounded up.
 * @property {number} injectAfter  Chunks that a stream has had when the fault strikes.
 *
 * @typedef {object} Blow  A fault that was committed on purpose at one moment.
 * @property {Server} target
 * @property {boolean} happened
 * @property {string} proof
 *
 * @typedef {object} FaultCase
 * @property {string} name
 * @property {string} what  One line for `--help`.
 * @property {number} [gapTargetMs]  Wished longest pause at p99; printed beside, never judged.
 * @property {boolean} [untouchable]  No stream may be moved or asked for again, and no worker may be removed.
 * @property {(rig: Rig) => Promise<Server[]>} [arm]  Before the load. Resolves with the engines whose streams are touched.
 * @property {(rig: Rig) => Promise<Blow>} [strike]  When every stream is in the middle.
 * @property {(rig: Rig, blow: Blow | null, armed: readonly Server[]) => Promise<{ happened: boolean, proof: string }>} [prove]
 *   After the load; absent: the blow's own proof counts.
 */

/** The engine with the most open streams. @param {Rig} rig @returns {Server} */
function busiest({ fleet, streams }) {
  const open = (/** @type {Server} */ mock) =>
    streams.filter(stream => !stream.ended && stream.worker === mock.listening.url).length;
  return fleet.mocks.reduce((most, mock) => (open(mock) > open(most) ? mock : most));
}

/** State of a process by the kernel: `T` is stopped. @param {number} pid */
function stateOf(pid) {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  return stat.slice(stat.lastIndexOf(')') + 2).charAt(0); // the name before it may hold anything
}

/** Waits until the kernel shows the process as stopped, or not any more. @param {number} pid @param {boolean} stopped */
async function untilStopped(pid, stopped) {
  const deadline = performance.now() + EXIT_DEADLINE_MS;
  while ((stateOf(pid) === 'T') !== stopped) {
    if (performance.now() > deadline) return stateOf(pid);
    await sleep(1);
  }
  return stateOf(pid);
}

/** @param {Server} mock */
const nameOf = mock => `engine ${mock.pid}`;

/** Sends a signal that ends the busiest engine, and waits for its end. @param {'SIGKILL' | 'SIGTERM'} sent */
const ending = sent => async (/** @type {Rig} */ rig) => {
  const target = busiest(rig);
  process.kill(target.pid, sent);
  const late = sleep(EXIT_DEADLINE_MS, null, { ref: false });
  const exit = await Promise.race([target.exited, late]);
  const how = exit === null ? 'has not ended' : `ended with ${exit.signal ?? `code ${exit.code}`}`;
  const happened = exit !== null && (sent === 'SIGTERM' ? exit.code === 0 : exit.signal === sent);
  return { target, happened, proof: `${nameOf(target)} ${how}` };
};

/** @param {Rig} rig */
async function stopShortly(rig) {
  const target = busiest(rig);
  process.kill(target.pid, 'SIGSTOP');
  const held = await untilStopped(target.pid, true);
  await sleep(SHORT_STOP_MS); // the length of the fault itself
  const stillHeld = stateOf(target.pid);
  process.kill(target.pid, 'SIGCONT');
  const after = await untilStopped(target.pid, false);
  const happened = held === 'T' && stillHeld === 'T' && after !== 'T';
  return { target, happened, proof: `${nameOf(target)} was ${held} for ${SHORT_STOP_MS} ms, then ${after}` };
}

/** @param {Rig} rig */
async function stopForGood(rig) {
  const target = busiest(rig);
  process.kill(target.pid, 'SIGSTOP');
  const state = await untilStopped(target.pid, true);
  return { target, happened: state === 'T', proof: `${nameOf(target)} is ${state}` };
}

/** @param {Rig} _rig @param {Blow | null} blow */
async function stillStopped(_rig, blow) {
  if (blow === null) return { happened: false, proof: 'no engine was stopped' };
  const state = stateOf(blow.target.pid);
  return { happened: blow.happened && state === 'T', proof: `${blow.proof}, and ${state} after the load` };
}

/**
 * Arms faults at the first `engines` of the fleet.
 * @param {(rig: Rig) => import('./fault-probe.js').ArmedFaults[]} faults
 * @param {(rig: Rig) => number} engines
 */
const arming = (faults, engines) => async (/** @type {Rig} */ rig) => {
  const targets = rig.fleet.mocks.slice(0, engines(rig));
  await Promise.all(targets.map(mock => mock.ask({ arm: faults(rig) }, 0)));
  return targets;
};

/** Every armed engine counts at least one such fault. @param {string} kind */
const counted =
  kind =>
  async (
    /** @type {Rig} */ _rig,
    /** @type {Blow | null} */ _blow,
    /** @type {readonly Server[]} */ armed,
  ) => {
    const counts = await Promise.all(armed.map(async mock => (await mock.ask({}, 0)).fired[kind] ?? 0));
    const happened = counts.length > 0 && counts.every(count => count > 0);
    return { happened, proof: `engines count ${counts.join(', ')} × ${kind}` };
  };

/** As above, and the engine says that it is well. @param {Rig} rig @param {Blow | null} blow @param {readonly Server[]} armed */
async function silentAndWell(rig, blow, armed) {
  const { happened, proof } = await counted('stall')(rig, blow, armed);
  await Promise.all(armed.map(mock => fetched(`${mock.listening.url}/health`)));
  return { happened, proof: `${proof}, and answer 200 on /health` };
}

const one = () => 1;

/** All cases, in the order in which they run. @type {readonly FaultCase[]} */
export const FAULT_CASES = [
  {
    name: 'none',
    what: 'no fault: what the machine and the bench themselves do to a stream',
    untouchable: true,
    prove: async () => ({ happened: true, proof: 'nothing is done' }),
  },
  {
    name: 'sigkill',
    what: 'SIGKILL of an engine in mid-stream',
    gapTargetMs: 2000,
    strike: ending('SIGKILL'),
  },
  {
    name: 'sigterm',
    what: 'SIGTERM of an engine, which cuts its streams and exits',
    gapTargetMs: 1000,
    strike: ending('SIGTERM'),
  },
  {
    name: 'sigstop-short',
    what: `SIGSTOP for ${SHORT_STOP_MS} ms, then SIGCONT: nothing is aborted, no worker is removed`,
    untouchable: true,
    strike: stopShortly,
  },
  { name: 'sigstop', what: 'SIGSTOP for good', strike: stopForGood, prove: stillStopped },
  {
    name: 'silent',
    what: 'an engine answers its health route and sends nothing any more, to old streams and to new ones',
    arm: arming(
      ({ perWorker, injectAfter }) => [
        { kind: 'stall', afterTokens: injectAfter, requests: perWorker },
        { kind: 'stall', afterTokens: 0, requests: ALL_REQUESTS },
      ],
      one,
    ),
    prove: silentAndWell,
  },
  {
    name: 'error-burst',
    what: 'half of the engines answer 500 to the whole first burst',
    arm: arming(
      ({ perWorker }) => [{ kind: 'error500', afterTokens: 0, requests: perWorker }],
      ({ fleet }) => fleet.mocks.length >> 1,
    ),
    prove: counted('error500'),
  },
  {
    name: 'half-frame',
    what: 'an engine sends half a frame in mid-stream and closes the connection',
    gapTargetMs: 2000,
    arm: arming(
      ({ perWorker, injectAfter }) => [{ kind: 'halfFrame', afterTokens: injectAfter, requests: perWorker }],
      one,
    ),
    prove: counted('halfFrame'),
  },
  {
    name: 'bad-frame',
    what: 'an engine sends a frame that is no JSON in mid-stream, then nothing',
    gapTargetMs: 2000,
    arm: arming(
      ({ perWorker, injectAfter }) => [{ kind: 'badFrame', afterTokens: injectAfter, requests: perWorker }],
      one,
    ),
    prove: counted('badFrame'),
  },
];
