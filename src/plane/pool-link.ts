/**
 * The socket thread's end of its rings (R2): one ring pair per pool thread, made anew under a new epoch whenever that
 * thread was lost, never repaired. Sends ASK, DONE and WORLD to the thread with the fewest outstanding bytes, hands
 * PLAN and REJECT to the requests, and tells which requests a lost thread still owed an answer. Owned by one socket
 * thread, which is told of `attach` and `lost` by the core.
 */
import { strict as assert } from 'node:assert';
import type { Limits } from '../limits.js';
import { decodePlan, decodeReject, encodeAsk, encodeDone, encodeWorld } from '../messages/record-codec.js';
import { type Ask, type Done, type Plan, RECORD_KIND, type Reject, type World } from '../messages/records.js';
import { Bell, BellRinger, createBell } from '../ring/bell.js';
import { RingConsumer } from '../ring/ring-consumer.js';
import { RingMemory } from '../ring/ring-memory.js';
import { RingProducer } from '../ring/ring-producer.js';
import { createRing, type RingDepth, ringDepth } from '../ring/spsc-ring.js';
import type { Clock } from '../runtime/clock.js';

/** Shared memory of one ring pair, as a pool thread gets it. */
export interface LinkMemory {
  readonly epoch: number;
  readonly askRing: SharedArrayBuffer;
  readonly planRing: SharedArrayBuffer;
  readonly poolBell: SharedArrayBuffer;
  readonly socketBell: SharedArrayBuffer;
}

/**
 * Makes the rings of a new incarnation of pool thread `index`: one pair for each socket thread, whose doorbells are
 * `socketBells`. The pool thread has one doorbell for all of them.
 */
export function createLinkMemory(
  index: number,
  epoch: number,
  ringBytes: number,
  socketBells: readonly SharedArrayBuffer[],
): LinkMemory[] {
  const poolBell = createBell(`pool thread ${index}`);
  return socketBells.map(socketBell => ({
    epoch,
    askRing: createRing(ringBytes, epoch),
    planRing: createRing(ringBytes, epoch),
    poolBell,
    socketBell,
  }));
}

/** What the link tells the socket thread. */
export interface PoolLinkEvents {
  onPlan(plan: Plan, epoch: number): void;
  onReject(reject: Reject): void;
  /** The thread that was asked is gone; the request got no answer. */
  onLost(request: number): void;
}

interface Lane {
  readonly index: number;
  readonly memory: LinkMemory;
  readonly askMemory: RingMemory;
  readonly planMemory: RingMemory;
  readonly asks: RingProducer;
  readonly plans: RingConsumer;
  /** Requests that were asked here and not answered. */
  readonly waiting: Set<number>;
}

/** What waits in one ring, for `millrace_ring_depth`. */
export interface NamedRingDepth extends RingDepth {
  readonly ring: string;
}

/** The socket thread's rings to all pool threads. */
export class PoolLink {
  readonly #limits: Limits;
  readonly #events: PoolLinkEvents;
  readonly #bell: Bell;
  readonly #lanes = new Map<number, Lane>();
  #world: World | null = null;
  #closed = false;
  /** Settles when the doorbell loop has ended. */
  readonly ended: Promise<void>;

  /** @param bellMemory the doorbell that pool threads ring when they have answered */
  constructor(limits: Limits, clock: Clock, bellMemory: SharedArrayBuffer, events: PoolLinkEvents) {
    this.#limits = limits;
    this.#bell = new Bell(new RingMemory(bellMemory), clock);
    this.#events = events;
    this.ended = this.#listen();
  }

  /** Number of pool threads that can be asked. */
  get lanes(): number {
    return this.#lanes.size;
  }

