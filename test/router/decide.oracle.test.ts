// Promise: a decision over columns and tables is the one of a decider that looks at each worker by itself with plain maps:
// same worker, same cached tokens, same draws, over random fleets, loads, prompts, clocks and policies.
import t from 'tap';
import type { WorkerView } from '#millrace/messages/records.js';
import type { Selector } from '#millrace/router/contract.js';
import {
  createDecider,
  type DecideAnswer,
  type DecideRequest,
  type PromptBlocks,
} from '#millrace/router/decide.js';
import type { PrefixIndexReader } from '#millrace/router/index/contract.js';
import { createSimpleIndex } from '#millrace/router/index/simple-index.js';
import { createLedgerMemory, Ledger } from '#millrace/router/ledger.js';
import { LOAD, LOAD_LINE_WORDS, SLOT_STATE } from '#millrace/router/load-descriptor.js';
import { createLoadMemory, LoadTable, loadLine } from '#millrace/router/load-table.js';
import { createSelector, POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { expectedDecodeMs, expectedPrefillMs } from '#millrace/router/prefill-model.js';
import { pickBySession } from '#millrace/router/session-affinity.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { candidateColumns } from './candidate-rows.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`seed ${SEED}`);
const MODELS = ['a', 'b'];
/** Few enough blocks that no bucket of the table of predictions overflows. */
const FAMILIES = 5;
const DEPTH = 60;
/** Workers that are remembered per predicted block. */
const PREDICTED_HOLDERS = 4;

/** The prompts: block `at` of a family is the same for all of them up to where a prompt ends. */
function drawHashes(random: Random): Uint32Array[] {
  return Array.from({ length: FAMILIES }, () =>
    Uint32Array.from({ length: 2 * DEPTH }, () => randomInteger(random, 2 ** 32)),
  );
}

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
  expiresMs: number;
  readonly workers: string[];
}

/** Decides without reserving. */
class NaiveDecider {
  readonly #selectors = new Map<string, Selector>();
  readonly #drain = new NaiveDrain();
  readonly #predicted = new Map<string, Predicted>();
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
    let depth = depths[1]!;
    for (; depth < blocks.count; depth += 1) {
      const predicted = this.#predicted.get(nameOf(blocks, depth));
      if (predicted === undefined || predicted.expiresMs <= nowMs) break;
      if (!predicted.workers.includes(`${slot}/${generation}`)) break;
    }
    return depth;
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
    for (let at = Math.floor(cachedTokens / blocks.blockSize); at < blocks.count; at += 1) {
      const old = this.#predicted.get(nameOf(blocks, at));
      const living = old !== undefined && old.expiresMs > nowMs ? old : { expiresMs: 0, workers: [] };
      const others = living.workers.filter(name => !name.startsWith(`${slot}/`));
      this.#predicted.set(nameOf(blocks, at), {
        expiresMs: Math.max(living.expiresMs, expiresMs),
        workers: [`${slot}/${generation}`, ...others].slice(0, PREDICTED_HOLDERS),
      });
    }
  }
}
const nameOf = ({ hashes }: PromptBlocks, at: number): string => `${hashes[2 * at]} ${hashes[2 * at + 1]}`;

/** A fleet whose workers come, go, are replaced and differ in all that a decision looks at. */
function drawFleet(random: Random, table: LoadTable, slots: number, generations: number[]): WorkerView[] {
  return Array.from({ length: slots }, (_, slot): WorkerView => {
    if (random() < 0.2 || generations[slot] === 0)
      table.install(slot, ++generations[slot]!, SLOT_STATE.ready);
    const states = [SLOT_STATE.ready, SLOT_STATE.ready, SLOT_STATE.ready, SLOT_STATE.draining];
    table.setState(slot, generations[slot]!, states[randomInteger(random, states.length)]!);
    return {
      slot,
      generation: generations[slot]! - (random() < 0.05 ? 1 : 0),
      url: '',
      rank: null,
      engine: 'vllm',
      models: MODELS.filter(() => random() < 0.8).map(id => ({ id, contextLength: null })),
      blockSize: [16, 64, null][randomInteger(random, 3)]!,
      totalBlocks: random() < 0.8 ? 500 : null,
      returnsTokenIds: true,
      foreignIds: [],
    };
  });
}

