/**
 * A decider that looks at each worker by itself, with plain maps: the oracle of router/decide.ts. It reserves nothing; the
 * policies and the session rule are the product's own, which have tests of their own.
 */
import type { WorkerView } from '#millrace/messages/records.js';
import type { Selector } from '#millrace/router/contract.js';
import type { DecideRequest, PromptBlocks } from '#millrace/router/decide.js';
import type { PrefixIndexReader } from '#millrace/router/index/contract.js';
import { LOAD, LOAD_LINE_WORDS } from '#millrace/router/load-descriptor.js';
import { type LoadTable, loadLine } from '#millrace/router/load-table.js';
import { createSelector } from '#millrace/router/policies/policies.js';
import { expectedDecodeMs, expectedPrefillMs } from '#millrace/router/prefill-model.js';
import { pickBySession } from '#millrace/router/session-affinity.js';
import type { Random } from '#millrace/runtime/random.js';
import { candidateColumns } from './candidate-rows.js';

/** The bounds of predictions.ts: records per bucket, buckets, and blocks between those that are in a bucket. */
const PLACES = 8;
const BUCKETS = 8192;
const STRIDE = 16;

/** How much is left of a worker's outstanding prefill: the rule of prefill-drain.ts, worker by worker. */
class NaiveDrain {
  readonly #workers = new Map<
    string,
    Record<'at' | 'before' | 'done' | 'seen' | 'expected' | 'proven', number>
  >();

  slowness(key: string): number {
    const { expected, proven } = this.#workers.get(key)!;
    return Math.min(Math.max((expected + 32_768) / (proven + 32_768), 1 / 64), 64);
  }

  look(key: string, outstanding: number, seen: number, decodeMs: number, nowMs: number): number {
    const old = this.#workers.get(key);
    const fresh = { at: nowMs, before: outstanding, done: 0, seen, expected: 0, proven: 0 };
    this.#workers.set(key, fresh);
    if (old === undefined) return outstanding;
    const proven = (seen - old.seen) >>> 0;
    let { done } = old;
    Object.assign(fresh, { expected: old.expected, proven: old.proven });
    if (old.before > 0) {
      const left = old.before - done;
      const slowness = this.slowness(key);
      const expected = ((nowMs - old.at) * old.before) / expectedPrefillMs(old.before, decodeMs);
      done += Math.min(expected / slowness, left);
      const most = proven < old.before ? expected : left > 0 ? left * slowness : old.before / 4;
      fresh.expected += Math.min(expected, most);
      fresh.proven += proven;
      if (fresh.expected + fresh.proven >= 2 * 1_048_576) {
        fresh.expected /= 2;
        fresh.proven /= 2;
      }
    }
    fresh.done = Math.min(Math.max(done - proven, 0), outstanding);
    return outstanding - fresh.done;
  }

  add(key: string, tokens: number): void {
    const worker = this.#workers.get(key);
    if (worker !== undefined) worker.before += tokens;
  }
}

interface Predicted {
  readonly worker: string;
  /** Of the prompt up to its end, of which the worker lacked those from `first` on. */
  readonly names: readonly string[];
  readonly first: number;
  readonly expiresMs: number;
}

/** Decides without reserving. */
export class NaiveDecider {
  readonly #selectors = new Map<string, Selector>();
  readonly #drain = new NaiveDrain();
  /** By bucket, the newest first. */
  readonly #predicted = new Map<number, Predicted[]>();
  readonly #table: LoadTable;
  readonly #index: PrefixIndexReader;
  readonly #random: Random;

  constructor(table: LoadTable, index: PrefixIndexReader, random: Random) {
    this.#table = table;
    this.#index = index;
    this.#random = random;
  }

