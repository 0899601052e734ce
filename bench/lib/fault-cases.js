/** The faults of the fault bench, in the order in which they run: what each does, to whom and when, and how it is proven. */
import {
  allKilled,
  arming,
  busiest,
  counted,
  ending,
  killingFirst,
  killLink,
  SHORT_STOP_MS,
  silentAndWell,
  stillStopped,
  stopForGood,
  stopShortly,
  withHandOvers,
  withoutHandOvers,
} from './fault-blows.js';

/** More requests than any run sends. */
const ALL_REQUESTS = 1_000_000;
/** One of so many hand-overs of a prefill engine fails: 5 %. */
const HAND_OVERS_PER_FAILURE = 20;

/**
 * @typedef {import('./fault-blows.js').Rig} Rig
 * @typedef {import('./fault-blows.js').FaultCase} FaultCase
 * @typedef {import('./fault-probe.js').ArmedFaults['kind']} FaultKind
 */

/** The first engine that answers requests. @param {Rig} rig */
const first = ({ fleet }) => fleet.mocks.slice(0, 1);

/** The first engine that only computes prompts. @param {Rig} rig */
const firstPrefill = ({ fleet }) => fleet.prefills.slice(0, 1);

/** All streams that an engine gets first meet a fault in their middle. @param {FaultKind} kind @returns {(rig: Rig) => import('./fault-probe.js').ArmedFaults[]} */
const inMiddle =
  kind =>
  ({ perWorker, injectAfter }) => [{ kind, afterTokens: injectAfter, requests: perWorker }];

/** The proof of the blow itself. @type {NonNullable<FaultCase['prove']>} */
const asStruck = async (_rig, blow) => blow ?? { happened: false, proof: 'nothing was done' };

/** Every 20th hand-over of an engine fails; those of several engines take turns. @param {Rig} rig @param {number} at @returns {import('./fault-probe.js').ArmedFaults[]} */
function handOverFailures({ fleet, perWorker }, at) {
  const before = 1 + Math.floor((at * HAND_OVERS_PER_FAILURE) / fleet.prefills.length);
  const rounds = 1 + Math.ceil((perWorker * fleet.mocks.length) / HAND_OVERS_PER_FAILURE);
  const round = [
    { kind: /** @type {const} */ ('handoverFailure'), afterTokens: 0, requests: 1 },
    { kind: null, afterTokens: 0, requests: HAND_OVERS_PER_FAILURE - 1 },
  ];
  const all = Array.from({ length: rounds }, () => round).flat();
  return [{ kind: null, afterTokens: 0, requests: before }, ...all];
}

/** @type {readonly FaultCase[]} */
const AGGREGATED = [
  {
    name: 'none',
    what: 'no fault: what the machine and the bench themselves do to a stream',
    untouchable: true,
    touchesNone: true,
    prove: async () => ({ happened: true, proof: 'nothing is done' }),
  },
  {
    name: 'sigkill',
    what: 'SIGKILL of an engine in mid-stream',
    gapTargetMs: 2000,
    strike: ending('SIGKILL', busiest),
  },
  {
    name: 'sigterm',
    what: 'SIGTERM of an engine, which cuts its streams and exits',
    gapTargetMs: 1000,
    strike: ending('SIGTERM', busiest),
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
      rig => [...inMiddle('stall')(rig), { kind: 'stall', afterTokens: 0, requests: ALL_REQUESTS }],
      first,
    ),
    prove: silentAndWell,
  },
  {
    name: 'error-burst',
    what: 'half of the engines answer 500 to the whole first burst',
    arm: arming(
      ({ perWorker }) => [{ kind: 'error500', afterTokens: 0, requests: perWorker }],
      ({ fleet }) => fleet.mocks.slice(0, fleet.mocks.length >> 1),
    ),
    prove: counted('error500'),
  },
  {
    name: 'half-frame',
    what: 'an engine sends half a frame in mid-stream and closes the connection',
    gapTargetMs: 2000,
    arm: arming(inMiddle('halfFrame'), first),
    prove: counted('halfFrame'),
  },
  {
    name: 'bad-frame',
    what: 'an engine sends a frame that is no JSON in mid-stream, then nothing',
    gapTargetMs: 2000,
    arm: arming(inMiddle('badFrame'), first),
    prove: counted('badFrame'),
  },
];

/** @type {readonly FaultCase[]} */
const SPLIT = [
  {
    name: 'split-none',
    what: 'no fault, with prefill and decode on workers of their own',
    untouchable: true,
    touchesNone: true,
    prove: withHandOvers(async () => ({ happened: true, proof: 'nothing is done' }), true),
  },
  {
    name: 'prefill-before',
    what: 'SIGKILL of a prefill engine right before the load',
    touchesNone: true,
    arm: killingFirst(firstPrefill),
    prove: withHandOvers(allKilled),
  },
  {
    name: 'prefill-during',
    what: 'SIGKILL of a prefill engine when its second prompt arrives',
    touchesNone: true,
    arm: arming(
      () => [
        { kind: null, afterTokens: 0, requests: 1 },
        { kind: 'sigkill', afterTokens: 0, requests: 1 },
      ],
      firstPrefill,
    ),
    prove: withHandOvers(allKilled),
  },
  {
    name: 'prefill-after',
    what: 'SIGKILL of a prefill engine when all its prompts have been handed over',
    touchesNone: true,
    strike: ending('SIGKILL', ({ fleet }) => fleet.prefills[0]),
    prove: withHandOvers(asStruck),
  },
  {
    name: 'split-sigkill',
    what: 'SIGKILL of a decode engine in mid-stream',
    gapTargetMs: 2000,
    strike: ending('SIGKILL', busiest),
    prove: withHandOvers(asStruck),
  },
  {
    name: 'hand-over-5',
    what: '5 % of the hand-overs fail',
    touchesNone: true,
    arm: arming(handOverFailures, ({ fleet }) => fleet.prefills),
    prove: withHandOvers(counted('handoverFailure', 'together')),
  },
  {
    name: 'prefill-gone',
    what: 'SIGKILL of all prefill engines right before the load: decode engines compute the prompts',
    touchesNone: true,
    arm: killingFirst(({ fleet }) => fleet.prefills),
    prove: withoutHandOvers(allKilled),
  },
].map(faultCase => ({ ...faultCase, split: true }));

/** @type {FaultCase} */
const LINK = {
  name: 'link-sigkill',
  what: 'SIGKILL of `millrace worker` in mid-stream, while its engine lives',
  linked: true,
  gapTargetMs: 2000,
  strike: killLink,
};

/** All cases, in the order in which they run. @type {readonly FaultCase[]} */
export const FAULT_CASES = [...AGGREGATED, ...SPLIT, LINK];
