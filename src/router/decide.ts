/**
 * The decision (R4): filter the workers, let the policy pick one, reserve its load. Runs on a pool thread, once per
 * ASK; the load table and the ledger are shared, the selectors, their cursors and the columns are this thread's own.
 */
import { strict as assert } from 'node:assert';
import type { SplitReason } from '../messages/disagg.js';
import type { WorkerView } from '../messages/records.js';
import type { Random } from '../runtime/random.js';
import { CandidateColumns, ServingWorkers } from './candidate-columns.js';
import type { RequestView, Selector } from './contract.js';
import type { WorkerFigures } from './disagg.js';
import type { RoutedPrompt } from './events/contract.js';
import { explain, type ScoredCandidate } from './explain.js';
import { HandoverBacklog } from './handover-backlog.js';
import { HOLDERS_MAX, type PrefixIndexReader } from './index/contract.js';
import { type Ledger, RESERVATION_AMOUNT_MAX, RESERVE_FULL, RESERVE_STALE } from './ledger.js';
import { LOAD } from './load-descriptor.js';
import type { LoadTable } from './load-table.js';
import { createSelector } from './policies/policies.js';
import { Predictions } from './predictions.js';
import { PrefillDrain } from './prefill-drain.js';
import { expectedDecodeMs, expectedPrefillMs } from './prefill-model.js';
import { pickBySession } from './session-affinity.js';

/** A prediction lives twice the time in which it should come true, and at least this long. */
const PREDICTION_FACTOR = 2;
const PREDICTION_MS_MIN = 1000;
const DECODE_MS_MOST = expectedDecodeMs(1);
const WHOLE: ReservedShare = { prefill: true, decode: true };

/** A worker that was chosen and on which the request is reserved. */
export interface Placement {
  readonly slot: number;
  readonly generation: number;
  /** Ledger reservation, owned by the decider's epoch until the PLAN is adopted; `ledger.discard` gives it up. */
  readonly reservation: number;
  /** Tokens of the prompt that the worker is expected to have in its cache; 0 when the policy does not ask. */
  readonly cachedTokens: number;
  /** In words: the policy and the figures that decided. */
  readonly reason: string;
  /** The best candidates, where the request asked for them. */
  readonly candidates: readonly ScoredCandidate[] | null;
  /** Why its model's prefill workers do not compute the prompt; absent: there are none. */
  readonly split?: SplitReason;
}

/** 'noWorker': no ready worker serves the model outside the excluded slots. 'full': the ledger has no room. */
export type DecideAnswer = Placement | 'noWorker' | 'full';

/** The complete blocks of a prompt, as a BlockHasher gives them. */
export interface PromptBlocks {
  /**
   * Sequence hashes: block `i` at words 2i (low) and 2i + 1 (high). Look-ups are fastest when it is the same array over
   * shared memory each time.
   */
  readonly hashes: Uint32Array;
  readonly count: number;
  /** Tokens per block. */
  readonly blockSize: number;
}

/** A request as `decide` sees it. */
export interface DecideRequest extends RequestView {
  /** Tokens that the answer is expected to have, all choices together; null: not known, counted as none. */
  readonly outputTokens: number | null;
  /**
   * The prompt's blocks, once for each block size among the workers that may serve it. Empty or absent: its tokens are not
   * known, so nothing of it counts as cached.
   */
  readonly blocks?: readonly PromptBlocks[];
  /** The placement is to tell its candidates. */
  readonly explains?: boolean;
}

/** What a decider needs of its pool thread. */
export interface DeciderOptions {
  readonly loadTable: LoadTable;
  readonly ledger: Ledger;
  readonly random: Random;
  /** Monotonic milliseconds. */
  readonly nowMs: () => number;
  /** Epoch of this pool thread, the first owner of its reservations. */
  readonly ownerEpoch: number;
  /** Its holders are the worker slots. Null: nothing counts as cached. */
  readonly prefixes: PrefixIndexReader | null;
  /** Told of every prompt with known blocks that was placed; null: nobody wants to know. Its hashes are not to be kept. */
  readonly routed: ((prompt: RoutedPrompt) => void) | null;
}

/** Chooses workers for one pool thread. */
export interface Decider {
  /** Hand-overs that this thread has decided. */
  readonly handovers: HandoverBacklog;
  /** Whether the policy asks the prefix index and there is one: only then a request needs its `blocks`. */
  usesBlocks(policy: string): boolean;
  /**
   * Chooses a worker of `workers` that serves `request.model` (the id that the workers report) by the policy and reserves
   * it. A worker that was replaced in between is dropped and the policy picks again. The list and its workers must not
   * change after the first call: what is known of a list is kept for as long as the list lives, so give the same one again.
   * Throws ConfigError for an unknown policy.
   */
  decide(request: DecideRequest, policy: string, workers: readonly WorkerView[]): DecideAnswer;
  /**
   * The worker that `decide` would choose, with its figures, and nothing reserved; `by`: a policy's name, or a selector that
   * is none of them. Null: there is no worker. The list as above.
   */
  look(request: DecideRequest, by: string | Selector, workers: readonly WorkerView[]): WorkerFigures | null;
  /** Reserves a worker that `look` has shown: the new reservation, RESERVE_FULL or RESERVE_STALE. */
  reserve(request: DecideRequest, worker: WorkerFigures, share: ReservedShare): number;
}

