// Promise: what an engine gets and what a client gets are exactly what their protocols and the request's fields say.

import t, { type Test } from 'tap';
import { DONE, type FakeCall, textFrame, usageFrame } from '../fake-engine.js';
import {
  CHAT,
  COMPLETIONS,
  errorOf,
  FAKE_MODEL,
  jsonOf,
  type PlaneFixture,
  SERVERS,
  startPlane,
  streamedText,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const HELLO = 9906;
const WORLD = 1917;
const ask = { model: FAKE_MODEL, prompt: 'x', max_tokens: 8 };
const good = (call: FakeCall): void => {
  call.stream().send(textFrame('Hello', [HELLO]) + textFrame(' world', [WORLD], 'length'));
  call.send(usageFrame(1, 2) + DONE).end();
};

t.test('token mode', async t => {
  const fixture = await startPlane(t, { fakes: [{ script: good }], tokenizer: TOKENIZER });
  const fake = fixture.fakes[0]!;
  const last = (): FakeCall => fake.calls.at(-1)!;

  await fixture.step(t, 'what the engine gets', async t => {
    const body = {
      ...ask,
      stop: ['zzz'],
      temperature: 0.5,
      top_k: 7,
      my_field: { a: [1, null] },
      user: 'me',
    };
    t.equal(
      (
        await fixture.post(COMPLETIONS, JSON.stringify(body).replace('{', '{"__proto__":{"polluted":1},'), {
          'x-request-id': 'abc',
        })
      ).status,
      200,
    );
    const { json, path, head } = last();
    t.equal(path, COMPLETIONS);
    t.match(head, /x-request-id: abc/i);
    t.match(json, {
      model: FAKE_MODEL,
      prompt: [87],
      stream: true,
      return_token_ids: true,
      temperature: 0.5,
      top_k: 7,
      my_field: { a: [1, null] },
      user: 'me',
    });
    t.notOk('stop' in json, 'stop strings are matched here');
    t.match(last().body, /"__proto__":\{"polluted":1\}/, 'passed on as any other field');
    t.equal(({} as { polluted?: number }).polluted, undefined);
  });
  await fixture.step(t, 'a stop string across two tokens ends the engine request', async t => {
    fake.script = call => call.stream().send(textFrame('Hello', [HELLO]) + textFrame(' world', [WORLD]));
    for (const stream of [true, false]) {
      const reply = await fixture.post(COMPLETIONS, { ...ask, stream, stop: 'lo wo' });
      t.equal(stream ? streamedText(reply) : jsonOf(reply).choices[0].text, 'Hel');
      t.equal(
        stream ? reply.frames.at(-1).choices[0].finish_reason : jsonOf(reply).choices[0].finish_reason,
        'stop',
      );
      await until(() => last().closed, 'the engine is told');
    }
    fake.script = good;
  });
  await fixture.step(t, 'usage', async t => {
    const usage = { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 };
    t.notMatch((await fixture.post(COMPLETIONS, { ...ask, stream: true })).text, 'usage');
    const asked = await fixture.post(COMPLETIONS, {
      ...ask,
      stream: true,
      stream_options: { include_usage: true },
    });
    t.match(asked.frames.at(-1), { choices: { length: 0 }, usage });
    t.equal(asked.frames.filter(frame => frame.usage !== null).length, 1);
    const continuous = await fixture.post(COMPLETIONS, {
      ...ask,
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    });
    t.ok(
      continuous.frames.every(frame => frame.usage?.prompt_tokens === 1),
      'on every frame',
    );
    t.match(jsonOf(await fixture.post(COMPLETIONS, ask)), { object: 'text_completion', usage });
    t.match(
      jsonOf(await fixture.post(CHAT, { model: FAKE_MODEL, messages: [{ role: 'user', content: 'x' }] })),
      {
        object: 'chat.completion',
        choices: [{ message: { role: 'assistant', content: 'Hello world' }, finish_reason: 'length' }],
      },
    );
  });
  await fixture.step(t, 'two choices', async t => {
    fake.script = call => {
      const frame = (index: number, ids: number[], finish: string | null): string =>
        textFrame('', ids, finish).replace('"index":0', `"index":${index}`);
      call
        .stream()
        .send(
          frame(1, [WORLD], null) +
            frame(0, [HELLO], 'length') +
            frame(1, [HELLO], 'length') +
            usageFrame(1, 3) +
            DONE,
        )
        .end();
    };
    const reply = await fixture.post(COMPLETIONS, { ...ask, n: 2, stream: true });
    t.same([streamedText(reply, 0), streamedText(reply, 1)], ['Hello', ' worldHello']);
    const whole = jsonOf(await fixture.post(COMPLETIONS, { ...ask, n: 2 }));
    t.same(
      whole.choices.map((choice: { text: string }) => choice.text),
      ['Hello', ' worldHello'],
    );
    t.equal(last().json.n, 2);
  });
  await fixture.step(t, "the client's request id comes back, on answers, streams and errors", async t => {
    const id = { 'x-request-id': 'trace-me' };
    for (const body of [ask, { ...ask, stream: true }, { ...ask, n: -1 }]) {
      const reply = await fixture.post(COMPLETIONS, body, id);
      t.equal(reply.headers.get('x-request-id'), 'trace-me');
    }
    t.equal((await fixture.post(COMPLETIONS, ask)).headers.get('x-request-id'), null);
  });
  await fixture.step(t, 'a field that only an engine can serve makes a relay', async t => {
    fake.script = call => call.respond(200, 'application/json', '{"relayed":true}');
    t.same(jsonOf(await fixture.post(COMPLETIONS, { ...ask, prompt_logprobs: 2 })), { relayed: true });
    t.match(last().json, { prompt: 'x', prompt_logprobs: 2 });
  });
});

t.test('relay mode', async t => {
  // A version that returns no token ids.
  const fixture = await startPlane(t, { fakes: [{ script: good, version: '0.10.1' }] });
  const fake = fixture.fakes[0]!;
  await fixture.step(
    t,
    'usage that we asked for is taken out, the rest is byte for byte the same',
    async t => {
      const reply = await fixture.post(COMPLETIONS, { ...ask, stream: true, odd: '\u{1F600}' });
      t.equal(reply.text, textFrame('Hello', [HELLO]) + textFrame(' world', [WORLD], 'length') + DONE);
      t.match(fake.calls.at(-1)!.json, {
        ...ask,
        stream: true,
        odd: '\u{1F600}',
        stream_options: { include_usage: true },
      });
    },
  );
  await fixture.step(t, 'usage that the client asked for stays', async t => {
    const reply = await fixture.post(COMPLETIONS, {
      ...ask,
      stream: true,
      stream_options: { include_usage: true },
    });
    t.match(reply.frames.at(-1), { usage: { completion_tokens: 2 } });
  });
  await fixture.step(t, 'the 200 waits for the first event', async t => {
    fake.script = call => void call.stream();
    let begun = false;
    const open = fixture.open(COMPLETIONS, { ...ask, stream: true }).then(reply => {
      begun = true;
      return reply;
    });
    const calls = fake.calls.length;
    await until(() => fake.calls.length > calls, 'the engine is asked');
    fixture.tick(9000);
    await fixture.get('/live');
    t.notOk(begun);
    fake.calls
      .at(-1)!
      .send(textFrame('Hello', [HELLO], 'length') + DONE)
      .end();
    t.equal(streamedText(await (await open).rest()), 'Hello');
  });
  await fixture.step(t, 'silence is filled with comments', async t => {
    fake.script = call => call.stream().send(textFrame('Hello', [HELLO]));
    const open = await fixture.open(COMPLETIONS, { ...ask, stream: true });
    await open.readUntil(text => text.includes('Hello'));
    fixture.tick(10_100);
    await open.readUntil(text => text.includes(': keep-alive\n\n'));
    fake.calls
      .at(-1)!
      .send(textFrame('', [], 'length') + DONE)
      .end();
    t.equal(streamedText(await open.rest()), 'Hello');
  });
});

async function overload(t: Test, fixture: PlaneFixture): Promise<void> {
  const fake = fixture.fakes[0]!;
  const { socket } = fixture.plane;
  await fixture.step(t, 'more requests than allowed', async t => {
    const parked: FakeCall[] = [];
    fake.script = call => void parked.push(call);
    const replies = Array.from({ length: 4 }, () => fixture.post(COMPLETIONS, { ...ask, stream: true }));
    await until(() => parked.length === 4, 'all are with the engine');
    for (let i = 0; i < 3; i++) {
      const reply = await fixture.post(COMPLETIONS, ask);
      t.match(errorOf(reply), { status: 529, code: 'MILLRACE_OVERLOADED', message: /requestsMax/ });
      t.equal(reply.headers.get('retry-after'), '1');
    }
    for (const call of parked) good(call);
    for (const reply of await Promise.all(replies)) t.equal(streamedText(reply), 'Hello world');
    fake.script = good;
    t.equal((await fixture.post(COMPLETIONS, { ...ask, stream: true })).status, 200, 'and again');
  });
  await fixture.step(t, 'more bytes than may be kept', async t => {
    const parked: FakeCall[] = [];
    fake.script = call => void parked.push(call);
    const big = { ...ask, stream: true, pad: 'p'.repeat(600_000) };
    const first = fixture.post(COMPLETIONS, big);
    await until(() => parked.length === 1, 'the first is with the engine');
    t.ok(socket.retainedBytes > 600_000);
    const reply = await fixture.post(COMPLETIONS, big);
    t.match(errorOf(reply), { status: 529, code: 'MILLRACE_OVERLOADED' });
    t.ok(reply.headers.get('retry-after-ms'));
    good(parked[0]!);
    t.equal((await first).status, 200);
    fake.script = good;
    t.equal((await fixture.post(COMPLETIONS, big)).status, 200, 'and again');
  });
}

t.test('a full planning queue', async t => {
  const limits = { ringQueueBytesMax: 1 << 20, ringBytes: 64 << 10, bodyBytesMax: 900_000 };
  const fixture = await startPlane(t, { fakes: [{ script: good }], limits });
  const { socket, supervisor } = fixture.plane;
  await supervisor.threads[0]!.terminate();
  await until(() => supervisor.state.running === 0, 'no thread takes asks');
  const big = { ...ask, stream: true, pad: 'p'.repeat(400_000) };
  const replies = [1, 2, 3].map(() => fixture.post(COMPLETIONS, big));
  await until(() => socket.parkedAsks === 3, 'all wait');
  // They are handed over at once, long before the new thread takes the first.
  fixture.tick(100);
  const statuses = (await Promise.all(replies)).map(reply => reply.status);
  t.same(statuses.sort(), [200, 200, 529]);
  t.equal((await fixture.post(COMPLETIONS, big)).status, 200, 'and again');
  await fixture.expectIdle(t);
});

async function drain(t: Test, server: (typeof SERVERS)[number]): Promise<void> {
  const fixture = await startPlane(t, { server, fakes: [{}] });
  const fake = fixture.fakes[0]!;
  fake.script = call => call.stream().send(textFrame('Hello', [HELLO]));
  const open = await Promise.all([1, 2].map(() => fixture.open(COMPLETIONS, { ...ask, stream: true })));
  for (const one of open) await one.readUntil(text => text.includes('Hello'));
  const closing = fixture.plane.close(5000);
  t.match(jsonOf(await fixture.get('/health')), { status: 'draining', requestsInFlight: 2 });
  t.equal((await fixture.get('/health')).status, 503);
  const refused = await fixture.post(COMPLETIONS, ask);
  t.match(errorOf(refused), { status: 503, code: 'MILLRACE_DRAINING' });
  t.ok(refused.headers.get('retry-after'));
  fake.calls[0]!.send(textFrame(' world', [WORLD], 'length') + DONE).end();
  const texts = [open[0]!.rest(), open[1]!.rest()];
  const finished = await Promise.race(texts);
  t.equal(streamedText(finished), 'Hello world', 'an open stream finishes');
  fixture.tick(5000);
  const cut = (await Promise.all(texts)).find(reply => reply.frames.at(-1)?.error !== undefined);
  t.match(cut?.frames.at(-1), { error: { code: 'MILLRACE_DRAINING' } }, 'the other is cut with a code');
  t.ok(cut?.done);
  await closing;
  await fixture.plane.close(0);
  t.same(fixture.leftovers(), []);
  await until(() => fake.calls[1]!.closed, 'the engine is let go');
  await t.rejects(fixture.get('/health'), 'nothing listens any more');
}

for (const server of SERVERS) {
  t.test(`overload, ${server}`, async t => {
    const limits = {
      requestsMax: 4,
      retainedBytesMax: 1 << 20,
      ringQueueBytesMax: 1 << 20,
      ringBytes: 64 << 10,
      bodyBytesMax: 900_000,
    };
    await overload(t, await startPlane(t, { server, fakes: [{}], limits }));
  });
  t.test(`drain, ${server}`, t => drain(t, server));
}
