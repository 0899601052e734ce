/**
 * Planning of requests whose prompt one worker computes and another one answers (R3, R4): which workers may do which part,
 * the decision over both, and the two steps of the call. Pool thread; pure but for the decider's reservations.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import type { EncodedCall } from '../engines/contract.js';
import { PEER_FIELDS } from '../engines/disagg/contract.js';
import { FRONT } from '../engines/disagg/json-bytes.js';
import { computesPrompts, protocolOf } from '../engines/disagg/protocols.js';
import { InvalidRequestError } from '../errors.js';
import type { DisaggProtocolName, DisaggView, SplitReason } from '../messages/disagg.js';
import type { ModelView, PlanStep, WorkerView } from '../messages/records.js';
import type { TokenRequest } from '../messages/token-request.js';
import type { DecideAnswer, DecideRequest, Decider, Placement } from '../router/decide.js';
import { because, decidePair, isPair, type PairPlacement, type SplitWorkers } from '../router/decide-pair.js';
import { prefillRefusal } from './plan-refusals.js';

/** Below it every room and the ones after it are numbers that JSON keeps in every language. */
const ROOMS = 2 ** 53 - 1024;
/** Rules where decode workers compute no prompts. */
const NEVER_LOCAL = { policy: 'always', whenNoPrefill: 'refuse', whenPrefillFull: 'shed' } as const;

/** Throws for a request that names memory or workers of the fleet by itself. */
export function refusePeerFields({ raw }: TokenRequest): void {
  const field = PEER_FIELDS.find(name => (raw[name] ?? null) !== null);
  if (field === undefined) return;
  const message = `${field} is set between workers; a client must leave it out`;
  throw new InvalidRequestError('MILLRACE_INVALID_REQUEST', message, { param: field });
}

/** Lists of a world by the list that they were made from: the decider keeps what it knows of a list. */
const splits = new WeakMap<readonly WorkerView[], SplitWorkers>();

function splitOf(workers: readonly WorkerView[]): SplitWorkers {
  let split = splits.get(workers);
  if (split === undefined) {
    const isFor = (role: 'prefill' | 'decode') => (worker: WorkerView) =>
      worker.split === undefined || worker.split.role === 'both' || worker.split.role === role;
    split = { prefill: workers.filter(isFor('prefill')), decode: workers.filter(isFor('decode')) };
    splits.set(workers, split);
  }
  return split;
}

/** What the decision needs of its pool thread. */
export interface SplitDecisionOptions {
  readonly decider: Decider;
  readonly discard: (reservation: number) => void;
}

/**
 * Decides as the model's workers allow: one worker for the whole request, or two. `isLocal`: one, if the rules let decode
 * workers compute prompts at all. Throws what the rules refuse.
 */
export function decideCall(
  { decider, discard }: SplitDecisionOptions,
  asked: DecideRequest,
  model: ModelView,
  workers: readonly WorkerView[],
  request: TokenRequest,
  isLocal: boolean,
): DecideAnswer | PairPlacement {
  const { disaggregation: rules, policy } = model;
  if (rules === undefined) return decider.decide(asked, policy, workers);
  const split = splitOf(workers);
  // A client that names a prefill worker gets it.
  if (split.decode.length === 0 && workers.length === 1)
    return because('named_worker', decider.decide(asked, policy, workers));
  const local = (reason: SplitReason): DecideAnswer =>
    because(reason, decider.decide(asked, policy, split.decode));
  if (rules.protocol === null) {
    if (split.decode.some(({ engine }) => computesPrompts(engine))) return local('no_protocol');
    const message = 'the prefill and decode workers of this model do not fit together';
    throw prefillRefusal('MILLRACE_NO_WORKER', message, 'no_protocol');
  }
  const { rulesOut, decodeComputes } = protocolOf(rules.protocol);
  const why = rulesOut(request);
  if (why !== null && decodeComputes) return local('not_splittable');
  if (isLocal && decodeComputes && rules.whenNoPrefill === 'local') return local('last_attempt');
  if (why !== null)
    throw new InvalidRequestError(
      'MILLRACE_INVALID_REQUEST',
      `the workers of this model cannot do it: ${why}`,
    );
  const applied = decodeComputes ? rules : { ...rules, ...NEVER_LOCAL };
  const answer = decidePair(decider, asked, policy, split, applied, discard);
  if (answer === 'noPrefill')
    throw prefillRefusal(
      'MILLRACE_NO_WORKER',
      `no prefill worker is ready, and ${whyNotLocal(rules)}`,
      'no_prefill',
    );
  if (answer === 'prefillFull')
    throw prefillRefusal(
      'MILLRACE_OVERLOADED',
      'every prefill worker has all that it may have',
      'prefill_full',
    );
  return answer;
}

