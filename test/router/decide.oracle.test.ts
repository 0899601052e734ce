// Promise: a decision over columns and tables is the one of a decider that looks at each worker by itself with plain maps:
// same worker, same cached tokens, same draws, over random fleets, loads, prompts, clocks and policies.
import t from 'tap';
import type { WorkerView } from '#millrace/messages/records.js';
import { createDecider, type DecideAnswer, type DecideRequest } from '#millrace/router/decide.js';
import { createSimpleIndex } from '#millrace/router/index/simple-index.js';
import { createLedgerMemory, Ledger } from '#millrace/router/ledger.js';
import { SLOT_STATE } from '#millrace/router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '#millrace/router/load-table.js';
import { createSelector, POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { NaiveDecider } from './naive-decider.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`seed ${SEED}`);
const MODELS = ['a', 'b'];
/** Few enough blocks that the memory of predictions holds those of all steps. */
const FAMILIES = 5;
const DEPTH = 60;
/** The prompts: block `at` of a family is the same for all of them up to where a prompt ends. */
function drawHashes(random: Random): Uint32Array[] {
  return Array.from({ length: FAMILIES }, () =>
    Uint32Array.from({ length: 2 * DEPTH }, () => randomInteger(random, 2 ** 32)),
  );
}

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
