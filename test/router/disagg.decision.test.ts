// Promise: a prompt is computed elsewhere exactly when the rule says so, both workers carry their own share of the load, and
// with no room, no prefill worker or a replaced worker nothing stays reserved.
import t from 'tap';
import type { DisaggRules } from '#millrace/messages/disagg.js';
import type { WorkerView } from '#millrace/messages/records.js';
import { createDecider, type DecideRequest } from '#millrace/router/decide.js';
import { decidePair, isPair, type PairAnswer, type PairPlacement } from '#millrace/router/decide-pair.js';
import { type HandoverOptions, judgeHandover, type WorkerFigures } from '#millrace/router/disagg.js';
import { HandoverBacklog } from '#millrace/router/handover-backlog.js';
import { createLedgerMemory, EPOCH_DISCARDED, Ledger } from '#millrace/router/ledger.js';
import { SLOT_STATE } from '#millrace/router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '#millrace/router/load-table.js';
import { seededRandom } from '#millrace/runtime/random.js';

const EPOCH = 9;
const RULES: DisaggRules = {
  policy: 'cost',
  effIslMax: 2048,
  effIslRatioMax: 0.7,
  prefillBusyTokens: 1000,
  decodeKvBusy: 0.9,
  prefillQueueTokensMax: 10_000,
  whenPrefillFull: 'local',
  whenNoPrefill: 'local',
  handoverMs: 5,
  handoverMsPerToken: 0.005,
  decodeWeight: 1,
};
const figures = (slot: number, more: Partial<WorkerFigures> = {}): WorkerFigures => ({
  slot,
  generation: 1,
  requests: 0,
  activePrefillTokens: 0,
  queuedTokens: 0,
  decodeBlocks: 0,
  totalBlocks: 1000,
  blockSize: 16,
  decodeMs: 10,
  slowness: 1,
  cachedTokens: 0,
  reason: '',
  ...more,
});

/** A worker that does not answer, behind a free link. */
const ONLY_PROMPTS = { prefillAnswers: false, linkMs: 0 };
interface Given extends Partial<Pick<HandoverOptions, 'prefillAnswers' | 'linkMs'>> {
  readonly prefill?: Partial<WorkerFigures>;
  readonly local?: Partial<WorkerFigures>;
}

t.test('the rules', async t => {
  const isRemote = (
    tokens: number,
    rules: Partial<DisaggRules>,
    { prefill = {}, local = {}, ...more }: Given = {},
  ): boolean => {
    const decode = figures(2, local);
    const workers = { prefill: figures(1, prefill), decode, local: decode, ...ONLY_PROMPTS, ...more };
    return judgeHandover(tokens, workers, { ...RULES, ...rules }).isRemote;
  };
  const bounding = { policy: 'isl-bounding' } as const;
  t.ok(isRemote(1000, bounding), 'all of it is to be computed');
  t.notOk(isRemote(1000, bounding, { local: { cachedTokens: 400 } }), '600 of 1000');
  t.ok(isRemote(1000, bounding, { local: { cachedTokens: 299 } }), 'more than 0.7 of it');
  t.ok(isRemote(9000, bounding, { local: { cachedTokens: 6952 } }), '2048 are too many');
  t.notOk(isRemote(9000, bounding, { local: { cachedTokens: 6953 } }));
  const busy = { local: { cachedTokens: 990, decodeBlocks: 901 } };
  t.ok(isRemote(1000, bounding, busy), 'no room for a prompt at the decode worker');
  const load = { policy: 'prefill-load' } as const;
  t.ok(isRemote(1000, load, { prefill: { activePrefillTokens: 1000 } }));
  t.notOk(isRemote(1000, load, { prefill: { activePrefillTokens: 1001 } }));
  const either = { policy: 'isl-bounding-or-prefill-load' } as const;
  t.notOk(isRemote(1000, either, { prefill: { activePrefillTokens: 1001 } }));
  t.notOk(isRemote(1000, either, { local: { cachedTokens: 400 } }));
  t.ok(isRemote(1000, either));
  t.ok(isRemote(1, { policy: 'always' }));

  t.notOk(isRemote(4000, {}), 'idle workers: a hand-over only costs time');
  t.ok(isRemote(4000, {}, { local: { requests: 1 } }), 'an answer would stand still');
  t.notOk(isRemote(4000, { decodeWeight: 0 }, { local: { requests: 2, decodeMs: 6 } }), 'that costs nothing');
  t.ok(isRemote(4000, {}, { local: { queuedTokens: 8000 } }), 'it would wait');
  t.notOk(
    isRemote(4000, {}, { local: { requests: 32 }, prefill: { queuedTokens: 40_000 } }),
    'the queue is long',
  );
  t.ok(
    isRemote(4000, {}, { local: { requests: 32 }, prefill: { requests: 32 } }),
    'what waits there is no answer',
  );
  t.notOk(
    isRemote(4000, {}, { local: { requests: 32 }, prefill: { requests: 32 }, prefillAnswers: true }),
    'as many stand still there',
  );
  t.ok(isRemote(4000, {}, { local: { requests: 8 }, linkMs: 60 }), 'its link is free before it is needed');
  t.notOk(isRemote(4000, {}, { local: { requests: 8 }, linkMs: 300 }), 'its link is full');
  t.notOk(isRemote(4000, {}, { local: { requests: 32, cachedTokens: 3990 } }), 'the answerer has it');
  t.ok(isRemote(4000, {}, { local: { requests: 32 }, prefill: { cachedTokens: 3990 } }));
  t.notOk(isRemote(4000, { handoverMs: 5000 }, { local: { requests: 32 } }), 'a slow network');
  const same = figures(1);
  const both = { prefill: same, decode: same, local: same, prefillAnswers: true, linkMs: 0 };
  const one = judgeHandover(10, both, { ...RULES, policy: 'always' });
  t.notOk(one.isRemote, 'one worker of both roles');
});

