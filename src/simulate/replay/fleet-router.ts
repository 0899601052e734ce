/**
 * The router of one run of a replay: decider, ledger and load table as a pool thread has them, over workers that are all
 * alike or have roles. What the plane's socket thread tells the ledger, the run tells it here. Owned by one run.
 */
import assert from 'node:assert';
import type { DisaggRules, WorkerRole } from '../../messages/disagg.js';
import type { WorkerView } from '../../messages/records.js';
import { createDecider, type Decider, type Placement } from '../../router/decide.js';
import { decidePair, isPair, type SplitWorkers } from '../../router/decide-pair.js';
import type { PrefixIndexReader } from '../../router/index/contract.js';
import { createLedgerMemory, Ledger } from '../../router/ledger.js';
import { SLOT_STATE } from '../../router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '../../router/load-table.js';
import { seededRandom } from '../../runtime/random.js';
import type { EngineSettings } from '../engine-settings.js';
import type { PreparedRequest } from './workload.js';

/** Workers with roles and what decides between them. */
export interface FleetRoles {
  /** One for each worker, by slot. */
  readonly roles: readonly WorkerRole[];
  readonly rules: DisaggRules;
}

/** What a router is made of. */
export interface FleetRouterOptions {
  readonly workers: number;
  readonly engine: EngineSettings;
  readonly policy: string;
  /** Seeds the policy's draws. */
  readonly seed: number;
  /** Null: every worker does everything. */
  readonly split: FleetRoles | null;
  /** Requests of the whole run. */
  readonly requests: number;
  readonly prefixes: PrefixIndexReader | null;
  /** Virtual time. */
  readonly nowMs: () => number;
}

/** Where a request goes; `prefill` is null when one worker does all of it. */
export interface PlacedRequest {
  readonly prefill: Placement | null;
  readonly decode: Placement;
}

const MODEL = 'replay';
const EPOCH = 1;
const GENERATION = 1;
/** A request has two reservations at most; a ledger has no more entries than this. */
const RESERVATIONS_MAX = 2 ** 20;

/** See the head of the file. */
export class FleetRouter {
  readonly #policy: string;
  readonly #split: FleetRoles | null;
  readonly #views: readonly WorkerView[];
  readonly #byRole: SplitWorkers;
  readonly #loadTable: LoadTable;
  readonly #ledger: Ledger;
  readonly #decider: Decider;

  constructor(options: FleetRouterOptions) {
    const { workers, engine, split, requests } = options;
    assert(split === null || split.roles.length === workers, 'each worker has a role');
    this.#policy = options.policy;
    this.#split = split;
    this.#views = Array.from({ length: workers }, (_, slot) => workerView(slot, engine));
    const may = (role: WorkerRole): readonly WorkerView[] =>
      this.#views.filter(({ slot }) => split?.roles[slot] === 'both' || split?.roles[slot] === role);
    this.#byRole = { prefill: may('prefill'), decode: may('decode') };
    this.#loadTable = new LoadTable(createLoadMemory(workers));
    this.#ledger = new Ledger({
      memory: createLedgerMemory(Math.min(2 * requests, RESERVATIONS_MAX)),
      loadTable: this.#loadTable,
      partition: { index: 0, count: 1 },
      // A thread has a few handles to native ledgers in all, and a bench makes hundreds of runs.
      addon: null,
    });
    this.#decider = createDecider({
      loadTable: this.#loadTable,
      ledger: this.#ledger,
      random: seededRandom(options.seed),
      nowMs: options.nowMs,
      ownerEpoch: EPOCH,
      prefixes: options.prefixes,
      routed: null,
    });
  }

  /** A worker comes; one that is not ready gets nothing until `ready`. */
  install(slot: number, isReady: boolean): void {
    this.#loadTable.install(slot, GENERATION, isReady ? SLOT_STATE.ready : SLOT_STATE.unavailable);
  }

  /** The worker may be chosen from now on. */
  ready(slot: number): void {
    this.#loadTable.setState(slot, GENERATION, SLOT_STATE.ready);
  }

  /** Decides and reserves. */
  place(request: PreparedRequest): PlacedRequest {
    const asked = {
      model: MODEL,
      promptTokens: request.prompt.length,
      excludedSlots: [],
      outputTokens: null,
      blocks: [request.blocks],
    };
    const answer =
      this.#split === null
        ? this.#decider.decide(asked, this.#policy, this.#views)
        : decidePair(this.#decider, asked, this.#policy, this.#byRole, this.#split.rules, reservation =>
            this.release(reservation),
          );
    assert(
      typeof answer !== 'string',
      'every request of a replay finds a ready worker and a free reservation',
    );
    return isPair(answer) ? answer : { prefill: null, decode: answer };
  }

  /** The prompt of a reservation is computed. */
  firstToken(reservation: number): void {
    this.#ledger.firstToken(reservation);
  }

  /** The worker of a reservation has done its part. */
  release(reservation: number): void {
    this.#ledger.release(reservation);
  }
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
