/**
 * The socket thread's state that all requests share: the requests in flight, the rings to the pool, the streams to be
 * flushed in this loop turn, the bytes that requests keep, and the sweep that carries out every deadline. It is the
 * RequestContext of its requests. Runs on the thread that owns the HTTP server.
 */
import { strict as assert } from 'node:assert';
import type { EngineStream } from '../engines/contract.js';
import type { AnswerClient } from '../engines/link/contract.js';
import { type ErrorCode, type ErrorDetail, MillraceError } from '../errors.js';
import type { Limits } from '../limits.js';
import type { AnswerMode, Plan, PlanStep, Reject } from '../messages/records.js';
import type { Api } from '../messages/token-request.js';
import type { DetokenizerTable } from '../preprocess/detokenizer.js';
import { EPOCH_DISCARDED, type Ledger } from '../router/ledger.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { AnswerPort } from './answer-port.js';
import type { AttemptFailure } from './attempt.js';
import type { ClientStream } from './client-stream.js';
import type { DecisionLog } from './decision-log.js';
import { DeferredAborts } from './deferred-aborts.js';
import type { EncodedRequest } from './embed/generate-request.js';
import { HedgePlaces } from './hedge.js';
import { HeldReservations } from './held-reservations.js';
import { LostWorkers } from './lost-workers.js';
import { type PickContext, type PickedWorker, PickRequest, type Reservation } from './pick-request.js';
import { PoolLink } from './pool-link.js';
import { PlaneRequest } from './request.js';
import type { RequestContext, RequestEnd, SentAsk } from './request-context.js';
import type { SocketThreadOptions } from './socket-thread-options.js';
import { WorkerBreakers } from './worker-breakers.js';

const REQUEST_ID_MAX = 0xffff_ffff;
/** Precision of every deadline. */
const SWEEP_PERIOD_MS = 100;

/** An ASK that waits for a pool thread to come up again. */
interface ParkedAsk {
  readonly ask: SentAsk;
  readonly body: readonly Uint8Array[];
}

/** What waits for the pool under a request id: a request or a pick. */
interface Asker {
  onPlan(plan: Plan): boolean;
  onAdoptionFailed(attempt: number): void;
  onReject(reject: Reject): void;
  onPoolLost(): void;
  fail(code: ErrorCode, message: string, detail?: ErrorDetail): void;
  cut(): void;
  sweep(nowMs: number): void;
  leaveWorker?(slot: number, generation: number): void;
}

/** The requests of one socket thread and what they share. */
export class SocketThread implements RequestContext, PickContext {
  readonly clock: Clock;
  readonly guard: FaultGuard;
  readonly limits: Limits;
  readonly ledger: Ledger;
  readonly client: AnswerClient;
  readonly observer: SocketThreadOptions['observer'];
  readonly decisions: DecisionLog;
  readonly sessionHeader: string;
  readonly link: PoolLink;
  readonly deferredAborts: DeferredAborts;
  readonly lostWorkers: LostWorkers;
  readonly hedges: HedgePlaces;
  readonly #options: SocketThreadOptions;
  readonly #requests = new Map<number, Asker>();
  readonly #parked = new Map<number, ParkedAsk>();
  readonly #held: HeldReservations;
  readonly #breakers: WorkerBreakers;
  readonly #sweep: Timer;
  #dirty: ClientStream[] = [];
  #flushIsDue = false;
  #retainedBytes = 0;
  #nextId: number;
  #draining = false;
  #failed = false;
  #onIdle: (() => void) | null = null;