/** Why no decode worker computes a prompt, where none does. */
function whyNotLocal({ protocol }: DisaggView): string {
  return protocol !== null && !protocolOf(protocol).decodeComputes
    ? `${protocol} has every prompt computed by one`
    : 'decode workers may not compute prompts (whenNoPrefill is refuse)';
}

/** The worker that answers. */
export function answering(decided: Placement | PairPlacement): Placement {
  return isPair(decided) ? decided.decode : decided;
}

/** Every reservation of a decision. */
export function reservationsOf(decided: Placement | PairPlacement): number[] {
  return isPair(decided) ? [decided.prefill.reservation, decided.decode.reservation] : [decided.reservation];
}

/** What a PlanCall says of hand-over, and the call that it was made from. */
export interface Staged {
  readonly protocol: DisaggProtocolName | null;
  readonly split: SplitReason | null;
  readonly steps: PlanStep[];
  readonly call: EncodedCall;
}

/** The steps of a call and the protocol between them. `encode`: the call for a worker that does all of it. */
export function stepsOf(
  decided: Placement | PairPlacement,
  model: ModelView,
  workerIn: (slot: number) => WorkerView,
  encode: (worker: WorkerView) => EncodedCall,
): Staged {
  const placed = answering(decided);
  const worker = workerIn(placed.slot);
  const call = encode(worker);
  if (!isPair(decided)) {
    const stage = { stage: 'generate', after: null, answer: 'stream', spliceAt: null } as const;
    const steps = [{ ...stage, ...partOf(placed, call), body: call.body }];
    return { protocol: null, split: decided.split ?? null, steps, call };
  }
  const from = workerIn(decided.prefill.slot);
  const protocol = protocolOf(model.disaggregation!.protocol!);
  const prefillCall = from.rank === worker.rank ? call : encode(from);
  const { split, rank, url } = from;
  const peer = {
    host: split?.bootstrapHost ?? new URL(url).hostname,
    port: split?.bootstrapPort ?? 0,
    engineId: split?.engineId ?? null,
    infoEndpoint: split?.infoEndpoint ?? null,
    rank,
  };
  const names = { key: randomUUID(), room: drawRoom() };
  const bodies = protocol.stage({ prefill: prefillCall, decode: call, peer, ...names });
  const isFirst = protocol.order === 'sequential';
  const prefill: PlanStep = {
    stage: 'prefill',
    after: null,
    answer: isFirst ? 'feed' : 'drain',
    spliceAt: null,
    ...partOf(decided.prefill, prefillCall),
    body: bodies.prefill,
  };
  const decode: PlanStep = {
    stage: 'decode',
    after: isFirst ? 0 : null,
    answer: 'stream',
    spliceAt: isFirst ? FRONT : null,
    ...partOf(placed, call),
    body: bodies.decode,
  };
  return { protocol: protocol.name, split: decided.split, steps: [prefill, decode], call };
}

function partOf(
  { slot, generation, reservation }: Placement,
  { method, path, head }: EncodedCall,
): Pick<PlanStep, 'slot' | 'generation' | 'reservation' | 'method' | 'path' | 'head'> {
  return { slot, generation, reservation, method, path, head };
}

/** Drawn, so that no attempt, process or restart gets the room of another one. */
function drawRoom(): number {
  return Number(randomBytes(8).readBigUInt64LE() % BigInt(ROOMS));
}

/** How a pair was chosen, told as one placement: the prefix is where the prompt is computed. */
export function toldOf(
  decided: Placement | PairPlacement,
  workerIn: (slot: number) => WorkerView,
): Placement {
  if (!isPair(decided)) return decided;
  const { prefill, decode } = decided;
  const { url } = workerIn(prefill.slot);
  const reason = `${decode.reason}; at ${url}: ${prefill.reason}`;
  return { ...decode, cachedTokens: prefill.cachedTokens, reason };
}
