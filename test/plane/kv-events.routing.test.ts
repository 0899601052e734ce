// Promise: a plane follows the KV events of its workers: a prompt goes where it was computed, a worker that is replaced or
// begins anew counts as empty, and without its ingest thread the plane serves by load and says so.
import t from 'tap';
import { MOCK_MODEL, type MockEngine, startMockEngine } from '#millrace/simulate/mock-engine.js';
import {
  COMPLETIONS,
  jsonOf,
  type PlaneFixture,
  type Reply,
  startPlane,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const BLOCK_SIZE = 16;
const IDS = 320;
/** Ids that no other name has in common. */
const prompt = (name: number): number[] => Array.from({ length: IDS }, (_, at) => name * IDS + at + 100);
const bodyOf = (name: number) => ({ model: MOCK_MODEL, prompt: prompt(name), max_tokens: 2 });
const workerOf = (reply: Reply): string => reply.headers.get('x-millrace-worker')!;
const expectedOf = (reply: Reply): number => Number(reply.headers.get('x-millrace-expected-cached-tokens'));
const cachedOf = (reply: Reply): number => jsonOf(reply).usage.prompt_tokens_details.cached_tokens;

/** Computes a prompt on an engine, past the plane. */
async function computeOn(engine: MockEngine, name: number): Promise<void> {
  const headers = { 'content-type': 'application/json' };
  const body = JSON.stringify(bodyOf(name));
  await (await fetch(engine.url + COMPLETIONS, { method: 'POST', headers, body })).text();
}

const blocksIn = (fixture: PlaneFixture): Promise<number> => fixture.metric('millrace_index_blocks');

/** Resolves when an async condition holds. */
async function settled(condition: () => Promise<boolean>, what: string): Promise<void> {
  const endMs = performance.now() + 15_000;
  while (!(await condition())) if (performance.now() > endMs) throw new Error(`not in time: ${what}`);
}

const mock = { events: {}, blockSize: BLOCK_SIZE };
const common = { tokenizer: TOKENIZER, policy: 'ttft', clock: 'real' } as const;

t.test('a prompt goes where it was computed, whoever sent it there', async t => {
  const fixture = await startPlane(t, { ...common, mocks: [mock, mock, mock], poolThreads: 2 });
  for (const [at, engine] of fixture.mocks.entries()) {
    const before = await blocksIn(fixture);
    await computeOn(engine, at);
    await settled(
      async () => (await blocksIn(fixture)) >= before + IDS / BLOCK_SIZE,
      'its events are in the index',
    );
  }
  for (const at of [2, 0, 1, 1, 0, 2]) {
    const reply = await fixture.post(COMPLETIONS, bodyOf(at));
    t.equal(workerOf(reply), fixture.mocks[at]!.url);
    // The last block is computed again: the answer needs the logits of the last token.
    t.ok(expectedOf(reply) >= IDS - BLOCK_SIZE, `${expectedOf(reply)} expected`);
    t.ok(cachedOf(reply) >= IDS - BLOCK_SIZE, `${cachedOf(reply)} reported`);
  }
  t.equal(await fixture.metric('millrace_index_holders'), 3);
  t.ok((await fixture.metric('millrace_kv_events_total{kind="batches"}')) >= 3);
  t.equal(await fixture.metric('millrace_kv_events_total{kind="malformed"}'), 0);
  t.ok((await fixture.metric('millrace_cached_tokens_total{source="reported"}')) >= 6 * (IDS - BLOCK_SIZE));
  t.same(fixture.plane.status.kvEvents, { publishing: 3, workers: 3 });
  t.equal(fixture.plane.health().prefixIndex, 'serving');
  await fixture.expectIdle(t);
});

t.test('a worker that is killed and comes again at its address is empty', async t => {
  for (const model of [MOCK_MODEL, 'another-model']) {
    const limits = { probePeriodMs: 50 };
    const engine = await startMockEngine({ ...mock, speed: 'unlimited', serverKind: 'node' });
    const { port, url, events } = engine;
    const workers = [{ url, kvEvents: events!.publish, kvEventsReplay: events!.replay }];
    const fixture = await startPlane(t, { ...common, mocks: [], workers, limits });
    await fixture.plane.workersAnswered(10_000);
    await computeOn(engine, 1);
    await settled(async () => (await blocksIn(fixture)) >= IDS / BLOCK_SIZE, 'its events are in the index');
    const portOf = (endpoint: string): number => Number(endpoint.split(':').at(-1));
    const ports = { port: portOf(events!.publish), replayPort: portOf(events!.replay) };
    await engine.close();
    await until(() => fixture.plane.workers[0]!.state === 'unavailable', 'it is missed');
    const successor = await startMockEngine({
      ...mock,
      speed: 'unlimited',
      serverKind: 'node',
      model,
      port,
      events: ports,
    });
    t.teardown(() => successor.close());
    await until(() => fixture.plane.workers[0]!.state === 'ready', 'its successor is ready');
    const ask = (name: number): Promise<Reply> => fixture.post(COMPLETIONS, { ...bodyOf(name), model });
    if (model === MOCK_MODEL) {
      // The first batch that reaches us tells that it began anew; what it sends before we are connected again does not.
      const restarts = 'millrace_kv_events_total{kind="restarts"}';
      let next = 2;
      await settled(async () => {
        t.equal((await ask(next++)).status, 200);
        return (await fixture.metric(restarts)) === 1;
      }, 'its numbers begin at 0');
    }
    const reply = await ask(1);
    t.same([reply.status, expectedOf(reply), cachedOf(reply)], [200, 0, 0], model);
    await fixture.expectIdle(t);
  }
});

t.test('events that are lost on the way are asked for again', async t => {
  const lossy = { ...mock, events: { loss: 0.3 }, seed: 3 };
  const fixture = await startPlane(t, { ...common, mocks: [lossy, lossy] });
  const names = Array.from({ length: 30 }, (_, name) => name);
  for (const name of names) await computeOn(fixture.mocks[name % 2]!, name);
  const dropped = (): number => fixture.mocks.reduce((sum, { events }) => sum + events!.counters.dropped, 0);
  t.ok(dropped() > 0, `${dropped()} batches were lost`);
  // A loss at the end shows with what comes after it.
  let next = names.length;
  await settled(async () => {
    await Promise.all(fixture.mocks.map(engine => computeOn(engine, next++)));
    return (await blocksIn(fixture)) >= (names.length * IDS) / BLOCK_SIZE;
  }, 'the index has all');
  for (const name of names) {
    const reply = await fixture.post(COMPLETIONS, bodyOf(name));
    t.equal(workerOf(reply), fixture.mocks[name % 2]!.url);
    t.ok(expectedOf(reply) >= IDS - BLOCK_SIZE);
  }
  t.ok((await fixture.metric('millrace_kv_events_total{kind="replays"}')) > 0);
  await fixture.expectIdle(t);
});

t.test('a pool thread that dies leaves the index as it is', async t => {
  const fixture = await startPlane(t, { ...common, mocks: [mock, mock] });
  await computeOn(fixture.mocks[1]!, 5);
  await settled(async () => (await blocksIn(fixture)) >= IDS / BLOCK_SIZE, 'its events are in the index');
  await fixture.plane.supervisor.threads[0]!.terminate();
  await until(() => fixture.plane.supervisor.state.restarts === 1, 'it is replaced');
  const reply = await fixture.post(COMPLETIONS, bodyOf(5));
  t.equal(reply.status, 200);
  if (fixture.plane.status.addon.loaded) t.equal(workerOf(reply), fixture.mocks[1]!.url);
  await fixture.expectIdle(t);
});

t.test('an ingest thread that fails: served by load, degraded, said once', async t => {
  const fixture = await startPlane(t, { ...common, mocks: [mock, mock] });
  await computeOn(fixture.mocks[0]!, 7);
  await settled(async () => (await blocksIn(fixture)) >= IDS / BLOCK_SIZE, 'its events are in the index');
  fixture.plane.ingest!.thread.postMessage({ kind: 'tell', name: 'noSuchCall', args: [] });
  await until(() => fixture.plane.health().prefixIndex === 'failed', 'the plane is told');
  t.match(jsonOf(await fixture.get('/health')), { status: 'degraded', prefixIndex: 'failed' });
  t.equal((await fixture.get('/health')).status, 200);
  const reply = await fixture.post(COMPLETIONS, bodyOf(7));
  t.same([reply.status, expectedOf(reply)], [200, 0]);
  t.match(
    (await fixture.get('/metrics')).text,
    /^dynamo_frontend_requests_total/m,
    'the other metrics are there',
  );
  t.equal(fixture.log.filter(line => line.includes('the prefix index has failed')).length, 1);
  await fixture.expectIdle(t);
});
