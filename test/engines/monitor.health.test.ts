/** Promise: a worker is ready as soon as it answers, out of rotation when it fails, back when it answers again. */
import t from 'tap';
import { EngineClient } from '#millrace/engines/client.js';
import type { FindingSink, WorkerAsk } from '#millrace/engines/health-contract.js';
import { WorkerMonitor } from '#millrace/engines/monitor.js';
import { createVllmAdapter } from '#millrace/engines/vllm.js';
import { WorkerError } from '#millrace/errors.js';
import { DEFAULT_LIMITS } from '#millrace/limits.js';
import { ManualClock, systemClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { CRLF, serve } from './raw-server.js';

const LIMITS = {
  ...DEFAULT_LIMITS,
  probePeriodMs: 2000,
  scrapePeriodMs: 1000,
  probeFailuresMax: 3,
  canaryAfterMs: 0,
};
const WORKER = { slot: 4, generation: 2, url: 'http://w:1', rank: null, engine: 'vllm' };
const PAGES: Readonly<Record<string, string>> = {
  '/health': '',
  '/v1/models': '{"data":[{"id":"m","max_model_len":100}]}',
  '/version': '{"version":"0.11.0"}',
  '/metrics': 'vllm:num_requests_running 5\n',
};

const refused = () => new WorkerError('MILLRACE_WORKER_UNREACHABLE', 'refused');
const stalled = () => new WorkerError('MILLRACE_WORKER_STALLED', 'too slow');
const findForeignIds = () => Promise.resolve([]);
const readActivity = () => 0;
/** Lets the promises of answered GETs run. */
const settle = () => new Promise(resolve => setImmediate(resolve));

function setUp() {
  const clock = new ManualClock();
  const found: string[] = [];
  const asked: string[] = [];
  const lines: string[] = [];
  const state = {
    held: true,
    answer: null as ((path: string) => Promise<{ status: number; body: string }>) | null,
  };
  const sink: FindingSink = {
    setFacts(slot, generation, facts) {
      found.push(`facts ${slot}/${generation} ${facts.models.map(model => model.id)}`);
      return state.held;
    },
    setHealthy(slot, generation, healthy) {
      found.push(`healthy ${slot}/${generation} ${healthy}`);
      return state.held;
    },
    setSleeping(slot, generation, level) {
      found.push(`sleeping ${slot}/${generation} ${level}`);
      return state.held;
    },
    setScraped(_slot, _generation, load, nowSeconds) {
      found.push(`running ${load.running} at ${nowSeconds}`);
      return state.held;
    },
  };
  const ask: WorkerAsk = ({ path }) => {
    asked.push(path);
    return state.answer?.(path) ?? Promise.resolve({ status: 200, body: PAGES[path] ?? '' });
  };
  const log = createLogger({
    level: 'info',
    format: 'json',
    write: line => lines.push(JSON.parse(line).message),
  });
  const adapters = new Map([['vllm', createVllmAdapter()]]);
  const monitor = new WorkerMonitor({
    clock,
    log,
    ask,
    sink,
    adapters,
    findForeignIds,
    readActivity,
    limits: LIMITS,
  });
  const advance = async (ms: number) => {
    clock.advance(ms);
    await settle();
  };
  const take = (list: string[]) => list.splice(0);
  return {
    clock,
    monitor,
    state,
    advance,
    found: () => take(found),
    asked: () => take(asked),
    lines: () => take(lines),
  };
}

t.test('ready at once, then health and metrics at their periods', async t => {
  const { monitor, advance, found, asked, lines, clock } = setUp();
  monitor.watch(WORKER);
  await settle();
  t.same(found(), ['facts 4/2 m', 'healthy 4/2 true', 'running 5 at 0']);
  t.same(lines(), ['worker is ready']);
  asked();
  await advance(1000);
  t.same([found(), asked()], [['running 5 at 1'], ['/metrics']]);
  await advance(1000);
  t.same(asked().sort(), ['/health', '/metrics', '/v1/models']);
  monitor.stop();
  t.equal(clock.nextInMs(), null, 'no timer is left');
});

t.test('a worker that is not there yet is tried with back-off and logged once', async t => {
  const { monitor, state, advance, found, asked, lines, clock } = setUp();
  state.answer = async () => {
    throw refused();
  };
  monitor.watch(WORKER);
  await settle();
  const waits: (number | null)[] = [];
  for (let attempt = 0; attempt < 7; attempt++) {
    waits.push(clock.nextInMs());
    await advance(clock.nextInMs() ?? 0);
  }
  t.same(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
  t.same(lines(), ['worker does not answer its probe']);
  t.same(found(), [], 'it was never up');
  asked();
  state.answer = async path => ({ status: path === '/v1/models' ? 500 : 200, body: '' });
  await advance(2000);
  t.same(lines(), ['worker does not answer its probe'], 'a new reason is a new line');
  state.answer = null;
  await advance(2000);
  t.same(found().slice(0, 2), ['facts 4/2 m', 'healthy 4/2 true']);
  monitor.stop();
});

t.test('three failed checks in a row take it out, one success in between does not', async t => {
  const { monitor, state, advance, found, lines } = setUp();
  monitor.watch(WORKER);
  await settle();
  const failing = async () => ({ status: 503, body: '' });
  const slow = async () => {
    throw stalled();
  };
  found();
  lines();
  for (const answer of [failing, slow, null, failing, slow]) {
    state.answer = answer;
    await advance(2000);
  }
  t.notOk(found().includes('healthy 4/2 false'), 'two failures, a success, two failures');
  state.answer = failing;
  await advance(2000);
  t.same(found().slice(-2), ['running null at 12', 'healthy 4/2 false'], 'its last load is forgotten');
  t.equal(lines().filter(line => line === 'worker is unavailable').length, 1);
  await advance(10_000);
  t.same(found(), [], 'still down');
  state.answer = null;
  await advance(2000);
  t.match(found(), ['facts 4/2 m', 'healthy 4/2 true', /^running 5/]);
  t.same(lines(), ['worker is back']);
  monitor.stop();
});

t.test('failures from the data path', async t => {
  const { monitor, state, advance, found, asked } = setUp();
  monitor.watch(WORKER);
  await settle();
  found();
  asked();
  monitor.reportFailure(4, 1, 'unreachable');
  t.same(found(), [], 'news of the generation before is dropped');
  monitor.reportFailure(4, 2, 'reset');
  monitor.reportFailure(4, 2, 'stalled');
  t.same(asked(), ['/health'], 'it is asked at once, and once');
  await settle();
  t.same(found(), []);
  monitor.reportFailure(4, 2, 'unreachable');
  monitor.reportFailure(4, 2, 'unreachable');
  t.same(found(), ['running null at 0', 'healthy 4/2 false']);
  await advance(100);
  t.match(found(), ['facts 4/2 m', 'healthy 4/2 true', 'running 5 at 0.1'], 'the next probe comes soon');
  state.answer = async () => {
    throw refused();
  };
  monitor.reportFailure(4, 2, 'reset');
  await settle();
  t.match(found(), ['running null at 0.1', 'healthy 4/2 false'], 'refused: no need to wait for three');
  monitor.stop();
});

t.test('answers that come too late are dropped', async t => {
  const { monitor, state, found, clock } = setUp();
  const waiting: (() => void)[] = [];
  const page = (path: string) => ({ status: 200, body: PAGES[path] ?? '' });
  state.answer = path => new Promise(resolve => waiting.push(() => resolve(page(path))));
  const answerAll = async () => {
    while (waiting.length > 0) {
      for (const answer of waiting.splice(0)) answer();
      await settle();
    }
  };
  monitor.watch(WORKER);
  monitor.watch({ ...WORKER, generation: 3 });
  await answerAll();
  t.same(
    found(),
    ['facts 4/3 m', 'healthy 4/3 true', 'running 5 at 0'],
    'only the tenant of the slot counts',
  );
  monitor.unwatch(4, 2);
  clock.advance(2000);
  t.ok(waiting.length > 0, 'a late unwatch of the old tenant changes nothing');
  monitor.unwatch(4, 3);
  await answerAll();
  t.same(found(), []);
  t.equal(clock.nextInMs(), null);
});

t.test('a worker that the registry no longer knows is left alone', async t => {
  const { monitor, state, clock } = setUp();
  state.held = false;
  monitor.watch(WORKER);
  await settle();
  t.equal(clock.nextInMs(), null);
  t.throws(() => monitor.watch({ ...WORKER, engine: 'other' }), {
    code: 'MILLRACE_CONFIG',
    message: /"other"/,
  });
});

t.test('metrics that fail do not take a worker out', async t => {
  const { monitor, state, advance, found, lines } = setUp();
  state.answer = async path => ({ status: path === '/metrics' ? 500 : 200, body: PAGES[path] ?? '' });
  monitor.watch(WORKER);
  await settle();
  await advance(1000);
  t.same(found(), ['facts 4/2 m', 'healthy 4/2 true', 'running null at 0'], 'unknown, told once');
  t.same(lines(), ['worker is ready', 'worker metrics cannot be read']);
  state.answer = null;
  await advance(1000);
  t.same(found(), ['running 5 at 2']);
  monitor.stop();
});

t.test('over real sockets', async t => {
  const url = await serve(t, (socket, head) => {
    const body = PAGES[/^GET (\S+)/.exec(head)?.[1] ?? ''] ?? '';
    socket.write(`HTTP/1.1 200 OK${CRLF}content-length: ${body.length}${CRLF}${CRLF}${body}`);
  });
  const client = new EngineClient({ clock: systemClock, connectDeadlineMs: 1000 });
  const found: string[] = [];
  await new Promise<void>(resolve => {
    const note = (line: string): boolean => found.push(line) > 0;
    const monitor = new WorkerMonitor({
      clock: systemClock,
      log: createLogger({ level: 'silent', format: 'text' }),
      ask: client.ask.bind(client),
      adapters: new Map([['vllm', createVllmAdapter()]]),
      findForeignIds,
      readActivity,
      limits: LIMITS,
      sink: {
        setFacts: (_slot, _generation, facts) => note(`${facts.version} ${facts.models[0]?.contextLength}`),
        setHealthy: (_slot, _generation, healthy) => note(`healthy ${healthy}`),
        setSleeping: () => true,
        setScraped(_slot, _generation, load) {
          monitor.stop();
          resolve();
          return note(`running ${load.running}`);
        },
      },
    });
    monitor.watch({ ...WORKER, url });
  });
  await client.close();
  t.same(found, ['0.11.0 100', 'healthy true', 'running 5']);
});
