/**
 * One run of a replay: the router that serves use (fleet-router.ts, run-index.ts) over mock engine cores on a virtual clock.
 * Arrivals, ends of passes and ends of hand-overs happen in order of time; nothing waits, nothing is random but the policy's
 * draws. KV events reach the index when a pass starts, tokens the client when it ends. Owned by whoever calls `runFleet`.
 */
import assert from 'node:assert';
import { TIER } from '../../router/index/contract.js';
import { createSelector } from '../../router/policies/policies.js';
import type { Addon } from '../../runtime/addon.js';
import type { Clock } from '../../runtime/clock.js';
import { EngineCore, type PassResult } from '../engine-core.js';
import type { EngineSettings } from '../engine-settings.js';
import type { EngineSequence, SequenceHandover } from '../sequence.js';
import { type FleetRoles, FleetRouter, type PlacedRequest } from './fleet-router.js';
import { type HandoverCost, HandoverLinks, keepingPart, pullingPart } from './handover-links.js';
import { IndexFeed } from './index-feed.js';
import { LoadSamples } from './load-samples.js';
import { PassQueue } from './pass-queue.js';
import { openRunIndex, type RunIndex } from './run-index.js';
import { RunNotes } from './run-notes.js';
import type { RunRecord } from './summary.js';
import type { PreparedRequest, PreparedWorkload } from './workload.js';

/** Workers with roles, what decides between them, and the network between them. */
export interface FleetSplit extends FleetRoles {
  readonly cost: HandoverCost;
}

/** What a run is made of. */
export interface FleetOptions {
  readonly workers: number;
  readonly engine: EngineSettings;
  readonly policy: string;
  /** Null: every worker does everything. */
  readonly split: FleetSplit | null;
  /** Seeds the policy's draws. */
  readonly seed: number;
  /** Virtual milliseconds per millisecond of the workload's clock. */
  readonly timeScale: number;
  /** Points of the load record. */
  readonly samples: number;
  /** Real time, for the speed that is reported. */
  readonly clock: Clock;
  readonly addon: Addon | null;
}

/** What a run gave. Times are virtual milliseconds; arrays have an entry per request, NaN for one without. */
export interface FleetResult extends RunRecord {
  /** Compute time per worker. */
  readonly prefillMs: Float64Array;
  readonly decodeMs: Float64Array;
  /** From the end of a prefill until the decode worker has its KV; only of requests that were handed over. */
  readonly handoverMs: Float64Array;
  /** From the first arrival to the last. */
  readonly arrivalSpanMs: number;
  /** Sum over workers of the part of the arrival span in which each was there. */
  readonly workerMs: number;
  readonly saturated: boolean;
  /** Real milliseconds: of the run, and of its decisions. */
  readonly wallMs: number;
  readonly decideMs: number;
}

/** The mock's answers are drawn from these; what they are does not matter here. */
const VOCABULARY = { ids: Uint32Array.from({ length: 1024 }, (_, id) => id), eosId: 1024 };

interface Running {
  readonly index: number;
  readonly request: PreparedRequest;
  readonly placed: PlacedRequest;
  /** Pinned at the prefill worker until the decode worker has them. */
  kept: number[] | null;
}

/** Runs a workload under one policy. */
export function runFleet(workload: PreparedWorkload, options: FleetOptions): FleetResult {
  return new Fleet(workload, options).run();
}

class Fleet {
  readonly #workload: PreparedWorkload;
  readonly #options: FleetOptions;
  /** One per worker; none when the policy does not ask the index. */
  readonly #feeds: readonly IndexFeed[];
  readonly #cores: readonly EngineCore<Running>[];
  /** Null: the worker is idle, or can do nothing until room is made. */
  readonly #passes: (PassResult<Running> | null)[];
  readonly #queue: PassQueue;
  /** Null without a split. */
  readonly #links: HandoverLinks | null;
  readonly #index: RunIndex | null;
  readonly #router: FleetRouter;
  /** When the last worker joins, Infinity when there is no such worker. */
  readonly #joinsMs: number;
  readonly #notes: RunNotes;
  readonly #prefillMs: Float64Array;
  readonly #decodeMs: Float64Array;
  readonly #load: LoadSamples;
  #nowMs = 0;
  #decideMs = 0;

