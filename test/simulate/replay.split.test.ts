// Promise: a replayed fleet of prefill and decode workers loses no request, hands over what its rules say at the cost that is
// stated, leaves no block pinned, and is the same each time.
import t from 'tap';
import { readDisaggregation } from '#millrace/disagg-config.js';
import type { DisaggRules, WorkerRole } from '#millrace/messages/disagg.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { resolveEngineSettings } from '#millrace/simulate/engine-settings.js';
import { type FleetOptions, type FleetResult, runFleet } from '#millrace/simulate/replay/fleet.js';
import { type HandoverCost, HandoverLinks } from '#millrace/simulate/replay/handover-links.js';
import { prepare, type WorkloadRequest } from '#millrace/simulate/replay/workload.js';
import { makeWorkload } from '#millrace/simulate/replay/workloads.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`seed ${SEED}`);

const BLOCK = 64;
const RULES = readDisaggregation({}, 'disaggregation');
const ALWAYS: DisaggRules = { ...RULES, policy: 'always', prefillQueueTokensMax: 1e9 };
const COST: HandoverCost = { kvBytesPerToken: 131_072, linkBytesPerSecond: 25e9, latencyMs: 5 };
const ENGINE = resolveEngineSettings({ numGpuBlocks: 4000, maxModelLen: 4000 * BLOCK });
const PD: readonly WorkerRole[] = ['prefill', 'decode'];

interface Given extends Partial<Omit<FleetOptions, 'split'>> {
  readonly roles?: readonly WorkerRole[];
  readonly rules?: DisaggRules;
  readonly cost?: HandoverCost;
}

const optionsOf = ({ roles = PD, rules = ALWAYS, cost = COST, ...more }: Given): FleetOptions => ({
  workers: roles.length,
  engine: ENGINE,
  policy: 'ttft',
  split: { roles, rules, cost },
  seed: SEED,
  timeScale: 1,
  samples: 10,
  clock: new ManualClock(),
  addon: loadAddon(),
  ...more,
});

const handedOver = ({ handoverMs }: FleetResult): number[] =>
  [...handoverMs.keys()].filter(at => !Number.isNaN(handoverMs[at]));

/** Prompts of fresh tokens, unless they are given ids; `lengths` by moment of arrival. */
function workloadOf(
  lengths: readonly (readonly [arrivalMs: number, promptTokens: number, ids?: number[]])[],
) {
  let id = 1000;
  const requests: WorkloadRequest[] = lengths.map(([arrivalMs, promptTokens, ids]) => ({
    arrivalMs,
    promptTokens,
    outputTokens: 20,
    hashIds: ids ?? Array.from({ length: Math.ceil(promptTokens / 512) }, () => id++),
  }));
  return prepare({ name: 'given', traceBlockTokens: 512, requests, joinsAtShare: null }, BLOCK);
}

for (const name of ['multi-turn', 'fan-out', 'cold-join']) {
  t.test(`${name}: every request ends, once, and always means always`, async t => {
    const workload = prepare(makeWorkload(name, 200, SEED), BLOCK);
    const outputs = workload.requests.reduce((sum, { outputTokens }) => sum + outputTokens, 0);
    for (const roles of [PD, [...PD, 'decode'], ['prefill', 'both', 'decode']] as WorkerRole[][]) {
      for (const rules of [ALWAYS, RULES]) {
        const run = runFleet(workload, optionsOf({ roles, rules }));
        t.equal(run.errors, 0);
        t.equal(run.outputTokens, outputs, 'all tokens came');
        t.ok(run.ttftMs.every((first, at) => first > 0 && run.e2eMs[at]! >= first));
        t.ok(run.cachedTokens / run.promptTokens <= workload.infiniteHitRate + 1e-9);
        if (rules.policy !== 'always' || roles.includes('both')) continue;
        t.equal(handedOver(run).length, 200);
        t.strictSame(
          [...run.computedTokens.subarray(1)].map(Math.sign),
          roles.slice(1).map(() => 0),
        );
      }
    }
  });
}

t.test('equal seeds give equal runs, and the addon changes nothing', async t => {
  const workload = prepare(makeWorkload('bursts', 200, SEED), BLOCK);
  const times = (addon: FleetOptions['addon']): Float64Array =>
    runFleet(workload, optionsOf({ roles: ['prefill', ...PD], rules: RULES, addon })).e2eMs;
  const first = times(loadAddon());
  t.same(times(loadAddon()), first);
  t.same(times(null), first);
});

