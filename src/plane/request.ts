/**
 * One request on its socket thread, from the first byte to the end: body → ask → plan → engine → answer. It owns its
 * body, the runs of its plan's calls, its answer and its client stream, and ends exactly once, whatever fails. Re-planning
 * is the only recovery: a lost pool thread, a failed adoption, a worker that failed before its first token and one that
 * failed in the middle of the answer lead to the same ASK with a higher attempt.
 */
import type { FrameBatch } from '../engines/contract.js';
import { tellCachedTokens } from '../engines/disagg/prefill-answer.js';
import { type EngineError, engineError } from '../engines/engine-error.js';
import { openingOf } from '../engines/event-rows.js';
import type { ErrorCode, ErrorDetail } from '../errors.js';
import type { AskReason, EndCause, Plan, PlanPlacement, Reject, RoutingHints } from '../messages/records.js';
import type { Api } from '../messages/token-request.js';
import { type Answer, openAnswer } from './answer.js';
import type { AnswerPort, AnswerStream } from './answer-port.js';
import type { AttemptFailure } from './attempt.js';
import { CallRun, type RunEvents } from './call-run.js';
import { endDecisions, type OpenDecision } from './decision-log.js';
import { MigrationBook } from './migration-book.js';
import { receiveRequest } from './receive-request.js';
import { type AskRefusal, BEGINNING, RequestAsks, type Wanted } from './request-asks.js';
import { endCauseOf, type RequestContext } from './request-context.js';
import { placementHeaders } from './routing-hints.js';
import { failureOf, type RunFailure, refusalOf, SENT_AWAY } from './run-failure.js';

type Phase = 'body' | 'running' | 'flushing' | 'ended';

/** One request and its state; see the top of this file. */
export class PlaneRequest {
  readonly id: number;
  readonly #context: RequestContext;
  readonly #port: AnswerPort;
  readonly #api: Api;
  readonly #asks: RequestAsks;
  readonly #startedMs: number;
  readonly #deadlineMs: number;
  readonly #decisions: OpenDecision[] = [];
  readonly #migrations: MigrationBook;
  #phase: Phase = 'body';
  #poolLosses = 0;
  #plan: Plan | null = null;
  #runs: CallRun[] = [];
  /** The runs of a plan are being started: what fails meanwhile waits for all of them. */
  #isStarting = false;
  #answer: Answer | null = null;
  #client: AnswerStream | null = null;
  #lastEventMs = 0;
  #sawToken = false;
  #enginePaused = false;
  #lastFailure: RunFailure | null = null;

  constructor(id: number, api: Api, port: AnswerPort, context: RequestContext) {
    this.id = id;
    this.#api = api;
    this.#port = port;
    this.#context = context;
    this.#startedMs = context.clock.nowMs();
    this.#deadlineMs = this.#startedMs + context.limits.totalDeadlineMs;
    this.#asks = new RequestAsks(id, api, port, context, this.#deadlineMs);
    this.#migrations = new MigrationBook(context);
  }

