/**
 * The decision over two workers (R4): one that computes the prompt, by the model's policy, and one that answers, by load;
 * or one that does both, where that is better or nothing else is left. Both reservations are made here, each for its share
 * of the work. Pool thread, once per ASK of a model with prefill workers.
 */
import type { DisaggRules, SplitReason } from '../messages/disagg.js';
import type { WorkerView } from '../messages/records.js';
import type { DecideAnswer, DecideRequest, Decider, Placement, ReservedShare } from './decide.js';
import { createDecodeLoad, type HandoverJudgement, judgeHandover, type WorkerFigures } from './disagg.js';
import { RESERVE_FULL, RESERVE_STALE } from './ledger.js';

/** The workers of a model by what they may do; a worker of both kinds is in both. Lists as for `Decider.decide`. */
export interface SplitWorkers {
  readonly prefill: readonly WorkerView[];
  readonly decode: readonly WorkerView[];
}

/** Where the two parts of a request go. */
export interface PairPlacement {
  readonly prefill: Placement;
  readonly decode: Placement;
  /** Why there are two. */
  readonly split: SplitReason;
}

/**
 * A pair; one worker for all of it; 'noWorker' and 'full' as in `decide`; 'noPrefill' and 'prefillFull': refused by rule.
 */
export type PairAnswer = PairPlacement | Placement | 'noWorker' | 'full' | 'noPrefill' | 'prefillFull';

/** True for an answer of two workers. */
export function isPair(answer: Exclude<PairAnswer, string>): answer is PairPlacement {
  return 'prefill' in answer;
}

const PREFILL: ReservedShare = { prefill: true, decode: false };
const DECODE: ReservedShare = { prefill: false, decode: true };
const decodeLoad = createDecodeLoad();

/** Decides; `discard` gives a reservation of this thread back. */
export function decidePair(
  decider: Decider,
  request: DecideRequest,
  policy: string,
  workers: SplitWorkers,
  rules: DisaggRules,
  discard: (reservation: number) => void,
): PairAnswer {
  // Each try that goes stale has lost a worker to another one.
  for (let tries = workers.prefill.length + workers.decode.length; tries >= 0; tries -= 1) {
    const prefill = lookForPrefill(decider, request, policy, workers.prefill, rules);
    if (prefill === 'none' && rules.whenNoPrefill === 'refuse') return 'noPrefill';
    if (prefill === 'full' && rules.whenPrefillFull === 'shed') return 'prefillFull';
    if (prefill === 'none' || prefill === 'full')
      return because(
        prefill === 'none' ? 'no_prefill' : 'prefill_full',
        decider.decide(request, policy, workers.decode),
      );
    const decode = decider.look(request, decodeLoad, workers.decode);
    const local = decider.look(request, policy, workers.decode);
    if (decode === null || local === null) return 'noWorker';
    const linkMs = decider.handovers.waitMs(prefill.slot, decode.slot);
    const prefillAnswers = answers(workers, prefill.slot);
    const options = { prefill, decode, local, prefillAnswers, linkMs };
    const judged = judgeHandover(request.promptTokens, options, rules);
    const { isRemote, split, reason, occupiesMs } = judged;
    if (!isRemote) return because(split, explained(decider.decide(request, policy, workers.decode), reason));
    const pair = reservePair(decider, request, prefill, decode, judged, discard);
    if (pair === null) continue;
    if (pair !== 'full') decider.handovers.add(prefill.slot, decode.slot, occupiesMs);
    return pair;
  }
  return 'noWorker';
}

/** The slots of each list of decode workers. */
const answering = new WeakMap<readonly WorkerView[], ReadonlySet<number>>();

/** Whether a prefill worker is a decode worker too. */
function answers({ decode }: SplitWorkers, slot: number): boolean {
  let slots = answering.get(decode);
  if (slots === undefined) {
    slots = new Set(decode.map(worker => worker.slot));
    answering.set(decode, slots);
  }
  return slots.has(slot);
}

/** The prefill worker that the policy prefers among those that have room. */
function lookForPrefill(
  decider: Decider,
  request: DecideRequest,
  policy: string,
  workers: readonly WorkerView[],
  rules: DisaggRules,
): WorkerFigures | 'none' | 'full' {
  let asked = request;
  for (;;) {
    const prefill = decider.look(asked, policy, workers);
    if (prefill === null) return asked === request ? 'none' : 'full';
    if (prefill.activePrefillTokens < rules.prefillQueueTokensMax) return prefill;
    asked = { ...asked, excludedSlots: [...asked.excludedSlots, prefill.slot] };
  }
}

/** Null: one of them was replaced in between. */
function reservePair(
  decider: Decider,
  request: DecideRequest,
  prefill: WorkerFigures,
  decode: WorkerFigures,
  { reason, split }: HandoverJudgement,
  discard: (reservation: number) => void,
): PairPlacement | 'full' | null {
  const first = decider.reserve(request, prefill, PREFILL);
  if (first === RESERVE_FULL) return 'full';
  if (first === RESERVE_STALE) return null;
  const second = decider.reserve(request, decode, DECODE);
  if (second !== RESERVE_FULL && second !== RESERVE_STALE) {
    return {
      prefill: placed(prefill, first, `prefill (${reason}): ${prefill.reason}`),
      decode: placed(decode, second, `prefill elsewhere (${reason}), ${decode.reason}`),
      split,
    };
  }
  discard(first);
  return second === RESERVE_FULL ? 'full' : null;
}

function placed(
  { slot, generation, cachedTokens }: WorkerFigures,
  reservation: number,
  reason: string,
): Placement {
  return { slot, generation, reservation, cachedTokens, reason, candidates: null };
}

/** The answer with the reason why there is no prefill elsewhere. */
export function because(split: SplitReason, answer: DecideAnswer): DecideAnswer {
  return typeof answer === 'string' ? answer : { ...answer, split };
}

function explained(answer: DecideAnswer, why: string): DecideAnswer {
  return typeof answer === 'string'
    ? answer
    : { ...answer, reason: `prefill here (${why}): ${answer.reason}` };
}