function drawRequest(random: Random, families: readonly Uint32Array[], slots: number): DecideRequest {
  const promptTokens = 1 + randomInteger(random, 64 * DEPTH);
  const hashes = families[randomInteger(random, FAMILIES)]!;
  const count = (blockSize: number): number => Math.min(Math.floor(promptTokens / blockSize), DEPTH);
  // The blocks of 16 are other ones than those of 64.
  const [small, large] = [hashes.map(word => ~word), hashes];
  return {
    model: MODELS[randomInteger(random, 2)]!,
    promptTokens,
    excludedSlots: random() < 0.2 ? [randomInteger(random, slots)] : [],
    pinnedSlot: random() < 0.05 ? randomInteger(random, slots) : null,
    session: random() < 0.05 ? `session ${randomInteger(random, 9)}` : null,
    outputTokens: random() < 0.5 ? null : randomInteger(random, 500),
    blocks: [
      { hashes: small, count: count(16), blockSize: 16 },
      { hashes: large, count: count(64), blockSize: 64 },
    ].filter(() => random() < 0.9),
  };
}

for (const policy of POLICY_NAMES) {
  t.test(policy, async t => {
    const random = seededRandom(SEED);
    const wrong: string[] = [];
    let cached = 0;
    for (const slots of [1, 5, 90]) {
      const table = new LoadTable(createLoadMemory(slots));
      const ledger = new Ledger({
        memory: createLedgerMemory(4096),
        loadTable: table,
        partition: { index: 0, count: 1 },
        addon: null,
      });
      const index = createSimpleIndex({ blocksMax: 100_000, predictionsMax: 1 });
      for (let slot = 0; slot < slots; slot += 1) index.addHolder(slot);
      const families = drawHashes(random);
      const naive = new NaiveDecider(table, index, seededRandom(SEED));
      let nowMs = 0;
      const decider = createDecider({
        loadTable: table,
        ledger,
        random: seededRandom(SEED),
        nowMs: () => nowMs,
        ownerEpoch: 1,
        prefixes: index,
        routed: null,
      });
      const generations = new Array<number>(slots).fill(0);
      const held: number[] = [];
      let workers: WorkerView[] = [];
      for (let step = 0; step < 600; step += 1) {
        nowMs += randomInteger(random, 400) * random();
        if (step % 100 === 0) workers = drawFleet(random, table, slots, generations);
        if (random() < 0.3) {
          const family = families[randomInteger(random, FAMILIES)]!;
          index.store(randomInteger(random, slots), null, family, randomInteger(random, DEPTH), 0, null);
        }
        const request = drawRequest(random, families, slots);
        const expected = naive.decide(request, policy, workers, nowMs);
        const answer: DecideAnswer = decider.decide(request, policy, workers);
        if (typeof answer !== 'string') held.push(answer.reservation);
        const got =
          typeof answer === 'string'
            ? answer
            : { slot: answer.slot, generation: answer.generation, cachedTokens: answer.cachedTokens };
        if (typeof got !== 'string' && got.cachedTokens > 0) cached += 1;
        if (JSON.stringify(got) !== JSON.stringify(expected))
          wrong.push(
            `${slots} slots, step ${step}: ${JSON.stringify(got)}, naive ${JSON.stringify(expected)}`,
          );
        while (held.length > 0 && random() < 0.45)
          ledger.firstToken(held[randomInteger(random, held.length)]!);
        while (held.length > 3 * slots || (held.length > 0 && random() < 0.3))
          ledger.release(held.splice(randomInteger(random, held.length), 1)[0]!);
      }
    }
    t.same(wrong.slice(0, 3), []);
    t.equal(cached > 100, createSelector(policy).usesPrefix, `${cached} of 1800 found something cached`);
  });
}
