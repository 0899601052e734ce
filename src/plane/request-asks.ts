/**
 * The ASKs of one request (R2): what it keeps to ask again, which attempt is open, and how often it has asked. An answer to
 * any other attempt is stale. Owned by its request on the socket thread.
 */
import type { FailureCause } from '../engines/health-contract.js';
import type { ErrorCode, ErrorDetail } from '../errors.js';
import { type AskReason, type Continuation, NO_HINTS, type RoutingHints } from '../messages/records.js';
import type { Api } from '../messages/token-request.js';
import type { AnswerPort } from './answer-port.js';
import type { CallRun } from './call-run.js';
import { askHeaders } from './receive-request.js';
import type { RequestContext } from './request-context.js';

/** Milliseconds after which a refused client should come back, where nobody knows better. */
export const RETRY_AFTER_MS = 1000;

/** What an ASK is for. */
export interface Wanted {
  /** Null: a whole answer. */
  readonly continuation: Continuation | null;
  /** What made an answer migrate; null: it begins. */
  readonly cause: FailureCause | null;
  /** Another one will not follow. */
  readonly isLast: boolean;
  /**
   * The request does without it, because it still runs. 'hedge': the PLAN runs, too, until one of the two answers. Runs: it
   * takes their place if they are as silent then. Null: the request waits for it.
   */
  readonly beside: 'hedge' | readonly CallRun[] | null;
}

/** An ASK without its answer. */
export interface OpenAsk extends Wanted {
  readonly attempt: number;
  readonly sinceMs: number;
}

/** A whole answer. */
export const BEGINNING: Wanted = Object.freeze({
  continuation: null,
  cause: null,
  isLast: false,
  beside: null,
});
/** A whole answer beside the one that is waited for. */
export const HEDGE: Wanted = Object.freeze({ ...BEGINNING, beside: 'hedge' });

/** Why an ASK was not sent. */
export interface AskRefusal {
  readonly code: ErrorCode;
  readonly message: string;
  readonly detail: ErrorDetail;
}

const full = (message: string): AskRefusal => {
  return { code: 'MILLRACE_OVERLOADED', message, detail: { retryAfterMs: RETRY_AFTER_MS } };
};

/** See the head of the file. */
export class RequestAsks {
  readonly #request: number;
  readonly #api: Api;
  readonly #port: Pick<AnswerPort, 'header'>;
  readonly #context: RequestContext;
  readonly #deadlineMs: number;
  #hints: RoutingHints = NO_HINTS;
  #body: Uint8Array[] = [];
  #retainedBytes = 0;
  #attempts = 0;
  #beginnings = 0;
  #open: OpenAsk | null = null;
  #failedHandover = false;
  #wasLocal = false;
  /** Of workers that have failed since the last first token of a run. */
  readonly #excludedSlots: number[] = [];

  /** @param deadlineMs the end of the whole request, on the monotonic clock */
  constructor(
    request: number,
    api: Api,
    port: Pick<AnswerPort, 'header'>,
    context: RequestContext,
    deadlineMs: number,
  ) {
    this.#request = request;
    this.#api = api;
    this.#port = port;
    this.#context = context;
    this.#deadlineMs = deadlineMs;
  }

  /** ASKs so far. */
  get attempts(): number {
    return this.#attempts;
  }

  /** Those for a whole answer, hedges left out. */
  get beginnings(): number {
    return this.#beginnings;
  }

  get open(): OpenAsk | null {
    return this.#open;
  }

  /** The client has named its worker. */
  get isPinned(): boolean {
    return this.#hints.worker !== '';
  }

  /** A hand-over failed, and no attempt has done without one yet. */
  get canSave(): boolean {
    return this.#failedHandover && !this.#wasLocal;
  }

  /** The last one was not to be handed over. */
  get wasLocal(): boolean {
    return this.#wasLocal;
  }

  /** Keeps what is asked with and sends the first ASK. Answers why it could not. */
  begin(body: Uint8Array[], bytes: number, hints: RoutingHints): AskRefusal | null {
    if (!this.#context.retain(bytes)) return full('too many bytes of requests are in flight');
    this.#retainedBytes = bytes;
    this.#body = body;
    this.#hints = hints;
    return this.send('first', BEGINNING);
  }

  /** Leaves the worker of a slot out from now on. */
  exclude(slot: number): void {
    if (!this.#excludedSlots.includes(slot)) this.#excludedSlots.push(slot);
  }

  /** A prompt's KV did not get from one worker to another: the last attempt does without. */
  noteFailedHandover(): void {
    this.#failedHandover = true;
  }

  /** Any worker will do again. */
  excludeNone(): void {
    this.#excludedSlots.length = 0;
  }

  /** Sends an ASK, which is the open one from now on. Answers why it could not. */
  send(reason: AskReason, wanted: Wanted): AskRefusal | null {
    const { clock, limits } = this.#context;
    const attempt = ++this.#attempts;
    const { continuation, beside } = wanted;
    const isHedge = beside === 'hedge';
    if (continuation === null && !isHedge) this.#beginnings++;
    this.#open = { ...wanted, attempt, sinceMs: clock.nowMs() };
    const isLast = wanted.isLast || (continuation === null && this.#beginnings >= limits.attemptsMax);
    const saves = this.#failedHandover && isLast && !isHedge;
    this.#wasLocal = saves || isHedge;
    const ask = {
      request: this.#request,
      attempt,
      api: this.#api,
      reason,
      deadlineWallMs: clock.wallMs() + this.#deadlineMs - clock.nowMs(),
      // Nothing follows: a worker that could not take a hand-over is better than none.
      excludedSlots: saves ? [] : this.#excludedSlots,
      avoidedSlots: saves ? this.#excludedSlots : [],
      computesLocally: this.#wasLocal,
      headers: askHeaders(this.#port),
      hints: this.#hints,
      continuation,
    };
    const sent = this.#context.ask(ask, this.#body);
    if (sent === 'full') return full('the planning queue is full');
    if (sent === 'ok') return null;
    return { code: 'MILLRACE_POOL_LOST', message: 'no planning thread is running', detail: {} };
  }

  /** The open ASK, which is answered now; null: the answer is stale. */
  take(attempt: number): OpenAsk | null {
    const ask = this.#open;
    if (ask?.attempt !== attempt) return null;
    this.#open = null;
    return ask;
  }

  /** Its answer is not wanted any more. */
  forget(): void {
    this.#open = null;
  }

  /** Gives back what was kept. */
  release(): void {
    this.#open = null;
    this.#context.unretain(this.#retainedBytes);
    this.#retainedBytes = 0;
    this.#body = [];
  }
}
