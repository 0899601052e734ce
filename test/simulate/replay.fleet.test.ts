// Promise: a replay loses no request, is the same each time, has the load that was asked for, and the router's index holds
// exactly what the mock engines hold.
import t from 'tap';
import { loadAddon } from '#millrace/runtime/addon.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { BlockPool } from '#millrace/simulate/block-pool.js';
import { EngineCore } from '#millrace/simulate/engine-core.js';
import { resolveEngineSettings } from '#millrace/simulate/engine-settings.js';
import { PassQueue } from '#millrace/simulate/replay/pass-queue.js';
import { type ReplayOptions, replay } from '#millrace/simulate/replay/replay.js';
import { type ReplaySummary, summarize } from '#millrace/simulate/replay/summary.js';
import { makeWorkload, WORKLOAD_NAMES } from '#millrace/simulate/replay/workloads.js';
import { digestPrompt } from '#millrace/simulate/token-source.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`seed ${SEED}`);

const optionsOf = (policies: string[], more: Partial<ReplayOptions> = {}): ReplayOptions => ({
  policies,
  workers: 4,
  load: 0.6,
  seed: SEED,
  samples: 40,
  engine: { numGpuBlocks: 4000 },
  clock: new ManualClock(),
  addon: loadAddon(),
  onRun: () => {},
  ...more,
});

for (const name of WORKLOAD_NAMES) {
  t.test(`${name}: every request ends, once`, async t => {
    const result = replay(makeWorkload(name, 300, SEED), optionsOf(['ttft', 'round-robin', 'kv']));
    t.ok(Math.abs(result.load / 0.6 - 1) < 0.05, `load ${result.load}`);
    const outputs = result.workload.requests.reduce((sum, { outputTokens }) => sum + outputTokens, 0);
    for (const [policy, run] of result.runs) {
      t.equal(run.errors, 0, policy);
      t.equal(run.outputTokens, outputs, 'all tokens came');
      const inOrder = run.ttftMs.every((first, at) => first > 0 && run.e2eMs[at]! >= first);
      t.ok(inOrder, 'each has a first token before its end');
      t.ok(
        run.cachedTokens / run.promptTokens <= result.workload.infiniteHitRate + 1e-9,
        'no cache beats an infinite one',
      );
    }
    t.equal(
      result.runs.get('ttft')!.prefillMs.every(ms => ms > 0),
      true,
      'every worker worked, one that joins late too',
    );
  });
}

t.test('the same seed gives the same run, and the addon changes nothing', async t => {
  const times = (addon: ReplayOptions['addon']): Float64Array =>
    replay(makeWorkload('fan-out', 250, SEED), optionsOf(['ttft'], { addon })).runs.get('ttft')!.ttftMs;
  const first = times(loadAddon());
  t.same(times(loadAddon()), first);
  t.same(times(null), first);
});

t.test('ttft finds what is cached: close to an infinite cache where all fits', async t => {
  const workload = makeWorkload('cold-join', 500, SEED);
  const summary: ReplaySummary = summarize(
    replay(workload, optionsOf(['round-robin', 'least-loaded', 'ttft'], { engine: {} })),
  );
  const { ttft, 'round-robin': roundRobin } = summary.policies;
  t.ok(ttft!.hitRateGap < 0.1, `gap ${ttft!.hitRateGap}`);
  t.ok(roundRobin!.hitRateGap > 2 * ttft!.hitRateGap, `round-robin ${roundRobin!.hitRateGap}`);
  t.equal(summary.best, 'ttft');
  t.ok((summary.ratios.ttftMeanRoundRobinOverBest ?? 0) > 1);
});

t.test('a load that no fleet can carry is marked', async t => {
  const run = (load: number): boolean =>
    replay(makeWorkload('no-sharing', 600, 7), optionsOf(['least-loaded'], { load })).runs.get(
      'least-loaded',
    )!.saturated;
  t.equal(run(3), true);
  t.equal(run(0.3), false);
});

t.test('block events say at each pass what the pool holds', async t => {
  const random = seededRandom(SEED);
  const resident = new Map<number, number | null>();
  const wrong: string[] = [];
  const settings = resolveEngineSettings({
    numGpuBlocks: 40,
    blockSize: 4,
    maxNumBatchedTokens: 32,
    maxModelLen: 80,
  });
  const core = new EngineCore<null>(
    settings,
    { ids: Uint32Array.of(1, 2, 3), eosId: 9 },
    {
      stored({ keys }, from, to) {
        for (let at = from; at < to; at += 1) {
          if (resident.has(keys[at]!)) wrong.push('stored twice');
          resident.set(keys[at]!, at === 0 ? null : keys[at - 1]!);
        }
      },
      removed(key) {
        if (!resident.delete(key)) wrong.push('removed what was not there');
      },
      cleared: () => wrong.push('cleared'),
    },
  );
  let removals = 0;
  for (let pass = 0; pass < 3000 && wrong.length === 0; pass += 1) {
    if (core.waiting < 3) {
      const family = randomInteger(random, 6);
      const ids = Array.from({ length: 1 + randomInteger(random, 40) }, (_, at) => family * 100 + at);
      const request = {
        maxTokens: 1 + randomInteger(random, 20),
        minTokens: 0,
        ignoreEos: true,
        stopTokenIds: [],
      };
      core.add({ ...request, prompt: digestPrompt(ids, 4), choice: 0, owner: null }, pass);
    }
    const before = resident.size;
    core.executePass(pass);
    if (resident.size < before) removals += 1;
    const held = [...core.pool.snapshot().copies.keys()].sort();
    if (held.join() !== [...resident.keys()].sort().join()) wrong.push(`pass ${pass}: other blocks`);
  }
  t.same(wrong, []);
  t.ok(removals > 20, `${removals} passes removed blocks`);
});

t.test('the last of several copies is the one whose going is told', async t => {
  const told: number[] = [];
  const pool = new BlockPool(3, { stored: () => {}, removed: key => told.push(key), cleared: () => {} });
  const [a, b, c]: number[][] = [[], [], []];
  pool.reserve([], 1, a!);
  pool.reserve([], 1, b!);
  t.equal(pool.publish(a![0]!, 5), true);
  t.equal(pool.publish(b![0]!, 5), false);
  pool.release(a!);
  pool.release(b!);
  pool.reserve([], 2, c!);
  t.same(told, []);
  pool.reserve([], 1, c!);
  t.same(told, [5]);
});

t.test('passes end in order of time, then of workers', async t => {
  const random = seededRandom(SEED);
  const queue = new PassQueue(50);
  const naive: [number, number][] = [];
  const free = [...Array(50).keys()];
  for (let step = 0; step < 20_000; step += 1) {
    if (free.length > 0 && (naive.length === 0 || random() < 0.5)) {
      const worker = free.splice(randomInteger(random, free.length), 1)[0]!;
      const endMs = randomInteger(random, 30);
      queue.push(worker, endMs);
      naive.push([endMs, worker]);
      continue;
    }
    naive.sort(([ends, one], [otherEnds, other]) => ends - otherEnds || one - other);
    const [endMs, worker] = naive.shift()!;
    if (queue.nextMs !== endMs || queue.pop() !== worker) t.fail(`step ${step}`);
    free.push(worker);
  }
  while (naive.length > 0)
    queue.pop() === naive.sort(([e, w], [f, v]) => e - f || w - v).shift()![1] || t.fail('drain');
  t.equal(queue.nextMs, Number.POSITIVE_INFINITY);
});
