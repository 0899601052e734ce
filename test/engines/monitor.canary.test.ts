/** Promise: an engine that answers its health route and makes no token goes out of rotation in a bounded time, a busy or briefly stopped one never. */
import t from 'tap';
import { createAdapters } from '#millrace/engines/adapters.js';
import type { WorkerAsk } from '#millrace/engines/health-contract.js';
import { WorkerMonitor } from '#millrace/engines/monitor.js';
import { WorkerError } from '#millrace/errors.js';
import { DEFAULT_LIMITS } from '#millrace/limits.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';

const { probePeriodMs, probeDeadlineMs, probeFailuresMax, canaryAfterMs, canaryDeadlineMs } = DEFAULT_LIMITS;
const STEP_MS = 25;
const PAGES: Readonly<Record<string, string>> = {
  '/health': '',
  '/v1/models': '{"data":[{"id":"m","owned_by":"vllm"}]}',
  '/version': '{"version":"0.11.0"}',
  '/metrics': '',
};
const settle = () => new Promise(resolve => setImmediate(resolve));

type Answers = number | 'never' | 'refused';

/** A worker whose health route and generation are set apart. */
function setUp(limits: Partial<typeof DEFAULT_LIMITS> = {}, rank: number | null = null) {
  const clock = new ManualClock();
  const state = { health: 200 as Answers, canary: 200 as Answers, tokens: 0 };
  const bodies: string[] = [];
  const heads: string[] = [];
  const changes: { atMs: number; healthy: boolean }[] = [];
  const lines: string[] = [];
  const ask: WorkerAsk = ({ method, path, head, body }, deadlineMs) => {
    const isCanary = method === 'POST';
    if (isCanary) {
      bodies.push(Buffer.from(body).toString());
      heads.push(head.map(([name, value]) => `${name}=${value}`).join(' '));
    }
    const answer = isCanary ? state.canary : state.health;
    if (answer === 'refused')
      return Promise.reject(new WorkerError('MILLRACE_WORKER_UNREACHABLE', 'refused'));
    if (answer === 'never') {
      return new Promise((_, reject) => {
        clock.after(deadlineMs, () => reject(new WorkerError('MILLRACE_WORKER_STALLED', `${path} is late`)));
      });
    }
    return Promise.resolve({ status: answer, body: PAGES[path] ?? '' });
  };
  const log = createLogger({
    level: 'info',
    format: 'json',
    write: line => lines.push(JSON.parse(line).message),
  });
  const monitor = new WorkerMonitor({
    clock,
    log,
    ask,
    adapters: createAdapters([]),
    findForeignIds: async () => [],
    readActivity: () => state.tokens,
    limits: { ...DEFAULT_LIMITS, ...limits },
    sink: {
      setFacts: () => true,
      setHealthy: (_slot, _generation, healthy) => changes.push({ atMs: clock.nowMs(), healthy }) > 0,
      setSleeping: () => true,
      setScraped: () => true,
    },
  });
  const run = async (ms: number, every?: () => void) => {
    for (let at = 0; at < ms; at += STEP_MS) {
      clock.advance(STEP_MS);
      every?.();
      await settle();
    }
  };
  const start = async () => {
    monitor.watch({ slot: 0, generation: 1, url: 'http://w:1', rank, engine: 'auto' });
    for (let turn = 0; turn < 5; turn++) await settle();
    t.same(changes.splice(0), [{ atMs: 0, healthy: true }]);
  };
  const counts = () => monitor.counts(0, 1)!;
  return { clock, state, bodies, heads, changes, lines, monitor, run, start, counts };
}

t.test('a wedged engine is out within the bound, and only a canary brings it back', async t => {
  const { state, changes, run, start, counts, clock, monitor, bodies, lines } = setUp();
  await start();
  state.canary = 'never';
  const boundMs = 1.25 * canaryAfterMs + canaryDeadlineMs * probeFailuresMax;
  t.ok(boundMs <= 10_000, 'with the default limits it is under 10 s');
  await run(boundMs + STEP_MS);
  t.match(changes, [{ healthy: false }], 'its health route never failed');
  t.ok(changes[0]!.atMs <= boundMs + STEP_MS, `out after ${changes[0]!.atMs} ms, at most ${boundMs}`);
  t.match(JSON.parse(bodies[0]!), { model: 'm', prompt: [1], max_tokens: 1, stream: false });
  t.match(counts(), { failures: { canary: 3, health: 0 }, canaries: { late: 3, answered: 0 } });
  await run(20_000);
  t.equal(changes.length, 1, 'health alone does not bring it back');
  state.canary = 200;
  await run(probePeriodMs + canaryDeadlineMs);
  t.match(changes, [{}, { healthy: true }]);
  t.equal(lines.at(-1), 'worker is back');
  await run(60_000);
  t.equal(changes.length, 2, 'an idle worker stays');
  t.ok(counts().canaries.answered > 10);
  monitor.stop();
  t.equal(clock.nextInMs(), null, 'no timer is left');
});

