// Promise: a decision reserves one ready worker that serves the model and is not excluded, or says why there is none; the
// load table shows exactly what is reserved on the worker that has the slot now.
import t from 'tap';
import { ConfigError } from '#millrace/errors.js';
import type { WorkerView } from '#millrace/messages/records.js';
import { createDecider, type DecideRequest, type Placement } from '#millrace/router/decide.js';
import {
  createLedgerMemory,
  EPOCH_DISCARDED,
  Ledger,
  RESERVATION_AMOUNT_MAX,
} from '#millrace/router/ledger.js';
import { SLOT_STATE } from '#millrace/router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '#millrace/router/load-table.js';
import { POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`seed ${SEED}`);
const EPOCH = 9;

const worker = (
  slot: number,
  generation: number,
  model: string,
  blockSize: number | null = 16,
): WorkerView => ({
  slot,
  generation,
  url: `http://127.0.0.1:${8000 + slot}`,
  engine: 'vllm',
  models: [{ id: model, contextLength: null }],
  blockSize,
  totalBlocks: null,
  returnsTokenIds: true,
  foreignIds: [],
  rank: null,
});
const ask = (model: string, promptTokens = 100, excludedSlots: number[] = []): DecideRequest => ({
  model,
  promptTokens,
  excludedSlots,
  outputTokens: null,
});

const makeRouter = (entries = 256, slots = 6) => {
  const loadTable = new LoadTable(createLoadMemory(slots));
  const ledger = new Ledger({
    memory: createLedgerMemory(entries),
    loadTable,
    partition: { index: 0, count: 1 },
    addon: null,
  });
  const decider = createDecider({
    loadTable,
    ledger,
    random: seededRandom(SEED),
    ownerEpoch: EPOCH,
    nowMs: () => 0,
    prefixes: null,
    routed: null,
  });
  return { loadTable, ledger, decider };
};

t.test('only ready, living, not excluded workers of the model', async t => {
  const random = seededRandom(SEED);
  const wrong: string[] = [];
  for (let round = 0; round < 4000; round += 1) {
    const { loadTable, decider } = makeRouter(64);
    const workers: WorkerView[] = [];
    const allowed = new Set<number>();
    const excluded = [0, 1, 2, 3, 4, 5].filter(() => random() < 0.3);
    for (let slot = 0; slot < 6; slot += 1) {
      const state = randomInteger(random, 4) as 0 | 1 | 2 | 3;
      const known = 1 + randomInteger(random, 2);
      const model = random() < 0.6 ? 'm' : 'other';
      loadTable.install(slot, 1, state);
      if (random() < 0.5) loadTable.install(slot, 2, state);
      workers.push(worker(slot, known, model));
      const living = loadTable.snapshot(slot)?.generation;
      if (state === SLOT_STATE.ready && known === living && model === 'm' && !excluded.includes(slot))
        allowed.add(slot);
    }
    const policy = POLICY_NAMES[round % POLICY_NAMES.length] as string;
    const answer = decider.decide(ask('m', 100, excluded), policy, workers);
    const slot = typeof answer === 'string' ? answer : answer.slot;
    const good = typeof slot === 'string' ? slot === 'noWorker' && allowed.size === 0 : allowed.has(slot);
    if (!good) wrong.push(`round ${round}: ${slot}, allowed ${[...allowed]}`);
  }
  t.same(wrong.slice(0, 5), []);
});

