// Promise: what a decider knows beyond the load table: outstanding prefill drains as it is computed, the speed of a worker
// is learned, siblings meet where their prefix is about to be, a pin and a session decide before any policy.
import t from 'tap';
import type { WorkerView } from '#millrace/messages/records.js';
import {
  createDecider,
  type DecideRequest,
  type Placement,
  type PromptBlocks,
} from '#millrace/router/decide.js';
import { createSimpleIndex } from '#millrace/router/index/simple-index.js';
import { createLedgerMemory, Ledger } from '#millrace/router/ledger.js';
import { SLOT_STATE } from '#millrace/router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '#millrace/router/load-table.js';
import { Predictions } from '#millrace/router/predictions.js';
import { PrefillDrain } from '#millrace/router/prefill-drain.js';
import { expectedPrefillMs } from '#millrace/router/prefill-model.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`seed ${SEED}`);

/** Looks while a prompt is computed. */
const LOOKS = 16;

t.test('prefill drains at the speed that the worker shows', async t => {
  for (const truth of [0.5, 1, 3]) {
    const random = seededRandom(SEED);
    const drain = new PrefillDrain(1);
    let [nowMs, prefilled, error, seen] = [0, 0, 0, 0];
    for (let prompt = 0; prompt < 400; prompt += 1) {
      const tokens = 20_000 + randomInteger(random, 40_000);
      drain.look(0, 1, 0, prefilled, 6, nowMs);
      drain.add(0, tokens);
      const needsMs = truth * expectedPrefillMs(tokens, 6);
      for (let part = 1; part < LOOKS; part += 1) {
        const left = drain.look(0, 1, tokens, prefilled, 6, nowMs + (part / LOOKS) * needsMs);
        if (prompt < 100) continue;
        error += Math.abs(left / tokens - (1 - part / LOOKS));
        seen += 1;
      }
      nowMs += needsMs;
      prefilled = (prefilled + tokens) >>> 0;
    }
    t.ok(error / seen < 0.05, `mean error ${error / seen} of the prompt at slowness ${truth}`);
    t.ok(Math.abs(drain.slowness(0) / truth - 1) < 0.15, `learned ${drain.slowness(0)}, true ${truth}`);
    t.equal(drain.look(0, 2, 500, prefilled, 6, nowMs), 500, 'a successor begins anew');
    t.equal(drain.slowness(0), 1);
  }
});

const blocksOf = (ids: number[]): PromptBlocks => {
  const hashes = new Uint32Array(2 * ids.length);
  for (const [at, id] of ids.entries()) hashes.set([Math.imul(id + 1, 0x9e3779b1), id], 2 * at);
  return { hashes, count: ids.length, blockSize: 64 };
};

t.test('predictions extend a known depth, until they expire', async t => {
  const random = seededRandom(SEED);
  const predictions = new Predictions();
  const sent: { ids: number[]; from: number; slot: number; expiresMs: number }[] = [];
  const wrong: string[] = [];
  let extended = 0;
  for (let nowMs = 0; nowMs < 3000; nowMs += 1) {
    const family = randomInteger(random, 5);
    const split = randomInteger(random, 30);
    // As sequence hashes: two prompts that part have nothing in common from there on.
    const own = 1000 * (1 + split) + randomInteger(random, 10) * 100;
    const ids = Array.from(
      { length: 1 + randomInteger(random, 60) },
      (_, at) => family * 100_000 + (at < split ? at : own + at),
    );
    const [slot, depth] = [randomInteger(random, 3), randomInteger(random, ids.length + 1)];
    const look = (generation: number): number => {
      predictions.open(blocksOf(ids), nowMs);
      return predictions.extend(depth, slot, generation);
    };
    const held = look(1);
    // Naive: block by block, any living prediction for this slot that covers it.
    let naive = depth;
    const covers = (at: number): boolean =>
      sent.some(p => p.slot === slot && p.expiresMs > nowMs && at >= p.from && p.ids[at] === ids[at]);
    while (naive < ids.length && covers(naive)) naive += 1;
    if (held > depth) extended += 1;
    if (held > naive) wrong.push(`at ${nowMs}: ${held}, naive ${naive}`);
    if (random() < 0.2) {
      const expiresMs = nowMs + 1 + randomInteger(random, 60);
      predictions.add(blocksOf(ids), depth, slot, 1, expiresMs);
      sent.push({ ids, from: depth, slot, expiresMs });
      const again = look(1);
      if (again !== ids.length) wrong.push(`at ${nowMs}: just added, but ${again} of ${ids.length}`);
      if (look(2) !== depth) wrong.push('a successor has none');
    }
  }
  t.same(wrong.slice(0, 3), []);
  t.ok(extended > 50, `${extended} extended`);
});