  constructor(workload: PreparedWorkload, options: FleetOptions) {
    const { workers, engine, addon, split, policy, seed } = options;
    const requests = workload.requests.length;
    this.#workload = workload;
    this.#options = options;
    const slots = [...Array(workers).keys()];
    const usesIndex = split !== null || createSelector(policy).usesPrefix;
    const index = usesIndex ? openRunIndex({ workers, blocks: engine.numGpuBlocks, seed, addon }) : null;
    this.#index = index;
    this.#feeds = index === null ? [] : slots.map(slot => new IndexFeed(index.writer, slot, TIER.device));
    const prefixes = index?.reader ?? null;
    this.#router = new FleetRouter({ ...options, requests, prefixes, nowMs: () => this.#nowMs });
    this.#cores = slots.map(slot => new EngineCore<Running>(engine, VOCABULARY, this.#feeds[slot] ?? null));
    this.#passes = slots.map(() => null);
    this.#queue = new PassQueue(workers);
    this.#links = split === null ? null : new HandoverLinks(workers, split.cost);
    this.#joinsMs = this.#installWorkers();
    this.#notes = new RunNotes(requests, workers);
    this.#prefillMs = new Float64Array(workers);
    this.#decodeMs = new Float64Array(workers);
    this.#load = new LoadSamples(workers, options.samples, this.#arrivalSpanMs);
  }

