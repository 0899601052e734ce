/**
 * A routing decision without a request (R4): `pick()` asks the pool as a request would, adopts the reservation of the
 * PLAN and hands it to the caller, who sends the request itself. The reservation frees itself when the caller forgets
 * it. Owned by the socket thread.
 */
import { type ErrorCode, type ErrorDetail, MillraceError } from '../errors.js';
import type { AskReason, Plan, Reject } from '../messages/records.js';
import type { EncodedRequest } from './embed/generate-request.js';
import type { RequestContext, SentAsk } from './request-context.js';

/** Load that a picked worker carries for the caller until it is released or expires. Every call but the first is void. */
export interface Reservation {
  /** Unix milliseconds at which it is released by itself. */
  readonly expiresAt: number;
  /** The first token has come: the prompt no longer counts as prefill work of the worker. */
  firstToken(): void;
  /** The request has ended. */
  release(): void;
}

/** The worker that a request should go to. */
export interface PickedWorker {
  /** Origin of the worker: `http://host:port`. */
  readonly worker: string;
  /** Data-parallel rank to name to it (vLLM: the header `X-data-parallel-rank`); null: it is one worker. */
  readonly rank: number | null;
  readonly slot: number;
  readonly model: string;
  /** Tokens of the prompt; without a tokenizer an estimate (bytes ÷ 4). */
  readonly promptTokens: number;
  /** Tokens of the prompt that the worker is expected to have in its cache. */
  readonly cachedTokens: number;
  /** Why this worker, in words: the policy and the figures that decided. */
  readonly reason: string;
  readonly reservation: Reservation;
}

/** What a pick needs of its socket thread. */
export interface PickContext extends Omit<RequestContext, 'onEnded'> {
  /** The pick has its answer; its id is free. */
  forget(id: number): void;
  /** Holds the reservation until it is released, for at most `expiresInMs`. */
  hold(reservation: number, expiresInMs: number): Reservation;
}

/** One pick and the promise of its answer. */
export class PickRequest {
  readonly #id: number;
  readonly #asked: EncodedRequest;
  readonly #expiresInMs: number;
  readonly #context: PickContext;
  readonly #startedMs: number;
  #attempt = 0;
  #retained = false;
  #settle!: { resolve(pick: PickedWorker): void; reject(error: MillraceError): void };
  /** The decision, or a MillraceError. */
  readonly answer: Promise<PickedWorker>;

  constructor(id: number, asked: EncodedRequest, expiresInMs: number, context: PickContext) {
    this.#id = id;
    this.#asked = asked;
    this.#expiresInMs = expiresInMs;
    this.#context = context;
    this.#startedMs = context.clock.nowMs();
    this.answer = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
  }

  /** Sends the first ASK. */
  start(): void {
    const { bodyBytesMax } = this.#context.limits;
    const { length } = this.#asked.body;
    if (length > bodyBytesMax) {
      this.fail(
        'MILLRACE_BODY_TOO_LARGE',
        `the request is longer than ${bodyBytesMax} bytes of JSON (bodyBytesMax)`,
      );
      return;
    }
    this.#retained = this.#context.retain(length);
    if (this.#retained) this.#ask('first');
    else this.fail('MILLRACE_OVERLOADED', 'too many bytes of requests are in flight', { retryAfterMs: 1000 });
  }

  /** A PLAN came and its reservation was adopted. False: stale, the caller releases it. */
  onPlan(plan: Plan): boolean {
    if (plan.attempt !== this.#attempt) return false;
    // The caller sends one request: of two steps it gets the worker that answers, which can do all of it.
    const { steps } = plan.calls[0]!;
    const step = steps.at(-1)!;
    const worker = this.#context.originOf(step.slot, step.generation);
    if (worker === null) {
      this.#ask('worker_failed');
      return false;
    }
    this.#end();
    for (const other of steps.slice(0, -1))
      this.#context.hold(other.reservation, this.#expiresInMs).release();
    const reservation = this.#context.hold(step.reservation, this.#expiresInMs);
    const { model, promptTokens } = plan;
    const { rank, cachedTokens, reason } = plan.placement;
    const { slot } = step;
    this.#settle.resolve({
      worker,
      rank,
      slot,
      model,
      promptTokens,
      cachedTokens,
      reason,
      reservation,
    });
    return true;
  }

  onAdoptionFailed(attempt: number): void {
    if (attempt === this.#attempt) this.#ask('adoption_failed');
  }

  onPoolLost(): void {
    this.#ask('pool_lost');
  }

  onReject({ attempt, code, message, param, retryAfterMs }: Reject): void {
    if (attempt === this.#attempt) this.fail(code, message, { param, retryAfterMs });
  }

  /** Ends the pick with an error. */
  fail(code: ErrorCode, message: string, detail: ErrorDetail = {}): void {
    this.#end();
    this.#settle.reject(new MillraceError(code, message, detail));
  }

  /** Nobody is left waiting when the plane fails. */
  cut(): void {
    this.#settle.reject(new MillraceError('MILLRACE_PLANE_FAILED', 'the plane has failed'));
  }

  /** Checks the deadline; called by the sweep of the socket thread. */
  sweep(nowMs: number): void {
    const { askDeadlineMs } = this.#context.limits;
    if (nowMs - this.#startedMs >= askDeadlineMs)
      this.fail('MILLRACE_DEADLINE_EXCEEDED', `planning took longer than ${askDeadlineMs} ms`);
  }

  #ask(reason: AskReason): void {
    const { clock, limits } = this.#context;
    if (++this.#attempt > limits.attemptsMax) {
      this.fail('MILLRACE_POOL_LOST', 'the planning threads died over this request');
      return;
    }
    const ask: SentAsk = {
      request: this.#id,
      attempt: this.#attempt,
      api: this.#asked.api,
      reason,
      deadlineWallMs: clock.wallMs() + limits.askDeadlineMs,
      excludedSlots: [],
      avoidedSlots: [],
      computesLocally: false,
      headers: [],
      hints: this.#asked.hints,
      continuation: null,
    };
    const sent = this.#context.ask(ask, [this.#asked.body]);
    if (sent === 'full')
      this.fail('MILLRACE_OVERLOADED', 'the planning queue is full', { retryAfterMs: 1000 });
    else if (sent === 'off') this.fail('MILLRACE_POOL_LOST', 'no planning thread is running');
  }

  #end(): void {
    if (this.#retained) this.#context.unretain(this.#asked.body.length);
    this.#context.forget(this.#id);
  }
}
