// Promise: when planning threads die, every request that they touched is asked again or ends with a code, and all load is freed.

import t, { type Test } from 'tap';
import { DONE, type FakeCall, textFrame } from '../fake-engine.js';
import {
  COMPLETIONS,
  errorOf,
  FAKE_MODEL,
  jsonOf,
  type PlaneFixture,
  type Reply,
  startPlane,
  streamedText,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const HELLO = 9906;
const good = (call: FakeCall): void =>
  call
    .stream()
    .send(textFrame('Hello', [HELLO], 'length') + DONE)
    .end();
const ask = { model: FAKE_MODEL, prompt: 'x', max_tokens: 8, stream: true };
/** Long enough to keep a planning thread busy while the test ends it. */
const longAsk = { ...ask, prompt: 'many different words in a row '.repeat(30_000) };
const fakes = [{ contextLength: 10_000_000, script: good }];

const poolLost = (fixture: PlaneFixture): Promise<number> =>
  fixture.metric('millrace_asks_total{reason="pool_lost"}');

/** Kills a thread of the pool and resolves when the plane has seen it. */
async function kill(fixture: PlaneFixture, at: number): Promise<void> {
  const { supervisor } = fixture.plane;
  const { restarts, off } = supervisor.state;
  await supervisor.threads[at]!.terminate();
  await until(() => supervisor.state.restarts + supervisor.state.off > restarts + off, 'the death is seen');
}

function expectServed(t: Test, replies: readonly Reply[]): void {
  for (const reply of replies) t.match([reply.status, streamedText(reply), reply.done], [200, 'Hello', true]);
}

t.test('one of two threads dies while it plans', async t => {
  const fixture = await startPlane(t, { fakes, tokenizer: TOKENIZER, poolThreads: 2 });
  expectServed(t, [await fixture.post(COMPLETIONS, ask)]);
  const { supervisor, socket } = fixture.plane;
  for (const at of [0, 1]) {
    await fixture.step(t, `thread ${at}`, async t => {
      const before = await poolLost(fixture);
      const replies = Array.from({ length: 6 }, (_, i) => fixture.post(COMPLETIONS, i < 4 ? longAsk : ask));
      await until(() => socket.requestsInFlight === 6, 'all are in flight');
      await kill(fixture, at);
      t.equal(fixture.plane.health().status, 'degraded');
      fixture.tick(1000);
      expectServed(t, await Promise.all(replies));
      t.ok((await poolLost(fixture)) > before, 'some were asked again');
      await until(() => supervisor.state.running === 2, 'the thread is replaced');
      t.equal(fixture.plane.health().status, 'ok');
      fixture.tick(11_000);
    });
  }
  t.equal(supervisor.state.restarts, 2);
  t.equal(await fixture.metric('millrace_pool_thread_restarts_total'), 2);
});

t.test('the only thread dies: asks wait for its successor', async t => {
  const fixture = await startPlane(t, { fakes, tokenizer: TOKENIZER });
  const { supervisor, socket } = fixture.plane;
  const touched = fixture.post(COMPLETIONS, longAsk);
  await until(() => socket.requestsInFlight === 1, 'it is in flight');
  await kill(fixture, 0);
  const late = fixture.post(COMPLETIONS, ask);
  await until(() => socket.parkedAsks === 2, 'both wait');
  fixture.tick(10);
  expectServed(t, await Promise.all([touched, late]));
  t.equal(supervisor.state.running, 1);
  await fixture.expectIdle(t);
});

t.test('a request that waits for a thread in vain ends at its deadline', async t => {
  const fixture = await startPlane(t, { fakes, limits: { askDeadlineMs: 100, poolRestartsMax: 3 } });
  const { socket } = fixture.plane;
  await kill(fixture, 0);
  fixture.tick(10);
  await until(() => fixture.plane.supervisor.state.running === 1, 'it runs again');
  await kill(fixture, 0);
  // The next one comes up after 40 ms, but the request has only this moment.
  const client = new AbortController();
  const body = JSON.stringify(ask);
  const init = {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body,
    signal: client.signal,
  };
  const left = fetch(fixture.url + COMPLETIONS, init);
  await until(() => socket.parkedAsks === 1, 'it waits');
  client.abort();
  await t.rejects(left);
  await until(() => socket.requestsInFlight === 0, 'it has ended');
  await fixture.expectIdle(t);
});

t.test('a thread that keeps dying is switched off', async t => {
  const fixture = await startPlane(t, { fakes, poolThreads: 2, limits: { poolRestartsMax: 2 } });
  const { supervisor, socket } = fixture.plane;
  const running = (count: number): Promise<void> =>
    until(() => supervisor.state.running === count, `${count} run`);
  await running(2);
  // A dead thread's place in the list goes to its successor, so the first of the list is always of one slot or the other.
  while (supervisor.state.off === 0) {
    await kill(fixture, 0);
    fixture.tick(1000);
    if (supervisor.state.off === 0) await running(2);
  }
  t.match(fixture.plane.health(), { status: 'degraded', poolThreads: { off: 1 } });
  t.equal((await fixture.get('/health')).status, 200);
  await until(() => supervisor.state.running === 1, 'the other one runs');
  expectServed(t, [await fixture.post(COMPLETIONS, ask)]);
  while (supervisor.state.off === 1) {
    const survivor = supervisor.threads.length - 1;
    for (let at = survivor; at >= 0; at--) await supervisor.threads[at]!.terminate();
    await until(() => supervisor.state.running === 0, 'it is dead');
    if (supervisor.state.off === 2) break;
    const parked = fixture.post(COMPLETIONS, ask);
    await until(() => socket.parkedAsks === 1, 'it waits');
    fixture.tick(1000);
    expectServed(t, [await parked]);
  }
  t.match(jsonOf(await fixture.get('/health')), {
    status: 'unavailable',
    poolThreads: { running: 0, off: 2 },
  });
  t.equal((await fixture.get('/health')).status, 503);
  t.match(errorOf(await fixture.post(COMPLETIONS, ask)), { status: 503, code: 'MILLRACE_POOL_LOST' });
  t.ok(fixture.log.some(line => line.includes('stays off')));
  await fixture.expectIdle(t);
});

t.test('a request that kills the threads that plan it does not do so for ever', async t => {
  const limits = { poolHeapBytesMax: 64 << 20, bodyBytesMax: 64 << 20, ringQueueBytesMax: 256 << 20 };
  const fixture = await startPlane(t, { fakes, tokenizer: TOKENIZER, poolThreads: 2, limits });
  const { supervisor } = fixture.plane;
  const poison = `{"model":"${FAKE_MODEL}","prompt":[${'1.5,'.repeat(12_000_000)}1]}`;
  const reply = fixture.post(COMPLETIONS, poison);
  await until(() => supervisor.state.restarts === 1, 'the first thread is dead');
  await until(() => supervisor.state.restarts === 2, 'the second thread is dead');
  t.match(errorOf(await reply), { status: 503, code: 'MILLRACE_POOL_LOST' });
  t.equal(await poolLost(fixture), 1);
  fixture.tick(1000);
  await until(() => supervisor.state.running === 2, 'both are replaced');
  expectServed(t, [await fixture.post(COMPLETIONS, ask)]);
  await fixture.expectIdle(t);
});

t.test('a plan that is larger than its ring takes is refused, and the thread lives', async t => {
  const limits = { ringQueueBytesMax: 1 << 20, ringBytes: 64 << 10 };
  const fixture = await startPlane(t, { fakes, tokenizer: TOKENIZER, limits });
  // One token of two bytes is four bytes of id and two to six bytes of JSON in the plan.
  const reply = await fixture.post(COMPLETIONS, { ...ask, prompt: ' a'.repeat(400_000) });
  t.match(errorOf(reply), { status: 413, code: 'MILLRACE_BODY_TOO_LARGE', message: /ringQueueBytesMax/ });
  t.equal(fixture.plane.supervisor.state.restarts, 0);
  await fixture.expectIdle(t);
  expectServed(t, [await fixture.post(COMPLETIONS, ask)]);
  await fixture.expectIdle(t);
});
