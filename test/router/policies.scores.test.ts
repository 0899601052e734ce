// Promise: each policy's choice is the one that its rule, written out naively, gives; `kv` follows Dynamo's cost function.
import t from 'tap';
import type { RequestView } from '#millrace/router/contract.js';
import { createKv, type KvOptions } from '#millrace/router/policies/kv.js';
import { createLeastLoaded } from '#millrace/router/policies/least-loaded.js';
import { createLeastRequests } from '#millrace/router/policies/least-requests.js';
import { createPowerOfTwo } from '#millrace/router/policies/power-of-two.js';
import { createTtft } from '#millrace/router/policies/ttft.js';
import { createTwoTier } from '#millrace/router/policies/two-tier.js';
import { expectedPrefillMs, FULL_PASS_TOKEN_MS } from '#millrace/router/prefill-model.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { type CandidateRow, candidateColumns } from './candidate-rows.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`seed ${SEED}`);
const BLOCK = 64;

type Full = Required<CandidateRow>;

function drawRows(random: Random): Full[] {
  return Array.from({ length: 1 + randomInteger(random, 9) }, (_, slot) => {
    const activePrefillTokens = randomInteger(random, 4) * 9000;
    return {
      slot,
      requests: randomInteger(random, 5),
      activePrefillTokens,
      queuedTokens: Math.floor(activePrefillTokens * random()),
      decodeBlocks: randomInteger(random, 4) * 100,
      cachedTokens: randomInteger(random, 40) * BLOCK,
      slowness: random() < 0.8 ? 1 : 0.5 + random(),
    };
  });
}
const requestOf = (promptTokens: number): RequestView => ({ model: 'm', promptTokens, excludedSlots: [] });

/** Rounds in which the row that a policy picks does not have the lowest naive cost. */
function wrongPicks(
  pick: (request: RequestView, rows: Full[], random: Random) => number,
  cost: (request: RequestView, row: Full, rows: Full[]) => number,
): string[] {
  const random = seededRandom(SEED);
  const wrong: string[] = [];
  for (let round = 0; round < 3000; round += 1) {
    const rows = drawRows(random);
    const request = requestOf(40 * BLOCK + randomInteger(random, 20_000));
    const costs = rows.map(row => cost(request, row, rows));
    const chosen = costs[pick(request, rows, random)]!;
    if (!(chosen <= Math.min(...costs) + 1e-9)) wrong.push(`round ${round}: ${chosen} of ${costs}`);
  }
  return wrong.slice(0, 3);
}

const KNOBS: Partial<KvOptions>[] = [
  {},
  { overlapScoreCredit: 2, prefillLoadScale: 0.5 },
  { overlapScoreCreditDecay: 1, decodeActiveRequestWeight: 3 },
];
for (const knobs of KNOBS) {
  t.test(`kv ${JSON.stringify(knobs)}`, async t => {
    const k = { overlapScoreCredit: 1, overlapScoreCreditDecay: 0, prefillLoadScale: 1, ...knobs };
    const selector = createKv(knobs);
    const wrong = wrongPicks(
      (request, rows, random) => selector.pick(request, candidateColumns(rows), random).row,
      (request, row, rows) => {
        const least = Math.min(...rows.map(other => other.activePrefillTokens));
        const requestBlocks = request.promptTokens / BLOCK;
        const excess = (row.activePrefillTokens - least) / BLOCK / requestBlocks;
        const credit =
          (k.overlapScoreCredit / (1 + k.overlapScoreCreditDecay * excess)) * (row.cachedTokens / BLOCK);
        const prefill = Math.max((row.activePrefillTokens + request.promptTokens) / BLOCK - credit, 0);
        return (
          k.prefillLoadScale * prefill + row.decodeBlocks + (k.decodeActiveRequestWeight ?? 0) * row.requests
        );
      },
    );
    t.same(wrong, []);
  });
}

