/** Promise: workers come and go while the plane serves; streams of one that leaves end whole, and no request is lost to it. */
import t, { type Test } from 'tap';
import { encodeGenerate } from '#millrace/plane/embed/generate-request.js';
import { GeneratePort } from '#millrace/plane/generate-port.js';
import { plainWorker } from '#millrace/worker-config.js';
import { DONE, type FakeCall, FakeEngine, textFrame, usageFrame } from '../fake-engine.js';
import {
  COMPLETIONS,
  FAKE_MODEL,
  jsonOf,
  type PlaneFixture,
  SERVERS,
  startPlane,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const TOKEN = 'not-to-be-guessed-0123';
const HELLO = 9906;
const ask = { model: FAKE_MODEL, prompt: 'x', max_tokens: 8 };
const good = (call: FakeCall): void => {
  call
    .stream()
    .send(textFrame('Hello', [HELLO], 'length') + usageFrame(1, 1) + DONE)
    .end();
};
const stateOf = (fixture: PlaneFixture, url: string): string | undefined =>
  fixture.plane.workers.find(worker => worker.url === url)?.state;
const isReady = (fixture: PlaneFixture, url: string) =>
  until(() => stateOf(fixture, url) === 'ready', `${url} is ready`);

async function extra(t: Test): Promise<FakeEngine> {
  const engine = await FakeEngine.start({ script: good });
  t.teardown(() => engine.close());
  return engine;
}

t.test('add, drain and remove', async t => {
  const fixture = await startPlane(t, { fakes: [{ script: good }], tokenizer: TOKENIZER });
  const { plane } = fixture;
  const first = fixture.fakes[0]!;
  const second = await extra(t);
  plane.addWorker(second.url);
  t.equal(stateOf(fixture, second.url), 'probing');
  await isReady(fixture, second.url);
  t.throws(() => plane.addWorker({ url: second.url }), { code: 'MILLRACE_CONFIG', message: /there already/ });
  t.throws(() => plane.addWorker({ url: 'ftp://x' }), { code: 'MILLRACE_CONFIG' });
  t.throws(() => plane.addWorker({ url: 'http://y:1', engine: 'llama' }), {
    message: /engine of worker http:\/\/y:1 is "llama"; allowed: auto, vllm/,
  });
  t.ok(plane.drainWorker(first.url));
  for (let request = 0; request < 4; request++)
    t.equal((await fixture.post(COMPLETIONS, ask)).headers.get('x-millrace-worker'), second.url);
  t.equal(stateOf(fixture, first.url), 'draining');
  t.ok(plane.removeWorker(first.url));
  t.notOk(plane.removeWorker(first.url), 'once');
  t.notOk(plane.drainWorker(first.url));
  t.equal((await fixture.post(COMPLETIONS, ask)).status, 200);
  plane.removeWorker(second.url);
  t.equal((await fixture.post(COMPLETIONS, ask)).status, 503, 'nobody is left');
  await fixture.expectIdle(t);
});

t.test('one that retires ends its streams and leaves; it may come back', async t => {
  const fixture = await startPlane(t, { fakes: [{}, { script: good }], policy: 'least-requests' });
  const { plane } = fixture;
  const [leaver, stayer] = fixture.fakes as [FakeEngine, FakeEngine];
  leaver.script = call => void call.stream().send(textFrame('Hel'));
  const pinned = { 'x-millrace-worker': leaver.url };
  const open = await fixture.open(COMPLETIONS, { ...ask, stream: true }, pinned);
  await open.readUntil(text => text.includes('Hel'));
  t.ok(plane.retireWorker(leaver.url));
  t.ok(plane.retireWorker(leaver.url), 'again is the same');
  fixture.tick(5000);
  t.equal(stateOf(fixture, leaver.url), 'draining', 'as long as a stream runs');
  t.equal((await fixture.post(COMPLETIONS, ask)).headers.get('x-millrace-worker'), stayer.url);
  leaver.calls[0]!.send(textFrame('lo', [], 'length') + DONE).end();
  const reply = await open.rest();
  t.ok(reply.done);
  await until(() => {
    fixture.tick(200);
    return stateOf(fixture, leaver.url) === undefined;
  }, 'it has left');
  plane.addWorker(leaver.url);
  await isReady(fixture, leaver.url);
  plane.retireWorker(leaver.url);
  plane.addWorker(leaver.url);
  await isReady(fixture, leaver.url);
  leaver.script = call => void call.stream().send(textFrame('Hel'));
  const cut = await fixture.open(COMPLETIONS, { ...ask, stream: true }, pinned);
  await cut.readUntil(text => text.includes('Hel'));
  plane.retireWorker(leaver.url);
  fixture.tick(30_200);
  t.equal(stateOf(fixture, leaver.url), undefined, 'it does not wait for ever');
  leaver.calls
    .at(-1)!
    .send(textFrame('lo', [], 'length') + DONE)
    .end();
  t.ok((await cut.rest()).done, 'and still nothing is cut');
  await fixture.expectIdle(t);
});

t.test('a worker that leaves between the plan and its adoption: the request is planned again', async t => {
  // Without work the first of two equal workers is chosen; the other one has a request already.
  const fixture = await startPlane(t, { fakes: [{}, {}], policy: 'least-requests', tokenizer: TOKENIZER });
  const { plane, fakes } = fixture;
  const [chosen, other] = fakes as [FakeEngine, FakeEngine];
  other.script = call => void call.stream().send(textFrame('Hel', [1]));
  const busy = await fixture.open(COMPLETIONS, { ...ask, stream: true }, { 'x-millrace-worker': other.url });
  await busy.readUntil(text => text.includes('data:'));
  other.script = good;
  const slot = plane.workerReports.findIndex(({ url }) => url === chosen.url);
  const generation = plane.loadTable.snapshot(slot)!.generation;
  const encoded = encodeGenerate({ model: FAKE_MODEL, prompt: 'x', maxTokens: 8 });
  const port = new GeneratePort(encoded, null, plane.guard, begun => plane.socket.accept(encoded.api, begun));
  const first = port.next();
  // The pool thread answers while this one, which would take the PLAN, does not turn.
  const endMs = performance.now() + 15_000;
  while (plane.loadTable.readRequests(slot, generation) === 0 && performance.now() < endMs);
  t.equal(plane.loadTable.readRequests(slot, generation), 1, 'it was planned for the worker');
  plane.removeWorker(chosen.url);
  t.match(await first, { done: false, value: { text: 'Hello' } });
  for await (const _ of port);
  t.equal(chosen.calls.length, 0, 'the worker that left saw nothing of it');
  t.equal(other.calls.length, 2);
  t.equal(await fixture.metric('millrace_asks_total{reason="worker_failed"}'), 1);
  busy.leave();
  await fixture.expectIdle(t);
});

t.test('a whole list: new ones come, missing ones retire, a wrong list changes nothing', async t => {
  const fixture = await startPlane(t, {
    fakes: [{ script: good }, { script: good }],
    limits: { workersMax: 3 },
  });
  const { plane } = fixture;
  const [stayer, leaver] = fixture.fakes as [FakeEngine, FakeEngine];
  const third = await extra(t);
  const worker = (url: string, kvEvents: string | null = 'auto') => plainWorker({ url, kvEvents });
  const four = [stayer.url, third.url, 'http://y:1', 'http://z:1'].map(url => worker(url));
  t.throws(() => plane.setWorkers(four), { message: /more than 3 workers/ });
  const twice = [worker(third.url, 'tcp://h:1'), worker('http://y:1', 'tcp://h:1')];
  t.throws(() => plane.setWorkers(twice), { message: /would both publish/ });
  t.equal(plane.workers.length, 2, 'nothing has changed');
  const said = plane.setWorkers([worker(stayer.url, null), worker(third.url)]);
  t.same(said, { added: [third.url], leaving: [leaver.url], differing: [stayer.url] });
  await isReady(fixture, third.url);
  await until(() => {
    fixture.tick(200);
    return plane.workers.length === 2;
  }, 'the one that left is gone');
  await fixture.expectIdle(t);
});

for (const server of SERVERS) {
  t.test(`/admin/workers, ${server}`, async t => {
    const fixture = await startPlane(t, { fakes: [{ script: good }], server, adminToken: TOKEN });
    const path = '/admin/workers';
    const call = (method: string, query = '', init: RequestInit = {}, token = TOKEN) =>
      fixture.get(path + query, method, { headers: { authorization: `Bearer ${token}` }, ...init });
    for (const token of ['', 'wrong', `${TOKEN}x`, TOKEN.slice(1)])
      t.equal((await call('GET', '', {}, token)).status, 404, 'without the token there is no such route');
    t.equal((await fixture.get(path)).status, 404);
    const [url] = fixture.fakes.map(fake => fake.url);
    t.match(jsonOf(await call('GET')).workers, [
      {
        url,
        state: 'ready',
        engine: 'vllm',
        models: [FAKE_MODEL],
        load: { requests: 0 },
        events: null,
        failures: { unreachable: 0 },
        canaries: { late: 0 },
      },
    ]);
    const second = await extra(t);
    const body = JSON.stringify({ url: second.url, engine: 'vllm' });
    t.equal((await call('POST', '', { body })).status, 201);
    await isReady(fixture, second.url);
    t.match(jsonOf(await call('POST', '', { body })), { error: { message: /there already/ } });
    for (const [wrong, code] of [
      ['{', 'MILLRACE_INVALID_JSON'],
      ['"http://a:1"', 'MILLRACE_INVALID_REQUEST'],
      ['{"url":"http://a:1","rank":1}', 'MILLRACE_INVALID_REQUEST'],
      [' '.repeat(70_000), 'MILLRACE_BODY_TOO_LARGE'],
    ] as const)
      t.equal(jsonOf(await call('POST', '', { body: wrong })).error.code, code);
    for (const query of ['', '?url=', `?url=${url}&drain=1`, `?url=${url}&force=true`])
      t.equal((await call('DELETE', query)).status, 400, query);
    t.equal((await call('DELETE', '?url=http://nobody:1')).status, 404);
    t.equal((await call('PUT')).status, 405);
    t.equal((await call('DELETE', `?url=${url}/&drain=true`)).status, 202);
    await until(() => {
      fixture.tick(200);
      return stateOf(fixture, url!) === undefined;
    }, 'it has left');
    t.equal((await call('DELETE', `?url=${second.url}`)).status, 200);
    t.same(jsonOf(await call('GET')).workers, []);
    t.notOk(fixture.log.join().includes(TOKEN), 'the token is in no log');
  });
}

t.test('without a token the route is not there', async t => {
  const fixture = await startPlane(t, { fakes: [{ script: good }] });
  const headers = { authorization: 'Bearer ' };
  t.equal((await fixture.get('/admin/workers', 'GET', { headers })).status, 404);
});
