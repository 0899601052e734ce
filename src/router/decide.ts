/**
 * The decision (R4): filter the workers, let the policy pick one, reserve its load. Runs on a pool thread, once per
 * ASK; the load table and the ledger are shared, the selectors and their cursors are this thread's own.
 */
import type { WorkerView } from '../messages/records.js';
import type { Random } from '../runtime/random.js';
import type { Candidate, RequestView, Selector } from './contract.js';
import { type Ledger, RESERVATION_AMOUNT_MAX, RESERVE_FULL, RESERVE_STALE } from './ledger.js';
import type { LoadTable } from './load-table.js';
import { createSelector } from './policies/policies.js';

/** Tokens per KV block of a worker that does not say. */
const BLOCK_SIZE_UNKNOWN = 16;

/** A worker that was chosen and on which the request is reserved. */
export interface Placement {
  readonly slot: number;
  readonly generation: number;
  /** Ledger reservation, owned by the decider's epoch until the PLAN is adopted; `ledger.discard` gives it up. */
  readonly reservation: number;
  /** In words: the policy and the figure that decided. */
  readonly reason: string;
}

/** 'noWorker': no ready worker serves the model outside the excluded slots. 'full': the ledger has no room. */
export type DecideAnswer = Placement | 'noWorker' | 'full';

/** A request as `decide` sees it. */
export interface DecideRequest extends RequestView {
  /** Tokens that the answer is expected to have, all choices together; null: not known, counted as none. */
  readonly outputTokens: number | null;
}

/** What a decider needs of its pool thread. */
export interface DeciderOptions {
  readonly loadTable: LoadTable;
  readonly ledger: Ledger;
  readonly random: Random;
  /** Epoch of this pool thread, the first owner of its reservations. */
  readonly ownerEpoch: number;
}

/** Chooses workers for one pool thread. */
export interface Decider {
  /**
   * Chooses a worker of `workers` that serves `request.model` (the id that the workers report) by the policy and reserves
   * it. A worker that was replaced in between is dropped and the policy picks again.
   * Throws ConfigError for an unknown policy.
   */
  decide(request: DecideRequest, policy: string, workers: readonly WorkerView[]): DecideAnswer;
}

/** Makes the decider of a pool thread; each policy keeps its memory from one decision to the next. */
export function createDecider(options: DeciderOptions): Decider {
  const { loadTable, ledger, random, ownerEpoch } = options;
  const selectors = new Map<string, Selector>();
  const selectorOf = (policy: string): Selector => {
    let selector = selectors.get(policy);
    if (selector === undefined) {
      selector = createSelector(policy);
      selectors.set(policy, selector);
    }
    return selector;
  };

  const reserve = (request: DecideRequest, worker: WorkerView): number =>
    ledger.reserve(
      worker.slot,
      worker.generation,
      Math.min(request.promptTokens, RESERVATION_AMOUNT_MAX),
      Math.min(decodeBlocks(request, worker.blockSize), RESERVATION_AMOUNT_MAX),
      ownerEpoch,
    );

  return {
    decide(request, policy, workers) {
      const selector = selectorOf(policy);
      const eligible = workers.filter(worker => isEligible(request, worker, loadTable));
      while (eligible.length > 0) {
        const candidates = eligible.map(worker => toCandidate(worker, loadTable));
        const decision = selector.pick(request, candidates, random);
        const position = eligible.findIndex(({ slot }) => slot === decision.slot);
        const reservation = reserve(request, eligible[position] as WorkerView);
        if (reservation === RESERVE_FULL) return 'full';
        if (reservation !== RESERVE_STALE) return { ...decision, reservation };
        eligible.splice(position, 1);
      }
      return 'noWorker';
    },
  };
}

function isEligible(request: RequestView, worker: WorkerView, loadTable: LoadTable): boolean {
  return (
    worker.models.some(({ id }) => id === request.model) &&
    !request.excludedSlots.includes(worker.slot) &&
    loadTable.isReady(worker.slot, worker.generation)
  );
}

function toCandidate({ slot, generation }: WorkerView, loadTable: LoadTable): Candidate {
  return {
    slot,
    generation,
    requests: loadTable.readRequests(slot, generation),
    activePrefillTokens: loadTable.readActivePrefillTokens(slot, generation),
    decodeBlocks: loadTable.readDecodeBlocks(slot, generation),
  };
}

function decodeBlocks(request: DecideRequest, blockSize: number | null): number {
  return Math.ceil((request.promptTokens + (request.outputTokens ?? 0)) / (blockSize ?? BLOCK_SIZE_UNKNOWN));
}