t.test('with an idle prefill worker long prompts are split and short ones stay', async t => {
  const long = [0, 10, 20, 30, 40].map(at => [at, 8000] as const);
  const short = [1000, 1100, 1200].map(at => [at, 40] as const);
  const run = runFleet(workloadOf([...long, ...short]), optionsOf({ rules: RULES }));
  const split = handedOver(run);
  t.ok(split.length >= 2, `${split.join()} were split`);
  t.same(
    split.filter(at => at >= 5),
    [],
    'short ones',
  );
  t.notOk(split.includes(0), 'nothing stands still for the first one');
  const slow = { ...RULES, handoverMs: 10_000 };
  t.same(handedOver(runFleet(workloadOf(long), optionsOf({ rules: slow }))), [], 'a slow network');
});

t.test('the hand-over costs what is stated, and only what is missing', async t => {
  const ids = [1, 2, 3, 4];
  const workload = workloadOf([
    [0, 2048, ids],
    [5000, 2048, ids],
    [10_000, 1024, ids.slice(0, 2)],
  ]);
  const { handoverMs, computedTokens, promptTokens, cachedTokens } = runFleet(workload, optionsOf({}));
  const fullMs = (1000 * 2048 * 131_072) / 25e9 + 5;
  t.ok(Math.abs(handoverMs[0]! - fullMs) < 1e-9, `${handoverMs[0]} ms`);
  t.same([handoverMs[1], handoverMs[2]], [0, 0], 'its blocks are there: no tokens are sent');
  t.equal(computedTokens[0], 2048 + 2, 'the prefill worker keeps its cache; a last token is always computed');
  t.same([promptTokens, cachedTokens], [5120, 2047 + 1023]);
});

t.test('links carry one hand-over at a time, each way', async t => {
  const links = new HandoverLinks(4, { kvBytesPerToken: 10, linkBytesPerSecond: 1000, latencyMs: 1 });
  const ends: Record<string, number> = {};
  const send = (name: string, from: number, to: number, tokens: number, nowMs: number): void =>
    links.send(from, to, tokens, nowMs, () => {
      ends[name] = at;
    });
  send('a', 0, 2, 1, 0);
  send('same ends', 0, 2, 2, 0);
  send('same sender', 0, 3, 1, 0);
  send('same receiver', 1, 2, 1, 5);
  send('others', 1, 3, 1, 100);
  let at = 0;
  while (links.nextMs < Number.POSITIVE_INFINITY) {
    at = links.nextMs;
    links.endNext();
  }
  t.same(ends, { a: 11, 'same ends': 31, 'same sender': 41, 'same receiver': 41, others: 111 });
});

t.test('tiny caches: hand-overs wait for room, and every block is given back', async t => {
  const random = seededRandom(SEED);
  const engine = resolveEngineSettings({ numGpuBlocks: 40, maxModelLen: 40 * BLOCK, maxNumSeqs: 8 });
  const lengths = Array.from({ length: 150 }, (_, at) => {
    const blocks = 1 + randomInteger(random, 36);
    return [at * 5, blocks * BLOCK, Array.from({ length: Math.ceil(blocks / 8) }, (_, id) => id)] as const;
  });
  const given = lengths.map(([at, tokens, ids]) => [at, tokens, [...ids]] as [number, number, number[]]);
  for (const rules of [ALWAYS, RULES]) {
    const run = runFleet(workloadOf(given), optionsOf({ roles: [...PD, 'decode'], rules, engine }));
    t.equal(run.errors, 0);
    t.ok(run.e2eMs.every(ms => ms > 0));
  }
});

t.test('what can never run is refused, at either worker, and holds up nothing', async t => {
  const engine = resolveEngineSettings({ numGpuBlocks: 40, maxModelLen: 1010 });
  const workload = workloadOf([
    [0, 2000],
    [1, 1000],
    [2, 500],
  ]);
  const run = runFleet(workload, optionsOf({ engine }));
  t.equal(run.errors, 2, 'the prompt is too long, and the prompt with its answer');
  t.same([...run.e2eMs].map(Number.isNaN), [true, true, false]);
});
