/**
 * A pool thread: the one endless task that a piscina thread runs. It drains its ASK ring, answers each ASK with a PLAN
 * or a REJECT, and sleeps on its doorbell in between. Everything it shares is in the memory that the task hands over;
 * it ends on a CLOSE record, and an exception that is not about one request ends it for the supervisor to replace.
 */
import { strict as assert } from 'node:assert';
import { createVllmAdapter } from '../engines/vllm.js';
import type { Limits } from '../limits.js';
import { decodeAsk, decodeDone, decodeWorld, encodePlan, encodeReject } from '../messages/record-codec.js';
import {
  type Ask,
  type Plan,
  RECORD_KIND,
  type RecordKind,
  type Reject,
  type World,
} from '../messages/records.js';
import type { ModelFolder } from '../preprocess/model-folder/model-folder.js';
import { loadTextModel, type TextModel } from '../preprocess/text-model.js';
import { Bell, BellRinger } from '../ring/bell.js';
import { RingConsumer } from '../ring/ring-consumer.js';
import { RingMemory } from '../ring/ring-memory.js';
import { RingProducer } from '../ring/ring-producer.js';
import { createDecider } from '../router/decide.js';
import { Ledger } from '../router/ledger.js';
import { LoadTable } from '../router/load-table.js';
import { loadAddon } from '../runtime/addon.js';
import { systemClock } from '../runtime/clock.js';
import { seededRandom } from '../runtime/random.js';
import { Planning } from './planning.js';
import type { LinkMemory } from './pool-link.js';

/** ASKs whose ids are being made on libuv's pool, at most: enough to keep its four threads busy. */
const PENDING_MAX = 8;

/** What a pool thread is given when it starts; structured-cloned, shared buffers shared. */
export interface PoolTask {
  readonly index: number;
  readonly threads: number;
  readonly link: LinkMemory;
  readonly loadMemory: SharedArrayBuffer;
  readonly ledgerMemory: SharedArrayBuffer;
  readonly limits: Limits;
  /** The model folders that models may name, as read at start. */
  readonly folders: readonly ModelFolder[];
  readonly seed: number;
}

class PoolThread {
  readonly #asks: RingConsumer;
  readonly #plans: RingProducer;
  readonly #bell: Bell;
  readonly #planning: Planning;
  readonly #queueBytesMax: number;
  readonly #discard: (reservation: number) => void;
  readonly #folders: readonly ModelFolder[];
  readonly #textModels = new Map<string, TextModel>();
  /** Rings this thread's own bell: an answer that comes by promise finds it asleep. */
  readonly #ownBell: BellRinger;
  /** Answers that came by promise and are not sent yet. */
  readonly #answers: (Plan | Reject)[] = [];
  #pending = 0;
  #nextWorld: World | null = null;
  #closing = false;

  constructor(task: PoolTask) {
    const { link, limits } = task;
    const { epoch } = link;
    const bytesMax = limits.ringQueueBytesMax;
    this.#folders = task.folders;
    this.#ownBell = new BellRinger(new RingMemory(link.poolBell));
    const ringer = new BellRinger(new RingMemory(link.socketBell));
    this.#asks = new RingConsumer(new RingMemory(link.askRing), ringer, {
      epoch,
      name: `ask ring ${task.index}`,
      messageBytesMax: bytesMax,
    });
    this.#plans = new RingProducer(new RingMemory(link.planRing), ringer, { epoch, queueBytesMax: bytesMax });
    this.#bell = new Bell(new RingMemory(link.poolBell), systemClock);
    const addon = loadAddon();
    const loadTable = new LoadTable(task.loadMemory);
    const ledger = new Ledger({
      memory: task.ledgerMemory,
      loadTable,
      partition: { index: task.index, count: task.threads },
      addon,
    });
    this.#queueBytesMax = bytesMax;
    this.#discard = reservation => void ledger.discard(reservation, epoch);
    this.#planning = new Planning({
      limits,
      decider: createDecider({ loadTable, ledger, ownerEpoch: epoch, random: seededRandom(task.seed) }),
      adapters: new Map([['vllm', createVllmAdapter()]]),
      discard: this.#discard,
    });
  }

  async run(): Promise<void> {
    while (!this.#closing) {
      if (!this.#sendAnswers()) {
        // No ASK is taken while answers wait for room: that is how a slow socket thread slows this one.
        await this.#bell.wait(() => this.#plans.sendable);
        continue;
      }
      if (this.#pending === PENDING_MAX) {
        await this.#bell.wait(() => this.#answers.length > 0);
        continue;
      }
      // One message at a time: a WORLD has to be in force before the ASK behind it, and its models load by promise.
      const drained = this.#asks.drain((kind, key, bytes) => this.#take(kind, key, bytes), 1);
      if (this.#nextWorld !== null) await this.#enterWorld(this.#nextWorld);
      if (drained === 0) await this.#bell.wait(() => this.#asks.pending || this.#answers.length > 0);
    }
  }

  /** Sends what is there to send; true when no answer waits for room. */
  #sendAnswers(): boolean {
    if (!this.#flushPlans()) return false;
    for (let answer = this.#answers.shift(); answer !== undefined; answer = this.#answers.shift()) {
      this.#answer(answer);
      if (this.#plans.queuedBytes > 0) return false;
    }
    return true;
  }

  #flushPlans(): boolean {
    if (this.#plans.queuedBytes === 0) return true;
    this.#plans.flush();
    this.#plans.publish();
    return this.#plans.queuedBytes === 0;
  }

  #take(kind: number, key: number, bytes: Uint8Array): void {
    if (kind === RECORD_KIND.ask) this.#plan(decodeAsk(bytes));
    else if (kind === RECORD_KIND.world) this.#nextWorld = decodeWorld(bytes);
    else if (kind === RECORD_KIND.done) this.#planning.learn(decodeDone(bytes));
    else if (kind === RECORD_KIND.close) this.#closing = true;
    else assert.fail(`a socket thread never sends records of kind ${kind} (key ${key})`);
  }

  #plan(ask: Ask): void {
    const answer = this.#planning.plan(ask);
    if (!(answer instanceof Promise)) {
      this.#answer(answer);
      return;
    }
    this.#pending++;
    void answer.then(settled => {
      this.#pending--;
      this.#answers.push(settled);
      this.#ownBell.ring();
    });
  }

  #answer(answer: Plan | Reject): void {
    if (!('calls' in answer)) this.#send(RECORD_KIND.reject, answer.request, encodeReject(answer));
    else if (!this.#send(RECORD_KIND.plan, answer.request, encodePlan(answer))) this.#refuseLongPlan(answer);
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
    for (const step of calls.flatMap(call => call.steps)) this.#discard(step.reservation);
    const reject: Reject = {
      request,
      attempt,
      code: 'MILLRACE_BODY_TOO_LARGE',
      message: `the request has more tokens than can be planned (ringQueueBytesMax: ${this.#queueBytesMax})`,
      param: null,
      retryAfterMs: 0,
    };
    assert(this.#send(RECORD_KIND.reject, request, encodeReject(reject)), 'a short REJECT always has room');
  }

  async #enterWorld(world: World): Promise<void> {
    this.#nextWorld = null;
    for (const model of world.models) {
      if (model.tokenizer === null || this.#textModels.has(model.tokenizer)) continue;
      this.#textModels.set(model.tokenizer, await loadTextModel(model.tokenizer, this.#folders, systemClock));
    }
    this.#planning.setWorld(world, this.#textModels);
  }
}

/** The task that piscina runs; resolves after a CLOSE record. */
export default async function run(task: PoolTask): Promise<void> {
  await new PoolThread(task).run();
}
