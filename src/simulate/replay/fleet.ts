/**
 * One run of a replay: the router that serves use (decider, ledger, load table, prefix index) over mock engine cores on a
 * virtual clock. Arrivals and ends of passes happen in order of time; nothing waits, nothing is random but the policy's
 * draws. KV events reach the index when a pass starts, tokens the client when it ends. Owned by whoever calls `runFleet`.
 */
import assert from 'node:assert';
import type { WorkerView } from '../../messages/records.js';
import { createDecider, type Decider, type Placement } from '../../router/decide.js';
import { type PrefixIndexReader, type PrefixIndexWriter, TIER } from '../../router/index/contract.js';
import { createIndexMemory, SharedIndexReader, SharedIndexWriter } from '../../router/index/shared-index.js';
import { createSimpleIndex } from '../../router/index/simple-index.js';
import { createLedgerMemory, Ledger } from '../../router/ledger.js';
import { SLOT_STATE } from '../../router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '../../router/load-table.js';
import { createSelector } from '../../router/policies/policies.js';
import type { Addon } from '../../runtime/addon.js';
import type { Clock } from '../../runtime/clock.js';
import { seededRandom } from '../../runtime/random.js';
import { SEGMENT_BYTES_MAX } from '../../runtime/shared-memory.js';
import { EngineCore, type PassResult } from '../engine-core.js';
import type { EngineSettings } from '../engine-settings.js';
import type { EngineSequence } from '../sequence.js';
import { IndexFeed } from './index-feed.js';
import { LoadSamples } from './load-samples.js';
import { PassQueue } from './pass-queue.js';
import type { RunRecord } from './summary.js';
import type { PreparedRequest, PreparedWorkload } from './workload.js';

/** What a run is made of. */
export interface FleetOptions {
  readonly workers: number;
  readonly engine: EngineSettings;
  readonly policy: string;
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
  /** From the first arrival to the last. */
  readonly arrivalSpanMs: number;
  /** Sum over workers of the part of the arrival span in which each was there. */
  readonly workerMs: number;
  readonly saturated: boolean;
  /** Real milliseconds: of the run, and of its decisions. */
  readonly wallMs: number;
  readonly decideMs: number;
}

/** Blocks in the index of a run: every engine's blocks, twice, so that nothing is evicted for want of room. */
const INDEX_SHARE = 2;
const MODEL = 'replay';
const EPOCH = 1;
const GENERATION = 1;
/** The mock's answers are drawn from these; what they are does not matter here. */
const VOCABULARY = { ids: Uint32Array.from({ length: 1024 }, (_, id) => id), eosId: 1024 };

/** Room of the shared index: for a block, and for what does not depend on their number. */
const INDEX_BLOCK_BYTES = 64;
const INDEX_FIXED_BYTES = 2 ** 20;

interface RunIndex {
  readonly writer: PrefixIndexWriter;
  readonly reader: PrefixIndexReader;
  close(): void;
}

interface Running {
  readonly index: number;
  readonly arrivedMs: number;
  readonly placement: Placement;
  firstMs: number;
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
  readonly #cores: EngineCore<Running>[];
  readonly #passes: (PassResult<Running> | null)[];
  readonly #queue: PassQueue;
  readonly #index: RunIndex | null;
  readonly #views: WorkerView[];
  readonly #loadTable: LoadTable;
  readonly #ledger: Ledger;
  readonly #decider: Decider;
  readonly #joinsMs: number;
  readonly #ttftMs: Float64Array;
  readonly #itlMs: Float64Array;
  readonly #e2eMs: Float64Array;
  readonly #prefillMs: Float64Array;
  readonly #decodeMs: Float64Array;
  readonly #load: LoadSamples;
  #errors = 0;
  #outputTokens = 0;
  #waitingFirst = 0;
  #nowMs = 0;
  #decideMs = 0;

