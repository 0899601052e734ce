/**
 * How the fault bench disturbs engines, and how each disturbance is proven: by the kernel, by the exit status that the parent
 * was told, or by the engine's own counters, never by what the plane says.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fetched, sumOf } from './fault-fleet.js';

const EXIT_DEADLINE_MS = 5000;
/** Shorter than one probe deadline and than the silence that a stream may have: no check can have failed. */
export const SHORT_STOP_MS = 700;

/**
 * @typedef {import('./fault-fleet.js').Server} Server
 * @typedef {{ happened: boolean, proof: string }} Proof
 *
 * @typedef {object} Rig  A running case.
 * @property {import('./fault-fleet.js').Fleet} fleet
 * @property {readonly import('./fault-stream.js').FaultStream[]} streams  Empty until the load has begun.
 * @property {number} perWorker  Streams that each worker gets first, rounded up.
 * @property {number} injectAfter  Chunks that a stream has had when the fault strikes.
 *
 * @typedef {Proof & { target: Server }} Blow  A fault that was committed at one moment.
 *
 * @typedef {object} FaultCase
 * @property {string} name
 * @property {string} what  One line for `--help`.
 * @property {boolean} [split]  Prefill and decode on workers of their own; absent: every worker does both.
 * @property {boolean} [linked]  A `millrace worker` beside every engine; absent: the plane asks them over HTTP.
 * @property {number} [gapTargetMs]  Wished longest pause at p99; printed beside, never judged.
 * @property {boolean} [untouchable]  No stream may be moved or asked for again, and no worker may be removed.
 * @property {boolean} [touchesNone]  The fault need not meet a stream; the pauses are those of all streams.
 * @property {(rig: Rig) => Promise<Server[]>} [arm]  Before the load. Resolves with the engines that it was done to.
 * @property {(rig: Rig) => Promise<Blow>} [strike]  When every stream is in the middle.
 * @property {(rig: Rig, blow: Blow | null, armed: readonly Server[]) => Promise<Proof>} [prove]  After the load; absent: the
 *   blow's own proof counts.
 */

/** The engine with the most open streams. @param {Rig} rig @returns {Server} */
export function busiest({ fleet, streams }) {
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
  while ((stateOf(pid) === 'T') !== stopped && performance.now() < deadline) await sleep(1);
  return stateOf(pid);
}

/** Whether an engine can be asked: it has neither ended nor been stopped. @param {Server} mock */
export const answers = mock => mock.failed() === undefined && stateOf(mock.pid) !== 'T';

/** @param {Server} mock */
const nameOf = mock => `engine ${mock.pid}`;

/** How a process has ended by a signal, waiting for it up to a deadline. @param {Server} target @param {'SIGKILL' | 'SIGTERM'} sent @param {string} [name] @returns {Promise<Proof>} */
async function endOf(target, sent, name = nameOf(target)) {
  const exit = await Promise.race([target.exited, sleep(EXIT_DEADLINE_MS, null, { ref: false })]);
  const how = exit === null ? 'has not ended' : `ended with ${exit.signal ?? `code ${exit.code}`}`;
  const happened = exit !== null && (sent === 'SIGTERM' ? exit.code === 0 : exit.signal === sent);
  return { happened, proof: `${name} ${how}` };
}

/** Ends an engine of the rig. @param {'SIGKILL' | 'SIGTERM'} sent @param {(rig: Rig) => Server} choose */
export const ending = (sent, choose) => async (/** @type {Rig} */ rig) => {
  const target = choose(rig);
  process.kill(target.pid, sent);
  return { target, ...(await endOf(target, sent)) };
};

/** Kills engines before the load. @param {(rig: Rig) => readonly Server[]} choose */
export const killingFirst = choose => async (/** @type {Rig} */ rig) => {
  const targets = [...choose(rig)];
  for (const { pid } of targets) process.kill(pid, 'SIGKILL');
  await Promise.all(targets.map(target => endOf(target, 'SIGKILL')));
  return targets;
};

/** Every engine that was armed or killed before the load has ended with SIGKILL. @param {Rig} _rig @param {Blow | null} _blow @param {readonly Server[]} armed @returns {Promise<Proof>} */
export async function allKilled(_rig, _blow, armed) {
  const ends = await Promise.all(armed.map(target => endOf(target, 'SIGKILL')));
  const happened = ends.length > 0 && ends.every(end => end.happened);
  return { happened, proof: ends.map(({ proof }) => proof).join(', ') };
}