  decide(request: DecideRequest, policy: string, workers: readonly WorkerView[], nowMs: number) {
    if (!this.#selectors.has(policy)) this.#selectors.set(policy, createSelector(policy));
    const selector = this.#selectors.get(policy)!;
    const allowed = workers.filter(
      ({ slot, generation, models }) =>
        this.#table.isReady(slot, generation) &&
        models.some(({ id }) => id === request.model) &&
        !request.excludedSlots.includes(slot) &&
        (request.pinnedSlot ?? slot) === slot,
    );
    if (allowed.length === 0) return 'noWorker';
    const columns = candidateColumns(allowed.map(({ slot }) => ({ slot })));
    for (const [row, worker] of allowed.entries()) {
      const { slot, generation } = worker;
      const blockSize = worker.blockSize ?? 16;
      const load = this.#table.snapshot(slot)!;
      const decodeMs = expectedDecodeMs(load.decodeBlocks / (worker.totalBlocks ?? Infinity));
      columns.generations[row] = generation;
      columns.requests[row] = load.requests;
      columns.activePrefillTokens[row] = load.activePrefillTokens;
      columns.decodeBlocks[row] = load.decodeBlocks;
      columns.blockSizes[row] = blockSize;
      columns.totalBlocks[row] = worker.totalBlocks ?? Infinity;
      columns.decodeMs[row] = decodeMs;
      if (selector.usesTiming) {
        const key = `${slot}/${generation}`;
        const word = loadLine(slot, generation) * LOAD_LINE_WORDS + LOAD.prefilledTokens;
        const seen = this.#table.words[word]!;
        columns.queuedTokens[row] = this.#drain.look(key, load.activePrefillTokens, seen, decodeMs, nowMs);
        columns.slowness[row] = this.#drain.slowness(key);
      }
      const blocks = request.blocks?.find(one => one.blockSize === blockSize);
      const depth = selector.usesPrefix && blocks !== undefined ? this.#depth(blocks, worker, nowMs) : 0;
      columns.cachedTokens[row] = Math.min(depth * blockSize, request.promptTokens - 1);
    }
    const { row } =
      pickBySession(request.session ?? null, columns) ?? selector.pick(request, columns, this.#random);
    const worker = allowed[row]!;
    const cachedTokens = columns.cachedTokens[row]!;
    const key = `${worker.slot}/${worker.generation}`;
    const slowness = selector.usesTiming ? columns.slowness[row]! : 1;
    if (selector.usesPrefix)
      this.#predict(request, worker, cachedTokens, columns.activePrefillTokens[row]!, slowness, nowMs);
    this.#drain.add(key, request.promptTokens - cachedTokens);
    return { slot: worker.slot, generation: worker.generation, cachedTokens };
  }

  #depth(blocks: PromptBlocks, { slot, generation }: WorkerView, nowMs: number): number {
    const depths = new Uint32Array(2);
    this.#index.lookup(blocks.hashes, blocks.count, Uint32Array.of(slot), 1, depths);
    const names = namesOf(blocks);
    let held = depths[1]!;
    for (;;) {
      const record = this.#recordOf(blocks, names, held, `${slot}/${generation}`, nowMs);
      if (record === undefined) return held;
      while (held < names.length && record.names[held] === names[held]) held += 1;
    }
  }

  #recordOf(blocks: PromptBlocks, names: readonly string[], block: number, worker: string, nowMs: number) {
    if (block >= names.length) return undefined;
    const near = Array.from({ length: (block % STRIDE) + 1 }, (_, back) => bucketOf(blocks, block - back));
    return near
      .flatMap(bucket => this.#predicted.get(bucket) ?? [])
      .find(
        record =>
          record.worker === worker &&
          record.expiresMs > nowMs &&
          record.first <= block &&
          record.names[block] === names[block],
      );
  }

  #predict(
    { blocks: lists, promptTokens }: DecideRequest,
    { slot, generation, blockSize }: WorkerView,
    cachedTokens: number,
    active: number,
    slowness: number,
    nowMs: number,
  ): void {
    const blocks = lists?.find(one => one.blockSize === (blockSize ?? 16));
    if (blocks === undefined) return;
    const forMs = 2 * slowness * expectedPrefillMs(active + promptTokens - cachedTokens, expectedDecodeMs(1));
    const expiresMs = Math.ceil(nowMs + Math.max(forMs, 1000));
    const first = Math.floor(cachedTokens / blocks.blockSize);
    const record = { worker: `${slot}/${generation}`, names: namesOf(blocks), first, expiresMs };
    for (let at = first; at < blocks.count; at += 1) {
      if (at !== first && at % STRIDE !== 0) continue;
      const bucket = bucketOf(blocks, at);
      this.#predicted.set(bucket, [record, ...(this.#predicted.get(bucket) ?? [])].slice(0, PLACES));
    }
  }
}

const bucketOf = ({ hashes }: PromptBlocks, at: number): number => hashes[2 * at]! % BUCKETS;
const namesOf = ({ hashes, count }: PromptBlocks): string[] =>
  Array.from({ length: count }, (_, at) => `${hashes[2 * at]} ${hashes[2 * at + 1]}`);