  constructor(workload: PreparedWorkload, options: FleetOptions) {
    const { workers, engine, addon } = options;
    const count = workload.requests.length;
    this.#workload = workload;
    this.#options = options;
    this.#loadTable = new LoadTable(createLoadMemory(workers));
    this.#ledger = new Ledger({
      memory: createLedgerMemory(count),
      loadTable: this.#loadTable,
      partition: { index: 0, count: 1 },
      addon,
    });
    const slots = [...Array(workers).keys()];
    const index = createSelector(options.policy).usesPrefix ? openIndex(options) : null;
    this.#index = index;
    this.#feeds = index === null ? [] : slots.map(slot => new IndexFeed(index.writer, slot, TIER.device));
    this.#decider = createDecider({
      loadTable: this.#loadTable,
      ledger: this.#ledger,
      random: seededRandom(options.seed),
      nowMs: () => this.#nowMs,
      ownerEpoch: EPOCH,
      prefixes: index?.reader ?? null,
      routed: null,
    });
    this.#cores = slots.map(slot => new EngineCore<Running>(engine, VOCABULARY, this.#feeds[slot] ?? null));
    this.#passes = slots.map(() => null);
    this.#queue = new PassQueue(workers);
    this.#views = slots.map(slot => workerView(slot, engine));
    this.#joinsMs = this.#installWorkers();
    this.#ttftMs = new Float64Array(count).fill(Number.NaN);
    this.#itlMs = new Float64Array(count).fill(Number.NaN);
    this.#e2eMs = new Float64Array(count).fill(Number.NaN);
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
      const atMs = Math.min(arrivesMs, this.#queue.nextMs);
      if (atMs === Infinity) break;
      this.#advance(atMs);
      if (arrivesMs === atMs) this.#arrive(requests[next]!, next++);
      else this.#endPass(this.#queue.pop());
    }
    this.#index?.close();
    const totals = this.#cores.map(core => core.totals);
    const absentMs = this.#workload.workload.joinsAtShare === null ? 0 : this.#joinsMs;
    return {
      ttftMs: this.#ttftMs,
      itlMs: this.#itlMs,
      e2eMs: this.#e2eMs,
      errors: this.#errors,
      outputTokens: this.#outputTokens,
      promptTokens: totals.reduce((sum, { promptTokens }) => sum + promptTokens, 0),
      cachedTokens: totals.reduce((sum, { prefixHits }) => sum + prefixHits, 0),
      computedTokens: Float64Array.from(totals, ({ promptTokens, prefixHits }) => promptTokens - prefixHits),
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

  /** Makes the workers ready, but for one that joins later. Returns when it does, Infinity when there is none. */
  #installWorkers(): number {
    const { workers } = this.#options;
    const { joinsAtShare } = this.#workload.workload;
    for (let slot = 0; slot < workers; slot += 1) {
      const later = joinsAtShare !== null && slot === workers - 1 && workers > 1;
      this.#loadTable.install(slot, GENERATION, later ? SLOT_STATE.unavailable : SLOT_STATE.ready);
    }
    return joinsAtShare === null || workers === 1 ? Infinity : joinsAtShare * this.#arrivalSpanMs;
  }

  #advance(atMs: number): void {
    if (this.#nowMs < this.#joinsMs && atMs >= this.#joinsMs)
      this.#loadTable.setState(this.#options.workers - 1, GENERATION, SLOT_STATE.ready);
    this.#load.record(atMs, this.#waitingFirst, worker => {
      const core = this.#cores[worker]!;
      return core.running + core.waiting;
    });
    this.#nowMs = atMs;
  }

  #arrive(request: PreparedRequest, index: number): void {
    const { clock, policy } = this.#options;
    const startedMs = clock.nowMs();
    const answer = this.#decider.decide(
      {
        model: MODEL,
        promptTokens: request.prompt.length,
        excludedSlots: [],
        outputTokens: null,
        blocks: [request.blocks],
      },
      policy,
      this.#views,
    );
    this.#decideMs += clock.nowMs() - startedMs;
    assert(
      typeof answer !== 'string',
      'every request of a replay finds a ready worker and a free reservation',
    );
    const owner: Running = { index, arrivedMs: this.#nowMs, placement: answer, firstMs: Number.NaN };
    this.#cores[answer.slot]!.add(
      {
        prompt: request.prompt,
        maxTokens: request.outputTokens,
        minTokens: 0,
        ignoreEos: true,
        stopTokenIds: [],
        choice: 0,
        owner,
      },
      this.#nowMs,
    );
    this.#waitingFirst += 1;
    if (this.#passes[answer.slot] === null) this.#startPass(answer.slot);
  }

  #startPass(worker: number): void {
    const pass = this.#cores[worker]!.executePass(this.#nowMs);
    this.#feeds[worker]?.flush();
    this.#passes[worker] = pass;
    this.#prefillMs[worker]! += pass.prefillMs;
    this.#decodeMs[worker]! += pass.decodeMs;
    this.#queue.push(worker, pass.endMs);
  }

  #endPass(worker: number): void {
    const pass = this.#passes[worker]!;
    for (const sequence of pass.rejected) this.#reject(sequence);
    for (const sequence of pass.emitted) {
      if (sequence.generated === 1) this.#firstToken(sequence.owner);
      if (sequence.finish !== null) this.#finish(sequence);
    }
    this.#passes[worker] = null;
    const core = this.#cores[worker]!;
    if (core.running + core.waiting > 0) this.#startPass(worker);
  }

  #firstToken(owner: Running): void {
    owner.firstMs = this.#nowMs;
    this.#ttftMs[owner.index] = this.#nowMs - owner.arrivedMs;
    this.#waitingFirst -= 1;
    this.#ledger.firstToken(owner.placement.reservation);
  }

  #finish(sequence: EngineSequence<Running>): void {
    const { owner, generated } = sequence;
    this.#outputTokens += generated;
    this.#e2eMs[owner.index] = this.#nowMs - owner.arrivedMs;
    if (generated > 1) this.#itlMs[owner.index] = (this.#nowMs - owner.firstMs) / (generated - 1);
    this.#ledger.release(owner.placement.reservation);
  }

  #reject({ owner }: EngineSequence<Running>): void {
    this.#errors += 1;
    this.#waitingFirst -= 1;
    this.#ledger.release(owner.placement.reservation);
  }
}