  get #arrivalSpanMs(): number {
    return this.#workload.spanMs * this.#options.timeScale;
  }

  run(): FleetResult {
    const { clock, timeScale, workers } = this.#options;
    const { requests } = this.#workload;
    const startedMs = clock.nowMs();
    const firstMs = requests[0]!.arrivalMs;
    let next = 0;
    for (;;) {
      const arrivesMs = next < requests.length ? (requests[next]!.arrivalMs - firstMs) * timeScale : Infinity;
      const handedMs = this.#links?.nextMs ?? Infinity;
      const atMs = Math.min(arrivesMs, handedMs, this.#queue.nextMs);
      if (atMs === Infinity) break;
      this.#advance(atMs);
      if (arrivesMs === atMs) this.#arrive(requests[next]!, next++);
      else if (handedMs === atMs) this.#links!.endNext();
      else this.#endPass(this.#queue.pop());
    }
    this.#index?.close();
    assert(this.#notes.open === 0, 'every request of a replay ends');
    const absentMs = this.#joinsMs === Infinity ? 0 : this.#joinsMs;
    const { ttftMs, itlMs, e2eMs, handoverMs, computedTokens } = this.#notes;
    const { errors, outputTokens, promptTokens, cachedTokens } = this.#notes;
    return {
      ...{
        ttftMs,
        itlMs,
        e2eMs,
        handoverMs,
        computedTokens,
        errors,
        outputTokens,
        promptTokens,
        cachedTokens,
      },
      prefillMs: this.#prefillMs,
      decodeMs: this.#decodeMs,
      spanMs: this.#nowMs,
      arrivalSpanMs: this.#arrivalSpanMs,
      workerMs: this.#arrivalSpanMs * workers - absentMs,
      saturated: this.#load.grows,
      load: this.#load,
      wallMs: clock.nowMs() - startedMs,
      decideMs: this.#decideMs,
    };
  }

  /** Makes the workers ready, but for one that joins later, when another one can answer until then. Returns when it does. */
  #installWorkers(): number {
    const { workers, split } = this.#options;
    const { joinsAtShare } = this.#workload.workload;
    const answering = split === null ? workers : split.roles.filter(role => role !== 'prefill').length;
    const later = joinsAtShare !== null && answering > 1 ? workers - 1 : null;
    for (let slot = 0; slot < workers; slot += 1) this.#router.install(slot, slot !== later);
    return later === null ? Infinity : joinsAtShare! * this.#arrivalSpanMs;
  }

  #advance(atMs: number): void {
    if (this.#nowMs < this.#joinsMs && atMs >= this.#joinsMs) this.#router.ready(this.#options.workers - 1);
    this.#load.record(atMs, this.#notes.waitingFirst, worker => {
      const core = this.#cores[worker]!;
      return core.running + core.waiting;
    });
    this.#nowMs = atMs;
  }

  #arrive(request: PreparedRequest, index: number): void {
    const { clock } = this.#options;
    const startedMs = clock.nowMs();
    const placed = this.#router.place(request);
    this.#decideMs += clock.nowMs() - startedMs;
    this.#notes.arrived(index, this.#nowMs);
    const owner: Running = { index, request, placed, kept: null };
    const { prefill, decode } = placed;
    if (prefill === null) this.#add(decode.slot, owner, request.outputTokens);
    else
      this.#add(
        prefill.slot,
        owner,
        1,
        keepingPart(blocks => this.#prefilled(owner, blocks)),
      );
  }

  #add(worker: number, owner: Running, maxTokens: number, handover?: SequenceHandover): void {
    const sampling = { minTokens: 0, ignoreEos: true, stopTokenIds: [], choice: 0 };
    const part = handover === undefined ? {} : { handover };
    this.#cores[worker]!.add(
      { ...sampling, ...part, prompt: owner.request.prompt, maxTokens, owner },
      this.#nowMs,
    );
    this.#wake(worker);
  }

  /** Starts a pass on a worker that is in none and has work. */
  #wake(worker: number): void {
    const core = this.#cores[worker]!;
    if (this.#passes[worker] === null && core.running + core.waiting > 0) this.#startPass(worker);
  }

  #startPass(worker: number): void {
    const pass = this.#cores[worker]!.executePass(this.#nowMs);
    this.#feeds[worker]?.flush();
    if (pass.stuck) return;
    this.#passes[worker] = pass;
    this.#prefillMs[worker]! += pass.prefillMs;
    this.#decodeMs[worker]! += pass.decodeMs;
    this.#queue.push(worker, pass.endMs);
    for (const sequence of pass.loading) {
      const settle = (): void => this.#cores[worker]!.loaded(sequence, 'loaded');
      sequence.request.handover!.load(sequence.blocks, sequence.published, settle);
    }
  }

  #endPass(worker: number): void {
    const pass = this.#passes[worker]!;
    for (const sequence of pass.rejected) this.#reject(sequence);
    for (const sequence of pass.emitted) this.#deliver(worker, sequence);
    // Not before: the next pass uses the lists of this one.
    this.#passes[worker] = null;
    this.#wake(worker);
  }

  #deliver(worker: number, sequence: EngineSequence<Running>): void {
    const { owner, request, generated, cachedTokens } = sequence;
    const { index, placed } = owner;
    if (generated === 1 && !sequence.pulled)
      this.#notes.computed(worker, request.prompt.length, cachedTokens);
    if (request.handover?.keeps === true) {
      request.handover.offer(sequence.blocks, sequence.computed);
      return;
    }
    if (generated === 1) {
      this.#notes.firstToken(index, this.#nowMs);
      this.#router.firstToken(placed.decode.reservation);
    }
    if (sequence.finish === null) return;
    this.#notes.finished(index, generated, this.#nowMs);
    this.#router.release(placed.decode.reservation);
  }

  /** As an engine with vLLM's NIXL connector: the prefill's token is dropped, and the decode worker asks for the blocks. */
  #prefilled(owner: Running, blocks: number[]): void {
    const { prefill, decode } = owner.placed;
    owner.kept = blocks;
    this.#notes.prefilled(owner.index, this.#nowMs);
    this.#router.firstToken(prefill!.reservation);
    this.#router.release(prefill!.reservation);
    const part = pullingPart((into, from, settle) =>
      this.#handOver(owner, into.length - from, () => settle('loaded')),
    );
    this.#add(decode.slot, owner, owner.request.outputTokens, part);
  }

  #handOver(owner: Running, blocks: number, settle: () => void): void {
    const { prefill, decode } = owner.placed;
    const onEnd = (): void => {
      this.#notes.handedOver(owner.index, this.#nowMs);
      settle();
      this.#giveBack(owner);
      this.#wake(decode.slot);
    };
    const { blockSize } = this.#options.engine;
    // The decode worker has had all of it: nothing is sent.
    if (blocks === 0) onEnd();
    else this.#links!.send(prefill!.slot, decode.slot, blocks * blockSize, this.#nowMs, onEnd);
  }

  /** The prefill worker may use the blocks again; what is findable in them stays. */
  #giveBack(owner: Running): void {
    const { slot } = owner.placed.prefill!;
    this.#cores[slot]!.pool.unpin(owner.kept!);
    owner.kept = null;
    this.#wake(slot);
  }

  #reject({ owner, request }: EngineSequence<Running>): void {
    const { prefill, decode } = owner.placed;
    this.#notes.rejected();
    this.#router.release(decode.reservation);
    if (request.handover?.keeps === true) this.#router.release(prefill!.reservation);
    else if (owner.kept !== null) this.#giveBack(owner);
  }
}
