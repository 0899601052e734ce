// Promise: when a worker is found dead, answers that have had nothing of it since go on at another one at once; whatever still
// comes, or cannot go on elsewhere, is left alone.
import t, { type Test } from 'tap';
import { DONE, type FakeCall, type FakeEngine, textFrame, usageFrame } from '../fake-engine.js';
import {
  COMPLETIONS,
  FAKE_MODEL,
  type FixtureOptions,
  jsonOf,
  type PlaneFixture,
  startPlane,
  streamedText,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const HELLO = 9906;
const WORLD = 1917;
const ask = { model: FAKE_MODEL, prompt: [87, 88], max_tokens: 8, stream: true };
/** A tick of the clock between which probes and canaries get their answers. */
const STEP_MS = 250;
const CANARY_AFTER_MS = 10_000;
const CANARY_DEADLINE_MS = 500;
// Health checks would be late where so much time passes at once.
const canaries = {
  probePeriodMs: 60_000,
  canaryAfterMs: CANARY_AFTER_MS,
  canaryDeadlineMs: CANARY_DEADLINE_MS,
};
const limits = { probePeriodMs: 500, breakerFailuresMax: 1000 };

/** Worker 0 gets the first request of a test. */
const start = (t: Test, more: FixtureOptions = {}): Promise<PlaneFixture> =>
  startPlane(t, {
    fakes: [{ contextLength: 4096 }, { contextLength: 4096 }],
    tokenizer: TOKENIZER,
    ...more,
    limits: { ...limits, ...more.limits },
  });

const firstFrame = (text: string, ids: readonly number[]): string =>
  textFrame(text, ids).replace('"index":0', '"index":0,"prompt_token_ids":[87,88]');
const begin = (call: FakeCall): void => void call.stream().send(firstFrame('Hello', [HELLO]));
const finish = (call: FakeCall): void =>
  call
    .stream()
    .send(textFrame(' world', [WORLD], 'stop') + usageFrame(2, 1) + DONE)
    .end();
const isCanary = (call: FakeCall): boolean => call.json.max_tokens === 1;
const asked = (fake: FakeEngine): FakeCall[] => fake.calls.filter(call => !isCanary(call));

/** Which of the fakes has the call. */
const holderOf = (fixture: PlaneFixture, call: FakeCall): number =>
  fixture.fakes.findIndex(fake => fake.calls.includes(call));
const stateOf = (fixture: PlaneFixture, worker: number): string => fixture.plane.workers[worker]!.state;

/** Ticks until a worker is out; at most as long as three checks or canaries may take. */
async function awaitOut(fixture: PlaneFixture, worker: number, each = (): void => {}): Promise<void> {
  await until(() => {
    fixture.tick(STEP_MS);
    each();
    return stateOf(fixture, worker) === 'unavailable';
  }, 'the worker is out');
  fixture.tick(STEP_MS);
}

async function awaitBack(fixture: PlaneFixture, worker: number): Promise<void> {
  fixture.fakes[worker]!.health = 200;
  await until(() => {
    fixture.tick(STEP_MS);
    return stateOf(fixture, worker) === 'ready';
  }, 'the worker is back');
}

/** The first call of a step, which begins as the test wants, and every other one, which finishes. */
function script(fixture: PlaneFixture, first: (call: FakeCall) => void): FakeCall[] {
  const calls: FakeCall[] = [];
  for (const fake of fixture.fakes)
    fake.script = call => {
      calls.push(call);
      (calls.length === 1 ? first : finish)(call);
    };
  return calls;
}

const movedBy = (fixture: PlaneFixture, cause: string): Promise<number> =>
  fixture.metric(`millrace_migrations_total{cause="${cause}",outcome="continued"}`);

for (const tokenizer of [TOKENIZER, null]) {
  t.test(`${tokenizer === null ? 'relayIds' : 'token'}: a health route that fails`, async t => {
    const fixture = await start(t, { tokenizer });

    await fixture.step(t, 'a silent stream moves', async t => {
      const calls = script(fixture, begin);
      const open = await fixture.open(COMPLETIONS, { ...ask, stream_options: { include_usage: true } });
      await open.readUntil(text => text.includes('Hello'));
      const dead = holderOf(fixture, calls[0]!);
      fixture.fakes[dead]!.health = 503;
      await awaitOut(fixture, dead);
      const reply = await open.rest();
      t.equal(streamedText(reply), 'Hello world');
      t.match(reply.frames.at(-1), { usage: { prompt_tokens: 2, completion_tokens: 2 } });
      t.same(calls[1]!.json.prompt, [87, 88, HELLO]);
      t.ok(calls[0]!.closed, 'the first worker hears of it');
      t.equal(await movedBy(fixture, 'health'), 1);
      await awaitBack(fixture, dead);
    });

    await fixture.step(t, 'a stream that still gets tokens stays', async t => {
      const calls = script(fixture, begin);
      const open = await fixture.open(COMPLETIONS, { ...ask, max_tokens: 4000 });
      await open.readUntil(text => text.includes('Hello'));
      const dead = holderOf(fixture, calls[0]!);
      fixture.fakes[dead]!.health = 503;
      let sent = 0;
      await awaitOut(fixture, dead, () => {
        calls[0]!.send(textFrame('Hello', [HELLO]));
        sent += 1;
      });
      await open.readUntil(text => text.split('Hello').length - 2 === sent);
      fixture.tick(STEP_MS);
      calls[0]!.send(textFrame(' world', [WORLD], 'stop') + DONE).end();
      t.equal(streamedText(await open.rest()), `Hello${'Hello'.repeat(sent)} world`);
      t.equal(calls.length, 1);
      await awaitBack(fixture, dead);
    });

    await fixture.step(t, 'a request without a token begins anew, stream or not', async t => {
      for (const stream of [true, false]) {
        const calls = script(fixture, () => {});
        const reply = fixture.post(COMPLETIONS, { ...ask, stream });
        await until(() => calls.length === 1, 'a worker is asked');
        const dead = holderOf(fixture, calls[0]!);
        fixture.fakes[dead]!.health = 503;
        await awaitOut(fixture, dead);
        const got = await reply;
        t.equal(stream ? streamedText(got) : jsonOf(got).choices[0].text, ' world');
        t.not(holderOf(fixture, calls[1]!), dead);
        await awaitBack(fixture, dead);
      }
      t.equal(await movedBy(fixture, 'health'), 1, 'nothing has migrated');
    });

    await fixture.step(t, 'what cannot go on waits for its own deadline', async t => {
      const calls = script(fixture, begin);
      const open = await fixture.open(COMPLETIONS, { ...ask, response_format: { type: 'json_object' } });
      await open.readUntil(text => text.includes('Hello'));
      const dead = holderOf(fixture, calls[0]!);
      fixture.fakes[dead]!.health = 503;
      await awaitOut(fixture, dead);
      calls[0]!.send(textFrame(' world', [WORLD], 'stop') + DONE).end();
      t.equal(streamedText(await open.rest()), 'Hello world');
      t.equal(calls.length, 1);
      await awaitBack(fixture, dead);
    });
  });
}

t.test('a scheduler that hangs behind a healthy route: canaries tell', async t => {
  const fixture = await start(t, { limits: canaries });
  await fixture.step(t, 'a silent stream moves', async t => {
    const calls: FakeCall[] = [];
    let wedged: FakeEngine | null = null;
    for (const fake of fixture.fakes) {
      fake.script = call => {
        if (isCanary(call)) {
          if (fake !== wedged) call.respond(200, 'application/json', '{}');
          return;
        }
        calls.push(call);
        if (calls.length > 1) finish(call);
        else {
          wedged = fake;
          begin(call);
        }
      };
    }
    const open = await fixture.open(COMPLETIONS, ask);
    await open.readUntil(text => text.includes('Hello'));
    const dead = holderOf(fixture, calls[0]!);
    const canariesOf = (worker: number): number => fixture.fakes[worker]!.calls.filter(isCanary).length;
    fixture.tick(CANARY_AFTER_MS);
    await until(
      () => fixture.plane.workerReports[1 - dead]!.canaries.answered === 1,
      'the other one answers',
    );
    // Its token was seen a quarter later.
    fixture.tick(CANARY_AFTER_MS / 4);
    for (let round = 1; round <= 3; round++) {
      await until(() => {
        fixture.tick(0);
        return canariesOf(dead) === round;
      }, 'it gets a canary');
      fixture.tick(CANARY_DEADLINE_MS);
    }
    await until(() => stateOf(fixture, dead) === 'unavailable', 'it is out');
    fixture.tick(STEP_MS);
    t.equal(streamedText(await open.rest()), 'Hello world');
    t.equal(await movedBy(fixture, 'canary'), 1);
  });
});

t.test('no other worker: the stream stays, and goes on when the stall is over', async t => {
  const fixture = await start(t, { fakes: [{ contextLength: 4096 }] });
  await fixture.step(t, 'one worker', async t => {
    const calls = script(fixture, begin);
    const open = await fixture.open(COMPLETIONS, ask);
    await open.readUntil(text => text.includes('Hello'));
    fixture.fakes[0]!.health = 503;
    await awaitOut(fixture, 0);
    const asks = 'millrace_asks_total{reason="migrated"}';
    t.equal(await fixture.metric(asks), 1, 'another worker was asked for, once');
    await awaitBack(fixture, 0);
    calls[0]!.send(textFrame(' world', [WORLD], 'stop') + DONE).end();
    t.equal(streamedText(await open.rest()), 'Hello world');
    t.equal(await fixture.metric(asks), 1);
    t.equal(calls.length, 1);
  });
});

t.test('relay: a whole answer that is waited for', async t => {
  const old = { version: '0.10.0' };
  const fixture = await start(t, { fakes: [old, old], tokenizer: null });
  await fixture.step(t, 'it is asked for elsewhere', async t => {
    const calls: FakeCall[] = [];
    for (const fake of fixture.fakes)
      fake.script = call => {
        calls.push(call);
        if (calls.length > 1) call.respond(200, 'application/json', '{"choices":[]}');
      };
    const reply = fixture.post(COMPLETIONS, { ...ask, stream: false });
    await until(() => calls.length === 1, 'a worker is asked');
    const dead = holderOf(fixture, calls[0]!);
    fixture.fakes[dead]!.health = 503;
    await awaitOut(fixture, dead);
    t.equal((await reply).text, '{"choices":[]}');
  });
});

t.test('a prefill worker: decode computes the prompt at once', async t => {
  const fixture = await start(t, {
    fakes: [{ version: '0.10.0' }, { version: '0.10.0' }],
    tokenizer: null,
    roles: ['prefill', 'decode'],
    models: { [FAKE_MODEL]: { disaggregation: { policy: 'always' } } },
  });
  const [prefill, decode] = fixture.fakes as [FakeEngine, FakeEngine];
  await fixture.step(t, 'it hangs', async t => {
    prefill.script = () => {};
    decode.script = finish;
    const reply = fixture.post(COMPLETIONS, ask);
    await until(() => prefill.calls.length === 1, 'it is asked');
    prefill.health = 503;
    await awaitOut(fixture, 0);
    t.equal(streamedText(await reply), ' world');
    t.notOk('kv_transfer_params' in asked(decode)[0]!.json);
    t.ok(prefill.calls[0]!.closed);
  });
});
