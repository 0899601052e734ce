/**
 * The decision (R4): filter the workers, let the policy pick one, reserve its load. Runs on a pool thread, once per
 * ASK; the load table and the ledger are shared, the selectors, their cursors and the columns are this thread's own.
 */
import { strict as assert } from 'node:assert';
import type { WorkerView } from '../messages/records.js';
import type { Random } from '../runtime/random.js';
import { CandidateColumns, ServingWorkers } from './candidate-columns.js';
import type { RequestView, Selector } from './contract.js';
import type { RoutedPrompt } from './events/contract.js';
import { explain, type ScoredCandidate } from './explain.js';
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
  /** Whether the policy asks the prefix index and there is one: only then a request needs its `blocks`. */
  usesBlocks(policy: string): boolean;
  /**
   * Chooses a worker of `workers` that serves `request.model` (the id that the workers report) by the policy and reserves
   * it. A worker that was replaced in between is dropped and the policy picks again. The list and its workers must not
   * change after the first call: what is known of a list is kept for as long as the list lives, so give the same one again.
   * Throws ConfigError for an unknown policy.
   */
  decide(request: DecideRequest, policy: string, workers: readonly WorkerView[]): DecideAnswer;
}

/** Makes the decider of a pool thread; each policy keeps its memory from one decision to the next. */
export function createDecider(options: DeciderOptions): Decider {
  return new PolicyDecider(options);
}

class PolicyDecider implements Decider {
  readonly #options: DeciderOptions;
  readonly #selectors = new Map<string, Selector>();
  readonly #serving = new WeakMap<readonly WorkerView[], Map<string, ServingWorkers>>();
  readonly #columns = new CandidateColumns();
  readonly #drain: PrefillDrain;
  readonly #predictions = new Predictions();

  constructor(options: DeciderOptions) {
    assert(options.loadTable.workersMax <= HOLDERS_MAX, 'every slot can be a holder of the prefix index');
    this.#options = options;
    this.#drain = new PrefillDrain(options.loadTable.workersMax);
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
      this.#readDepths(request, selector, nowMs);
      const { row, reason } =
        pickBySession(request.session ?? null, columns) ??
        selector.pick(request, columns, this.#options.random);
      const reservation = this.#reserve(request, row);
      if (reservation > 0 && selector.usesPrefix) this.#predict(request, row, nowMs);
      if (reservation === RESERVE_FULL) return 'full';
      if (reservation !== RESERVE_STALE) {
        const slot = columns.slots[row]!;
        const generation = columns.generations[row]!;
        const cachedTokens = columns.cachedTokens[row]!;
        const candidates = request.explains === true ? explain(selector, request, columns, row) : null;
        return { slot, generation, reservation, cachedTokens, reason, candidates };
      }
      // The replaced worker is no longer ready: the next filling leaves it out. Each worker can be replaced once.
      if (tries-- === 0) return 'noWorker';
    }
  }

  #selectorOf(policy: string): Selector {
    let selector = this.#selectors.get(policy);
    if (selector === undefined) {
      selector = createSelector(policy);
      this.#selectors.set(policy, selector);
    }
    return selector;
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
  #readDepths(request: DecideRequest, selector: Selector, nowMs: number): void {
    const { count, cachedTokens } = this.#columns;
    const { prefixes } = this.#options;
    cachedTokens.fill(0, 0, count);
    if (!selector.usesPrefix || prefixes === null) return;
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

  #reserve(request: DecideRequest, row: number): number {
    const { slots, generations, cachedTokens, blockSizes } = this.#columns;
    const slot = slots[row]!;
    const prefill = Math.min(request.promptTokens - cachedTokens[row]!, RESERVATION_AMOUNT_MAX);
    const held = request.promptTokens + (request.outputTokens ?? 0);
    const blocks = Math.min(Math.ceil(held / blockSizes[row]!), RESERVATION_AMOUNT_MAX);
    const { ledger, ownerEpoch } = this.#options;
    const reservation = ledger.reserve(slot, generations[row]!, prefill, blocks, ownerEpoch);
    if (reservation > 0) this.#drain.add(slot, prefill);
    return reservation;
  }

  /** The chosen worker will have the whole prompt, some time after it has begun with what waits before it. */
  #predict(request: DecideRequest, row: number, nowMs: number): void {
    const { slots, generations, cachedTokens, activePrefillTokens, blockSizes } = this.#columns;
    const blocks = request.blocks?.find(({ blockSize }) => blockSize === blockSizes[row]);
    if (blocks === undefined || blocks.count === 0) return;
    const slot = slots[row]!;
    const generation = generations[row]!;
    const tokens = activePrefillTokens[row]! + request.promptTokens - cachedTokens[row]!;
    const forMs = PREDICTION_FACTOR * this.#drain.slowness(slot) * expectedPrefillMs(tokens, DECODE_MS_MOST);
    const cachedBlocks = Math.floor(cachedTokens[row]! / blocks.blockSize);
    const expiresMs = Math.ceil(nowMs + Math.max(forMs, PREDICTION_MS_MIN));
    this.#predictions.add(blocks, cachedBlocks, slot, generation, expiresMs);
    const { hashes, count } = blocks;
    this.#options.routed?.({ slot, generation, hashes, blocks: count, cachedBlocks, expiresMs });
  }
}
