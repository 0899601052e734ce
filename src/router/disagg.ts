/**
 * Prefill elsewhere or not (R4): the choice of a decode worker, which is by load alone, and the comparison of a prompt
 * computed by a prefill worker and handed over with one computed where it is answered. The rules `isl-bounding` and
 * `prefill-load` and their figures are those of Dynamo's conditional disaggregation; `cost` compares expected milliseconds.
 * Pure; pool thread.
 */
import type { DisaggRules, SplitReason } from '../messages/disagg.js';
import type { Selector } from './contract.js';
import { lowest } from './policies/lowest.js';
import { expectedPrefillMs, FULL_PASS_TOKEN_MS } from './prefill-model.js';

/**
 * Weights of a millisecond of waiting; one of computing weighs 1. Who joins a queue that will not drain for a time delays not
 * only itself but all that come until it has: 1 ÷ (1 − u) milliseconds in all where the queue is busy for a share u of the
 * time. Prefill workers are there to be busy: u = 0.75. Links are not, since a prompt can always be computed where it is
 * answered and one that many requests share is sent for each of them: u = 0.93. Tuned together with `decodeWeight` 1, by
 * which each answer that stands still counts as much as the request itself, in virtual replays of a conversation trace and
 * eight made workloads: 8 workers, 1 to 4 of them for prefill, 0.4 to 1.1 of what an aggregated fleet carries. With 10 for
 * prompts prefill workers idle while answers stand still (multi-turn: mean E2E 8 % above always); with 3 for links siblings
 * of one prompt queue for seconds at a full link (fan-out: mean E2E up to 1.7 times that of an aggregated fleet).
 */
const QUEUE_WEIGHT = 4;
const LINK_WEIGHT = 15;

/** A worker as a decision saw it, before anything is reserved on it. Units as in Candidates. */
export interface WorkerFigures {
  readonly slot: number;
  readonly generation: number;
  readonly requests: number;
  readonly activePrefillTokens: number;
  readonly queuedTokens: number;
  readonly decodeBlocks: number;
  readonly totalBlocks: number;
  readonly blockSize: number;
  readonly decodeMs: number;
  readonly slowness: number;
  readonly cachedTokens: number;
  /** Why the selector took it, in words. */
  readonly reason: string;
}

/** What a comparison came to. */
export interface HandoverJudgement {
  readonly isRemote: boolean;
  readonly split: SplitReason;
  /** In words, with the figures that decided. */
  readonly reason: string;
  /** For how long the hand-over would occupy the links of both workers. */
  readonly occupiesMs: number;
}

type Judgement = Omit<HandoverJudgement, 'occupiesMs'>;

/** What is compared. */
export interface HandoverOptions {
  readonly prefill: WorkerFigures;
  readonly decode: WorkerFigures;
  /** The best worker for both parts: `decode` itself, or a decode worker that has more of the prompt. */
  readonly local: WorkerFigures;
  /** `prefill` is a decode worker too. */
  readonly prefillAnswers: boolean;
  /** Milliseconds until hand-overs that were decided before have left the links between `prefill` and `decode`. */
  readonly linkMs: number;
}

/** The selector of decode workers: fewest KV blocks in use, of a common size, and requests. Its credit for a prefix is 0. */
export function createDecodeLoad(): Selector {
  let costs = new Float64Array(64);
  return {
    policy: 'decode-load',
    usesPrefix: true,
    usesTiming: true,
    pick(_request, candidates, random) {
      const { count, decodeBlocks, totalBlocks, requests } = candidates;
      if (costs.length < count) costs = new Float64Array(candidates.slots.length);
      let largest = 0;
      for (let row = 0; row < count; row += 1) largest = Math.max(largest, totalBlocks[row]!);
      for (let row = 0; row < count; row += 1) {
        // Workers that do not say how many blocks they have are compared as if all were alike.
        const scale = Number.isFinite(largest) ? largest / totalBlocks[row]! : 1;
        costs[row] = decodeBlocks[row]! * scale + requests[row]!;
      }
      const { row, score, ties } = lowest(costs, count, random);
      return { row, reason: `decode-load: ${score.toFixed(0)}, ${ties} equal` };
    },
  };
}

