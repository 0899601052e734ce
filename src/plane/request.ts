/**
 * One request on its socket thread, from the first byte to the end: body → ask → plan → engine → answer. This file holds the
 * client's side, its answer and its stream; the workers' side is request-runs.ts. It ends exactly once, whatever fails.
 */
import type { FrameBatch } from '../engines/contract.js';
import { tellCachedTokens } from '../engines/disagg/prefill-answer.js';
import { engineError } from '../engines/engine-error.js';
import { openingOf } from '../engines/event-rows.js';
import type { ErrorCode, ErrorDetail } from '../errors.js';
import type { EndCause, Plan, PlanPlacement, Reject, RoutingHints } from '../messages/records.js';
import type { Api } from '../messages/token-request.js';
import { type Answer, openAnswer } from './answer.js';
import type { AnswerPort, AnswerStream } from './answer-port.js';
import type { CallRun, RunEvents } from './call-run.js';
import { receiveRequest } from './receive-request.js';
import { endCauseOf, type RequestContext } from './request-context.js';
import { RequestRuns } from './request-runs.js';
import { placementHeaders } from './routing-hints.js';
import type { RunsOwner } from './runs-owner.js';

type Phase = 'body' | 'running' | 'flushing' | 'ended';

/** One request and its state; see the top of this file. */
export class PlaneRequest implements RunsOwner {
  readonly id: number;
  readonly #context: RequestContext;
  readonly #port: AnswerPort;
  readonly #api: Api;
  readonly #runs: RequestRuns;
  readonly #startedMs: number;
  readonly #deadlineMs: number;
  #phase: Phase = 'body';
  #answer: Answer | null = null;
  #client: AnswerStream | null = null;
  #lastEventMs = 0;
  #hasToken = false;
  #isPaused = false;

  constructor(id: number, api: Api, port: AnswerPort, context: RequestContext) {
    this.id = id;
    this.#api = api;
    this.#port = port;
    this.#context = context;
    this.#startedMs = context.clock.nowMs();
    this.#deadlineMs = this.#startedMs + context.limits.totalDeadlineMs;
    this.#runs = new RequestRuns(id, api, port, context, this.#deadlineMs, this);
  }

  get answer(): Answer | null {
    return this.#answer;
  }

  get isShown(): boolean {
    return this.#client !== null;
  }

  get hasToken(): boolean {
    return this.#hasToken;
  }

  get isPaused(): boolean {
    return this.#isPaused;
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
    this.#runs.letGo();
    this.#port.abort();
  }

  /** A PLAN came; its reservations already belong to this socket thread. False: stale, the caller releases them. */
  onPlan(plan: Plan): boolean {
    return this.#runs.onPlan(plan);
  }

  /** The PLAN's reservation was reaped with its thread before it could be adopted. */
  onAdoptionFailed(attempt: number): void {
    this.#runs.onAdoptionFailed(attempt);
  }

  onReject(reject: Reject): void {
    this.#runs.onReject(reject);
  }

  /** The pool thread that was asked died. */
  onPoolLost(): void {
    this.#runs.onPoolLost();
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
    this.#runs.leaveWorker(slot, generation);
  }

  /** Checks every deadline of this request; called by the sweep of the socket thread. */
  sweep(nowMs: number): void {
    const { limits } = this.#context;
    const blockedSinceMs = this.#client?.blockedSinceMs ?? null;
    if (blockedSinceMs !== null && nowMs - blockedSinceMs >= limits.slowClientDeadlineMs)
      this.#cutSlowClient();
    else if (nowMs >= this.#deadlineMs) {
      this.fail('MILLRACE_DEADLINE_EXCEEDED', `the request took longer than ${limits.totalDeadlineMs} ms`);
    } else if (this.#runs.isPlanningOverdue(nowMs)) {
      this.fail('MILLRACE_DEADLINE_EXCEEDED', `planning took longer than ${limits.askDeadlineMs} ms`);
    } else if (this.#phase === 'running') {
      this.#runs.sweep(nowMs);
      this.#client?.keepAlive(nowMs, limits.keepAliveMs);
    }
  }

  eventsOf(run: CallRun): RunEvents {
    const runs = this.#runs;
    return {
      onCached: tokens => runs.onCached(tokens),
      onBatch: batch => this.#onBatch(run, batch),
      onStreamEnd: () => this.#onStreamEnd(run),
      onUnary: (body, contentType) => this.#onUnary(run, body, contentType),
      onRefused: (status, body, pauseMs) => runs.onRefusal(run, engineError(status, body), pauseMs),
      onFailed: (failure, code, message) => runs.onFailed(run, failure, code, message),
    };
  }

