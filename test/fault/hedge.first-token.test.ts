// Promise: a request that waits long for its first token is answered by whichever of two workers is first, once; the other
// call is closed, its reservation comes back, and only so many requests run twice at one time.
import t, { type Test } from 'tap';
import { DONE, type FakeCall, textFrame, usageFrame } from '../fake-engine.js';
import {
  COMPLETIONS,
  FAKE_MODEL,
  type FixtureOptions,
  jsonOf,
  type PlaneFixture,
  type Reply,
  startPlane,
  streamedText,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const HELLO = 9906;
const AFTER_MS = 500;
/** With the period of the sweep. */
const DUE_MS = AFTER_MS + 100;
const ask = { model: FAKE_MODEL, prompt: [87, 88], max_tokens: 8, stream: true, temperature: 0.9, seed: 4 };
const models = { [FAKE_MODEL]: { hedgeAfterMs: AFTER_MS } };
const fakes = [{ contextLength: 4096 }, { contextLength: 4096 }, { contextLength: 4096 }];

const finish = (call: FakeCall): void =>
  call
    .stream()
    .send(textFrame('Hello', [HELLO], 'stop') + usageFrame(2, 1) + DONE)
    .end();
const textOf = (reply: Reply): string =>
  reply.frames.length > 0 ? streamedText(reply) : jsonOf(reply).choices[0].text;

/** The calls of all workers from now on, which wait for the test. */
function collect(fixture: PlaneFixture): FakeCall[] {
  const calls: FakeCall[] = [];
  for (const fake of fixture.fakes) fake.script = call => void calls.push(call);
  return calls;
}

const workerOf = (fixture: PlaneFixture, call: FakeCall): string =>
  fixture.fakes.find(fake => fake.calls.includes(call))!.url;

/** A request that is asked of two workers. */
async function hedged(fixture: PlaneFixture, body: object = ask) {
  const calls = collect(fixture);
  const reply = fixture.post(COMPLETIONS, body);
  await until(() => calls.length === 1, 'the first worker is asked');
  fixture.tick(DUE_MS);
  await until(() => calls.length === 2, 'the second one is asked');
  return { calls, first: calls[0]!, second: calls[1]!, reply };
}

const countOf = (fixture: PlaneFixture, outcome: string): Promise<number> =>
  fixture.metric(`millrace_hedges_total{outcome="${outcome}"}`);

const start = (t: Test, more: FixtureOptions = {}): Promise<PlaneFixture> =>
  startPlane(t, { fakes, models, limits: { breakerFailuresMax: 1000 }, ...more });

for (const tokenizer of [TOKENIZER, null]) {
  for (const stream of [true, false]) {
    t.test(`${tokenizer === null ? 'relayIds' : 'token'}, stream ${stream}`, async t => {
      const fixture = await start(t, { tokenizer });
      const body = { ...ask, stream };

      await fixture.step(t, 'the second worker is first', async t => {
        const { first, second, reply, calls } = await hedged(fixture, body);
        t.not(workerOf(fixture, first), workerOf(fixture, second));
        t.same({ ...first.json, request_id: null }, { ...second.json, request_id: null }, 'the same call');
        finish(second);
        const got = await reply;
        t.equal(textOf(got), 'Hello');
        t.equal(got.headers.get('x-millrace-worker'), workerOf(fixture, second));
        await until(() => first.closed, 'the first call is closed');
        t.equal(calls.length, 2);
        t.equal(await countOf(fixture, 'won'), 1);
        const { decisions } = jsonOf(await fixture.get('/debug/decisions'));
        t.match(decisions, [
          { end: 'completed', ttftMs: Number },
          { end: 'outrun', ttftMs: null },
        ]);
      });

      await fixture.step(t, 'the first worker is first after all', async t => {
        const { first, second, reply } = await hedged(fixture, body);
        finish(first);
        const got = await reply;
        t.equal(textOf(got), 'Hello');
        t.equal(got.headers.get('x-millrace-worker'), workerOf(fixture, first));
        await until(() => second.closed, 'the second call is closed');
        t.equal(await countOf(fixture, 'lost'), 1);
      });

      await fixture.step(t, 'one of them fails, and then the other: it is begun anew', async t => {
        const { first, second, reply, calls } = await hedged(fixture, body);
        first.socket.destroy();
        second.respond(500, 'application/json', '{}');
        await until(() => calls.length === 3, 'the third worker is asked');
        finish(calls[2]!);
        t.equal(textOf(await reply), 'Hello');
        t.equal(await countOf(fixture, 'abandoned'), 1);
      });
    });
  }
}

t.test('who loses, leaves or is not there', async t => {
  const fixture = await start(t, { tokenizer: TOKENIZER });

  for (const [name, lose] of [
    ['breaks', (call: FakeCall): void => void call.socket.destroy()],
    ['finds the request wrong', (call: FakeCall): void => call.respond(400, 'application/json', '{}')],
  ] as const) {
    for (const which of [0, 1]) {
      await fixture.step(t, `worker ${which} ${name}: the other one answers`, async t => {
        const { calls, reply } = await hedged(fixture);
        lose(calls[which]!);
        await until(() => calls[which]!.closed || name !== 'breaks', 'it is gone');
        const held = (): number => fixture.plane.ledger.held();
        await until(() => held() === 1, 'its reservation is back');
        finish(calls[1 - which]!);
        t.equal(streamedText(await reply), 'Hello');
        t.equal(calls.length, 2);
      });
    }
  }

  await fixture.step(t, 'the client leaves: both are closed', async () => {
    const calls = collect(fixture);
    const abort = new AbortController();
    const gone = fetch(fixture.url + COMPLETIONS, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(ask),
      signal: abort.signal,
    }).catch(() => null);
    await until(() => calls.length === 1, 'one is asked');
    fixture.tick(DUE_MS);
    await until(() => calls.length === 2, 'two are asked');
    abort.abort();
    await gone;
    await until(() => calls.every(call => call.closed), 'both hear of it');
  });

  await fixture.step(t, 'a request that names its worker has one', async t => {
    const calls = collect(fixture);
    const [fake] = fixture.fakes;
    const reply = fixture.post(COMPLETIONS, ask, { 'x-millrace-worker': fake!.url });
    await until(() => calls.length === 1, 'it is asked');
    fixture.tick(10 * AFTER_MS);
    finish(calls[0]!);
    t.equal(streamedText(await reply), 'Hello');
    t.equal(calls.length, 1);
  });

  await fixture.step(t, 'a first frame settles it, however long the rest takes', async t => {
    const calls = collect(fixture);
    const open = fixture.open(COMPLETIONS, ask);
    await until(() => calls.length === 1, 'it is asked');
    calls[0]!.stream().send(textFrame('Hel', [HELLO]));
    const reply = await (await open).readUntil(text => text.includes('Hello'));
    fixture.tick(10 * AFTER_MS);
    calls[0]!.send(textFrame('', [], 'stop') + DONE).end();
    t.equal(streamedText(await reply.rest()), 'Hello');
    t.equal(calls.length, 1);
  });
});

