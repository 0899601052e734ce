/**
 * One request on its socket thread, from the first byte to the end: body → ask → plan → engine → answer. It owns its
 * body, its reservation, its engine attempt and its client stream, and ends exactly once, whatever fails. Re-planning
 * is the only recovery: a lost pool thread, a failed adoption or a worker that failed before its first event lead to
 * the same ASK with a higher attempt.
 */
import { strict as assert } from 'node:assert';
import type { FrameBatch } from '../engines/contract.js';
import { type EngineError, engineError } from '../engines/engine-error.js';
import { openingOf } from '../engines/event-rows.js';
import type { ErrorCode, ErrorDetail } from '../errors.js';
import {
  type AskReason,
  type EndCause,
  NO_HINTS,
  type Plan,
  type PlanStep,
  type Reject,
  type RoutingHints,
} from '../messages/records.js';
import type { Api } from '../messages/token-request.js';
import { RESERVATION_NONE } from '../router/load-descriptor.js';
import { type Answer, openAnswer } from './answer.js';
import type { AnswerPort, AnswerStream } from './answer-port.js';
import { type AttemptFailure, EngineAttempt } from './attempt.js';
import type { OpenDecision } from './decision-log.js';
import { askHeaders, receiveRequest } from './receive-request.js';
import { endCauseOf, type RequestContext } from './request-context.js';
import { placementHeaders } from './routing-hints.js';

type Phase = 'body' | 'asked' | 'dispatched' | 'streaming' | 'flushing' | 'ended';

/** One request and its state; see the top of this file. */
export class PlaneRequest {
  readonly id: number;
  readonly #context: RequestContext;
  readonly #port: AnswerPort;
  readonly #api: Api;
  readonly #startedMs: number;
  readonly #deadlineMs: number;
  readonly #excludedSlots: number[] = [];
  #phase: Phase = 'body';
  #phaseSinceMs: number;
  #hints: RoutingHints = NO_HINTS;
  #body: Uint8Array[] = [];
  #retainedBytes = 0;
  #attempts = 0;
  #poolLosses = 0;
  #plan: Plan | null = null;
  #reservation = RESERVATION_NONE;
  #attempt: EngineAttempt | null = null;
  #decision: OpenDecision | null = null;
  #answer: Answer | null = null;
  #client: AnswerStream | null = null;
  #lastEventMs = 0;
  #sawToken = false;
  #enginePaused = false;
  #lastFailure: { code: ErrorCode; message: string; detail: ErrorDetail } | null = null;

  constructor(id: number, api: Api, port: AnswerPort, context: RequestContext) {
    this.id = id;
    this.#api = api;
    this.#port = port;
    this.#context = context;
    this.#startedMs = context.clock.nowMs();
    this.#phaseSinceMs = this.#startedMs;
    this.#deadlineMs = this.#startedMs + context.limits.totalDeadlineMs;
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
    this.#attempt?.abort();
    this.#port.abort();
  }