  announce(worker: string, placement: PlanPlacement): void {
    if (this.#client === null) this.#port.announce(placementHeaders(worker, placement));
  }

  forgetAnswer(): void {
    this.#answer?.release();
    this.#answer = null;
    this.#hasToken = false;
  }

  /** Nothing more is wanted of a run; with the last of them the client gets the rest of the answer. */
  onRunDone(run: CallRun): void {
    this.#runs.drop(run);
    const answer = this.#answer!;
    if (!answer.isComplete) return;
    this.#runs.letGo();
    if (this.#client !== null) {
      this.#phase = 'flushing';
      answer.endStream();
      this.#client.end();
      return;
    }
    this.#port.respond('application/json', answer.unaryBody());
    this.#end('completed', null);
  }

  #onBody(chunks: Uint8Array[], bytes: number, hints: RoutingHints): void {
    if (this.#phase !== 'body') return;
    this.#runs.begin(chunks, bytes, hints);
    if (this.#phase === 'body') this.#phase = 'running';
  }

  #onBatch(run: CallRun, batch: FrameBatch): void {
    if (this.#answer === null && !this.#opens(run, batch)) return;
    const outcome = this.#answer!.take(batch, run.range);
    const nowMs = this.#context.clock.nowMs();
    if (outcome.tokens > 0) this.#onTokens(run, outcome.tokens, nowMs);
    this.#lastEventMs = nowMs;
    run.touch(nowMs, outcome.tokens);
    if (outcome.malformed) this.#onBroken(run, 'a frame of the worker is not valid');
    else if (outcome.engineError !== null) this.#runs.onRefusal(run, outcome.engineError, 0);
    else if (this.#client?.isOverfull === true) this.#cutSlowClient();
    else if (outcome.engineNotNeeded) this.onRunDone(run);
  }

  /** Opens the answer with its first frame: an error that comes instead of one still has its status, or a retry. */
  #opens(run: CallRun, batch: FrameBatch): boolean {
    const opening = openingOf(batch);
    if (opening === 'nothing') return false;
    if (opening === 'answer') this.#runs.settleRace(run);
    const plan = this.#runs.plan!;
    if (opening === 'answer' && (plan.stream || plan.mode !== 'relay')) {
      this.#answer = openAnswer(plan, this.#context, () => this.#openClient());
      return true;
    }
    if (typeof opening === 'object') this.#runs.onRefusal(run, opening, 0);
    else this.#onBroken(run, 'the worker did not send the answer asked for');
    return false;
  }

  #onTokens(run: CallRun, count: number, nowMs: number): void {
    const { observer } = this.#context;
    if (!run.hasToken) this.#runs.onFirstToken(run);
    if (this.#hasToken) observer.tokens(this.#runs.plan!, count, nowMs - this.#lastEventMs);
    else {
      this.#hasToken = true;
      const ttftMs = nowMs - this.#startedMs;
      run.decision!.ttftMs = ttftMs;
      observer.firstToken(this.#runs.plan!, ttftMs);
      observer.tokens(this.#runs.plan!, count, null);
    }
  }

  #onStreamEnd(run: CallRun): void {
    if (this.#answer?.openChoices(run.range).length === 0) this.onRunDone(run);
    else this.#onBroken(run, 'the worker ended its answer without finishing it');
  }

  /** A whole JSON answer, which relay mode passes on as it is. */
  #onUnary(run: CallRun, body: Buffer, contentType: string): void {
    const plan = this.#runs.plan!;
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

  /** The worker broke its protocol. */
  #onBroken(run: CallRun, message: string): void {
    this.#runs.onFailed(run, 'protocol', 'MILLRACE_WORKER_PROTOCOL', message);
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
    this.#isPaused = paused;
    this.#lastEventMs = this.#context.clock.nowMs();
    this.#runs.pause(paused);
  }

  #cutSlowClient(): void {
    this.#client!.abort();
    this.#end('slow_client', 'MILLRACE_SLOW_CLIENT');
  }

  /** The one end of a request: everything that it held is given back. */
  #end(cause: EndCause, code: ErrorCode | null): void {
    if (this.#phase === 'ended') return;
    this.#phase = 'ended';
    const usage = this.#answer?.usage() ?? null;
    this.#runs.end(cause, usage?.cachedTokens ?? null);
    this.#client?.close();
    this.#answer?.release();
    this.#context.onEnded(this.id, {
      plan: this.#runs.plan,
      api: this.#api,
      cause,
      code,
      usage,
      durationMs: this.#context.clock.nowMs() - this.#startedMs,
    });
  }
}