const view = (slot: number, totalBlocks = 1000): WorkerView => ({
  slot,
  generation: 1,
  url: `http://w:${slot}`,
  rank: null,
  engine: 'vllm',
  models: [{ id: 'm', contextLength: null }],
  blockSize: 16,
  totalBlocks,
  returnsTokenIds: true,
  foreignIds: [],
});
const PREFILL = [view(0), view(1)];
const DECODE = [view(2), view(3, 500)];

function makeRouter(entries = 64) {
  const loadTable = new LoadTable(createLoadMemory(8));
  const partition = { index: 0, count: 1 };
  const ledger = new Ledger({ memory: createLedgerMemory(entries), loadTable, partition, addon: null });
  for (let slot = 0; slot < 4; slot += 1) loadTable.install(slot, 1, SLOT_STATE.ready);
  const random = seededRandom(5);
  const nowMs = (): number => 0;
  const decider = createDecider({
    loadTable,
    ledger,
    random,
    nowMs,
    ownerEpoch: EPOCH,
    prefixes: null,
    routed: null,
  });
  const decide = (
    tokens: number,
    rules: Partial<DisaggRules> = {},
    more: Partial<DecideRequest> = {},
    policy = 'least-loaded',
  ): PairAnswer =>
    decidePair(
      decider,
      { model: 'm', promptTokens: tokens, excludedSlots: [], outputTokens: 32, ...more },
      policy,
      { prefill: PREFILL, decode: DECODE },
      { ...RULES, policy: 'always', ...rules },
      reservation => ledger.discard(reservation, EPOCH),
    );
  const loads = (): (readonly [number, number, number])[] =>
    [0, 1, 2, 3].map(slot => {
      const { activePrefillTokens, decodeBlocks, requests } = loadTable.snapshot(slot)!;
      return [activePrefillTokens, decodeBlocks, requests] as const;
    });
  return { ledger, loadTable, decide, loads, handovers: decider.handovers };
}

t.test('a pair: the prompt’s tokens on one, prompt and answer’s blocks on the other', async t => {
  const { decide, loads } = makeRouter();
  const answer = decide(160);
  t.ok(typeof answer === 'object' && isPair(answer));
  t.strictSame(
    loads().filter(([, , requests]) => requests > 0),
    [
      [160, 10, 1],
      [0, 12, 1],
    ],
  );
  for (let more = 0; more < 5; more += 1) decide(160);
  const [a, b, c, d] = loads();
  t.strictSame([a![0], b![0]], [480, 480], 'prefill goes round by its load');
  t.strictSame([c![2], d![2]], [4, 2], 'decode by the share of its blocks');
});

t.test('hand-overs that were decided fill a link until it has drained', async t => {
  let nowMs = 100;
  const backlog = new HandoverBacklog(4, () => nowMs);
  t.equal(backlog.waitMs(0, 2), 0);
  backlog.add(0, 2, 30);
  backlog.add(0, 3, 10);
  t.strictSame([backlog.waitMs(0, 2), backlog.waitMs(1, 2), backlog.waitMs(1, 3)], [40, 30, 10]);
  nowMs = 125;
  t.strictSame([backlog.waitMs(0, 2), backlog.waitMs(1, 2), backlog.waitMs(1, 3)], [15, 5, 0]);

  const { decide, handovers } = makeRouter();
  const pairs = [decide(1000), decide(1000)].map(answer => {
    t.ok(typeof answer === 'object' && isPair(answer));
    return answer as PairPlacement;
  });
  for (const { prefill, decode } of pairs) t.equal(handovers.waitMs(prefill.slot, decode.slot), 5);
  decide(1000, { policy: 'cost' });
  t.equal(
    handovers.waitMs(0, 2) + handovers.waitMs(1, 3),
    10,
    'one that is computed where it is answered fills none',
  );
});

t.test('a policy with a cursor goes round the prefill workers, whatever it looks at besides', async t => {
  const { decide, loads } = makeRouter();
  for (let request = 0; request < 6; request += 1) decide(160, {}, {}, 'round-robin');
  t.strictSame(
    loads()
      .slice(0, 2)
      .map(([, , requests]) => requests),
    [3, 3],
  );
});

t.test('no room, no prefill worker', async t => {
  const { decide, loads, loadTable } = makeRouter();
  decide(10_000);
  decide(10_000);
  t.equal(decide(160, { whenPrefillFull: 'shed' }), 'prefillFull');
  const local = decide(160);
  t.ok(typeof local === 'object' && !isPair(local) && local.slot >= 2, 'a decode worker does it all');
  t.equal(
    loads()
      .slice(2)
      .reduce((sum, [prefill]) => sum + prefill, 0),
    160,
  );
  t.equal(decide(160, { whenNoPrefill: 'refuse' }, { excludedSlots: [0, 1] }), 'noPrefill');
  for (const slot of [0, 1]) loadTable.setState(slot, 1, SLOT_STATE.unavailable);
  t.equal(decide(160, { whenNoPrefill: 'refuse' }), 'noPrefill');
  t.ok(typeof decide(160) === 'object');
  t.equal(decide(160, {}, { excludedSlots: [2, 3] }), 'noWorker');
});

t.test('a ledger with room for one gives the first half back', async t => {
  const { decide, ledger, loads } = makeRouter(1);
  t.equal(decide(160), 'full');
  t.equal(ledger.reap(EPOCH_DISCARDED), 1);
  t.strictSame(loads(), [
    [0, 0, 0],
    [0, 0, 0],
    [0, 0, 0],
    [0, 0, 0],
  ]);
});