t.test('real tokens are as good as canaries', async t => {
  const { state, changes, run, start, bodies, counts } = setUp();
  await start();
  state.canary = 'never';
  await run(30_000, () => {
    state.tokens++;
  });
  t.same([bodies, changes], [[], []], 'a worker with traffic is sent none');
  await run(canaryAfterMs * 2);
  t.ok(bodies.length > 0);
  await run(canaryDeadlineMs * probeFailuresMax * 2, () => {
    state.tokens++;
  });
  t.same(changes, [], 'tokens that come again end the count');
  t.equal(counts().failures.canary <= 1, true);
});

t.test('errors are paced: a hiccup is one failure', async t => {
  const { state, changes, run, start, counts } = setUp();
  await start();
  state.canary = 500;
  await run(canaryAfterMs + canaryDeadlineMs - 100);
  t.equal(counts().failures.canary, 1);
  state.canary = 200;
  await run(canaryAfterMs * 2);
  t.same(changes, []);
  state.canary = 'refused';
  await run(canaryAfterMs * 1.25 + canaryDeadlineMs * 3);
  t.match(changes, [{ healthy: false }]);
  t.match(counts().failures, { canary: 4 });
});

t.test('an engine that refuses canaries is watched by its health route', async t => {
  const { state, changes, run, start, counts, lines } = setUp();
  await start();
  state.canary = 404;
  await run(60_000);
  t.same(changes, []);
  t.ok(counts().canaries.refused > 5);
  t.equal(lines.filter(line => line.includes('does not take canary')).length, 1, 'said once');
});

t.test('canaries of a rank name it; 0 switches them off', async t => {
  const ranked = setUp({}, 3);
  await ranked.start();
  await ranked.run(canaryAfterMs * 2);
  t.match(ranked.heads[0], 'x-data-parallel-rank=3');
  const off = setUp({ canaryAfterMs: 0 });
  await off.start();
  await off.run(60_000);
  off.monitor.reportFailure(0, 1, 'stalled');
  await off.run(1000);
  t.same(off.bodies, []);
  t.match(off.counts().failures, { stalled: 1 });
});

t.test('a stream that went silent has a canary sent at once', async t => {
  const { bodies, monitor, run, start, counts } = setUp();
  await start();
  monitor.reportFailure(0, 1, 'stalled');
  monitor.reportFailure(0, 1, 'stalled');
  t.equal(bodies.length, 1, 'one');
  await run(100);
  monitor.reportFailure(0, 1, 'protocol');
  t.match(counts(), { failures: { stalled: 2, protocol: 1, canary: 0 }, canaries: { answered: 1 } });
});

t.test('stopped: a short stop takes nothing out, one for good is seen within the bound', async t => {
  const { state, changes, run, start } = setUp({ canaryAfterMs: 0 });
  await start();
  for (let stop = 0; stop < 5; stop++) {
    state.health = 'never';
    await run(probePeriodMs + probeDeadlineMs - STEP_MS);
    state.health = 200;
    await run((probePeriodMs + probeDeadlineMs) * 2);
  }
  t.same(changes, [], 'shorter than a cycle of one late check');
  state.health = 'never';
  const boundMs = (probePeriodMs + probeDeadlineMs) * probeFailuresMax;
  await run(boundMs + STEP_MS);
  t.match(changes, [{ healthy: false }]);
});

t.test(
  'a health route that is late under load does not count while tokens come; one that says no does',
  async t => {
    const { state, changes, run, start, counts } = setUp();
    await start();
    state.health = 'never';
    await run((probePeriodMs + probeDeadlineMs) * 5, () => {
      state.tokens++;
    });
    t.same(changes, []);
    t.equal(counts().failures.health, 0);
    state.health = 503;
    await run(probeDeadlineMs + probePeriodMs * probeFailuresMax, () => {
      state.tokens++;
    });
    t.match(changes, [{ healthy: false }]);
  },
);
