// Promise: when planning threads die, every request that they touched is asked again or ends with a code, and all load is freed.

import t, { type Test } from 'tap';
import { loadConfig } from '#millrace/config.js';
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

t.test('a request that waits for a thread ends with its client, or at its deadline', async t => {
  const fixture = await startPlane(t, { fakes, limits: { askDeadlineMs: 200, poolRestartsMax: 10 } });
  const { socket, supervisor } = fixture.plane;
  // The wait before a restart grows with each death: 10, 40, 160 and then 640 ms.
  for (let death = 1; death <= 3; death++) {
    await kill(fixture, 0);
    fixture.tick(160);
    t.equal(supervisor.state.running, 1);
  }
  await kill(fixture, 0);
  const late = fixture.post(COMPLETIONS, ask);
  const leave = new AbortController();
  const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(ask) };
  const left = t.rejects(fetch(fixture.url + COMPLETIONS, { ...init, signal: leave.signal }));
  await until(() => socket.parkedAsks === 2, 'both wait');
  leave.abort();
  await left;
  await until(() => socket.parkedAsks === 1, 'one has left');
  fixture.tick(300);
  t.match(errorOf(await late), { status: 504, code: 'MILLRACE_DEADLINE_EXCEEDED' });
  await fixture.expectIdle(t);
});

t.test('a thread that keeps dying is switched off', async t => {
  const fixture = await startPlane(t, { fakes, poolThreads: 2, limits: { poolRestartsMax: 2 } });
  const { supervisor, socket } = fixture.plane;
  await kill(fixture, 0);
  t.match(fixture.plane.health(), { status: 'degraded', poolThreads: { running: 1, off: 0 } });
  fixture.tick(1000);
  t.equal(supervisor.state.running, 2);
  // The successor is the newest in the list; it is still starting, which must make no difference.
  await kill(fixture, 1);
  t.match(fixture.plane.health(), { status: 'degraded', poolThreads: { running: 1, off: 1 } });
  t.equal((await fixture.get('/health')).status, 200);
  expectServed(t, [await fixture.post(COMPLETIONS, ask)]);

  await kill(fixture, 0);
  const parked = fixture.post(COMPLETIONS, ask);
  await until(() => socket.parkedAsks === 1, 'it waits');
  fixture.tick(1000);
  await kill(fixture, 0);
  t.match(errorOf(await parked), { status: 503, code: 'MILLRACE_POOL_LOST' });
  t.match(jsonOf(await fixture.get('/health')), {
    status: 'unavailable',
    poolThreads: { running: 0, off: 2 },
  });
  t.equal((await fixture.get('/health')).status, 503);
  t.match(errorOf(await fixture.post(COMPLETIONS, ask)), { status: 503, code: 'MILLRACE_POOL_LOST' });
  t.ok(fixture.log.some(line => line.includes('stays off')));
  await fixture.expectIdle(t);
});

t.test('a request that loses two threads is not asked a third time', async t => {
  const fixture = await startPlane(t, { fakes, tokenizer: TOKENIZER });
  const { socket } = fixture.plane;
  const reply = fixture.post(COMPLETIONS, longAsk);
  await until(() => socket.requestsInFlight === 1, 'it is asked');
  await kill(fixture, 0);
  t.equal(socket.parkedAsks, 1);
  fixture.tick(1000);
  t.equal(socket.parkedAsks, 0, 'it is asked again');
  await kill(fixture, 0);
  t.match(errorOf(await reply), { status: 503, code: 'MILLRACE_POOL_LOST' });
  t.equal(await poolLost(fixture), 1);
  fixture.tick(1000);
  expectServed(t, [await fixture.post(COMPLETIONS, ask)]);
  await fixture.expectIdle(t);
});

t.test('a plan that is larger than its ring takes is refused, and the thread lives', async t => {
  const limits = { ringQueueBytesMax: 1 << 20, ringBytes: 64 << 10, bodyBytesMax: 900_000 };
  const fixture = await startPlane(t, { fakes, tokenizer: TOKENIZER, limits });
  // One token of two bytes is four bytes of id and two to six bytes of JSON in the plan.
  const reply = await fixture.post(COMPLETIONS, { ...ask, prompt: ' a'.repeat(400_000) });
  t.match(errorOf(reply), { status: 413, code: 'MILLRACE_BODY_TOO_LARGE', message: /ringQueueBytesMax/ });
  t.equal(fixture.plane.supervisor.state.restarts, 0);
  await fixture.expectIdle(t);
  expectServed(t, [await fixture.post(COMPLETIONS, ask)]);
  await fixture.expectIdle(t);
});

t.test('limits that would let one body end a thread or never fit are refused', async t => {
  const load = (limits: object) => loadConfig({ policies: [], tokenizers: [] }, { options: { limits } });
  t.throws(() => load({ bodyBytesMax: 64 << 20 }), /poolHeapBytesMax .* 32 × bodyBytesMax/);
  t.throws(() => load({ ringQueueBytesMax: 1 << 20 }), /ringQueueBytesMax .* bodyBytesMax/);
  t.ok(load({ bodyBytesMax: 32 << 20 }));
});
