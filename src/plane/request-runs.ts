/**
 * The workers' side of one request (R2, R5): its ASKs, the runs of its plans' calls, and who follows a run that fails, that is
 * slow or whose worker is found dead. Re-planning is the only recovery: each of these is another ASK with a higher attempt.
 * Where the request still runs, nothing of it is given up before the PLAN is there. Owned by its request, on the socket thread.
 */
import type { EngineError } from '../engines/engine-error.js';
import type { ErrorCode } from '../errors.js';
import type { AskReason, EndCause, Plan, Reject, RoutingHints } from '../messages/records.js';
import type { Api } from '../messages/token-request.js';
import type { AnswerPort } from './answer-port.js';
import type { AttemptFailure } from './attempt.js';
import { CallRun } from './call-run.js';
import { endDecisions, type OpenDecision } from './decision-log.js';
import { Hedge } from './hedge.js';
import { MigrationBook } from './migration-book.js';
import { type AskRefusal, BEGINNING, HEDGE, type OpenAsk, RequestAsks, type Wanted } from './request-asks.js';
import type { RequestContext } from './request-context.js';
import { exhausted, failureOf, OUTAGE, type RunFailure, refusalOf, SENT_AWAY } from './run-failure.js';
import type { RunsOwner } from './runs-owner.js';

/** See the head of the file. */
export class RequestRuns {
  readonly #context: RequestContext;
  readonly #port: AnswerPort;
  readonly #owner: RunsOwner;
  readonly #asks: RequestAsks;
  readonly #decisions: OpenDecision[] = [];
  readonly #migrations: MigrationBook;
  #poolLosses = 0;
  #plan: Plan | null = null;
  #runs: CallRun[] = [];
  /** The runs of a plan are being started: what fails meanwhile waits for all of them. */
  #isStarting = false;
  #isOver = false;
  #lastFailure: RunFailure | null = null;
  readonly #hedge: Hedge;

  /** @param deadlineMs the end of the whole request, on the monotonic clock */
  constructor(
    id: number,
    api: Api,
    port: AnswerPort,
    context: RequestContext,
    deadlineMs: number,
    owner: RunsOwner,
  ) {
    this.#context = context;
    this.#port = port;
    this.#owner = owner;
    this.#asks = new RequestAsks(id, api, port, context, deadlineMs);
    this.#migrations = new MigrationBook(context);
    this.#hedge = new Hedge(context);
  }

  /** The plan under which the answer began, or will; null: there was none yet. */
  get plan(): Plan | null {
    return this.#plan;
  }

  /** Keeps the body and sends the first ASK. */
  begin(chunks: Uint8Array[], bytes: number, hints: RoutingHints): void {
    this.#refused(this.#asks.begin(chunks, bytes, hints));
  }