t.test('reserves tokens and blocks on the worker, until the ledger is full', async t => {
  const { loadTable, ledger, decider } = makeRouter(2);
  loadTable.install(3, 1, SLOT_STATE.ready);
  const fleet = [worker(3, 1, 'm', null)];
  const first = decider.decide({ ...ask('m', 100), outputTokens: 29 }, 'least-requests', fleet) as Placement;
  t.match(first, { slot: 3, generation: 1, reason: 'least-requests: 0 reserved' });
  t.match(loadTable.snapshot(3), { activePrefillTokens: 100, decodeBlocks: 9, requests: 1 }, 'blocks of 16');
  const huge = decider.decide(ask('m', 2 ** 40), 'random', [worker(3, 1, 'm', 1)]) as Placement;
  t.match(
    loadTable.snapshot(3),
    { decodeBlocks: 9 + RESERVATION_AMOUNT_MAX, requests: 2 },
    'amounts are bounded',
  );
  t.equal(decider.decide(ask('m'), 'random', fleet), 'full');
  t.ok(ledger.discard(huge.reservation, EPOCH));
  t.notOk(ledger.adopt(huge.reservation, EPOCH, 1), 'a discarded reservation is not adopted');
  t.equal(ledger.reap(EPOCH_DISCARDED), 1);
  t.match(loadTable.snapshot(3), { activePrefillTokens: 100, decodeBlocks: 9, requests: 1 });
  t.throws(() => decider.decide(ask('m'), 'fastest', fleet), ConfigError);
});

t.test('a worker that is replaced between the filter and the reservation is passed over', async t => {
  const { loadTable, ledger } = makeRouter();
  for (const slot of [0, 1, 2]) loadTable.install(slot, 1, SLOT_STATE.ready);
  let draws = 0;
  const random = (): number => {
    draws += 1;
    if (draws === 1) loadTable.install(0, 2, SLOT_STATE.ready);
    return 0;
  };
  const decider = createDecider({
    loadTable,
    ledger,
    random,
    ownerEpoch: EPOCH,
    nowMs: () => 0,
    prefixes: null,
    routed: null,
  });
  const fleet = [worker(0, 1, 'm'), worker(1, 1, 'm')];
  t.match(decider.decide(ask('m'), 'random', fleet), { slot: 1, generation: 1 });
  t.equal(draws, 2, 'the policy was asked twice');
  t.equal(ledger.held(), 1);
});

t.test('a line near 2^31 takes no more, so no sum can wrap', async t => {
  const { loadTable, ledger } = makeRouter(256);
  loadTable.install(0, 1, SLOT_STATE.ready);
  const ids: number[] = [];
  for (;;) {
    const id = ledger.reserve(0, 1, RESERVATION_AMOUNT_MAX, 0, EPOCH);
    if (id === 0) break;
    ids.push(id);
  }
  t.equal(loadTable.readActivePrefillTokens(0, 1), 2 ** 31);
  for (const id of ids) ledger.release(id);
  t.equal(loadTable.readActivePrefillTokens(0, 1), 0);
  t.throws(() => ledger.reserve(0, 1, RESERVATION_AMOUNT_MAX + 1, 0, EPOCH), { code: 'ERR_ASSERTION' });
});

t.test('a successor starts empty, and late words about the worker before it change nothing', async t => {
  const { loadTable, ledger } = makeRouter();
  const load = { running: 3, waiting: null, kvUsage: 0.25 };
  loadTable.install(2, 1, SLOT_STATE.ready);
  t.equal(loadTable.snapshot(1), null, 'a slot without a worker');
  const unknown = { running: null, waiting: null, kvUsage: null };
  t.match(loadTable.snapshot(2), { scraped: unknown, scrapedSeconds: null });
  t.ok(loadTable.setScraped(2, 1, load, 77));
  t.match(loadTable.snapshot(2), { scraped: load, scrapedSeconds: 77 });
  const old = ledger.reserve(2, 1, 50, 5, EPOCH);

  loadTable.install(2, 2, SLOT_STATE.draining);
  const empty = {
    generation: 2,
    state: SLOT_STATE.draining,
    activePrefillTokens: 0,
    requests: 0,
    scraped: unknown,
  };
  t.match(loadTable.snapshot(2), empty);
  t.notOk(loadTable.setScraped(2, 1, load, 78));
  t.notOk(loadTable.setState(2, 1, SLOT_STATE.ready));
  t.equal(ledger.reserve(2, 1, 1, 1, EPOCH), -1, 'no reservation on the worker before');
  t.ok(ledger.firstToken(old) && ledger.release(old));
  t.match(loadTable.snapshot(2), empty);
  t.ok(loadTable.setState(2, 2, SLOT_STATE.ready) && loadTable.isReady(2, 2));
});
