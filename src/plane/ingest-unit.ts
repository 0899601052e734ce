/**
 * Everything that the ingest thread owns (R4): the sources of KV events, the one writer of the prefix index, and the rings
 * by which pool threads tell what they have routed. Without the addon the index is in the pool thread: batches go there
 * by port, and what it learns comes back the same way.
 */
import { strict as assert } from 'node:assert';
import type { MessagePort } from 'node:worker_threads';
import { Bell, BellRinger } from '../ring/bell.js';
import { RingConsumer } from '../ring/ring-consumer.js';
import { RingMemory } from '../ring/ring-memory.js';
import type { IndexApplier } from '../router/events/applier.js';
import type { EventEndpoints, HolderFacts } from '../router/events/contract.js';
import { Ingest } from '../router/events/ingest.js';
import { SharedIndexWriter } from '../router/index/shared-index.js';
import { loadAddon } from '../runtime/addon.js';
import type { Clock } from '../runtime/clock.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { Logger } from '../runtime/logger.js';
import { seededRandom } from '../runtime/random.js';
import { sourceLimits, trtllmPolling } from './event-sources.js';
import { createIndexSink, type IndexTools, indexCounts } from './index-sink.js';
import type { IngestCore, IngestCounts, IngestSide, IngestTask } from './ingest-side.js';
import { PostedSink } from './posted-sink.js';
import { decodeRouted } from './routed-record.js';

/** Predictions taken from one ring before sockets get their turn. */
const ROUTED_PER_TURN = 256;

/** What a unit is given by the thread that it runs on. */
export interface IngestServices {
  readonly clock: Clock;
  readonly guard: FaultGuard;
  /** For the index of this thread; null: it is elsewhere. */
  readonly tools: IndexTools | null;
  readonly core: Omit<IngestCore, 'fault'>;
}

/** See the head of the file. */
export class IngestUnit implements IngestSide {
  readonly #ingest: Ingest;
  /** The index of this thread; null: it is in the pool thread, behind `#posted`. */
  readonly #writer: SharedIndexWriter | null;
  readonly #applier: IndexApplier | null;
  readonly #posted: PostedSink | null;
  readonly #bell: Bell;
  readonly #ownBell: BellRinger;
  readonly #rings = new Map<number, RingConsumer>();
  readonly #generations = new Map<number, number>();
  #closing: Promise<void> | null = null;

  constructor(task: IngestTask, services: IngestServices) {
    const { limits, indexMemory, bellMemory, seed } = task;
    const { clock, guard, tools, core } = services;
    const random = seededRandom(seed);
    const logger = loggerOf(core);
    const learn = (slot: number, generation: number, blockSize: number): void =>
      core.learnBlockSize(slot, generation, blockSize);
    const addon = loadAddon();
    if (indexMemory === null || addon === null || tools === null) {
      assert(indexMemory === null, 'an index is shared where there is an addon');
      this.#writer = null;
      this.#applier = null;
      this.#posted = new PostedSink({ learn, log: logger, waitingBytesMax: limits.eventQueueBytesMax });
    } else {
      this.#writer = new SharedIndexWriter(addon, indexMemory);
      this.#posted = null;
      this.#applier = createIndexSink({
        writer: this.#writer,
        tools,
        clock,
        limits,
        random,
        log: logger,
        onBlockSize: (slot, blockSize) => learn(slot, this.#generations.get(slot)!, blockSize),
      });
    }
    const sink = this.#applier ?? this.#posted;
    assert(sink !== null, 'there is an index, here or elsewhere');
    this.#ingest = new Ingest({
      sink,
      polling: trtllmPolling({ clock, connectDeadlineMs: limits.connectDeadlineMs }),
      limits: sourceLimits(limits),
      clock,
      random,
      logger,
    });
    const bell = new RingMemory(bellMemory);
    this.#bell = new Bell(bell, clock);
    this.#ownBell = new BellRinger(bell);
    this.#listen().catch((error: unknown) => guard.report(error));
  }

  addWorker(slot: number, facts: HolderFacts, endpoints: EventEndpoints | null): void {
    this.#generations.set(slot, facts.generation);
    this.#ingest.addWorker(slot, facts, endpoints);
  }

  addPushed(slot: number, facts: HolderFacts): void {
    this.#generations.set(slot, facts.generation);
    this.#ingest.addPushed(slot, facts);
  }

  async push(slot: number, payload: Uint8Array | null): Promise<void> {
    this.#ingest.push(slot, payload);
  }

  removeWorker(slot: number): void {
    this.#generations.delete(slot);
    this.#ingest.removeWorker(slot);
  }

  suspectWorker(slot: number): void {
    this.#ingest.suspect(slot);
  }

  resumeWorker(slot: number): void {
    this.#ingest.resume(slot);
  }

  attachRing(index: number, epoch: number, ringMemory: SharedArrayBuffer): void {
    // The producer has no queue and so never waits for room: its bell is not rung.
    const ring = new RingConsumer(new RingMemory(ringMemory), this.#ownBell, {
      epoch,
      name: `predictions of pool thread ${index}`,
      messageBytesMax: ringMemory.byteLength,
    });
    this.#rings.set(index, ring);
    // What came before it was listened to.
    this.#ownBell.ring();
  }

  attachPort(port: MessagePort, news: MessagePort): void {
    assert(this.#posted !== null, 'ports are for an index elsewhere');
    this.#posted.attach(port, news);
  }

  poolLost(index: number): void {
    this.#posted?.detach();
    const ring = this.#rings.get(index);
    this.#rings.delete(index);
    if (ring !== undefined) this.#drain(ring, Number.POSITIVE_INFINITY);
  }

  async counts(): Promise<IngestCounts> {
    const lag = this.#ingest.lag();
    if (this.#closing !== null) return { events: this.#ingest.counts(), lag, index: null };
    const sink =
      this.#applier === null || this.#writer === null
        ? (this.#posted?.numbers ?? null)
        : { events: this.#applier.counters, index: indexCounts(this.#writer) };
    return { events: { ...this.#ingest.counts(), ...sink?.events }, lag, index: sink?.index ?? null };
  }

  async stop(): Promise<void> {
    await this.close();
  }

  /** Closes sockets, rings and index; of several calls the first one does it. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#bell.close();
    this.#posted?.detach();
    await this.#ingest.close();
    this.#writer?.close();
  }

  async #listen(): Promise<void> {
    while (this.#closing === null) {
      let taken = 0;
      for (const ring of this.#rings.values()) taken += this.#drain(ring, ROUTED_PER_TURN);
      // Sockets and calls get their turn between two looks.
      if (taken > 0) await new Promise(setImmediate);
      else await this.#bell.wait(() => [...this.#rings.values()].some(ring => ring.pending));
    }
  }

  #drain(ring: RingConsumer, most: number): number {
    return ring.drain((_kind, _slot, bytes) => this.#ingest.route(decodeRouted(bytes)), most);
  }
}

function loggerOf(core: Pick<IngestCore, 'log'>): Logger {
  return {
    debug: (message, fields) => core.log('debug', message, fields),
    info: (message, fields) => core.log('info', message, fields),
    warn: (message, fields) => core.log('warn', message, fields),
    error: (message, fields) => core.log('error', message, fields),
  };
}