  constructor(options: SocketThreadOptions) {
    this.#options = options;
    this.#nextId = options.index + 1;
    this.clock = options.clock;
    this.guard = options.guard;
    this.limits = options.limits;
    this.ledger = options.ledger;
    this.client = options.client;
    this.observer = options.observer;
    this.decisions = options.decisions;
    this.sessionHeader = options.sessionHeader;
    this.deferredAborts = new DeferredAborts(options.limits.deferredAbortsMax);
    this.#held = new HeldReservations(options.clock, options.ledger);
    this.lostWorkers = new LostWorkers(options.clock);
    this.hedges = new HedgePlaces(options.limits.hedgePercentMax, () => this.#requests.size);
    this.#breakers = new WorkerBreakers(options.limits, options.clock);
    this.link = new PoolLink(options.limits, options.clock, options.bellMemory, {
      onPlan: (plan, epoch) => this.#onPlan(plan, epoch),
      onReject: reject => {
        this.observer.rejected(reject);
        this.#requests.get(reject.request)?.onReject(reject);
      },
      onLost: request => this.#requests.get(request)?.onPoolLost(),
    });
    this.link.ended.catch((error: unknown) => this.guard.report(error));
    this.#sweep = options.clock.every(SWEEP_PERIOD_MS, () => this.#runSweep());
  }

  get requestsInFlight(): number {
    return this.#requests.size;
  }

  get retainedBytes(): number {
    return this.#retainedBytes;
  }

  /** Asks that wait for a pool thread to come up. */
  get parkedAsks(): number {
    return this.#parked.size;
  }

  /** Takes a generation request. */
  accept(api: Api, port: AnswerPort): void {
    const refusal = this.#refusal();
    if (refusal !== null) {
      port.refuse(refusal.code, refusal.message, { retryAfterMs: 1000 }, true);
      return;
    }
    const id = this.#takeId();
    const request = new PlaneRequest(id, api, port, this);
    this.#enter(id, request);
    request.start();
  }

  /** Chooses a worker for a request that the caller sends itself; the body is that of an OpenAI request. */
  pick(asked: EncodedRequest, expiresInMs: number): Promise<PickedWorker> {
    const refusal = this.#refusal();
    if (refusal !== null)
      return Promise.reject(new MillraceError(refusal.code, refusal.message, { retryAfterMs: 1000 }));
    const id = this.#takeId();
    const request = new PickRequest(id, asked, expiresInMs, this);
    this.#enter(id, request);
    request.start();
    return request.answer;
  }

  /** Sends the asks that waited for a pool thread. */
  poolThreadUp(): void {
    for (const [id, { ask, body }] of [...this.#parked]) {
      this.#parked.delete(id);
      const sent = this.ask(ask, body);
      if (sent === 'full') this.#refuse(ask, 'MILLRACE_OVERLOADED', 'the planning queue is full', 1000);
    }
  }

  /** Every slot of the pool is off: what waits for it will not be planned. */
  poolIsOff(): void {
    for (const [id, { ask }] of [...this.#parked]) {
      this.#parked.delete(id);
      this.#refuse(ask, 'MILLRACE_POOL_LOST', 'no planning thread is running', 0);
    }
  }

  /** Answers an ASK in the place of the pool. */
  #refuse({ request, attempt }: SentAsk, code: ErrorCode, message: string, retryAfterMs: number): void {
    const reject = { request, attempt, code, message, param: null, retryAfterMs, split: null };
    this.#requests.get(request)?.onReject(reject);
  }

  /** What runs on the worker goes on at other ones, where it can. */
  leaveWorker(slot: number, generation: number): void {
    for (const request of [...this.#requests.values()]) request.leaveWorker?.(slot, generation);
  }

  /** Admits nothing more and resolves when the last request has ended or the deadline has passed; the rest is cut. */
  async drain(deadlineMs: number): Promise<void> {
    this.#draining = true;
    if (this.#requests.size > 0) {
      await new Promise<void>(resolve => {
        const timer = this.clock.after(deadlineMs, resolve);
        this.#onIdle = () => {
          timer.cancel();
          resolve();
        };
      });
    }
    for (const request of [...this.#requests.values()]) {
      request.fail('MILLRACE_DRAINING', 'the server shut down before the answer was complete');
    }
    this.#flush();
  }

  /** A fault in shared state: every request ends with an error, whatever state it is in, and none is admitted. */
  fail(message: string): void {
    this.#failed = true;
    for (const request of [...this.#requests.values()]) {
      try {
        request.fail('MILLRACE_PLANE_FAILED', message);
      } catch {
        // The fault may be in what `fail` itself needs; the peer must not be left waiting.
        this.guard.run(() => request.cut());
      }
    }
    this.#options.board.addRequests(-this.#requests.size);
    this.#requests.clear();
    this.#parked.clear();
    this.#onIdle?.();
  }

  /** Ends the sweep and the rings; the requests are gone by then. */
  stop(): void {
    assert(this.#requests.size === 0, 'the requests were drained');
    this.#sweep.cancel();
    this.#held.releaseAll();
    this.link.stop();
  }

  hold(reservation: number, expiresInMs: number): Reservation {
    return this.#held.hold(reservation, expiresInMs);
  }

  forget(id: number): void {
    if (this.#requests.delete(id)) this.#options.board.addRequests(-1);
    this.#parked.delete(id);
    if (this.#requests.size === 0) this.#onIdle?.();
  }

  retain(bytes: number): boolean {
    if (this.#retainedBytes + bytes > this.limits.retainedBytesMax) return false;
    this.#retainedBytes += bytes;
    return true;
  }

  unretain(bytes: number): void {
    this.#retainedBytes -= bytes;
    assert(this.#retainedBytes >= 0, 'bytes are given back once');
  }

  ask(ask: SentAsk, body: readonly Uint8Array[]): 'ok' | 'full' | 'off' {
    const sent = this.link.ask(this.#breakers.amended(ask), body);
    if (sent === 'none') {
      if (this.#options.board.poolIsOff) return 'off';
      this.#parked.set(ask.request, { ask, body });
      return 'ok';
    }
    if (sent === 'ok') this.observer.asked(ask.reason);
    return sent;
  }

  originOf(slot: number, generation: number): string | null {
    return this.#options.originOf(slot, generation);
  }

  streamOpener({ slot, generation }: PlanStep, mode: AnswerMode): () => EngineStream {
    const adapter = this.#options.adapterOf(slot, generation);
    const { sseFirstFrameBytesMax: firstFrameBytesMax, sseFrameBytesMax: frameBytesMax } = this.limits;
    return () => adapter.openStream({ firstFrameBytesMax, frameBytesMax }, mode);
  }

  detokenizerTable(tokenizer: string): DetokenizerTable {
    return this.#options.detokenizerTable(tokenizer);
  }

  reportSuccess({ slot, generation }: PlanStep): void {
    this.#breakers.succeeded(slot, generation);
  }

  restWorker({ slot, generation }: PlanStep, forMs: number): void {
    this.#breakers.rest(slot, generation, forMs);
  }

  reportFailure(step: PlanStep, failure: AttemptFailure): void {
    this.#breakers.failed(step.slot, step.generation);
    this.#options.reportFailure(step.slot, step.generation, failure);
  }

  noteTokens({ slot, generation }: PlanStep): void {
    this.#options.activity.add(slot, generation);
  }

  hedgeAfterMs(model: string): number {
    return this.#options.hedgeAfterMs(model);
  }

  markDirty(stream: ClientStream): void {
    this.#dirty.push(stream);
    if (this.#flushIsDue) return;
    this.#flushIsDue = true;
    setImmediate(() => this.guard.run(() => this.#flush()));
  }

  onEnded(id: number, end: RequestEnd): void {
    this.observer.ended(end);
    if (end.plan !== null) {
      this.link.done({
        request: id,
        model: end.plan.model,
        promptTokens: end.usage?.promptTokens ?? 0,
        completionTokens: end.usage?.completionTokens ?? 0,
        cachedTokens: end.usage?.cachedTokens ?? -1,
        cause: end.cause,
      });
    }
    this.forget(id);
  }

  #onPlan(plan: Plan, epoch: number): void {
    const request = this.#requests.get(plan.request);
    const steps = plan.calls.flatMap(call => call.steps);
    const adopted = steps.filter(step => this.ledger.adopt(step.reservation, epoch, this.#options.epoch));
    const isWhole = adopted.length === steps.length;
    if (isWhole && request?.onPlan(plan) === true) {
      this.observer.placed(plan);
      return;
    }
    for (const step of adopted) this.ledger.release(step.reservation);
    if (!isWhole) request?.onAdoptionFailed(plan.attempt);
  }

  /** One write per stream for all that this loop turn produced, and the answers of the pool that came meanwhile. */
  #flush(): void {
    this.#flushIsDue = false;
    const streams = this.#dirty;
    this.#dirty = [];
    for (const stream of streams) {
      try {
        stream.flush();
      } catch (error) {
        this.guard.report(error);
      }
    }
    this.link.drain();
  }

  #runSweep(): void {
    const nowMs = this.clock.nowMs();
    for (const request of [...this.#requests.values()]) request.sweep(nowMs);
    // Reservations of plans that were not sent: rare, so nobody is woken for them.
    if (this.#options.index === 0) this.ledger.reap(EPOCH_DISCARDED);
  }

  /** Why nothing is admitted now, or null. */
  #refusal(): { code: ErrorCode; message: string } | null {
    if (this.#failed) return { code: 'MILLRACE_PLANE_FAILED', message: 'the plane has failed' };
    if (this.#draining) return { code: 'MILLRACE_DRAINING', message: 'the server is shutting down' };
    const { requestsMax } = this.limits;
    // Threads that look at the same moment may pass it together, by one request each.
    if (this.#options.board.requestsInFlight < requestsMax) return null;
    return { code: 'MILLRACE_OVERLOADED', message: `${requestsMax} requests are in flight (requestsMax)` };
  }

  /** An id that no other socket thread uses: engines see those of all. */
  #takeId(): number {
    const { index, threads } = this.#options;
    const id = this.#nextId;
    this.#nextId = id + threads > REQUEST_ID_MAX ? index + 1 : id + threads;
    assert(!this.#requests.has(id), 'a request id is not reused while its request lives');
    return id;
  }

  #enter(id: number, request: Asker): void {
    this.#requests.set(id, request);
    this.#options.board.addRequests(1);
    this.observer.accepted();
  }
}
