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

/**
 * Whether `prefill` computes the prompt and `decode` answers, or `local` does both. `local` may be `decode` itself or a
 * decode worker that has more of the prompt.
 */
export function judgeHandover(
  promptTokens: number,
  { prefill, decode, local }: Readonly<Record<'prefill' | 'decode' | 'local', WorkerFigures>>,
  rules: DisaggRules,
): HandoverJudgement {
  const judged = (isRemote: boolean, split: SplitReason, reason: string): HandoverJudgement => ({
    isRemote,
    split,
    reason,
  });
  if (prefill.slot === decode.slot) return judged(false, 'same_worker', 'one worker is the best for both');
  if (rules.policy === 'always') return judged(true, 'default', 'always');
  const kvShare = local.decodeBlocks / local.totalBlocks;
  if (kvShare > rules.decodeKvBusy)
    return judged(true, 'decode_busy', `KV of the decode worker is ${(100 * kvShare).toFixed(0)} % in use`);
  if (rules.policy === 'cost') return judgeCost(promptTokens, prefill, decode, local, rules);
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
  prefill: WorkerFigures,
  decode: WorkerFigures,
  local: WorkerFigures,
  rules: DisaggRules,
): HandoverJudgement {
  const handed = Math.max(promptTokens - decode.cachedTokens, 0);
  const handoverMs = rules.handoverMs + rules.handoverMsPerToken * handed;
  const remoteMs = computeMs(promptTokens, prefill, rules.decodeWeight) + handoverMs;
  const localMs = computeMs(promptTokens, local, rules.decodeWeight);
  return {
    isRemote: remoteMs < localMs,
    split: 'cost',
    reason: `${remoteMs.toFixed(0)} ms with hand-over, ${localMs.toFixed(0)} ms without`,
  };
}

/** Time until the prompt is computed there, and what that costs the answers that run there. */
function computeMs(promptTokens: number, worker: WorkerFigures, decodeWeight: number): number {
  const { cachedTokens, queuedTokens, requests, decodeMs, slowness } = worker;
  const own = Math.max(promptTokens - cachedTokens, 1);
  const untilDoneMs = expectedPrefillMs(queuedTokens + own, requests === 0 ? 0 : decodeMs);
  return slowness * (untilDoneMs + decodeWeight * requests * own * FULL_PASS_TOKEN_MS);
}