/** The index that a serving process would have: the shared one with the addon, the simple one without. */
function openIndex({ workers, engine, addon, seed }: FleetOptions): RunIndex {
  const blocksMax = INDEX_SHARE * workers * engine.numGpuBlocks;
  const index: RunIndex = addon === null ? openSimple(blocksMax) : openShared(addon, blocksMax, seed);
  for (let slot = 0; slot < workers; slot += 1) index.writer.addHolder(slot);
  return index;
}

function openSimple(blocksMax: number): RunIndex {
  const index = createSimpleIndex({ blocksMax, predictionsMax: 0 });
  return { writer: index, reader: index, close: () => {} };
}

function openShared(addon: Addon, blocksMax: number, seed: number): RunIndex {
  const bytes = Math.min(INDEX_FIXED_BYTES + INDEX_BLOCK_BYTES * blocksMax, SEGMENT_BYTES_MAX);
  const memory = createIndexMemory({ bytes, predictionsMax: 1, random: seededRandom(seed) });
  const writer = new SharedIndexWriter(addon, memory);
  const reader = new SharedIndexReader(addon, memory);
  const close = (): void => {
    reader.close();
    writer.close();
  };
  return { writer, reader, close };
}

function workerView(slot: number, engine: EngineSettings): WorkerView {
  return {
    slot,
    generation: GENERATION,
    url: `replay:${slot}`,
    engine: 'vllm',
    models: [{ id: MODEL, contextLength: engine.maxModelLen }],
    blockSize: engine.blockSize,
    totalBlocks: engine.numGpuBlocks,
    returnsTokenIds: true,
    foreignIds: [],
    rank: null,
  };
}