/** What of a request a reservation stands for. */
export interface ReservedShare {
  /** The worker computes the prompt. */
  readonly prefill: boolean;
  /** It writes the answer. */
  readonly decode: boolean;
}

/** Makes the decider of a pool thread; each policy keeps its memory from one decision to the next. */
export function createDecider(options: DeciderOptions): Decider {
  return new PolicyDecider(options);
}

class PolicyDecider implements Decider {
  readonly handovers: HandoverBacklog;
  readonly #options: DeciderOptions;
  readonly #selectors = new Map<string, Selector>();
  /** Those of `look`, by its list: a policy with a cursor has one among prefill workers and one among decode workers. */
  readonly #looking = new WeakMap<readonly WorkerView[], Map<string, Selector>>();
  readonly #serving = new WeakMap<readonly WorkerView[], Map<string, ServingWorkers>>();
  readonly #columns = new CandidateColumns();
  readonly #drain: PrefillDrain;
  readonly #predictions = new Predictions();

  constructor(options: DeciderOptions) {
    assert(options.loadTable.workersMax <= HOLDERS_MAX, 'every slot can be a holder of the prefix index');
    this.#options = options;
    this.#drain = new PrefillDrain(options.loadTable.workersMax);
    this.handovers = new HandoverBacklog(options.loadTable.workersMax, options.nowMs);
  }

  usesBlocks(policy: string): boolean {
    return this.#options.prefixes !== null && this.#selectorOf(policy).usesPrefix;
  }

  decide(request: DecideRequest, policy: string, workers: readonly WorkerView[]): DecideAnswer {
    const selector = this.#selectorOf(policy);
    const serving = this.#servingOf(workers, request.model);
    const columns = this.#columns;
    const nowMs = this.#options.nowMs();
    let tries = workers.length;
    for (;;) {
      columns.fill(serving, this.#options.loadTable.words, request);
      if (columns.count === 0) return 'noWorker';
      if (selector.usesTiming) this.#fillTiming(nowMs);
      this.#readDepths(request, selector.usesPrefix, nowMs);
      const { row, reason } =
        pickBySession(request.session ?? null, columns) ??
        selector.pick(request, columns, this.#options.random);
      const figures = this.#figures(row, reason);
      const reservation = this.#reserve(request, figures, WHOLE);
      if (reservation > 0 && selector.usesPrefix) this.#predict(request, figures, nowMs);
      if (reservation === RESERVE_FULL) return 'full';
      if (reservation !== RESERVE_STALE) {
        const { slot, generation, cachedTokens } = figures;
        const candidates = request.explains === true ? explain(selector, request, columns, row) : null;
        return { slot, generation, reservation, cachedTokens, reason, candidates };
      }
      // The replaced worker is no longer ready: the next filling leaves it out. Each worker can be replaced once.
      if (tries-- === 0) return 'noWorker';
    }
  }

  look(request: DecideRequest, by: string | Selector, workers: readonly WorkerView[]): WorkerFigures | null {
    const selector = typeof by === 'string' ? this.#selectorOf(by, this.#lookingAt(workers)) : by;
    const columns = this.#columns;
    const nowMs = this.#options.nowMs();
    columns.fill(this.#servingOf(workers, request.model), this.#options.loadTable.words, request);
    if (columns.count === 0) return null;
    this.#fillTiming(nowMs);
    this.#readDepths(request, true, nowMs);
    const { row, reason } = selector.pick(request, columns, this.#options.random);
    return this.#figures(row, reason);
  }

  reserve(request: DecideRequest, worker: WorkerFigures, share: ReservedShare): number {
    const reservation = this.#reserve(request, worker, share);
    if (reservation > 0 && share.prefill) this.#predict(request, worker, this.#options.nowMs());
    return reservation;
  }

  #figures(row: number, reason: string): WorkerFigures {
    const columns = this.#columns;
    return {
      slot: columns.slots[row]!,
      generation: columns.generations[row]!,
      requests: columns.requests[row]!,
      activePrefillTokens: columns.activePrefillTokens[row]!,
      queuedTokens: columns.queuedTokens[row]!,
      decodeBlocks: columns.decodeBlocks[row]!,
      totalBlocks: columns.totalBlocks[row]!,
      blockSize: columns.blockSizes[row]!,
      decodeMs: columns.decodeMs[row]!,
      slowness: columns.slowness[row]!,
      cachedTokens: columns.cachedTokens[row]!,
      reason,
    };
  }

  #selectorOf(policy: string, among = this.#selectors): Selector {
    let selector = among.get(policy);
    if (selector === undefined) {
      selector = createSelector(policy);
      among.set(policy, selector);
    }
    return selector;
  }

  #lookingAt(workers: readonly WorkerView[]): Map<string, Selector> {
    let selectors = this.#looking.get(workers);
    if (selectors === undefined) {
      selectors = new Map();
      this.#looking.set(workers, selectors);
    }
    return selectors;
  }

  #servingOf(workers: readonly WorkerView[], model: string): ServingWorkers {
    let byModel = this.#serving.get(workers);
    if (byModel === undefined) {
      byModel = new Map();
      this.#serving.set(workers, byModel);
    }
    let serving = byModel.get(model);
    if (serving === undefined) {
      serving = new ServingWorkers(workers, model);
      // A name that nobody serves is not kept: there may be any number of them.
      if (serving.count > 0) byModel.set(model, serving);
    }
    return serving;
  }

