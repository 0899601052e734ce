/**
 * A pool thread: the one endless task that a piscina thread runs. It drains its ASK ring, answers each ASK with a PLAN
 * or a REJECT, and sleeps on its doorbell in between. Everything it shares is in the memory that the task hands over;
 * it ends on a CLOSE record, and an exception that is not about one request ends it for the supervisor to replace.
 */
import { strict as assert } from 'node:assert';
import { createVllmAdapter } from '../engines/vllm.js';
import type { Limits } from '../limits.js';
import { decodeAsk, decodeDone, decodeWorld, encodePlan, encodeReject } from '../messages/record-codec.js';
import { type Plan, RECORD_KIND, type Reject, type World } from '../messages/records.js';
import { loadTokenizer } from '../preprocess/tokenizers/load.js';
import type { Tokenizer } from '../preprocess/tokenizers/tokenizer.js';
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

/** What a pool thread is given when it starts; structured-cloned, shared buffers shared. */
export interface PoolTask {
  readonly index: number;
  readonly threads: number;
  readonly link: LinkMemory;
  readonly loadMemory: SharedArrayBuffer;
  readonly ledgerMemory: SharedArrayBuffer;
  readonly limits: Limits;
  readonly seed: number;
}

class PoolThread {
  readonly #asks: RingConsumer;
  readonly #plans: RingProducer;
  readonly #bell: Bell;
  readonly #planning: Planning;
  readonly #tokenizers = new Map<string, Tokenizer>();
  #nextWorld: World | null = null;
  #closing = false;

  constructor(task: PoolTask) {
    const { link, limits } = task;
    const { epoch } = link;
    const bytesMax = limits.ringQueueBytesMax;
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
    this.#planning = new Planning({
      limits,
      decider: createDecider({
        loadTable,
        ledger,
        ownerEpoch: epoch,
        random: seededRandom(task.seed),
        nowMs: () => systemClock.nowMs(),
        prefixes: null,
      }),
      adapters: new Map([['vllm', createVllmAdapter()]]),
      discard: reservation => void ledger.discard(reservation, epoch),
    });
  }

  async run(): Promise<void> {
    while (!this.#closing) {
      if (!this.#flushPlans()) {
        // No ASK is taken while answers wait for room: that is how a slow socket thread slows this one.
        await this.#bell.wait(() => this.#plans.sendable);
        continue;
      }
      // One message at a time: a WORLD has to be in force before the ASK behind it, and its tokenizers load by promise.
      const drained = this.#asks.drain((kind, key, bytes) => this.#take(kind, key, bytes), 1);
      if (this.#nextWorld !== null) await this.#enterWorld(this.#nextWorld);
      if (drained === 0) await this.#bell.wait(() => this.#asks.pending);
    }
  }

  /** True when no answer waits for room. */
  #flushPlans(): boolean {
    if (this.#plans.queuedBytes === 0) return true;
    this.#plans.flush();
    this.#plans.publish();
    return this.#plans.queuedBytes === 0;
  }

  #take(kind: number, key: number, bytes: Uint8Array): void {
    if (kind === RECORD_KIND.ask) this.#answer(this.#planning.plan(decodeAsk(bytes)));
    else if (kind === RECORD_KIND.world) this.#nextWorld = decodeWorld(bytes);
    else if (kind === RECORD_KIND.done) this.#planning.learn(decodeDone(bytes));
    else if (kind === RECORD_KIND.close) this.#closing = true;
    else assert.fail(`a socket thread never sends records of kind ${kind} (key ${key})`);
  }

  #answer(answer: Plan | Reject): void {
    const isPlan = 'calls' in answer;
    const parts = isPlan ? encodePlan(answer) : encodeReject(answer);
    const sent = this.#plans.send(isPlan ? RECORD_KIND.plan : RECORD_KIND.reject, answer.request, parts);
    assert(sent !== 'full', 'the PLAN queue is empty when an ASK is taken, so one answer always has room');
    this.#plans.publish();
  }

  async #enterWorld(world: World): Promise<void> {
    this.#nextWorld = null;
    for (const model of world.models) {
      if (model.tokenizer === null || this.#tokenizers.has(model.tokenizer)) continue;
      this.#tokenizers.set(model.tokenizer, await loadTokenizer(model.tokenizer));
    }
    this.#planning.setWorld(world, this.#tokenizers);
  }
}

/** The task that piscina runs; resolves after a CLOSE record. */
export default async function run(task: PoolTask): Promise<void> {
  await new PoolThread(task).run();
}
