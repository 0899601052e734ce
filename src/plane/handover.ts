/**
 * One hand-over of a prompt's KV from a prefill to a decode worker (R5), around the decode attempt of a call: it has the
 * prompt computed, completes the decode body with what the prefill worker said, and knows who is to blame when decode
 * fails. Without a prefill worker that answers, decode does it all. Owned by its CallRun, on the socket thread.
 */
import { strict as assert } from 'node:assert';
import type { DisaggProtocol, NextStep } from '../engines/disagg/contract.js';
import { replaceRange } from '../engines/disagg/json-bytes.js';
import { protocolOf } from '../engines/disagg/protocols.js';
import type { ErrorCode } from '../errors.js';
import type { FallbackCause, HandoverOutcome } from '../frontend/disagg-metrics.js';
import type { PlanCall, PlanStep } from '../messages/records.js';
import type { AttemptFailure } from './attempt.js';
import { type PrefillOutcome, PrefillRun } from './prefill-run.js';
import type { RequestContext } from './request-context.js';

/** What a hand-over asks of its call. */
export interface HandoverEvents {
  /** Decode is to be asked with this body; once. */
  send(body: Uint8Array): void;
  /** The prefill worker has said how many tokens of the prompt it had in its cache. */
  cached(tokens: number): void;
  /** The prefill worker gave the whole answer. */
  complete(answer: Uint8Array): void;
  /** The prefill worker found the request itself wrong. */
  refused(status: number, body: string): void;
  /** Decode waits for what will not come. */
  failed(failure: AttemptFailure, code: ErrorCode, message: string): void;
}

/**
 * prefill: decode is not asked yet. moving: it is, and KV may be on its way. moved: it has all that it needs. alone: nothing
 * is handed over.
 */
type State = 'prefill' | 'moving' | 'moved' | 'alone';

/** See the head of the file. */
export class Handover {
  readonly prefillStep: PlanStep;
  readonly #decodeStep: PlanStep;
  readonly #protocol: DisaggProtocol;
  readonly #context: RequestContext;
  readonly #prefill: PrefillRun;
  #events: HandoverEvents | null = null;
  #state: State = 'prefill';
  #retainedBytes = 0;
  #hasFailed = false;
  #model = '';
  #prefillAskedMs = 0;
  #decodeAskedMs = 0;
  #isCounted = false;

  constructor({ protocol, steps }: PlanCall, context: RequestContext) {
    const [prefill, decode] = steps;
    assert(protocol !== null && prefill !== undefined && decode !== undefined, 'a hand-over has two steps');
    this.prefillStep = prefill;
    this.#decodeStep = decode;
    this.#protocol = protocolOf(protocol);
    this.#context = context;
    this.#prefill = new PrefillRun(prefill, context);
  }

  /** Decode has not been asked: its worker is not to blame for being silent. */
  get isPrefilling(): boolean {
    return this.#state === 'prefill';
  }

  /** Nobody may cut it now: either engine could be reading the other's memory, or keep blocks for it. */
  get mustFinish(): boolean {
    const isOpen = this.#state === 'prefill' || this.#state === 'moving';
    return isOpen && this.#protocol.abort === 'deferred';
  }

  /**
   * It is the prefill worker that failed: it said so, or decode found fault before its first token, on a connection that
   * held.
   */
  isToBlame(failure: AttemptFailure): boolean {
    return this.#hasFailed || (this.#state === 'moving' && failure === 'protocol');
  }

  start(events: HandoverEvents, model: string): void {
    this.#events = events;
    this.#model = model;
    this.#prefillAskedMs = this.#context.clock.nowMs();
    const { body } = this.#decodeStep;
    if (this.#protocol.order === 'parallel') {
      this.#prefill.start(outcome => this.#onParallel(outcome));
      this.#send('moving', body);
    } else if (this.#context.retain(body.length)) {
      // It waits here until the prompt has been computed.
      this.#retainedBytes = body.length;
      this.#prefill.start(outcome => this.#onSequential(outcome));
    } else {
      this.#prefill.abort();
      this.#fallBack('memory');
    }
  }

  /** The prefill worker was found dead. */
  lost(): void {
    this.#prefill.lost();
  }