  #fillTiming(nowMs: number): void {
    const { count, slots, generations, lines, activePrefillTokens } = this.#columns;
    const { decodeBlocks, totalBlocks, queuedTokens, decodeMs, slowness } = this.#columns;
    const { words } = this.#options.loadTable;
    const drain = this.#drain;
    for (let row = 0; row < count; row += 1) {
      const slot = slots[row]!;
      const outstanding = activePrefillTokens[row]!;
      const prefilled = words[lines[row]! + LOAD.prefilledTokens]!;
      const stepMs = expectedDecodeMs(decodeBlocks[row]! / totalBlocks[row]!);
      queuedTokens[row] = drain.look(slot, generations[row]!, outstanding, prefilled, stepMs, nowMs);
      decodeMs[row] = stepMs;
      slowness[row] = drain.slowness(slot);
    }
  }

  /** Tokens of the prompt in each candidate's cache. The last one is always computed: the answer needs its logits. */
  #readDepths(request: DecideRequest, usesPrefix: boolean, nowMs: number): void {
    const { count, cachedTokens } = this.#columns;
    const { prefixes } = this.#options;
    cachedTokens.fill(0, 0, count);
    if (!usesPrefix || prefixes === null) return;
    for (const blocks of request.blocks ?? []) this.#readDepthsOf(request, blocks, prefixes, nowMs);
  }

  /** Fills the rows of the workers with this block size. */
  #readDepthsOf(
    request: DecideRequest,
    blocks: PromptBlocks,
    prefixes: PrefixIndexReader,
    nowMs: number,
  ): void {
    const { count, slots, generations, blockSizes, cachedTokens, depths } = this.#columns;
    if (blocks.count === 0) return;
    prefixes.lookup(blocks.hashes, blocks.count, slots, count, depths);
    const most = Math.max(request.promptTokens - 1, 0);
    const predictions = this.#predictions;
    predictions.open(blocks, nowMs);
    for (let row = 0; row < count; row += 1) {
      if (blockSizes[row] !== blocks.blockSize) continue;
      const depth = predictions.extend(depths[count + row]!, slots[row]!, generations[row]!);
      cachedTokens[row] = Math.min(depth * blocks.blockSize, most);
    }
  }

  #reserve(request: DecideRequest, worker: WorkerFigures, { prefill, decode }: ReservedShare): number {
    const { slot, generation, cachedTokens, blockSize } = worker;
    const own = prefill ? Math.min(request.promptTokens - cachedTokens, RESERVATION_AMOUNT_MAX) : 0;
    const held = request.promptTokens + (decode ? (request.outputTokens ?? 0) : 0);
    const blocks = Math.min(Math.ceil(held / blockSize), RESERVATION_AMOUNT_MAX);
    const { ledger, ownerEpoch } = this.#options;
    const reservation = ledger.reserve(slot, generation, own, blocks, ownerEpoch);
    if (reservation > 0) this.#drain.add(slot, own);
    return reservation;
  }

  /** The chosen worker will have the whole prompt, some time after it has begun with what waits before it. */
  #predict(request: DecideRequest, worker: WorkerFigures, nowMs: number): void {
    const { slot, generation, blockSize, cachedTokens, activePrefillTokens } = worker;
    const blocks = request.blocks?.find(one => one.blockSize === blockSize);
    if (blocks === undefined || blocks.count === 0) return;
    const tokens = activePrefillTokens + request.promptTokens - cachedTokens;
    const forMs = PREDICTION_FACTOR * this.#drain.slowness(slot) * expectedPrefillMs(tokens, DECODE_MS_MOST);
    const cachedBlocks = Math.floor(cachedTokens / blockSize);
    const expiresMs = Math.ceil(nowMs + Math.max(forMs, PREDICTION_MS_MIN));
    this.#predictions.add(blocks, cachedBlocks, slot, generation, expiresMs);
    const { hashes, count } = blocks;
    this.#options.routed?.({ slot, generation, hashes, blocks: count, cachedBlocks, expiresMs });
  }
}
