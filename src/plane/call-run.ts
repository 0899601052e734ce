/**
 * One call of a PLAN as it is carried out (R5): the worker it runs on, its reservation, its attempt, the hand-over before
 * it, and the times by which it is judged. A request has one run at first, and one for each choice after its answer has
 * migrated. It gives back what it holds once, whatever happens. Owned by its request on the socket thread; one that was let
 * go in the middle of a hand-over lives on until that is over.
 */
import { answerFrames } from '../engines/disagg/answer-frames.js';
import type { FailureCause } from '../engines/health-contract.js';
import type { Limits } from '../limits.js';
import type { Plan, PlanCall, PlanStep } from '../messages/records.js';
import { RESERVATION_NONE } from '../router/load-descriptor.js';
import type { Timer } from '../runtime/clock.js';
import type { AttemptEvents, AttemptFailure } from './attempt.js';
import { EngineAttempt } from './attempt.js';
import type { OpenDecision } from './decision-log.js';
import { Handover, type HandoverEvents } from './handover.js';
import type { LostWorkers } from './lost-workers.js';
import type { RequestContext } from './request-context.js';
import type { CallRange } from './token-answer.js';

/** What a run tells its request. */
export interface RunEvents extends AttemptEvents {
  /** Tokens of the prompt that the worker which computed it had in its cache; before the first frame. */
  onCached(tokens: number): void;
}

/** See the head of the file. */
export class CallRun {
  readonly range: CallRange;
  /** The step that answers. */
  readonly step: PlanStep;
  /** The PLAN that it carries out. */
  readonly plan: Plan;
  /** How the worker before this one failed in the middle of the answer; null: the answer begins here. */
  readonly cause: FailureCause | null;
  decision: OpenDecision | null = null;
  /** It races the run that the request had. */
  isHedge = false;
  /** Another worker was asked for because this one was found dead. */
  hasAskedToMove = false;
  readonly #context: RequestContext;
  readonly #handover: Handover | null;
  /** When it began, or the last frames came. */
  #sinceMs: number;
  /** When the last tokens came. */
  #tokenMs = Number.NEGATIVE_INFINITY;
  #hasToken = false;
  #attempt: EngineAttempt | null = null;
  #reservation: number;
  #isPaused = false;
  /** Its attempt has told its last event. */
  #isOver = false;
  #isClosed = false;
  /** Set while it finishes a hand-over for nobody. */
  #lastLimit: Timer | null = null;

  constructor(call: PlanCall, plan: Plan, cause: FailureCause | null, context: RequestContext) {
    this.range = { choiceBase: call.choiceBase, choices: call.choices };
    this.step = call.steps.at(-1)!;
    this.#handover = call.protocol === null ? null : new Handover(call, context);
    this.plan = plan;
    this.cause = cause;
    this.#context = context;
    this.#reservation = this.step.reservation;
    this.#sinceMs = context.clock.nowMs();
  }

  /** A token has come. */
  get hasToken(): boolean {
    return this.#hasToken;
  }

  /** One worker computes the prompt and another one answers. */
  get isSplit(): boolean {
    return this.#handover !== null;
  }

  /** Enters the decision for its worker into the log. */
  tell(plan: Plan, origin: string, requestId: string | undefined): OpenDecision {
    const { clock, decisions } = this.#context;
    this.decision = decisions.add(clock.wallMs(), plan, origin, requestId);
    return this.decision;
  }

  /** The step whose worker is to blame for a failure of this kind. */
  blamed(failure: AttemptFailure): PlanStep {
    return this.#handover?.isToBlame(failure) === true ? this.#handover.prefillStep : this.step;
  }

  /** Whether a worker answers it, or computes its prompt. */
  runsOn(slot: number, generation: number): boolean {
    const prefill = this.#handover?.isPrefilling === true ? this.#handover.prefillStep : this.step;
    return [prefill, this.step].some(step => step.slot === slot && step.generation === generation);
  }