t.test('no second worker: the first one is waited for', async t => {
  const fixture = await start(t, { tokenizer: TOKENIZER, fakes: [fakes[0]!] });
  await fixture.step(t, 'one worker', async t => {
    const calls = collect(fixture);
    const reply = fixture.post(COMPLETIONS, ask);
    await until(() => calls.length === 1, 'it is asked');
    fixture.tick(DUE_MS);
    await until(() => fixture.plane.socket.hedges.open === 0, 'there is none');
    fixture.tick(10 * AFTER_MS);
    finish(calls[0]!);
    t.equal(streamedText(await reply), 'Hello');
    t.equal(await countOf(fixture, 'refused'), 1, 'asked for once');
    t.equal(await fixture.metric('millrace_asks_total{reason="hedged"}'), 1);
  });
});

t.test('only a share of the requests runs twice', async t => {
  const fixture = await start(t, { tokenizer: TOKENIZER, limits: { hedgePercentMax: 34 } });
  await fixture.step(t, 'four requests, two places', async t => {
    const calls = collect(fixture);
    const replies = Array.from({ length: 4 }, () => fixture.post(COMPLETIONS, ask));
    await until(() => calls.length === 4, 'all are sent');
    fixture.tick(DUE_MS);
    await until(() => calls.length === 6, 'two of them twice');
    fixture.tick(AFTER_MS);
    t.equal(fixture.plane.socket.hedges.open, 2);
    t.equal(await countOf(fixture, 'capped'), 2, 'each is counted once');
    finish(calls[4]!);
    await until(() => fixture.plane.socket.hedges.open === 1, 'its place is free');
    fixture.tick(100);
    await until(() => calls.length === 7, 'it goes to another one');
    for (const call of calls) if (!call.closed && call !== calls[4]) finish(call);
    for (const reply of replies) t.equal(streamedText(await reply), 'Hello');
  });
});

t.test('off by default; the model’s own value wins', async t => {
  const limits = { hedgeAfterMs: AFTER_MS };
  for (const [own, asks] of [
    [{}, 1],
    [{ [FAKE_MODEL]: { hedgeAfterMs: 0 } }, 0],
  ] as const) {
    const fixture = await start(t, { tokenizer: TOKENIZER, models: own, limits });
    const calls = collect(fixture);
    const reply = fixture.post(COMPLETIONS, ask);
    await until(() => calls.length === 1, 'it is asked');
    fixture.tick(2 * AFTER_MS);
    await until(() => calls.length === 1 + asks, 'as often as is set');
    for (const call of calls) finish(call);
    t.equal(streamedText(await reply), 'Hello');
    t.equal(await fixture.metric('millrace_asks_total{reason="hedged"}'), asks);
    await fixture.expectIdle(t);
  }
  const plain = await start(t, { tokenizer: TOKENIZER, models: {} });
  const calls = collect(plain);
  const reply = plain.post(COMPLETIONS, ask);
  await until(() => calls.length === 1, 'it is asked');
  plain.tick(130_000);
  await until(() => calls.length === 2, 'only its deadline ends the wait');
  finish(calls[1]!);
  t.equal(streamedText(await reply), 'Hello');
  t.equal(await plain.metric('millrace_asks_total{reason="hedged"}'), 0);
  await plain.expectIdle(t);
});