  /** Pool thread `index` has a new incarnation behind these rings; the first record in them is the WORLD. */
  attach(index: number, memory: LinkMemory): void {
    assert(!this.#lanes.has(index), `pool thread ${index} was detached before it is attached anew`);
    const { epoch } = memory;
    const ringer = new BellRinger(new RingMemory(memory.poolBell));
    const bytesMax = this.#limits.ringQueueBytesMax;
    const askMemory = new RingMemory(memory.askRing);
    const planMemory = new RingMemory(memory.planRing);
    const lane: Lane = {
      index,
      memory,
      askMemory,
      planMemory,
      asks: new RingProducer(askMemory, ringer, { epoch, queueBytesMax: bytesMax }),
      plans: new RingConsumer(planMemory, ringer, {
        epoch,
        name: `plan ring ${index}`,
        messageBytesMax: bytesMax,
      }),
      waiting: new Set(),
    };
    this.#lanes.set(index, lane);
    if (this.#world !== null) this.#sendWorld(lane, this.#world);
  }

  /**
   * Pool thread `index` is gone: what it had committed is still taken, then its rings are dropped and every request
   * that it owed an answer is told.
   */
  lost(index: number): void {
    const lane = this.#lanes.get(index);
    if (lane === undefined) return;
    this.#drainLane(lane);
    this.#lanes.delete(index);
    for (const request of lane.waiting) this.#events.onLost(request);
  }

  /** Tells every pool thread of a new world, and those that come later. */
  setWorld(world: World): void {
    this.#world = world;
    for (const lane of this.#lanes.values()) this.#sendWorld(lane, world);
  }

  /** Sends an ASK. 'full': the rings have no room; 'none': no pool thread is up. */
  ask(ask: Omit<Ask, 'body'>, body: readonly Uint8Array[]): 'ok' | 'full' | 'none' {
    let best: Lane | null = null;
    let fewest = Number.POSITIVE_INFINITY;
    for (const lane of this.#lanes.values()) {
      // Waiting requests break ties: an idle thread is better than one that has consumed its ring but not answered.
      const load = lane.asks.outstandingBytes + lane.waiting.size;
      if (load < fewest) {
        best = lane;
        fewest = load;
      }
    }
    if (best === null) return 'none';
    if (best.asks.send(RECORD_KIND.ask, ask.request, encodeAsk(ask, body)) === 'full') return 'full';
    best.waiting.add(ask.request);
    best.asks.publish();
    return 'ok';
  }

  /** Tells one pool thread how a request ended. Dropped when its ring is full: it only improves estimates. */
  done(done: Done): void {
    const lane = this.#lanes.values().next().value;
    if (lane === undefined) return;
    lane.asks.send(RECORD_KIND.done, done.request, encodeDone(done));
    lane.asks.publish();
  }

  /** Asks every pool thread to finish; their tasks then settle. */
  close(): void {
    for (const lane of this.#lanes.values()) {
      lane.asks.send(RECORD_KIND.close, 0, []);
      lane.asks.publish();
    }
  }

  /** Ends the doorbell loop; no answer is taken after it. */
  stop(): void {
    this.#closed = true;
    this.#bell.close();
  }

  /** Takes all answers that are there; called on a doorbell and in the flush of each loop turn. */
  drain(): number {
    let messages = 0;
    for (const lane of this.#lanes.values()) messages += this.#drainLane(lane);
    return messages;
  }

  depths(): NamedRingDepth[] {
    return [...this.#lanes.values()].flatMap(lane => [
      { ring: `ask-${lane.index}`, ...ringDepth(lane.askMemory) },
      { ring: `plan-${lane.index}`, ...ringDepth(lane.planMemory) },
    ]);
  }

  #sendWorld(lane: Lane, world: World): void {
    lane.asks.send(RECORD_KIND.world, 0, encodeWorld(world));
    lane.asks.publish();
  }

  #drainLane(lane: Lane): number {
    if (lane.asks.queuedBytes > 0) {
      lane.asks.flush();
      lane.asks.publish();
    }
    return lane.plans.drain((kind, request, bytes) => {
      lane.waiting.delete(request);
      if (kind === RECORD_KIND.plan) this.#events.onPlan(decodePlan(bytes), lane.memory.epoch);
      else if (kind === RECORD_KIND.reject) this.#events.onReject(decodeReject(bytes));
      else assert.fail(`a pool thread never sends records of kind ${kind}`);
    });
  }

  #pending(): boolean {
    for (const { plans, asks } of this.#lanes.values()) if (plans.pending || asks.sendable) return true;
    return false;
  }

  async #listen(): Promise<void> {
    while (!this.#closed) {
      if (this.drain() > 0) continue;
      await this.#bell.wait(() => this.#pending());
    }
  }
}
