/**
 * One call of a PLAN as it is carried out (R5): the worker it runs on, its reservation, its attempt and the times by which
 * it is judged. A request has one run at first, and one for each choice after its answer has migrated. It gives back what
 * it holds once, whatever happens. Owned by its request on the socket thread.
 */
import type { Limits } from '../limits.js';
import type { AnswerMode, Plan, PlanCall, PlanStep } from '../messages/records.js';
import { RESERVATION_NONE } from '../router/load-descriptor.js';
import type { AttemptEvents, AttemptFailure } from './attempt.js';
import { EngineAttempt } from './attempt.js';
import type { OpenDecision } from './decision-log.js';
import type { RequestContext } from './request-context.js';
import type { CallRange } from './token-answer.js';

/** See the head of the file. */
export class CallRun {
  readonly range: CallRange;
  readonly step: PlanStep;
  /** How the worker before this one failed in the middle of the answer; null: the answer begins here. */
  readonly cause: AttemptFailure | null;
  decision: OpenDecision | null = null;
  readonly #context: RequestContext;
  /** When it began, or the last frames came. */
  #sinceMs: number;
  #hasToken = false;
  #attempt: EngineAttempt | null = null;
  #reservation: number;

  constructor(call: PlanCall, cause: AttemptFailure | null, context: RequestContext) {
    this.range = { choiceBase: call.choiceBase, choices: call.choices };
    this.step = call.steps[0]!;
    this.cause = cause;
    this.#context = context;
    this.#reservation = this.step.reservation;
    this.#sinceMs = context.clock.nowMs();
  }

  /** A token has come. */
  get hasToken(): boolean {
    return this.#hasToken;
  }

  /** Enters the decision for its worker into the log. */
  tell(plan: Plan, origin: string, requestId: string | undefined): OpenDecision {
    const { clock, decisions } = this.#context;
    this.decision = decisions.add(clock.wallMs(), plan, origin, requestId);
    return this.decision;
  }

  /** Sends the call to its worker; `mode` is that of its PLAN. */
  start(origin: string, mode: AnswerMode, events: AttemptEvents, isPaused: boolean): void {
    const { client, guard, limits } = this.#context;
    const attempt = new EngineAttempt(
      {
        client,
        origin,
        step: this.step,
        wantsRows: mode === 'token',
        openStream: this.#context.streamOpener(this.step, mode),
        guard,
        answerBytesMax: limits.unaryAnswerBytesMax,
      },
      events,
    );
    this.#attempt = attempt;
    attempt.start();
    if (isPaused) attempt.pause();
  }

  /** Frames have come, with so many tokens. */
  touch(nowMs: number, tokens: number): void {
    this.#sinceMs = nowMs;
    if (tokens > 0) this.#context.noteTokens(this.step);
  }

  /** The first token has come: the worker has done the prompt. */
  begin(): void {
    this.#hasToken = true;
    this.#context.ledger.firstToken(this.#reservation);
    this.#context.reportSuccess(this.step);
  }

  /** How long the worker may be silent now, in milliseconds, where it has been for longer; else null. */
  overdueMs(nowMs: number, limits: Limits): number | null {
    const boundMs = this.#hasToken ? limits.betweenTokensDeadlineMs : limits.firstTokenDeadlineMs;
    return nowMs - this.#sinceMs >= boundMs ? boundMs : null;
  }

  /** While it is paused the worker is not to blame for its silence. */
  pause(paused: boolean): void {
    this.#sinceMs = this.#context.clock.nowMs();
    if (paused) this.#attempt?.pause();
    else this.#attempt?.resume();
  }

  /** Closes the connection and gives the reservation back; nothing more is told of it. */
  letGo(): void {
    this.#attempt?.abort();
    this.#attempt = null;
    if (this.#reservation !== RESERVATION_NONE) this.#context.ledger.release(this.#reservation);
    this.#reservation = RESERVATION_NONE;
  }
}