const fleet = (slots: number) => {
  const loadTable = new LoadTable(createLoadMemory(slots));
  const ledger = new Ledger({
    memory: createLedgerMemory(1024),
    loadTable,
    partition: { index: 0, count: 1 },
    addon: null,
  });
  const index = createSimpleIndex({ blocksMax: 10_000, predictionsMax: 1 });
  const workers = Array.from({ length: slots }, (_, slot): WorkerView => {
    loadTable.install(slot, 1, SLOT_STATE.ready);
    index.addHolder(slot);
    const models = [{ id: 'm', contextLength: null }];
    return {
      slot,
      generation: 1,
      url: '',
      engine: 'vllm',
      models,
      blockSize: 64,
      totalBlocks: 1000,
      returnsTokenIds: true,
      foreignIds: [],
      rank: null,
    };
  });
  let nowMs = 0;
  const decider = createDecider({
    loadTable,
    ledger,
    random: seededRandom(SEED),
    nowMs: () => nowMs,
    ownerEpoch: 1,
    prefixes: index,
    routed: null,
  });
  const decide = (more: Partial<DecideRequest>, policy = 'ttft') =>
    decider.decide(
      { model: 'm', promptTokens: 6400, excludedSlots: [], outputTokens: null, ...more },
      policy,
      workers,
    );
  return { decide, index, loadTable, ledger, advance: (ms: number) => (nowMs += ms) };
};

t.test('siblings of an unseen prompt follow the first one; what is cached is not reserved again', async t => {
  const { decide, loadTable, ledger, advance } = fleet(8);
  const context = Array.from({ length: 100 }, (_, at) => at);
  const first = decide({ promptTokens: 6450, blocks: [blocksOf(context)] }) as Placement;
  t.equal(first.cachedTokens, 0);
  const second = decide({ promptTokens: 6450, blocks: [blocksOf(context)] }, 'two-tier') as Placement;
  t.match(second, { slot: first.slot, cachedTokens: 6400 });
  t.equal(loadTable.readActivePrefillTokens(first.slot, 1), 6450 + 50);
  t.match(second.reason, /6400 tokens cached/);
  for (const { reservation } of [first, second]) ledger.release(reservation);
  advance(60_000);
  t.equal(
    (decide({ promptTokens: 6450, blocks: [blocksOf(context)] }) as Placement).cachedTokens,
    0,
    'never came true',
  );
});

t.test('the index decides, and the last token of a prompt is always computed', async t => {
  const { decide, index, ledger } = fleet(4);
  const blocks = blocksOf(Array.from({ length: 100 }, (_, at) => at));
  index.store(2, null, blocks.hashes, 100, 0, null);
  const placed = decide({ blocks: [blocks] }) as Placement;
  t.match(placed, { slot: 2, cachedTokens: 6399 });
  ledger.release(placed.reservation);
  t.match(decide({ blocks: [blocks] }, 'kv'), { slot: 2 });
  t.match(decide({ blocks: [blocks] }, 'least-loaded'), { cachedTokens: 0 }, 'a policy that does not ask');
});

t.test('a pin is kept or refused', async t => {
  const { decide, loadTable } = fleet(4);
  for (let round = 0; round < 20; round += 1) t.match(decide({ pinnedSlot: 3 }, 'round-robin'), { slot: 3 });
  t.equal(decide({ pinnedSlot: 3, excludedSlots: [3] }), 'noWorker');
  loadTable.setState(3, 1, SLOT_STATE.draining);
  t.equal(decide({ pinnedSlot: 3 }), 'noWorker');
});

t.test('a session stays, spreads with others, and moves only when its worker goes', async t => {
  const { decide, loadTable } = fleet(5);
  const slotOf = (session: string): number =>
    (decide({ session, promptTokens: 1 }, 'random') as Placement).slot;
  const names = Array.from({ length: 300 }, (_, at) => `session-${at}`);
  const before = names.map(slotOf);
  t.same([...new Set(before)].sort(), [0, 1, 2, 3, 4]);
  loadTable.setState(4, 1, SLOT_STATE.unavailable);
  const after = names.map(slotOf);
  t.ok(after.every((slot, at) => (before[at] === 4 ? slot !== 4 : slot === before[at])));
});