  /** A PLAN came; its reservation already belongs to this socket thread. False: stale, the caller releases it. */
  onPlan(plan: Plan): boolean {
    if (this.#phase !== 'asked' || plan.attempt !== this.#attempts) return false;
    this.#plan = plan;
    if (this.#attempts === 1) this.#context.observer.planned(plan);
    this.#dispatch(plan.calls[0]!.steps[0]!);
    return true;
  }

  /** The PLAN's reservation was reaped with its thread before it could be adopted. */
  onAdoptionFailed(attempt: number): void {
    if (this.#phase === 'asked' && attempt === this.#attempts) this.#ask('adoption_failed');
  }

  onReject(reject: Reject): void {
    if (this.#phase !== 'asked' || reject.attempt !== this.#attempts) return;
    const failure = this.#lastFailure;
    // No other worker is left to try: what the first one did says more than that there is none.
    if (failure !== null && reject.code === 'MILLRACE_NO_WORKER')
      this.fail(failure.code, failure.message, failure.detail);
    else this.fail(reject.code, reject.message, { param: reject.param, retryAfterMs: reject.retryAfterMs });
  }

  /** The pool thread that was asked died. A request that loses two of them is not asked again: it may be the cause. */
  onPoolLost(): void {
    if (this.#phase !== 'asked') return;
    if (++this.#poolLosses > 1)
      this.fail('MILLRACE_POOL_LOST', 'two planning threads died over this request');
    else this.#ask('pool_lost');
  }

  /** Ends the request with an error: as a response when nothing was sent yet, else as the last frame of the stream. */
  fail(code: ErrorCode, message: string, detail: ErrorDetail = {}): void {
    if (this.#phase === 'ended') return;
    if (this.#client === null) {
      this.#port.refuse(code, message, detail, this.#phase === 'body');
    } else this.#client.fail(code, message);
    this.#end(endCauseOf(code), code);
  }

  /** Checks every deadline of this request; called by the sweep of the socket thread. */
  sweep(nowMs: number): void {
    const { limits } = this.#context;
    const inPhaseMs = nowMs - this.#phaseSinceMs;
    const blockedSinceMs = this.#client?.blockedSinceMs ?? null;
    if (blockedSinceMs !== null && nowMs - blockedSinceMs >= limits.slowClientDeadlineMs)
      this.#cutSlowClient();
    else if (nowMs >= this.#deadlineMs) {
      this.fail('MILLRACE_DEADLINE_EXCEEDED', `the request took longer than ${limits.totalDeadlineMs} ms`);
    } else if (this.#phase === 'asked' && inPhaseMs >= limits.askDeadlineMs) {
      this.fail('MILLRACE_DEADLINE_EXCEEDED', `planning took longer than ${limits.askDeadlineMs} ms`);
    } else if (this.#phase === 'dispatched' || this.#phase === 'streaming') this.#sweepEngine(nowMs);
  }

  #sweepEngine(nowMs: number): void {
    const { limits } = this.#context;
    const plan = this.#plan!;
    // A relayed unary answer comes in one piece: only the total deadline applies to it.
    if (plan.mode === 'relay' && !plan.stream) return;
    const boundMs = this.#sawToken ? limits.betweenTokensDeadlineMs : limits.firstTokenDeadlineMs;
    const sinceMs = this.#sawToken ? this.#lastEventMs : this.#phaseSinceMs;
    if (!this.#enginePaused && nowMs - sinceMs >= boundMs) {
      this.#onFailed('stalled', 'MILLRACE_WORKER_STALLED', `the worker sent nothing for ${boundMs} ms`);
    } else this.#client?.keepAlive(nowMs, limits.keepAliveMs);
  }

  #onBody(chunks: Uint8Array[], bytes: number, hints: RoutingHints): void {
    if (this.#phase !== 'body') return;
    if (!this.#context.retain(bytes)) {
      this.fail('MILLRACE_OVERLOADED', 'too many bytes of requests are in flight', { retryAfterMs: 1000 });
      return;
    }
    this.#retainedBytes = bytes;
    this.#body = chunks;
    this.#hints = hints;
    this.#ask('first');
  }

  #ask(reason: AskReason): void {
    this.#attempts++;
    this.#enter('asked');
    const { clock } = this.#context;
    const sent = this.#context.ask(
      {
        request: this.id,
        attempt: this.#attempts,
        api: this.#api,
        reason,
        deadlineWallMs: clock.wallMs() + this.#deadlineMs - clock.nowMs(),
        excludedSlots: this.#excludedSlots,
        headers: askHeaders(this.#port),
        hints: this.#hints,
      },
      this.#body,
    );
    if (sent === 'full') {
      this.fail('MILLRACE_OVERLOADED', 'the planning queue is full', { retryAfterMs: 1000 });
    } else if (sent === 'off') this.fail('MILLRACE_POOL_LOST', 'no planning thread is running');
  }

  #dispatch(step: PlanStep): void {
    this.#reservation = step.reservation;
    this.#enter('dispatched');
    const origin = this.#context.originOf(step.slot, step.generation);
    if (origin === null) {
      this.#onFailed('unreachable', 'MILLRACE_WORKER_UNREACHABLE', 'the worker has left');
      return;
    }
    this.#tellPlacement(origin);
    this.#attempt = new EngineAttempt(
      {
        client: this.#context.client,
        origin,
        step,
        openStream: this.#context.streamOpener(step, this.#plan!.mode),
        guard: this.#context.guard,
        answerBytesMax: this.#context.limits.unaryAnswerBytesMax,
      },
      {
        onBatch: batch => this.#onBatch(batch),
        onStreamEnd: () => this.#onStreamEnd(),
        onUnary: (body, contentType) => this.#onUnary(body, contentType),
        onRefused: (status, body) => this.#onRefusal(engineError(status, body)),
        onFailed: (failure, code, message) => this.#onFailed(failure, code, message),
      },
    );
    this.#attempt.start();
  }

  #tellPlacement(worker: string): void {
    const { clock, decisions } = this.#context;
    const plan = this.#plan!;
    this.#port.announce(placementHeaders(worker, plan.placement));
    this.#decision = decisions.add(clock.wallMs(), plan, worker, this.#port.header('x-request-id'));
  }

  #onBatch(batch: FrameBatch): void {
    if (this.#answer === null && !this.#opens(batch)) return;
    const outcome = this.#answer!.take(batch);
    const nowMs = this.#context.clock.nowMs();
    if (outcome.tokens > 0) this.#onTokens(outcome.tokens, nowMs);
    this.#lastEventMs = nowMs;
    if (outcome.malformed) {
      this.#onFailed('protocol', 'MILLRACE_WORKER_PROTOCOL', 'a frame of the worker is not valid');
    } else if (outcome.engineError !== null) {
      this.#onFailed('protocol', outcome.engineError.code, outcome.engineError.message);
    } else if (this.#client?.isOverfull === true) this.#cutSlowClient();
    else if (outcome.engineNotNeeded) this.#complete();
  }

  /** Opens the answer with its first frame: an error that comes instead of one still has its status, or a retry. */
  #opens(batch: FrameBatch): boolean {
    const plan = this.#plan!;
    const opening = openingOf(batch);
    if (opening === 'nothing') return false;
    if (opening === 'answer' && (plan.stream || plan.mode !== 'relay')) {
      this.#answer = openAnswer(plan, this.#context, () => this.#openClient());
      return true;
    }
    if (typeof opening === 'object') this.#onRefusal(opening);
    else
      this.#onFailed('protocol', 'MILLRACE_WORKER_PROTOCOL', 'the worker did not send the answer asked for');
    return false;
  }

  #onTokens(count: number, nowMs: number): void {
    const { observer, ledger } = this.#context;
    if (this.#sawToken) observer.tokens(this.#plan!, count, nowMs - this.#lastEventMs);
    else {
      this.#sawToken = true;
      ledger.firstToken(this.#reservation);
      const ttftMs = nowMs - this.#startedMs;
      this.#decision!.ttftMs = ttftMs;
      observer.firstToken(this.#plan!, ttftMs);
      observer.tokens(this.#plan!, count, null);
    }
  }

  #onStreamEnd(): void {
    if (this.#answer?.isComplete === true) this.#complete();
    else {
      const message = 'the worker ended its answer without finishing it';
      this.#onFailed('protocol', 'MILLRACE_WORKER_PROTOCOL', message);
    }
  }

  /** A whole JSON answer, which relay mode passes on as it is. */
  #onUnary(body: Buffer, contentType: string): void {
    const plan = this.#plan!;
    if (plan.mode !== 'relay' || plan.stream) {
      this.#onFailed(
        'protocol',
        'MILLRACE_WORKER_PROTOCOL',
        'the worker did not answer with an event stream',
      );
      return;
    }
    this.#answer = openAnswer(plan, this.#context, () => this.#openClient());
    const tokens = this.#answer.takeUnary(body);
    this.#onTokens(tokens, this.#context.clock.nowMs());
    this.#port.respond(contentType, body);
    this.#end('completed', null);
  }

  #onRefusal({ code, message, param, httpStatus, retryable }: EngineError): void {
    const detail = { param, httpStatus, retryAfterMs: code === 'MILLRACE_OVERLOADED' ? 1000 : 0 };
    if (retryable) this.#onFailed('protocol', code, message, detail);
    else this.fail(code, message, detail);
  }

  /** As long as nothing was sent to the client another worker is asked for; after that the request ends with the code. */
  #onFailed(failure: AttemptFailure, code: ErrorCode, message: string, detail: ErrorDetail = {}): void {
    const step = this.#plan!.calls[0]!.steps[0]!;
    this.#context.reportFailure(step, failure);
    if (this.#answer?.isComplete === true) {
      // Nothing of the answer is missing: how its connection ended does not matter to the client.
      this.#complete();
      return;
    }
    if (this.#client !== null || this.#attempts >= this.#context.limits.attemptsMax) {
      this.fail(code, message, detail);
      return;
    }
    this.#answer = null;
    this.#sawToken = false;
    this.#lastFailure = { code, message, detail };
    if (this.#decision !== null) this.#decision.end = 'retried';
    this.#decision = null;
    this.#excludedSlots.push(step.slot);
    this.#letEngineGo();
    this.#ask('worker_failed');
  }

  #openClient(): AnswerStream {
    const { clock, limits } = this.#context;
    const client = this.#port.openStream(limits.streamBufferBytesMax, {
      nowMs: () => clock.nowMs(),
      onDirty: stream => this.#context.markDirty(stream),
      onPressure: () => this.#pauseEngine(true),
      onRelief: () => this.#pauseEngine(false),
      onFinished: () => this.#end('completed', null),
    });
    this.#client = client;
    this.#enter('streaming');
    return client;
  }

