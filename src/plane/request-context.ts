/**
 * What a request needs of its socket thread: the shared services, and the few calls by which it touches state that all
 * requests share. Kept apart so that a request can be read, and tested, without the thread around it.
 */
import type { EngineStream } from '../engines/contract.js';
import type { AnswerClient } from '../engines/link/contract.js';
import { ERROR_CODES, type ErrorCode } from '../errors.js';
import type { FallbackCause, HandoverOutcome } from '../frontend/disagg-metrics.js';
import type { HedgeOutcome, MigrationCause, MigrationOutcome } from '../frontend/metrics.js';
import type { Limits } from '../limits.js';
import type { Usage } from '../messages/delta.js';
import type { DisaggProtocolName } from '../messages/disagg.js';
import type { AnswerMode, Ask, EndCause, Plan, PlanStep } from '../messages/records.js';
import type { Api } from '../messages/token-request.js';
import type { DetokenizerTable } from '../preprocess/detokenizer.js';
import type { Ledger } from '../router/ledger.js';
import type { Clock } from '../runtime/clock.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { AttemptFailure } from './attempt.js';
import type { ClientStream } from './client-stream.js';
import type { DecisionLog } from './decision-log.js';
import type { DeferredAborts } from './deferred-aborts.js';
import type { HedgePlaces } from './hedge.js';
import type { LostWorkers } from './lost-workers.js';

/** An ASK as its request makes it; the socket thread adds the slots that all its requests avoid. */
export type SentAsk = Omit<Ask, 'body'>;

/** How a request ended, for metrics and the pool. */
export interface RequestEnd {
  readonly plan: Plan | null;
  readonly api: Api;
  readonly cause: EndCause;
  /** The error's code, or null for a completed or abandoned request. */
  readonly code: ErrorCode | null;
  readonly usage: Usage | null;
  readonly durationMs: number;
}

/** Told of hand-overs. Times in milliseconds. */
export interface HandoverObserver {
  /** A prefill worker has computed a prompt. */
  prefillAnswered(model: string, durationMs: number): void;
  /** Decode's first token came, so long after decode was asked. */
  handedOver(model: string, durationMs: number): void;
  ended(protocol: DisaggProtocolName, outcome: HandoverOutcome): void;
  /** Decode is asked to compute the prompt itself. */
  fellBack(cause: FallbackCause): void;
}

/** Told of what is counted. No call per token: `tokens` is once per batch of frames. */
export interface RequestObserver {
  readonly handovers: HandoverObserver;
  planned(plan: Plan): void;
  firstToken(plan: Plan, sinceStartMs: number): void;
  /** `gapMs`: time since the batch before; null for the first one. */
  tokens(plan: Plan, count: number, gapMs: number | null): void;
  /** What became of an answer whose worker failed in the middle. */
  migrated(cause: MigrationCause, outcome: MigrationOutcome): void;
  /** What became of a hedge. */
  hedged(outcome: HedgeOutcome): void;
}

/** The socket thread as one request sees it. */
export interface RequestContext {
  readonly clock: Clock;
  /** What the outside calls runs under it. */
  readonly guard: FaultGuard;
  readonly limits: Limits;
  readonly client: AnswerClient;
  readonly ledger: Ledger;
  readonly observer: RequestObserver;
  readonly decisions: DecisionLog;
  /** Lower-case name of the header that names a session; '': sessions are switched off. */
  readonly sessionHeader: string;
  /** Accounts bytes that a request keeps; false when the bound is reached (nothing is then accounted). */
  retain(bytes: number): boolean;
  unretain(bytes: number): void;
  /** Sends an ASK. 'full': no room; 'off': every pool thread is switched off. */
  ask(ask: SentAsk, body: readonly Uint8Array[]): 'ok' | 'full' | 'off';
  /** Origin of the worker in a slot, or null when the slot was given to another one. */
  originOf(slot: number, generation: number): string | null;
  /** What opens the decoder of the answer to a step, however late its worker leaves; called when the step is sent. */
  streamOpener(step: PlanStep, mode: AnswerMode): () => EngineStream;
  detokenizerTable(tokenizer: string): DetokenizerTable;
  /** Tells the health monitor what a worker did to a request. */
  reportFailure(step: PlanStep, failure: AttemptFailure): void;
  /** A worker did what it was asked: its first token came. */
  reportSuccess(step: PlanStep): void;
  /** A worker has asked to be left alone for a while. */
  restWorker(step: PlanStep, forMs: number): void;
  /** Hand-overs that are finished for nobody. */
  readonly deferredAborts: DeferredAborts;
  /** Workers that are out of rotation. */
  readonly lostWorkers: LostWorkers;
  /** Milliseconds after which a request for a model without a token is sent to a second worker; 0: never. */
  hedgeAfterMs(model: string): number;
  /** How many requests may be. */
  readonly hedges: HedgePlaces;
  /** A worker has brought tokens, which is the best sign of life; once per batch. */
  noteTokens(step: PlanStep): void;
  /** The stream has something to write in this loop turn. */
  markDirty(stream: ClientStream): void;
  onEnded(request: number, end: RequestEnd): void;
}

/** How a request that failed with `code` has ended. */
export function endCauseOf(code: ErrorCode): EndCause {
  if (code === 'MILLRACE_DEADLINE_EXCEEDED') return 'deadline';
  if (code === 'MILLRACE_DRAINING') return 'drained';
  const kind = ERROR_CODES[code].class;
  if (kind === 'WorkerError') return 'worker_failed';
  return kind === 'InternalError' ? 'internal' : 'rejected';
}