t.test('kv draws by softmax over scaled costs', async t => {
  const random = seededRandom(SEED);
  const selector = createKv({ routerTemperature: 0.5 });
  const columns = candidateColumns([0, 1, 2].map(slot => ({ slot, decodeBlocks: slot * 50 })));
  const counts = [0, 0, 0];
  const draws = 30_000;
  for (let draw = 0; draw < draws; draw += 1) counts[selector.pick(requestOf(64), columns, random).row]! += 1;
  const weights = [0, 0.5, 1].map(cost => Math.exp(-cost / 0.5));
  const total = weights.reduce((a, b) => a + b, 0);
  for (const [row, weight] of weights.entries()) {
    const share = weight / total;
    // 6 standard deviations.
    t.ok(
      Math.abs(counts[row]! / draws - share) < 6 * Math.sqrt((share * (1 - share)) / draws),
      `${counts[row]}`,
    );
  }
});

t.test('least-loaded and least-requests take the least', async t => {
  const [loaded, requests] = [createLeastLoaded(), createLeastRequests()];
  t.same(
    wrongPicks(
      (q, rows, random) => loaded.pick(q, candidateColumns(rows), random).row,
      (_, row) => row.activePrefillTokens,
    ),
    [],
  );
  t.same(
    wrongPicks(
      (q, rows, random) => requests.pick(q, candidateColumns(rows), random).row,
      (_, row) => row.requests,
    ),
    [],
  );
});

t.test('power-of-two never takes the busiest of three, and takes the other two', async t => {
  const random = seededRandom(SEED);
  const selector = createPowerOfTwo();
  const columns = candidateColumns([5, 1, 3].map((requests, slot) => ({ slot, requests })));
  const counts = [0, 0, 0];
  for (let draw = 0; draw < 3000; draw += 1) counts[selector.pick(requestOf(1), columns, random).row]! += 1;
  t.equal(counts[0], 0);
  // The idlest is in two of the three pairs: 1000 ± 6 × 26 are left to the other.
  t.ok(Math.abs(counts[2]! - 1000) < 160, `${counts}`);
});

t.test('two-tier: deepest prefix while balanced, least busy when not', async t => {
  const selector = createTwoTier();
  const pick = (rows: CandidateRow[]): number =>
    selector.pick(requestOf(1000), candidateColumns(rows), () => 0).row;
  const busy = (requests: number): CandidateRow[] => [
    { slot: 0, requests, cachedTokens: 600 },
    { slot: 1, requests: 1, cachedTokens: 100 },
  ];
  t.equal(pick(busy(33)), 0, 'a difference of 32 is balanced');
  t.equal(pick(busy(34)), 1, 'a difference of 33 is not');
  t.equal(pick([{ slot: 0, requests: 5, cachedTokens: 500 }, { slot: 1 }]), 1, 'half a prompt is not enough');
  t.equal(
    pick([
      { slot: 0, requests: 400, cachedTokens: 600 },
      { slot: 1, requests: 367 },
    ]),
    0,
    'within 10 %',
  );
});

t.test('ttft takes the lowest cost in milliseconds', async t => {
  const selector = createTtft({ workWeight: 1.5, decodeWeight: 0.1 });
  const wrong = wrongPicks(
    (request, rows, random) => selector.pick(request, candidateColumns(rows), random).row,
    (request, row, rows) => {
      const own = request.promptTokens - row.cachedTokens;
      const busy = rows.filter(other => other.queuedTokens > 0).length / rows.length;
      const first = expectedPrefillMs(row.queuedTokens + own, row.requests === 0 ? 0 : 6);
      return row.slowness * (first + (1.5 * busy + 0.1 * row.requests) * own * FULL_PASS_TOKEN_MS);
    },
  );
  t.same(wrong, []);
});

t.test('a prompt is cheaper where it is cached, until too much waits there', async t => {
  const selector = createTtft();
  const pick = (queuedTokens: number): number => {
    const rows = [
      { slot: 0, queuedTokens, cachedTokens: 9984 },
      { slot: 1, queuedTokens: 100 },
    ];
    return selector.pick(requestOf(10_000), candidateColumns(rows), () => 0).row;
  };
  t.equal(pick(8000), 0);
  t.equal(pick(40_000), 1);
  const { reason } = selector.pick(
    requestOf(10_000),
    candidateColumns([{ slot: 4, cachedTokens: 64 }]),
    () => 0,
  );
  t.match(reason, /^ttft: cost \d+ ms, 0 tokens ahead, 64 of 10000 cached$/);
});