  /** Starts reading the body. */
  start(): void {
    this.#port.onAborted(() => this.#end('client_gone', null));
    receiveRequest(this.#port, this.#context, {
      onBody: (chunks, bytes, hints) => this.#onBody(chunks, bytes, hints),
      fail: (code, message, detail) => this.fail(code, message, detail),
      onGone: () => this.#end('client_gone', null),
    });
  }

  /** The last resort when `fail` itself fails: nobody is left waiting, and nothing is accounted any more. */
  cut(): void {
    this.#phase = 'ended';
    for (const run of this.#runs) run.letGo();
    this.#port.abort();
  }

  /** A PLAN came; its reservations already belong to this socket thread. False: stale, the caller releases them. */
  onPlan(plan: Plan): boolean {
    const ask = this.#asks.take(plan.attempt);
    if (ask === null) return false;
    if (this.#plan === null) this.#context.observer.planned(plan);
    // The answer goes on under the plan that it began with.
    if (ask.continuation === null) this.#plan = plan;
    const runs = plan.calls.map(call => new CallRun(call, ask.cause, this.#context));
    this.#runs.push(...runs);
    this.#isStarting = true;
    for (const run of runs) if (this.#runs.includes(run)) this.#start(run, plan);
    this.#isStarting = false;
    this.#goOn();
    return true;
  }

  /** The PLAN's reservation was reaped with its thread before it could be adopted. */
  onAdoptionFailed(attempt: number): void {
    const ask = this.#asks.take(attempt);
    if (ask !== null) this.#ask('adoption_failed', ask);
  }

  onReject({ attempt, code, message, param, retryAfterMs }: Reject): void {
    const ask = this.#asks.take(attempt);
    if (ask === null) return;
    if (ask.cause !== null) this.#context.observer.migrated(ask.cause, 'failed');
    // No other worker is left to try: what the last one did says more than that there is none.
    const told = code === 'MILLRACE_NO_WORKER' ? this.#lastFailure : null;
    this.fail(told?.code ?? code, told?.message ?? message, told?.detail ?? { param, retryAfterMs });
  }

  /** The pool thread that was asked died. A request that loses two of them is not asked again: it may be the cause. */
  onPoolLost(): void {
    const ask = this.#asks.open;
    if (ask === null) return;
    if (++this.#poolLosses > 1)
      this.fail('MILLRACE_POOL_LOST', 'two planning threads died over this request');
    else this.#ask('pool_lost', ask);
  }

  /** Ends the request with an error: as a response when nothing was sent yet, else as the last frame of the stream. */
  fail(code: ErrorCode, message: string, detail: ErrorDetail = {}): void {
    if (this.#phase === 'ended') return;
    if (this.#client !== null) this.#client.fail(code, message);
    else this.#port.refuse(code, message, detail, this.#phase === 'body');
    this.#end(endCauseOf(code), code);
  }

  /** The worker is about to sleep: what runs there goes on elsewhere. */
  leaveWorker(slot: number, generation: number): void {
    for (const run of this.#runs.filter(one => one.runsOn(slot, generation)))
      if (this.#runs.includes(run)) this.#settleFailure(run, SENT_AWAY);
  }

  /** Checks every deadline of this request; called by the sweep of the socket thread. */
  sweep(nowMs: number): void {
    const { limits } = this.#context;
    const blockedSinceMs = this.#client?.blockedSinceMs ?? null;
    if (blockedSinceMs !== null && nowMs - blockedSinceMs >= limits.slowClientDeadlineMs)
      this.#cutSlowClient();
    else if (nowMs >= this.#deadlineMs) {
      this.fail('MILLRACE_DEADLINE_EXCEEDED', `the request took longer than ${limits.totalDeadlineMs} ms`);
    } else if (nowMs - (this.#asks.open?.sinceMs ?? nowMs) >= limits.askDeadlineMs) {
      this.fail('MILLRACE_DEADLINE_EXCEEDED', `planning took longer than ${limits.askDeadlineMs} ms`);
    } else if (this.#phase === 'running') this.#sweepEngines(nowMs);
  }

  #sweepEngines(nowMs: number): void {
    const { limits } = this.#context;
    const plan = this.#plan;
    // A relayed unary answer comes in one piece: only the total deadline applies to it.
    if (plan !== null && plan.mode === 'relay' && !plan.stream) return;
    for (const run of [...this.#runs]) {
      const boundMs = this.#enginePaused ? null : run.overdueMs(nowMs, limits);
      if (boundMs === null || !this.#runs.includes(run)) continue;
      this.#onFailed(run, 'stalled', 'MILLRACE_WORKER_STALLED', `the worker sent nothing for ${boundMs} ms`);
    }
    this.#client?.keepAlive(nowMs, limits.keepAliveMs);
  }

  #onBody(chunks: Uint8Array[], bytes: number, hints: RoutingHints): void {
    if (this.#phase !== 'body') return;
    this.#refused(this.#asks.begin(chunks, bytes, hints));
    if (this.#phase === 'body') this.#phase = 'running';
  }

  #ask = (reason: AskReason, wanted: Wanted): void => this.#refused(this.#asks.send(reason, wanted));

  #refused(refusal: AskRefusal | null): void {
    if (refusal !== null) this.fail(refusal.code, refusal.message, refusal.detail);
  }

  #start(run: CallRun, plan: Plan): void {
    const origin = this.#context.originOf(run.step.slot, run.step.generation);
    if (origin === null) {
      this.#onFailed(run, 'unreachable', 'MILLRACE_WORKER_UNREACHABLE', 'the worker has left');
      return;
    }
    this.#tellPlacement(run, origin, plan.placement);
    run.start(origin, this.#eventsOf(run), this.#enginePaused, plan);
  }

  #eventsOf(run: CallRun): RunEvents {
    return {
      onCached: tokens => {
        if (this.#answer === null) this.#plan = { ...this.#plan!, prefillCachedTokens: tokens };
      },
      onBatch: batch => this.#onBatch(run, batch),
      onStreamEnd: () => this.#onStreamEnd(run),
      onUnary: (body, contentType) => this.#onUnary(run, body, contentType),
      onRefused: (status, body, pauseMs) => this.#onRefusal(run, engineError(status, body), pauseMs),
      onFailed: (failure, code, message) => this.#onFailed(run, failure, code, message),
    };
  }

  #tellPlacement(run: CallRun, worker: string, placement: PlanPlacement): void {
    if (this.#client === null) this.#port.announce(placementHeaders(worker, placement));
    const plan = { ...this.#plan!, attempt: this.#asks.attempts, placement };
    this.#decisions.push(run.tell(plan, worker, this.#port.header('x-request-id')));
  }

  #onBatch(run: CallRun, batch: FrameBatch): void {
    if (this.#answer === null && !this.#opens(run, batch)) return;
    const outcome = this.#answer!.take(batch, run.range);
    const nowMs = this.#context.clock.nowMs();
    if (outcome.tokens > 0) this.#onTokens(run, outcome.tokens, nowMs);
    this.#lastEventMs = nowMs;
    run.touch(nowMs, outcome.tokens);
    if (outcome.malformed) this.#onBroken(run, 'a frame of the worker is not valid');
    else if (outcome.engineError !== null) this.#onRefusal(run, outcome.engineError, 0);
    else if (this.#client?.isOverfull === true) this.#cutSlowClient();
    else if (outcome.engineNotNeeded) this.#onRunDone(run);
  }

  /** Opens the answer with its first frame: an error that comes instead of one still has its status, or a retry. */
  #opens(run: CallRun, batch: FrameBatch): boolean {
    const plan = this.#plan!;
    const opening = openingOf(batch);
    if (opening === 'nothing') return false;
    if (opening === 'answer' && (plan.stream || plan.mode !== 'relay')) {
      this.#answer = openAnswer(plan, this.#context, () => this.#openClient());
      return true;
    }
    if (typeof opening === 'object') this.#onRefusal(run, opening, 0);
    else this.#onBroken(run, 'the worker did not send the answer asked for');
    return false;
  }

  #onTokens(run: CallRun, count: number, nowMs: number): void {
    const { observer } = this.#context;
    if (!run.hasToken) {
      run.begin();
      this.#asks.excludeNone();
      if (run.cause !== null) observer.migrated(run.cause, 'continued');
    }
    if (this.#sawToken) observer.tokens(this.#plan!, count, nowMs - this.#lastEventMs);
    else {
      this.#sawToken = true;
      run.decision!.ttftMs = nowMs - this.#startedMs;
      observer.firstToken(this.#plan!, run.decision!.ttftMs);
      observer.tokens(this.#plan!, count, null);
    }
  }

  #onStreamEnd(run: CallRun): void {
    if (this.#answer?.openChoices(run.range).length === 0) this.#onRunDone(run);
    else this.#onBroken(run, 'the worker ended its answer without finishing it');
  }

  /** A whole JSON answer, which relay mode passes on as it is. */
  #onUnary(run: CallRun, body: Buffer, contentType: string): void {
    const plan = this.#plan!;
    if (plan.mode !== 'relay' || plan.stream) {
      this.#onBroken(run, 'the worker did not answer with an event stream');
      return;
    }
    this.#answer = openAnswer(plan, this.#context, () => this.#openClient());
    this.#onTokens(run, this.#answer.takeUnary(body), this.#context.clock.nowMs());
    const { prefillCachedTokens: cached } = plan;
    this.#port.respond(contentType, cached === undefined ? body : tellCachedTokens(body, cached));
    this.#end('completed', null);
  }

  #onRefusal(run: CallRun, error: EngineError, retryAfterMs: number): void {
    if (error.code === 'MILLRACE_OVERLOADED' && retryAfterMs > 0)
      this.#context.restWorker(run.step, retryAfterMs);
    this.#settleFailure(run, refusalOf(error, retryAfterMs));
  }

  #onFailed(run: CallRun, kind: AttemptFailure, code: ErrorCode, message: string): void {
    this.#settleFailure(run, failureOf(kind, code, message));
  }

  /** The worker broke its protocol. */
  #onBroken(run: CallRun, message: string): void {
    this.#onFailed(run, 'protocol', 'MILLRACE_WORKER_PROTOCOL', message);
  }

  /** Another worker begins anew while nothing was shown, and goes on where something was; else the request ends. */
  #settleFailure(run: CallRun, failure: RunFailure): void {
    const { code, message, detail } = failure;
    const blamed = failure.isOfWorker ? run.blamed(failure.kind) : run.step;
    this.#drop(run);
    if (!failure.retryable) {
      this.fail(code, message, detail);
      return;
    }
    if (failure.isOfWorker) this.#context.reportFailure(blamed, failure.kind);
    const open = this.#answer?.openChoices(run.range) ?? [];
    if (this.#answer !== null && open.length === 0) {
      // Nothing of the answer is missing: how its connection ended does not matter to the client.
      this.#onRunDone(run);
      return;
    }
    if (run.cause !== null && !run.hasToken) this.#context.observer.migrated(run.cause, 'failed');
    this.#lastFailure = failure;
    this.#asks.exclude(blamed.slot);
    if (this.#client === null && !this.#sawToken) this.#beginAnew(run, failure);
    else {
      const bar = this.#migrations.lose(this.#answer!, this.#plan!, open, failure);
      if (bar === null) {
        if (run.decision !== null) run.decision.end = 'migrated';
        this.#goOn();
      } else if (this.#client === null) this.#beginAnew(run, failure);
      else this.fail(bar.code, bar.message);
    }
  }

  /** Asks for the whole answer again, of which the client has seen nothing. */
  #beginAnew(run: CallRun, { code, message, detail }: RunFailure): void {
    if (this.#asks.beginnings >= this.#context.limits.attemptsMax) {
      this.fail(code, message, detail);
      return;
    }
    if (run.decision !== null) run.decision.end = 'retried';
    this.#letEnginesGo();
    this.#answer?.release();
    this.#answer = null;
    this.#sawToken = false;
    this.#migrations.forget();
    this.#ask('worker_failed', BEGINNING);
  }

  /** Asks for the rest of the choices that have lost their worker; one ASK at a time. */
  #goOn(): void {
    if (this.#asks.open !== null || this.#isStarting || this.#phase !== 'running') return;
    const wanted = this.#answer === null ? null : this.#migrations.take(this.#answer);
    if (typeof wanted === 'string') this.fail('MILLRACE_CANNOT_MIGRATE', wanted);
    else if (wanted !== null) this.#ask('migrated', wanted);
  }

  #openClient(): AnswerStream {
    const { clock, limits } = this.#context;
    this.#client = this.#port.openStream(limits.streamBufferBytesMax, {
      nowMs: () => clock.nowMs(),
      onDirty: stream => this.#context.markDirty(stream),
      onPressure: () => this.#pauseEngines(true),
      onRelief: () => this.#pauseEngines(false),
      onFinished: () => this.#end('completed', null),
    });
    return this.#client;
  }

  #pauseEngines(paused: boolean): void {
    this.#enginePaused = paused;
    this.#lastEventMs = this.#context.clock.nowMs();
    for (const run of this.#runs) run.pause(paused);
  }

  /** Nothing more is wanted of a run; with the last of them the client gets the rest of the answer. */
  #onRunDone(run: CallRun): void {
    this.#drop(run);
    const answer = this.#answer!;
    if (!answer.isComplete) return;
    this.#letEnginesGo();
    if (this.#client !== null) {
      this.#phase = 'flushing';
      answer.endStream();
      this.#client.end();
      return;
    }
    this.#port.respond('application/json', answer.unaryBody());
    this.#end('completed', null);
  }

  #cutSlowClient(): void {
    this.#client!.abort();
    this.#end('slow_client', 'MILLRACE_SLOW_CLIENT');
  }

  #drop(run: CallRun): void {
    run.letGo();
    this.#runs = this.#runs.filter(one => one !== run);
  }

  #letEnginesGo(): void {
    for (const run of this.#runs) run.letGo();
    this.#runs = [];
    this.#asks.forget();
  }

  /** The one end of a request: everything that it held is given back. */
  #end(cause: EndCause, code: ErrorCode | null): void {
    if (this.#phase === 'ended') return;
    this.#phase = 'ended';
    this.#letEnginesGo();
    this.#asks.release();
    this.#client?.close();
    const usage = this.#answer?.usage() ?? null;
    this.#answer?.release();
    endDecisions(this.#decisions, cause, usage?.cachedTokens ?? null);
    this.#context.onEnded(this.id, {
      plan: this.#plan,
      api: this.#api,
      cause,
      code,
      usage,
      durationMs: this.#context.clock.nowMs() - this.#startedMs,
    });
  }
}
