/**
 * A pool thread: the one endless task that a piscina thread runs. It drains the ASK ring of each socket thread in turn,
 * answers each ASK with a PLAN or a REJECT, and sleeps on its one doorbell in between. Everything it shares is in the memory that the task hands over;
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
  /** The rings of each socket thread; all under one epoch and with one doorbell of this thread. */
  readonly links: readonly LinkMemory[];
  readonly loadMemory: SharedArrayBuffer;
  readonly ledgerMemory: SharedArrayBuffer;
  readonly limits: Limits;
  readonly seed: number;
}

/** The rings of one socket thread. */
interface Lane {
  readonly asks: RingConsumer;
  readonly plans: RingProducer;
}

class PoolThread {
  readonly #lanes: readonly Lane[];
  readonly #bell: Bell;
  readonly #planning: Planning;
  readonly #tokenizers = new Map<string, Tokenizer>();
  #worldVersion = 0;
  #nextWorld: World | null = null;
  #closes = 0;

  constructor(task: PoolTask) {
    const { links, limits } = task;
    const { epoch, poolBell } = links[0]!;
    const bytesMax = limits.ringQueueBytesMax;
    this.#lanes = links.map(link => {
      const ringer = new BellRinger(new RingMemory(link.socketBell));
      return {
        asks: new RingConsumer(new RingMemory(link.askRing), ringer, {
          epoch,
          name: `ask ring ${task.index}`,
          messageBytesMax: bytesMax,
        }),
        plans: new RingProducer(new RingMemory(link.planRing), ringer, { epoch, queueBytesMax: bytesMax }),
      };
    });
    this.#bell = new Bell(new RingMemory(poolBell), systemClock);
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
      decider: createDecider({ loadTable, ledger, ownerEpoch: epoch, random: seededRandom(task.seed) }),
      adapters: new Map([['vllm', createVllmAdapter()]]),
      discard: reservation => void ledger.discard(reservation, epoch),
    });
  }

  /** Ends when every socket thread has sent its CLOSE. */
  async run(): Promise<void> {
    while (this.#closes < this.#lanes.length) {
      let taken = 0;
      for (const lane of this.#lanes) {
        // No ASK is taken while answers wait for room: that is how a slow socket thread slows only itself.
        if (!this.#flushPlans(lane)) continue;
        // One message at a time: a WORLD has to be in force before the ASK behind it, and its tokenizers load by promise.
        taken += lane.asks.drain((kind, key, bytes) => this.#take(lane, kind, key, bytes), 1);
        if (this.#nextWorld !== null) await this.#enterWorld(this.#nextWorld);
      }
      if (taken === 0) await this.#bell.wait(() => this.#pending());
    }
  }

  #pending(): boolean {
    return this.#lanes.some(({ asks, plans }) => (plans.queuedBytes > 0 ? plans.sendable : asks.pending));
  }

  /** True when no answer waits for room. */
  #flushPlans({ plans }: Lane): boolean {
    if (plans.queuedBytes === 0) return true;
    plans.flush();
    plans.publish();
    return plans.queuedBytes === 0;
  }

  #take(lane: Lane, kind: number, key: number, bytes: Uint8Array): void {
    if (kind === RECORD_KIND.ask) this.#answer(lane, this.#planning.plan(decodeAsk(bytes)));
    else if (kind === RECORD_KIND.world) this.#offerWorld(decodeWorld(bytes));
    else if (kind === RECORD_KIND.done) this.#planning.learn(decodeDone(bytes));
    else if (kind === RECORD_KIND.close) this.#closes++;
    else assert.fail(`a socket thread never sends records of kind ${kind} (key ${key})`);
  }

  #answer({ plans }: Lane, answer: Plan | Reject): void {
    const isPlan = 'calls' in answer;
    const parts = isPlan ? encodePlan(answer) : encodeReject(answer);
    const sent = plans.send(isPlan ? RECORD_KIND.plan : RECORD_KIND.reject, answer.request, parts);
    assert(sent !== 'full', 'the PLAN queue is empty when an ASK is taken, so one answer always has room');
    plans.publish();
  }

  /** Every socket thread passes each WORLD on: the first to bring it counts. */
  #offerWorld(world: World): void {
    if (world.version > this.#worldVersion) this.#nextWorld = world;
  }

  async #enterWorld(world: World): Promise<void> {
    this.#nextWorld = null;
    this.#worldVersion = world.version;
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