  #pauseEngine(paused: boolean): void {
    this.#enginePaused = paused;
    this.#lastEventMs = this.#context.clock.nowMs();
    if (paused) this.#attempt?.pause();
    else this.#attempt?.resume();
  }

  /** The answer is whole: the engine is let go, the client gets the rest. */
  #complete(): void {
    this.#letEngineGo();
    const answer = this.#answer!;
    if (this.#client !== null) {
      this.#enter('flushing');
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

  #letEngineGo(): void {
    this.#attempt?.abort();
    this.#attempt = null;
    this.#enginePaused = false;
    if (this.#reservation !== RESERVATION_NONE) this.#context.ledger.release(this.#reservation);
    this.#reservation = RESERVATION_NONE;
  }

  /** The one end of a request: everything that it held is given back. */
  #end(cause: EndCause, code: ErrorCode | null): void {
    if (this.#phase === 'ended') return;
    this.#enter('ended');
    this.#letEngineGo();
    this.#context.unretain(this.#retainedBytes);
    this.#client?.close();
    this.#body = [];
    const usage = this.#answer?.usage() ?? null;
    if (this.#decision !== null) {
      this.#decision.end = cause;
      this.#decision.reportedCachedTokens = usage?.cachedTokens ?? null;
    }
    this.#context.onEnded(this.id, {
      plan: this.#plan,
      api: this.#api,
      cause,
      code,
      usage,
      durationMs: this.#context.clock.nowMs() - this.#startedMs,
    });
  }

  #enter(phase: Phase): void {
    assert(this.#phase !== 'ended', 'a request that has ended stays so');
    this.#phase = phase;
    this.#phaseSinceMs = this.#context.clock.nowMs();
  }
}