  /** A PLAN came; its reservations already belong to this socket thread. False: stale, the caller releases them. */
  onPlan(plan: Plan): boolean {
    const ask = this.#asks.take(plan.attempt);
    if (ask === null) return false;
    if (!this.#makesRoom(ask, plan)) {
      this.#goOn();
      return false;
    }
    if (this.#plan === null) this.#context.observer.planned(plan);
    // The answer goes on under the plan that it began with; of two that race it is the winner's.
    if (ask.continuation === null && ask.beside !== 'hedge') this.#plan = plan;
    const runs = plan.calls.map(call => new CallRun(call, plan, ask.cause, this.#context));
    this.#runs.push(...runs);
    this.#isStarting = true;
    for (const run of runs) if (this.#runs.includes(run)) this.#start(run, ask.beside === 'hedge');
    this.#isStarting = false;
    this.#goOn();
    return true;
  }

  /** The PLAN's reservation was reaped with its thread before it could be adopted. */
  onAdoptionFailed(attempt: number): void {
    const ask = this.#asks.take(attempt);
    if (ask === null) return;
    if (ask.beside === null) this.#ask('adoption_failed', ask);
    else this.#doWithout(ask);
  }

  onReject(reject: Reject): void {
    const ask = this.#asks.take(reject.attempt);
    if (ask === null) return;
    if (ask.beside !== null) {
      this.#doWithout(ask);
      return;
    }
    const { code, message, param, retryAfterMs } = reject;
    // No other worker is left to try: what the last one did says more than that there is none.
    const told = code === 'MILLRACE_NO_WORKER' ? this.#lastFailure : null;
    if (told !== null && this.#asks.canSave) {
      this.#ask('worker_failed', { ...ask, isLast: true });
      return;
    }
    if (ask.cause !== null) this.#context.observer.migrated(ask.cause, 'failed');
    if (told === null) this.#owner.fail(code, message, { param, retryAfterMs });
    else this.#owner.fail(told.code, `${told.message}, and ${message}`, told.detail);
  }

  /** The pool thread that was asked died. A request that loses two of them is not asked again: it may be the cause. */
  onPoolLost(): void {
    const ask = this.#asks.open;
    if (ask === null) return;
    this.#poolLosses++;
    if (ask.beside !== null) {
      this.#asks.forget();
      this.#doWithout(ask);
    } else if (this.#poolLosses > 1)
      this.#owner.fail('MILLRACE_POOL_LOST', 'two planning threads died over this request');
    else this.#ask('pool_lost', ask);
  }

  /** Checks how long planning takes. True: too long, and the request waits for it. */
  isPlanningOverdue(nowMs: number): boolean {
    const ask = this.#asks.open;
    if (ask === null || nowMs - ask.sinceMs < this.#context.limits.askDeadlineMs) return false;
    if (ask.beside === null) return true;
    this.#asks.forget();
    this.#doWithout(ask);
    return false;
  }

  /** The worker is about to sleep: what runs there goes on elsewhere. */
  leaveWorker(slot: number, generation: number): void {
    for (const run of this.#runs.filter(one => one.runsOn(slot, generation)))
      if (this.#runs.includes(run)) this.#settleFailure(run, SENT_AWAY);
  }

  /** Looks after runs whose worker is dead, slow or silent. */
  sweep(nowMs: number): void {
    const { limits, lostWorkers } = this.#context;
    if (!lostWorkers.isEmpty) this.#moveLost();
    const plan = this.#plan;
    // A relayed unary answer comes in one piece: only the total deadline applies to it.
    if (plan === null || (plan.mode === 'relay' && !plan.stream)) return;
    for (const run of [...this.#runs]) {
      const boundMs = this.#owner.isPaused ? null : run.overdueMs(nowMs, limits);
      if (boundMs === null || !this.#runs.includes(run)) continue;
      const message = `the worker sent nothing for ${boundMs} ms`;
      this.onFailed(run, 'stalled', 'MILLRACE_WORKER_STALLED', message);
    }
    this.#hedgeSlow(nowMs, plan);
  }

  /** Tokens of the prompt that were cached where it was computed, before the answer has begun. */
  onCached(tokens: number): void {
    if (this.#owner.answer === null) this.#plan = { ...this.#plan!, prefillCachedTokens: tokens };
  }

  /** A run answers: where two raced, the other one is let go. */
  settleRace(winner: CallRun): void {
    if (this.#asks.open?.beside === 'hedge') this.#asks.forget();
    this.#hedge.end(winner.isHedge ? 'won' : 'lost');
    for (const run of this.#runs) {
      if (run === winner) continue;
      if (run.decision !== null) run.decision.end = 'outrun';
      this.drop(run);
    }
    if (this.#plan?.attempt === winner.plan.attempt) return;
    this.#plan = winner.plan;
    this.#announce(winner);
  }

  /** The first token of a run has come. */
  onFirstToken(run: CallRun): void {
    run.begin();
    this.#asks.excludeNone();
    if (run.cause !== null) this.#context.observer.migrated(run.cause, 'continued');
  }

  /** The worker answered with an error. `retryAfterMs`: its Retry-After; 0: none. */
  onRefusal(run: CallRun, error: EngineError, retryAfterMs: number): void {
    if (error.code === 'MILLRACE_OVERLOADED' && retryAfterMs > 0)
      this.#context.restWorker(run.step, retryAfterMs);
    this.#settleFailure(run, refusalOf(error, retryAfterMs));
  }

  /** The worker could not be reached, died, fell silent or broke its protocol. */
  onFailed(run: CallRun, kind: AttemptFailure, code: ErrorCode, message: string): void {
    this.#settleFailure(run, failureOf(kind, code, message));
  }

  pause(paused: boolean): void {
    for (const run of this.#runs) run.pause(paused);
  }

  /** Nothing more is wanted of a run. */
  drop(run: CallRun): void {
    run.letGo();
    this.#runs = this.#runs.filter(one => one !== run);
  }

  /** Nothing more is wanted of any. */
  letGo(): void {
    for (const run of this.#runs) run.letGo();
    this.#runs = [];
    this.#asks.forget();
    this.#hedge.end('abandoned');
  }

  /** The request has ended: gives back everything. */
  end(cause: EndCause, cachedTokens: number | null): void {
    this.#isOver = true;
    this.letGo();
    this.#asks.release();
    endDecisions(this.#decisions, cause, cachedTokens);
  }

  #start(run: CallRun, isHedge: boolean): void {
    const { slot, generation } = run.step;
    const worker = this.#context.originOf(slot, generation);
    if (worker === null) {
      this.onFailed(run, 'unreachable', 'MILLRACE_WORKER_UNREACHABLE', 'the worker has left');
      return;
    }
    run.isHedge = isHedge;
    if (!isHedge) this.#announce(run);
    const plan = { ...this.#plan!, attempt: this.#asks.attempts, placement: run.plan.placement };
    this.#decisions.push(run.tell(plan, worker, this.#port.header('x-request-id')));
    run.start(worker, this.#owner.eventsOf(run), this.#owner.isPaused);
  }

  #announce({ step, plan }: CallRun): void {
    const worker = this.#context.originOf(step.slot, step.generation);
    if (worker !== null) this.#owner.announce(worker, plan.placement);
  }

  /** Another worker begins anew while nothing was shown, and goes on where something was; else the request ends. */
  #settleFailure(run: CallRun, failure: RunFailure): void {
    const { code, message, detail, isOfWorker } = failure;
    const { answer } = this.#owner;
    const blamed = isOfWorker ? run.blamed(failure.kind) : run.step;
    this.drop(run);
    const isRace = answer === null && this.#runs.length > 0;
    if (!failure.retryable && !isRace) {
      this.#owner.fail(code, message, detail);
      return;
    }
    if (isOfWorker) this.#context.reportFailure(blamed, failure.kind);
    if (isOfWorker && run.isSplit && !run.hasToken) this.#asks.noteFailedHandover();
    const open = answer?.openChoices(run.range) ?? [];
    if (answer !== null && open.length === 0) {
      // Nothing of the answer is missing: how its connection ended does not matter to the client.
      this.#owner.onRunDone(run);
      return;
    }
    if (run.cause !== null && !run.hasToken) this.#context.observer.migrated(run.cause, 'failed');
    this.#lastFailure = failure;
    this.#asks.exclude(blamed.slot);
    if (isRace) {
      // The other one of two that race goes on.
      if (run.decision !== null) run.decision.end = 'retried';
    } else if (!this.#owner.isShown && !this.#owner.hasToken) this.#beginAnew(run, failure);
    else {
      const bar = this.#migrations.lose(answer!, this.#plan!, open, failure);
      if (bar === null) {
        if (run.decision !== null) run.decision.end = 'migrated';
        this.#goOn();
      } else if (!this.#owner.isShown) this.#beginAnew(run, failure);
      else this.#owner.fail(bar.code, bar.message);
    }
  }

  /** Asks for the whole answer again, of which the client has seen nothing. */
  #beginAnew(run: CallRun, failure: RunFailure): void {
    if (this.#asks.beginnings >= this.#context.limits.attemptsMax) {
      const { code, message, detail } = exhausted(failure, run.isSplit && this.#asks.wasLocal);
      this.#owner.fail(code, message, detail);
      return;
    }
    if (run.decision !== null) run.decision.end = 'retried';
    this.#forgetBeginning();
    this.#ask('worker_failed', BEGINNING);
  }

  #forgetBeginning(): void {
    this.letGo();
    this.#owner.forgetAnswer();
    this.#migrations.forget();
  }

  /** Asks for the rest of the choices that have lost their worker; one ASK at a time. */
  #goOn(): void {
    if (this.#asks.open !== null || this.#isStarting || this.#isOver) return;
    const { answer } = this.#owner;
    const wanted = answer === null ? null : this.#migrations.take(answer);
    if (typeof wanted === 'string') this.#owner.fail('MILLRACE_CANNOT_MIGRATE', wanted);
    else if (wanted !== null) this.#ask('migrated', wanted);
  }

  /** Sends a request that has had no token for long to a second worker too. */
  #hedgeSlow(nowMs: number, { model }: Plan): void {
    const [run] = this.#runs;
    const afterMs = this.#context.hedgeAfterMs(model);
    if (afterMs === 0 || run === undefined || nowMs - run.sinceMs < afterMs) return;
    if (this.#hedge.isUsed || this.#owner.answer !== null || this.#asks.open !== null) return;
    // A prompt that is handed over is on two workers already.
    if (run.isSplit || this.#asks.isPinned) return;
    if (this.#hedge.begin()) this.#askBeside('hedged', HEDGE, [run]);
  }

  /** Asks for another worker for runs whose worker was found dead and has sent them nothing since it was seen alive. */
  #moveLost(): void {
    const { lostWorkers, limits } = this.#context;
    for (const run of [...this.#runs]) if (this.#runs.includes(run)) run.endLostPrefill(lostWorkers);
    const lost = this.#runs.filter(run => !run.hasAskedToMove && run.lostTo(lostWorkers) !== null);
    if (lost.length === 0 || this.#asks.open !== null) return;
    const { answer, isShown, hasToken } = this.#owner;
    if (answer === null && this.#runs.length > 1) {
      this.#settleFailure(lost[0]!, OUTAGE);
      return;
    }
    for (const run of lost) run.hasAskedToMove = true;
    if (!isShown && !hasToken) {
      if (this.#asks.beginnings < limits.attemptsMax)
        this.#askBeside('worker_failed', { ...BEGINNING, beside: lost }, lost);
      return;
    }
    const choices = lost.flatMap(run => answer!.openChoices(run.range));
    const move = this.#migrations.wantedMove(answer!, this.#plan!, choices);
    const cause = lost[0]!.lostTo(lostWorkers);
    if (choices.length === 0) this.#finish(lost);
    else if (move !== null) this.#askBeside('migrated', { ...move, cause, beside: lost }, lost);
  }

  /** Nothing is missing of what these runs are for. */
  #finish(runs: readonly CallRun[]): void {
    for (const run of runs) if (this.#runs.includes(run)) this.#owner.onRunDone(run);
  }

  /** Whether a PLAN can be carried out: one beside a run that has a token by now cannot. */
  #makesRoom({ beside, continuation }: OpenAsk, plan: Plan): boolean {
    if (beside === null) return true;
    if (beside === 'hedge') {
      const isAlike = plan.mode === this.#plan!.mode && plan.calls.every(call => call.protocol === null);
      if (!isAlike) this.#hedge.end('refused');
      return isAlike;
    }
    const { answer } = this.#owner;
    const { lostWorkers, observer } = this.#context;
    if (!beside.every(run => this.#runs.includes(run) && run.lostTo(lostWorkers) !== null)) return false;
    if (continuation === null) {
      for (const run of beside) if (run.decision !== null) run.decision.end = 'retried';
      this.#forgetBeginning();
      return true;
    }
    const open = beside.flatMap(run => answer!.openChoices(run.range));
    const asked = continuation.choices.map(({ choice }) => choice);
    if (open.length !== asked.length || !open.every(choice => asked.includes(choice))) return false;
    for (const run of beside) {
      if (run.cause !== null && !run.hasToken) observer.migrated(run.cause, 'failed');
      if (run.decision !== null) run.decision.end = 'migrated';
      this.drop(run);
    }
    this.#migrations.move(answer!, open);
    return true;
  }

  /** An ASK that the request can do without has no PLAN. */
  #doWithout({ beside }: OpenAsk): void {
    if (beside === 'hedge') this.#hedge.end('refused');
    this.#goOn();
  }

  /** Asks for what the request can do without, on none of the workers of these runs. */
  #askBeside(reason: AskReason, wanted: Wanted, runs: readonly CallRun[]): void {
    for (const run of runs) this.#asks.exclude(run.step.slot);
    if (this.#asks.send(reason, wanted) === null) return;
    const ask = this.#asks.open!;
    this.#asks.forget();
    this.#doWithout(ask);
  }

  #ask(reason: AskReason, wanted: Wanted): void {
    this.#refused(this.#asks.send(reason, wanted));
  }

  #refused(refusal: AskRefusal | null): void {
    if (refusal !== null) this.#owner.fail(refusal.code, refusal.message, refusal.detail);
  }
}