  /** Sends the call to its worker, or first to the one that computes its prompt. */
  start(origin: string, events: RunEvents, isPaused: boolean): void {
    this.#isPaused = isPaused;
    if (this.#handover === null) {
      this.#send(origin, this.step.body, events);
      return;
    }
    const handoverEvents: HandoverEvents = {
      send: body => {
        // For nobody it is only asked to take what was computed for it.
        if (this.#lastLimit === null || this.#handover?.mustFinish === true) this.#send(origin, body, events);
        else this.#close();
      },
      cached: tokens => events.onCached(tokens),
      complete: answer => this.#final(() => this.#onComplete(answer, events)),
      refused: (status, body) => this.#final(() => events.onRefused(status, body, 0)),
      failed: (failure, code, message) => this.#final(() => events.onFailed(failure, code, message)),
    };
    this.#handover.start(handoverEvents, this.plan.model);
  }

  #send(origin: string, body: Uint8Array, events: RunEvents): void {
    const { mode } = this.plan;
    const { client, guard, limits, clock } = this.#context;
    this.#sinceMs = clock.nowMs();
    const attempt = new EngineAttempt(
      {
        client,
        origin,
        step: { ...this.step, body },
        wantsRows: mode === 'token',
        openStream: this.#context.streamOpener(this.step, mode),
        guard,
        answerBytesMax: limits.unaryAnswerBytesMax,
      },
      this.#watched(events),
    );
    this.#attempt = attempt;
    attempt.start();
    if (this.#isPaused) attempt.pause();
  }

  /** The events of an attempt: for the request, or, when that is gone, a sign that the hand-over is over. */
  #watched(events: AttemptEvents): AttemptEvents {
    return {
      onBatch: batch => {
        if (this.#lastLimit === null) events.onBatch(batch);
        else this.#close();
      },
      onStreamEnd: () => this.#final(() => events.onStreamEnd()),
      onUnary: (body, contentType) => this.#final(() => events.onUnary(body, contentType)),
      onRefused: (status, body, retryAfterMs) =>
        this.#final(() => events.onRefused(status, body, retryAfterMs)),
      onFailed: (failure, code, message) => this.#final(() => events.onFailed(failure, code, message)),
    };
  }

  #final(tell: () => void): void {
    this.#isOver = true;
    if (this.#lastLimit === null) tell();
    else this.#close();
  }

  /** The prefill worker's answer takes the place of the one that decode would have given. */
  #onComplete(answer: Uint8Array, events: RunEvents): void {
    const { api, mode, stream } = this.plan;
    if (mode === 'relay' && !stream) {
      events.onUnary(Buffer.from(answer), 'application/json');
      return;
    }
    const engineStream = this.#context.streamOpener(this.step, mode)();
    const fault = engineStream.push(answerFrames(answer, api), batch => events.onBatch(batch));
    if (this.#isClosed) return;
    if (fault === null) events.onStreamEnd();
    else
      events.onFailed(
        'protocol',
        'MILLRACE_WORKER_PROTOCOL',
        'the answer of the prefill worker is not valid',
      );
  }

  /** Frames have come, with so many tokens. */
  touch(nowMs: number, tokens: number): void {
    this.#sinceMs = nowMs;
    if (tokens === 0) return;
    this.#tokenMs = nowMs;
    this.#context.noteTokens(this.step);
  }

  /** The first token has come: the worker has done the prompt, or has its KV. */
  begin(): void {
    this.#hasToken = true;
    this.#handover?.done();
    this.#context.ledger.firstToken(this.#reservation);
    this.#context.reportSuccess(this.step);
  }

  /** Since when nothing has come of the worker. */
  get sinceMs(): number {
    return this.#sinceMs;
  }

  /**
   * What found its worker dead, where no token has come since that worker was last seen alive; else null. While it is
   * paused, tokens may wait in the connection.
   */
  lostTo(lost: LostWorkers): FailureCause | null {
    return this.#isPaused ? null : lost.causeFor(this.step, this.#tokenMs);
  }

  /** Ends a prefill step whose worker was found dead; decode, or another attempt, goes on from there. */
  endLostPrefill(lost: LostWorkers): void {
    const handover = this.#handover;
    if (handover === null || this.#hasToken) return;
    if (lost.causeFor(handover.prefillStep, Number.NEGATIVE_INFINITY) !== null) handover.lost();
  }

  /** How long the worker may be silent now, in milliseconds, where it has been for longer; else null. */
  overdueMs(nowMs: number, limits: Limits): number | null {
    if (this.#handover?.isPrefilling === true) return null;
    const boundMs = this.#hasToken ? limits.betweenTokensDeadlineMs : limits.firstTokenDeadlineMs;
    return nowMs - this.#sinceMs >= boundMs ? boundMs : null;
  }

  /** While it is paused the worker is not to blame for its silence. */
  pause(paused: boolean): void {
    this.#sinceMs = this.#context.clock.nowMs();
    this.#isPaused = paused;
    if (paused) this.#attempt?.pause();
    else this.#attempt?.resume();
  }

  /**
   * Closes the connection and gives the reservation back; nothing more is told of it. In the middle of a hand-over that
   * must not be cut, this happens when it is over.
   */
  letGo(): void {
    if (this.#lastLimit !== null) return;
    const { clock, deferredAborts, limits } = this.#context;
    const waits = !this.#isOver && !this.#hasToken && this.#handover?.mustFinish === true;
    if (!waits || !deferredAborts.take()) {
      this.#close();
      return;
    }
    if (this.#isPaused) this.pause(false);
    this.#lastLimit = clock.after(limits.firstTokenDeadlineMs, () => this.#close());
  }

  #close(): void {
    this.#isClosed = true;
    if (this.#lastLimit !== null) this.#context.deferredAborts.give();
    this.#lastLimit?.cancel();
    this.#lastLimit = null;
    this.#handover?.abort(this.#isOver);
    this.#attempt?.abort();
    this.#attempt = null;
    if (this.#reservation !== RESERVATION_NONE) this.#context.ledger.release(this.#reservation);
    this.#reservation = RESERVATION_NONE;
  }
}
