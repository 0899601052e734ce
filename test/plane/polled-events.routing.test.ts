// Promise: a plane follows the KV events of TensorRT-LLM by polling: what it expects to be cached is what the engine counts,
// over random conversations; events that another poller took empty the worker, which recovers; so does an engine that
// begins anew; and a server without events is routed to by what was sent there.
import { once } from 'node:events';
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import { trtllmPolling } from '#millrace/plane/event-sources.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { type MockEngine, startMockEngine } from '#millrace/simulate/mock-engine.js';
import {
  COMPLETIONS,
  jsonOf,
  MOCK_MODEL,
  type PlaneFixture,
  type Reply,
  startPlane,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const BLOCK_SIZE = 16;
const mock = { engine: 'trtllm', blockSize: BLOCK_SIZE, events: {} } as const;
const common = { tokenizer: TOKENIZER, policy: 'ttft', clock: 'real' } as const;
const limits = { eventPollPeriodMs: 10 };
const seed = Number(process.env.SEED ?? Date.now() % 1e9);
t.comment(`SEED=${seed}`);
const random = seededRandom(seed);

const workerOf = (reply: Reply): string => reply.headers.get('x-millrace-worker')!;
const expectedOf = (reply: Reply): number => Number(reply.headers.get('x-millrace-expected-cached-tokens'));
const cachedOf = (reply: Reply): number => jsonOf(reply).usage.prompt_tokens_details.cached_tokens;
const draw = (count: number): number[] =>
  Array.from({ length: count }, () => 100 + Math.floor(random() * 5e4));
const count = (fixture: PlaneFixture, kind: string): Promise<number> =>
  fixture.metric(`millrace_kv_events_total{kind="${kind}"}`);
const ask = (fixture: PlaneFixture, prompt: readonly number[], worker?: string): Promise<Reply> =>
  fixture.post(
    COMPLETIONS,
    { model: MOCK_MODEL, prompt, max_tokens: 2 },
    worker === undefined ? {} : { 'x-millrace-worker': worker },
  );

/** Computes a prompt on an engine, past the plane. */
async function computeOn(engine: MockEngine, prompt: readonly number[]): Promise<void> {
  const body = JSON.stringify({ model: MOCK_MODEL, prompt, max_tokens: 2 });
  const headers = { 'content-type': 'application/json' };
  await (await fetch(engine.url + COMPLETIONS, { method: 'POST', headers, body })).text();
}

/** Resolves when an async condition holds. */
async function settled(condition: () => Promise<boolean>, what: string | (() => string)): Promise<void> {
  const endMs = performance.now() + 15_000;
  while (!(await condition())) {
    if (performance.now() > endMs)
      throw new Error(`not in time: ${typeof what === 'string' ? what : what()}`);
  }
}

/** All that an engine has said was asked for, and applied. */
async function polled({ cacheEvents }: MockEngine): Promise<void> {
  const { counters } = cacheEvents!;
  const polls = counters.polls;
  // The poll after the next one leaves when the answer of that one was applied.
  await until(() => counters.polls >= polls + 2, 'the engine is polled');
}

/** The index has what the engines have: as many blocks came and went. */
async function caughtUp(fixture: PlaneFixture): Promise<void> {
  // The block that the last token completes may come after the answer.
  const isAtRest = ({ core }: MockEngine): boolean => core.running + core.waiting === 0;
  await until(() => fixture.mocks.every(isAtRest), 'the engines are at rest');
  await Promise.all(fixture.mocks.map(polled));
  const resident = fixture.mocks.reduce((sum, { core }) => sum + core.pool.snapshot().copies.size, 0);
  let held = Number.NaN;
  await settled(
    async () => {
      held = (await count(fixture, 'storedBlocks')) - (await count(fixture, 'removedBlocks'));
      return held === resident;
    },
    () => `the index has ${held} of ${resident}; ${fixture.log.slice(-5).join(' ')}`,
  );
}

t.test('random conversations: expected is what the engine counts', async t => {
  // A small pool: blocks are evicted all the time.
  const small = { ...mock, numGpuBlocks: 40 };
  const fixture = await startPlane(t, { ...common, mocks: [small, small], limits, poolThreads: 2 });
  const conversations = Array.from({ length: 8 }, () => draw(20));
  let cached = 0;
  // Without the addon the index tells its counts four times a second.
  const asks = fixture.plane.status.addon.loaded ? 20 : 8;
  for (let asked = 0; asked < asks; asked += 1) {
    // Turns past the plane: what it has routed itself counts as cached for a while, whatever becomes of it.
    for (let turn = 0; turn < 4; turn += 1) {
      const at = Math.floor(random() * conversations.length);
      const prompt = conversations[at]!;
      await computeOn(fixture.mocks[Math.floor(random() * 2)]!, prompt);
      conversations[at] =
        prompt.length > 300 ? draw(20) : [...prompt, ...draw(1 + Math.floor(random() * 80))];
    }
    await caughtUp(fixture);
    const at = Math.floor(random() * conversations.length);
    const prompt = conversations[at]!;
    const reply = await ask(fixture, prompt);
    t.equal(reply.status, 200);
    // The engine computes the last block again where the prompt ends with it.
    const most = Math.floor((prompt.length - 1) / BLOCK_SIZE) * BLOCK_SIZE;
    if (Math.min(expectedOf(reply), most) !== cachedOf(reply))
      t.fail(`ask ${asked}: ${expectedOf(reply)} expected, ${cachedOf(reply)} cached, of ${prompt.length}`);
    cached += cachedOf(reply);
    conversations[at] = draw(20);
  }
  t.ok(cached > 0, `${cached} tokens were cached`);
  if (asks === 20) t.ok((await count(fixture, 'removedBlocks')) > 0, 'blocks were evicted');
  for (const kind of ['gaps', 'malformed', 'badFrames', 'pollFailures', 'clearedRanks'])
    t.equal(await count(fixture, kind), 0, kind);
  t.same(fixture.plane.status.kvEvents, { publishing: 2, workers: 2 });
  await fixture.expectIdle(t);
});

t.test('events that somebody else took: empty, said once, followed again', async t => {
  const lossy = { ...mock, events: { loss: 0.4 }, seed: 3 };
  const fixture = await startPlane(t, { ...common, mocks: [lossy], limits });
  const [engine] = fixture.mocks;
  const { counters } = engine!.cacheEvents!;
  const first = draw(100);
  await computeOn(engine!, first);
  await settled(async () => {
    await computeOn(engine!, draw(100));
    return (await count(fixture, 'gaps')) >= 2;
  }, 'ids have skipped');
  t.ok(counters.stolen > 0, `${counters.stolen} events went elsewhere`);
  t.equal(fixture.log.filter(line => line.includes('something else polls')).length, 1);
  // What was lost is never promised; what comes after it is known again.
  await settled(async () => {
    await polled(fixture.mocks[0]!);
    const prompt = draw(100);
    const [gaps, stolen] = [await count(fixture, 'gaps'), counters.stolen];
    await computeOn(engine!, prompt);
    await polled(fixture.mocks[0]!);
    const reply = await ask(fixture, prompt);
    // With a loss before it that nothing has shown yet, more cannot be known.
    if (counters.stolen > stolen || (await count(fixture, 'gaps')) > gaps) return false;
    t.ok(expectedOf(reply) <= cachedOf(reply), `${expectedOf(reply)} of ${cachedOf(reply)}`);
    return expectedOf(reply) === 96;
  }, 'it is followed again');
  await fixture.expectIdle(t);
});

t.test('an engine that begins anew at its address is empty', async t => {
  const engine = await startMockEngine({ ...mock, speed: 'unlimited', serverKind: 'node' });
  const fixture = await startPlane(t, {
    ...common,
    mocks: [],
    workers: [engine.url],
    limits: { ...limits, probePeriodMs: 50 },
  });
  await fixture.plane.workersAnswered(10_000);
  const prompt = draw(100);
  await computeOn(engine, prompt);
  await settled(
    async () => (await fixture.metric('millrace_index_blocks')) >= 6,
    'its events are in the index',
  );
  t.equal(expectedOf(await ask(fixture, prompt)), 96);
  await engine.close();
  await until(() => fixture.plane.workers[0]!.state === 'unavailable', 'it is missed');
  const successor = await startMockEngine({
    ...mock,
    speed: 'unlimited',
    serverKind: 'node',
    port: engine.port,
  });
  t.teardown(() => successor.close());
  await until(() => fixture.plane.workers[0]!.state === 'ready', 'its successor is ready');
  await settled(async () => (await count(fixture, 'restarts')) === 1, 'its ids begin anew');
  const reply = await ask(fixture, prompt);
  t.same([reply.status, expectedOf(reply), cachedOf(reply)], [200, 0, 0]);
  await settled(async () => (await fixture.metric('millrace_index_blocks')) >= 6, 'its events come');
  t.equal(expectedOf(await ask(fixture, prompt)), 96);
  await fixture.expectIdle(t);
});

t.test('a server whose buffer is off: what it holds is guessed, said once', async t => {
  const { events: _, ...silent } = mock;
  const fixture = await startPlane(t, { ...common, mocks: [silent, silent, mock], limits });
  const prompt = draw(100);
  const [url] = fixture.mocks.map(engine => engine.url);
  await settled(async () => (await fixture.metric('millrace_index_holders')) === 3, 'the index knows them');
  t.equal((await ask(fixture, prompt, url)).status, 200);
  await settled(async () => (await fixture.metric('millrace_index_blocks')) >= 6, 'it is guessed');
  const reply = await ask(fixture, prompt);
  t.same([workerOf(reply), expectedOf(reply)], [url, 96]);
  for (const engine of fixture.mocks.slice(0, 2)) {
    const said = (): string[] =>
      fixture.log.filter(line => line.includes('no KV events come yet') && line.includes(engine.url));
    await until(() => said().length > 0, 'it is said');
    t.equal(said().length, 1);
  }
  await fixture.expectIdle(t);
});

t.test('kvEvents off: nothing is polled', async t => {
  const engine = await startMockEngine({ ...mock, speed: 'unlimited' });
  t.teardown(() => engine.close());
  const workers = [{ url: engine.url, kvEvents: null }];
  const fixture = await startPlane(t, { ...common, mocks: [], workers, limits });
  await fixture.plane.workersAnswered(10_000);
  t.equal((await ask(fixture, draw(100))).status, 200);
  t.equal(engine.cacheEvents!.counters.polls, 0);
  await fixture.expectIdle(t);
});

/** A connection to a server that the test plays. */
async function connectTo(t: Test, clock: ManualClock, listener: RequestListener) {
  const server = createServer(listener).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const connection = trtllmPolling({ clock, connectDeadlineMs: 2000 }).connect(
    `http://127.0.0.1:${port}/events`,
  );
  t.teardown(async () => {
    await connection.close();
    server.closeAllConnections();
    server.close();
  });
  return { connection, server };
}

t.test('a poll ends: by its deadline, by its bound, and when it is closed', async t => {
  const clock = new ManualClock();
  const asked: string[] = [];
  const whole = await connectTo(t, clock, (request, response) => {
    asked.push(`${request.method} ${request.url}`);
    response.end('x'.repeat(5000));
  });
  t.match(await whole.connection.poll(1000, 5000), { status: 200, body: /^x{5000}$/ });
  await t.rejects(whole.connection.poll(1000, 4999), { code: 'MILLRACE_WORKER_PROTOCOL', message: /4999/ });
  t.same(asked, ['POST /events', 'POST /events']);
  const silent = await connectTo(t, clock, () => {});
  for (const how of ['deadline', 'close'] as const) {
    const arrived = once(silent.server, 'request');
    const poll = silent.connection.poll(1000, 5000);
    await arrived;
    const ended = t.rejects(poll, {
      code: how === 'deadline' ? 'MILLRACE_WORKER_STALLED' : 'MILLRACE_WORKER_UNREACHABLE',
    });
    if (how === 'deadline') clock.advance(1000);
    else await silent.connection.close();
    await ended;
  }
});
