/**
 * The ASKs of one request (R2): what it keeps to ask again, which attempt is open, and how often it has asked. An answer to
 * any other attempt is stale. Owned by its request on the socket thread.
 */
import type { ErrorCode, ErrorDetail } from '../errors.js';
import { type AskReason, type Continuation, NO_HINTS, type RoutingHints } from '../messages/records.js';
import type { Api } from '../messages/token-request.js';
import type { AnswerPort } from './answer-port.js';
import type { AttemptFailure } from './attempt.js';
import { askHeaders } from './receive-request.js';
import type { RequestContext } from './request-context.js';

/** Milliseconds after which a refused client should come back, where nobody knows better. */
export const RETRY_AFTER_MS = 1000;

/** What an ASK is for. */
export interface Wanted {
  /** Null: a whole answer. */
  readonly continuation: Continuation | null;
  /** What made an answer migrate; null: it begins. */
  readonly cause: AttemptFailure | null;
}

/** An ASK without its answer. */
export interface OpenAsk extends Wanted {
  readonly attempt: number;
  readonly sinceMs: number;
}

/** A whole answer. */
export const BEGINNING: Wanted = Object.freeze({ continuation: null, cause: null });

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

  /** Those for a whole answer. */
  get beginnings(): number {
    return this.#beginnings;
  }

  get open(): OpenAsk | null {
    return this.#open;
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

  /** Any worker will do again. */
  excludeNone(): void {
    this.#excludedSlots.length = 0;
  }

  /** Sends an ASK, which is the open one from now on. Answers why it could not. */
  send(reason: AskReason, wanted: Wanted): AskRefusal | null {
    const { clock } = this.#context;
    const attempt = ++this.#attempts;
    const { continuation, cause } = wanted;
    if (continuation === null) this.#beginnings++;
    this.#open = { attempt, sinceMs: clock.nowMs(), continuation, cause };
    const ask = {
      request: this.#request,
      attempt,
      api: this.#api,
      reason,
      deadlineWallMs: clock.wallMs() + this.#deadlineMs - clock.nowMs(),
      excludedSlots: this.#excludedSlots,
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
