/** Promise: an engine sleeps without a lost or a wrong answer, is left alone while it does, and serves again when woken. */
import t, { type Test } from 'tap';
import { COMPLETIONS, jsonOf, type PlaneFixture, startPlane, TOKENIZER, until } from '../plane-fixture.js';

const TOKEN = 'not-to-be-guessed-0123';
const MODEL = 'mock-model';
const auth = { authorization: `Bearer ${TOKEN}` };
const PROMPT = Array.from({ length: 96 }, (_, at) => at + 7);
const ask = { model: MODEL, prompt: PROMPT, max_tokens: 6 };

const start = (t: Test, more: object = {}): Promise<PlaneFixture> =>
  startPlane(t, { mocks: [{}, {}], adminToken: TOKEN, tokenizer: TOKENIZER, ...more });
const change = (fixture: PlaneFixture, what: 'sleep' | 'wake', query: string) =>
  fixture.get(`/admin/workers/${what}${query}`, 'POST', { headers: auth });
const stateOf = (fixture: PlaneFixture, url: string): string | undefined =>
  fixture.plane.workers.find(worker => worker.url === url)?.state;
const workerOf = (reply: { headers: Headers }): string | null => reply.headers.get('x-millrace-worker');
const textOf = (reply: Awaited<ReturnType<PlaneFixture['post']>>): string => jsonOf(reply).choices[0].text;
/** So that the deadline of a thread, which goes by the clock of the test, leaves it time to answer. */
const SLOWLY_MS = 5;
/** Moves the clock until an answer is there: whoever waits for one looks at a period. */
async function settled<Value>(fixture: PlaneFixture, answer: Promise<Value>, stepMs = 200): Promise<Value> {
  let isOver = false;
  const value = answer.finally(() => {
    isOver = true;
  });
  await until(() => {
    fixture.tick(stepMs);
    return isOver;
  }, 'the answer is there');
  return value;
}

for (const engine of ['vllm', 'sglang'] as const)
  for (const level of [1, 2])
    t.test(`${engine}, level ${level}: asleep and awake again`, async t => {
      const fixture = await start(t, { mocks: [{ engine }, { engine }], limits: { canaryAfterMs: 1000 } });
      const [sleeper, other] = fixture.mocks;
      const url = sleeper!.url;
      const before = textOf(await fixture.post(COMPLETIONS, ask, { 'x-millrace-worker': url }));
      const asleep = await settled(fixture, change(fixture, 'sleep', `?url=${url}&level=${level}`));
      t.same([asleep.status, jsonOf(asleep)], [200, { url, state: 'sleeping', sleepLevel: level }]);
      t.ok(sleeper!.changes.isAsleep);
      t.equal(
        (await change(fixture, 'sleep', `?url=${url}&level=${level}`)).status,
        200,
        'again is the same',
      );
      t.match(fixture.plane.workerReports[0], {
        state: 'sleeping',
        sleepLevel: level,
        reported: { running: null },
      });
      t.equal(await fixture.metric(`millrace_worker_state{worker="${url}",state="sleeping"}`), 1);
      for (let request = 0; request < 3; request++)
        t.equal(workerOf(await fixture.post(COMPLETIONS, ask)), other!.url);
      t.equal(
        (await fixture.post(COMPLETIONS, ask, { 'x-millrace-worker': url })).status,
        503,
        'not even pinned',
      );
      for (let second = 0; second < 20; second++) {
        fixture.tick(1000);
        await new Promise(setImmediate);
      }
      t.equal(sleeper!.changes.requestsAsleep, 0, 'no canary either');
      t.equal(stateOf(fixture, url), 'sleeping');
      const awake = await settled(fixture, change(fixture, 'wake', `?url=${url}`));
      t.same([awake.status, jsonOf(awake)], [200, { url, state: 'ready', sleepLevel: null }]);
      t.notOk(sleeper!.changes.isAsleep);
      t.equal((await change(fixture, 'wake', `?url=${url}`)).status, 200, 'again is the same');
      const after = await fixture.post(COMPLETIONS, ask, { 'x-millrace-worker': url });
      t.equal(textOf(after), before, 'its weights are those from before');
      t.equal(sleeper!.changes.requestsAsleep, 0);
      await fixture.expectIdle(t);
    });