/** Whether `prefill` computes the prompt and `decode` answers, or `local` does both. */
export function judgeHandover(
  promptTokens: number,
  options: HandoverOptions,
  rules: DisaggRules,
): HandoverJudgement {
  const handed = Math.max(promptTokens - options.decode.cachedTokens, 0);
  const occupiesMs = rules.handoverMsPerToken * handed;
  return { ...judge(promptTokens, options, rules, occupiesMs), occupiesMs };
}

function judge(
  promptTokens: number,
  options: HandoverOptions,
  rules: DisaggRules,
  occupiesMs: number,
): Judgement {
  const { prefill, decode, local } = options;
  const judged = (isRemote: boolean, split: SplitReason, reason: string): Judgement => ({
    isRemote,
    split,
    reason,
  });
  if (prefill.slot === decode.slot) return judged(false, 'same_worker', 'one worker is the best for both');
  if (rules.policy === 'always') return judged(true, 'default', 'always');
  const kvShare = local.decodeBlocks / local.totalBlocks;
  if (kvShare > rules.decodeKvBusy)
    return judged(true, 'decode_busy', `KV of the decode worker is ${(100 * kvShare).toFixed(0)} % in use`);
  if (rules.policy === 'cost') return judgeCost(promptTokens, options, rules, occupiesMs);
  const ownTokens = Math.max(promptTokens - local.cachedTokens, 0);
  const ratio = ownTokens / Math.max(promptTokens, 1);
  const toCompute = `${ownTokens} of ${promptTokens} tokens to compute`;
  if (rules.policy !== 'prefill-load' && ownTokens < rules.effIslMax && ratio <= rules.effIslRatioMax)
    return judged(false, 'isl', toCompute);
  const { activePrefillTokens } = prefill;
  if (rules.policy !== 'isl-bounding' && activePrefillTokens > rules.prefillBusyTokens)
    return judged(false, 'prefill_busy', `${activePrefillTokens} tokens wait at the prefill worker`);
  return judged(true, 'default', toCompute);
}

function judgeCost(
  promptTokens: number,
  { prefill, decode, local, prefillAnswers, linkMs }: HandoverOptions,
  rules: DisaggRules,
  occupiesMs: number,
): Judgement {
  const there = computing(promptTokens, prefill, prefillAnswers);
  const linkWaitMs = Math.max(linkMs - there.waitMs - there.ownMs, 0);
  // A prompt that is computed where it is answered has this step in its own pass.
  const stepMs = decode.requests === 0 ? 0 : decode.decodeMs;
  const handoverMs = rules.handoverMs + occupiesMs + stepMs;
  const remoteMs = costOf(there, linkWaitMs, rules.decodeWeight) + handoverMs;
  const localMs = costOf(computing(promptTokens, local, true), 0, rules.decodeWeight);
  return {
    isRemote: remoteMs < localMs,
    split: 'cost',
    reason: `cost ${remoteMs.toFixed(0)} ms with hand-over, ${localMs.toFixed(0)} ms without`,
  };
}

/** Computing of one prompt on one worker, in milliseconds. */
interface Computing {
  /** For what is queued before it. */
  readonly waitMs: number;
  readonly ownMs: number;
  /** For which running answers stand still, all together. */
  readonly stallMs: number;
}

/** `answers`: its requests are answers that run; where it only computes prompts they wait, and are in its queue already. */
function computing(
  promptTokens: number,
  { cachedTokens, queuedTokens, requests, decodeMs, slowness }: WorkerFigures,
  answers: boolean,
): Computing {
  const own = Math.max(promptTokens - cachedTokens, 1);
  const running = answers ? requests : 0;
  const stepMs = running === 0 ? 0 : decodeMs;
  const ownMs = slowness * expectedPrefillMs(own, stepMs);
  const untilMs = slowness * expectedPrefillMs(queuedTokens + own, stepMs);
  return { waitMs: untilMs - ownMs, ownMs, stallMs: slowness * running * own * FULL_PASS_TOKEN_MS };
}

/** Milliseconds of this request and, by weight, of the others. */
function costOf({ waitMs, ownMs, stallMs }: Computing, linkWaitMs: number, decodeWeight: number): number {
  return ownMs + QUEUE_WEIGHT * waitMs + LINK_WEIGHT * linkWaitMs + decodeWeight * stallMs;
}