/** Stops the busiest engine for a while. @param {Rig} rig @returns {Promise<Blow>} */
export async function stopShortly(rig) {
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

/** Stops the busiest engine for good. @param {Rig} rig @returns {Promise<Blow>} */
export async function stopForGood(rig) {
  const target = busiest(rig);
  process.kill(target.pid, 'SIGSTOP');
  const state = await untilStopped(target.pid, true);
  return { target, happened: state === 'T', proof: `${nameOf(target)} is ${state}` };
}

/** The stopped engine is so still. @param {Rig} _rig @param {Blow | null} blow @returns {Promise<Proof>} */
export async function stillStopped(_rig, blow) {
  if (blow === null) return { happened: false, proof: 'no engine was stopped' };
  const state = stateOf(blow.target.pid);
  return { happened: blow.happened && state === 'T', proof: `${blow.proof}, and ${state} after the load` };
}

/**
 * Arms faults at engines before the load, which `faults` tells for each by its place among the chosen.
 * @param {(rig: Rig, at: number) => import('./fault-probe.js').ArmedFaults[]} faults
 * @param {(rig: Rig) => readonly Server[]} choose
 */
export const arming = (faults, choose) => async (/** @type {Rig} */ rig) => {
  const targets = [...choose(rig)];
  await Promise.all(targets.map((mock, at) => mock.ask({ arm: faults(rig, at) }, 0)));
  return targets;
};

/**
 * The armed engines count such faults: each of them at least one, or all together.
 * @param {string} kind @param {'each' | 'together'} [who] @returns {NonNullable<FaultCase['prove']>}
 */
export const counted =
  (kind, who = 'each') =>
  async (_rig, _blow, armed) => {
    const counts = await Promise.all(armed.map(async mock => (await mock.ask({}, 0)).fired[kind] ?? 0));
    const isCounted = (/** @type {number} */ count) => count > 0;
    const happened = who === 'each' ? counts.length > 0 && counts.every(isCounted) : counts.some(isCounted);
    return { happened, proof: `engines count ${counts.join(', ')} × ${kind}` };
  };

/** Every armed engine counts silent streams, and says that it is well. @type {NonNullable<FaultCase['prove']>} */
export async function silentAndWell(rig, blow, armed) {
  const { happened, proof } = await counted('stall')(rig, blow, armed);
  await Promise.all(armed.map(mock => fetched(`${mock.listening.url}/health`)));
  return { happened, proof: `${proof}, and answer 200 on /health` };
}

/** Answers that an engine broke off because its peer went away, as it counts them. @param {Server} mock */
const abortsOf = async mock =>
  sumOf(
    await fetched(`${mock.listening.url}/metrics`),
    'vllm:request_success_total',
    'finished_reason="abort"',
  );

/**
 * Kills the worker link beside the busiest engine. The engine's streams ran over it: the engine sees the peer of each of
 * them go away. @param {Rig} rig @returns {Promise<Blow>}
 */
export async function killLink(rig) {
  const { fleet, streams } = rig;
  const target = busiest(rig);
  const agent = fleet.agents[fleet.mocks.indexOf(target)];
  const before = await abortsOf(target);
  const open = streams.filter(({ ended, worker }) => !ended && worker === target.listening.url).length;
  process.kill(agent.pid, 'SIGKILL');
  const { happened, proof } = await endOf(agent, 'SIGKILL', `link process ${agent.pid}`);
  const deadline = performance.now() + EXIT_DEADLINE_MS;
  let cut = 0;
  do cut = (await abortsOf(target)) - before;
  while (cut < open && performance.now() < deadline);
  const told = `${proof}, which cut ${cut} of the ${open} streams of ${nameOf(target)}; the engine lives`;
  return { target, happened: happened && open > 0 && cut === open && answers(target), proof: told };
}

/**
 * As `prove` says, and every living prefill engine has handed prompts over, none much more than another.
 * @param {NonNullable<FaultCase['prove']>} prove
 * @param {boolean} [ofAll]  Every stream has had a prompt that was handed over.
 * @returns {NonNullable<FaultCase['prove']>}
 */
export const withHandOvers =
  (prove, ofAll = false) =>
  async (rig, blow, armed) => {
    const { happened, proof } = await prove(rig, blow, armed);
    const counted = (/** @type {readonly Server[]} */ mocks) =>
      Promise.all(mocks.filter(answers).map(mock => mock.ask({}, 0)));
    const given = (await counted(rig.fleet.prefills)).map(counts => Number(counts.given));
    const taken = (await counted(rig.fleet.mocks)).map(counts => Number(counts.taken));
    const sum = (/** @type {readonly number[]} */ of) => of.reduce((total, one) => total + one, 0);
    const isSpread = given.length > 0 && Math.min(...given) * 2 * given.length >= sum(given);
    const isEnough = sum(given) > 0 && sum(taken) >= (ofAll ? rig.streams.length : 1);
    return {
      happened: happened && isSpread && isEnough,
      proof: `${proof}; prefill engines handed over ${given.join(', ')} prompts, decode engines took ${taken.join(', ')}`,
    };
  };

/** Nobody handed a prompt over: decode engines have computed all of them. @param {NonNullable<FaultCase['prove']>} prove @returns {NonNullable<FaultCase['prove']>} */
export const withoutHandOvers = prove => async (rig, blow, armed) => {
  const { happened, proof } = await prove(rig, blow, armed);
  const counts = await Promise.all(rig.fleet.mocks.filter(answers).map(mock => mock.ask({}, 0)));
  const taken = counts.map(one => Number(one.taken));
  return {
    happened: happened && taken.every(count => count === 0),
    proof: `${proof}; decode engines took ${taken.join(', ')} prompts from elsewhere`,
  };
};
