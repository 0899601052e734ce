/**
 * The rings of one socket thread, as a pool thread holds them (R2): takes its ASKs one at a time and sends it PLANs and
 * REJECTs, also those that came by promise. Owned by one pool thread.
 */
import { strict as assert } from 'node:assert';
import { encodePlan, encodeReject } from '../messages/record-codec.js';
import { type Plan, RECORD_KIND, type RecordKind, type Reject } from '../messages/records.js';
import { BellRinger } from '../ring/bell.js';
import { RingConsumer } from '../ring/ring-consumer.js';
import { RingMemory } from '../ring/ring-memory.js';
import { RingProducer } from '../ring/ring-producer.js';
import type { LinkMemory } from './pool-link.js';

/** What a lane is made of. */
export interface PoolLaneOptions {
  readonly memory: LinkMemory;
  /** Name of the ASK ring for messages. */
  readonly name: string;
  readonly queueBytesMax: number;
  /** Gives back a reservation of a plan that cannot be sent. */
  readonly discard: (reservation: number) => void;
}

/** See the head of the file. */
export class PoolLane {
  readonly #options: PoolLaneOptions;
  readonly #asks: RingConsumer;
  readonly #plans: RingProducer;
  /** Answers that came by promise and are not sent yet. */
  readonly #answers: (Plan | Reject)[] = [];

  constructor(options: PoolLaneOptions) {
    this.#options = options;
    const { memory, name, queueBytesMax } = options;
    const { epoch } = memory;
    const ringer = new BellRinger(new RingMemory(memory.socketBell));
    this.#asks = new RingConsumer(new RingMemory(memory.askRing), ringer, {
      epoch,
      name,
      messageBytesMax: queueBytesMax,
    });
    this.#plans = new RingProducer(new RingMemory(memory.planRing), ringer, { epoch, queueBytesMax });
  }

  /** Whether `sendAnswers` or, where ASKs may be taken, `takeOne` would do something now. */
  hasWork(takesAsks: boolean): boolean {
    if (this.#plans.queuedBytes > 0) return this.#plans.sendable;
    return this.#answers.length > 0 || (takesAsks && this.#asks.pending);
  }

  /** Takes one message, or none; returns how many. */
  takeOne(take: (kind: number, key: number, bytes: Uint8Array) => void): number {
    return this.#asks.drain(take, 1);
  }

  /** Keeps an answer for `sendAnswers`. */
  keep(answer: Plan | Reject): void {
    this.#answers.push(answer);
  }

  /** Sends what is there to send; true when no answer waits for room. */
  sendAnswers(): boolean {
    if (!this.#flushPlans()) return false;
    for (let answer = this.#answers.shift(); answer !== undefined; answer = this.#answers.shift()) {
      this.answer(answer);
      if (this.#plans.queuedBytes > 0) return false;
    }
    return true;
  }

  /** Sends an answer; no other waits for room. */
  answer(answer: Plan | Reject): void {
    if (!('calls' in answer)) this.#send(RECORD_KIND.reject, answer.request, encodeReject(answer));
    else if (!this.#send(RECORD_KIND.plan, answer.request, encodePlan(answer))) this.#refuseLongPlan(answer);
  }

  #flushPlans(): boolean {
    if (this.#plans.queuedBytes === 0) return true;
    this.#plans.flush();
    this.#plans.publish();
    return this.#plans.queuedBytes === 0;
  }

  /** False: longer than the queue of the ring can ever take, which is empty when an ASK is taken. */
  #send(kind: RecordKind, request: number, parts: readonly Uint8Array[]): boolean {
    const sent = this.#plans.send(kind, request, parts);
    if (sent === 'full') return false;
    this.#plans.publish();
    return true;
  }

  /** A body within its limit can have more ids than fit: that is the request's fault, not this thread's. */
  #refuseLongPlan({ request, attempt, calls }: Plan): void {
    const { queueBytesMax, discard } = this.#options;
    for (const step of calls.flatMap(call => call.steps)) discard(step.reservation);
    const reject: Reject = {
      request,
      attempt,
      code: 'MILLRACE_BODY_TOO_LARGE',
      message: `the request has more tokens than can be planned (ringQueueBytesMax: ${queueBytesMax})`,
      param: null,
      retryAfterMs: 0,
      split: null,
    };
    assert(this.#send(RECORD_KIND.reject, request, encodeReject(reject)), 'a short REJECT always has room');
  }
}