t.test('streams that run end first, or are moved when the time is up', async t => {
  const fixture = await start(t, {
    mocks: [{ speed: 20 }, { speed: 'unlimited' }],
    limits: { drainDeadlineMs: 1000 },
  });
  const [slow, fast] = fixture.mocks.map(({ url }) => url) as [string, string];
  const long = { ...ask, max_tokens: 2000 };
  const whole = textOf(await fixture.post(COMPLETIONS, long, { 'x-millrace-worker': fast }));
  const open = await fixture.open(COMPLETIONS, { ...long, stream: true });
  await open.readUntil(text => text.includes('data:'));
  const unary = fixture.post(COMPLETIONS, long, {});
  const busy = [slow, fast].filter(url =>
    fixture.plane.workerReports.some(one => one.url === url && one.load.requests > 0),
  );
  t.ok(busy.includes(slow), 'a request is on the slow one');
  const falling = change(fixture, 'sleep', `?url=${slow}`);
  await until(() => stateOf(fixture, slow) === 'sleeping', 'it takes nothing new');
  t.notOk(fixture.mocks[0]!.changes.isAsleep, 'as long as a stream runs');
  const second = await change(fixture, 'wake', `?url=${slow}`);
  t.match(jsonOf(second).error.message, /another change of this worker is under way/);
  t.equal((await settled(fixture, falling)).status, 200);
  t.ok(fixture.mocks[0]!.changes.isAsleep);
  const reply = await open.rest();
  t.ok(reply.done);
  const text = reply.frames.flatMap(frame => frame.choices?.[0]?.text ?? []).join('');
  t.equal(text, whole, 'the answer went on elsewhere, whole');
  t.equal(textOf(await unary), whole);
  t.ok((await fixture.metric('millrace_migrations_total{cause="reset",outcome="continued"}')) >= 1);
  t.equal(fixture.plane.workerReports[0]!.failures.reset, 0, 'and nobody is blamed');
  await fixture.expectIdle(t);
});

t.test('an engine that does not sleep serves on; bad input names its field', async t => {
  const fixture = await start(t, {
    mocks: [{ adapters: { sql: '/a' } }, { engine: 'trtllm' }],
    workers: ['http://127.0.0.1:9'],
  });
  const [first, second] = fixture.mocks.map(({ url }) => url) as [string, string];
  for (const [what, query, status, message] of [
    ['sleep', `?url=${first}&level=3`, 400, /^level must be a whole number from 1 to 2; got "3"/],
    ['sleep', `?url=${first}&level=`, 400, /^level must be/],
    ['wake', `?url=${first}&level=0`, 400, /^level must be/],
    ['sleep', '', 400, /query must be url=/],
    ['sleep', `?url=${first}&mode=abort`, 400, /query must be url=/],
    ['sleep', `?url=${first}&url=${second}`, 400, /query must be url=/],
    ['sleep', '?url=http://nobody:1', 404, /there is no worker at/],
    ['sleep', '?url=http://127.0.0.1:9', 400, /the worker is probing; only a ready one can sleep/],
    ['wake', '?url=http://127.0.0.1:9', 400, /the worker is probing; only a sleeping one wakes/],
    ['sleep', `?url=${first}&level=2`, 400, /level 2 loses them/],
    ['sleep', `?url=${second}`, 400, /TensorRT-LLM has no sleep/],
  ] as const) {
    const reply = await settled(fixture, change(fixture, what, query));
    t.equal(reply.status, status, query);
    t.match(jsonOf(reply).error.message, message);
  }
  await until(() => {
    fixture.tick(200);
    return stateOf(fixture, second) === 'ready';
  }, 'it serves again');
  t.equal((await fixture.post(COMPLETIONS, ask, { 'x-millrace-worker': second })).status, 200);
  t.equal((await fixture.get('/admin/workers/sleep', 'GET', { headers: auth })).status, 405);
  t.equal((await fixture.get(`/admin/workers/sleep?url=${first}`, 'POST')).status, 404, 'without the token');
  await fixture.expectIdle(t);
});

t.test('a sleeper is found asleep, and one that others wake or that ends is noticed', async t => {
  const fixture = await start(t);
  const [sleeper] = fixture.mocks;
  const url = sleeper!.url;
  await settled(fixture, change(fixture, 'sleep', `?url=${url}`));
  const late = await startPlane(t, { mocks: [{}], workers: [url], adminToken: TOKEN });
  await until(() => stateOf(late, url) === 'sleeping', 'a plane that starts later sees it');
  t.equal((await fixture.post(COMPLETIONS, ask)).status, 200);
  await settled(late, change(late, 'wake', `?url=${url}`));
  await until(() => {
    fixture.tick(500);
    return stateOf(fixture, url) === 'ready';
  }, 'the plane that put it to sleep sees that another one woke it');
  t.equal(sleeper!.changes.requestsAsleep, 0);
  await settled(fixture, change(fixture, 'sleep', `?url=${url}`));
  await sleeper!.close();
  await until(() => {
    fixture.tick(500);
    return stateOf(fixture, url) === 'unavailable';
  }, 'it has ended in its sleep');
  await fixture.expectIdle(t);
});

t.test('what it had cached is forgotten, before the sleep and the wake are answered', async t => {
  const mock = { events: {}, blockSize: 16 };
  const fixture = await start(t, { mocks: [mock, mock], policy: 'kv' });
  const ingest = fixture.plane.ingest!;
  const push = ingest.push.bind(ingest);
  const pushed: string[] = [];
  // The index itself drops blocks of a worker that it has cleared at leisure: seen is what it was told.
  ingest.push = async (slot, batch) => {
    await push(slot, batch);
    pushed.push(`${slot}: ${batch}`);
  };
  const [, second] = fixture.mocks.map(({ url }) => url) as [string, string];
  await settled(fixture, change(fixture, 'sleep', `?url=${second}`), SLOWLY_MS);
  t.same(pushed, ['1: null']);
  await settled(fixture, change(fixture, 'wake', `?url=${second}`), SLOWLY_MS);
  t.same(pushed, ['1: null', '1: null'], 'again: events from before may have come in its sleep');
  await fixture.expectIdle(t);
});