  /** Decode's first token has come. */
  done(): void {
    if (this.#state !== 'moving') return;
    this.#state = 'moved';
    this.#count('handed_over');
    const { clock, observer } = this.#context;
    observer.handovers.handedOver(this.#model, clock.nowMs() - this.#decodeAskedMs);
  }

  /** Nothing more is wanted of it. A prefill whose KV has been taken ends by itself. `hasEnded`: decode's answer has. */
  abort(hasEnded: boolean): void {
    this.#giveBack();
    this.#count(hasEnded && this.#state === 'moving' ? 'decode_failed' : 'dropped');
    if (this.#state === 'moving') {
      // Each would wait for the other: decode for KV, and the prefill worker for somebody who fetches it.
      if (!this.#hasFailed) this.#release(this.#decodeStep);
      this.#release(this.prefillStep);
    }
    if (this.#state !== 'moved') this.#prefill.abort();
    this.#state = 'moved';
    this.#events = null;
  }

  #onSequential(outcome: PrefillOutcome): void {
    const events = this.#events;
    if (events === null) return;
    if (outcome.kind === 'refused') {
      this.#count('refused');
      events.refused(outcome.status, outcome.body);
    } else if (outcome.kind === 'failed') {
      this.#blame(outcome.blame);
      this.#fallBack(outcome.code === 'MILLRACE_OVERLOADED' ? 'busy' : (outcome.blame ?? 'reset'));
    } else {
      this.#onComputed();
      this.#onNext(this.#protocol.next(outcome.answer), events);
    }
  }

  #onNext(next: NextStep, events: HandoverEvents): void {
    const { body, spliceAt } = this.#decodeStep;
    if (next.kind === 'complete') {
      this.#count('whole_answer');
      events.complete(next.answer);
    } else if (next.kind === 'splice') {
      assert(spliceAt !== null, 'a sequential protocol completes the decode body');
      if (next.cachedTokens !== null) events.cached(next.cachedTokens);
      this.#send('moving', replaceRange(body, spliceAt, spliceAt, next.bytes));
    } else {
      if (next.kind === 'malformed') this.#blame('protocol');
      this.#fallBack(next.kind === 'malformed' ? 'malformed' : 'nothing_kept');
    }
  }

  /** The prefill worker has computed the prompt. */
  #onComputed(): void {
    const { clock, observer } = this.#context;
    this.#context.reportSuccess(this.prefillStep);
    observer.handovers.prefillAnswered(this.#model, clock.nowMs() - this.#prefillAskedMs);
  }

  #onParallel(outcome: PrefillOutcome): void {
    if (outcome.kind === 'answered') this.#onComputed();
    else if (this.#state === 'moving') this.#onParallelFailure(outcome);
  }

  #onParallelFailure(outcome: Exclude<PrefillOutcome, { kind: 'answered' }>): void {
    this.#hasFailed = true;
    this.#count(outcome.kind === 'refused' ? 'refused' : 'prefill_failed');
    this.#release(this.#decodeStep);
    if (outcome.kind === 'refused') this.#events?.refused(outcome.status, outcome.body);
    else this.#events?.failed(outcome.blame ?? 'protocol', outcome.code, outcome.message);
  }

  /** Tells the worker of a step that the other one will not come, where closing the connection is not enough. */
  #release({ slot, generation, head }: PlanStep): void {
    const requestId = head.find(([name]) => name === 'x-request-id')?.[1] ?? '';
    const call = this.#protocol.releaseCall(requestId);
    const origin = this.#context.originOf(slot, generation);
    if (call === null || origin === null) return;
    const { method, path, head: callHead, body } = call;
    const nothing = (): void => {};
    const sink = { onHead: nothing, onData: nothing, onRows: nothing, onEnd: nothing, onError: nothing };
    this.#context.client.send({ origin, method, path, head: callHead, body, wantsRows: false }, sink);
  }

  #blame(failure: AttemptFailure | null): void {
    if (failure !== null) this.#context.reportFailure(this.prefillStep, failure);
  }

  /** Decode computes the prompt, with the body that it has. */
  #fallBack(cause: FallbackCause): void {
    this.#count('local');
    this.#context.observer.handovers.fellBack(cause);
    this.#send('alone', this.#decodeStep.body);
  }

  /** What became of the hand-over, told once. */
  #count(outcome: HandoverOutcome): void {
    if (this.#isCounted) return;
    this.#isCounted = true;
    this.#context.observer.handovers.ended(this.#protocol.name, outcome);
  }

  #send(state: 'moving' | 'alone', body: Uint8Array): void {
    this.#giveBack();
    this.#decodeAskedMs = this.#context.clock.nowMs();
    this.#state = state;
    this.#events!.send(body);
  }

  #giveBack(): void {
    this.#context.unretain(this.#retainedBytes);
    this.#retainedBytes = 0;
  }
}
