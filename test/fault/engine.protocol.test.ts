// Promise: an engine that breaks its protocol, in any way and at any byte, costs one coded answer and nothing else.

import t, { type Test } from 'tap';
import { DONE, type FakeCall, FakeEngine, textFrame, usageFrame } from '../fake-engine.js';
import {
  CHAT,
  COMPLETIONS,
  errorOf,
  FAKE_MODEL,
  jsonOf,
  type PlaneFixture,
  startPlane,
  streamedText,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const ask = { model: FAKE_MODEL, prompt: 'x', max_tokens: 8 };
const HELLO = [9906, 1917];
const JSON_TYPE = 'application/json';

const good = (call: FakeCall): void => {
  call.stream().send(textFrame('Hello', [HELLO[0]!]) + textFrame(' world', [HELLO[1]!], 'length'));
  call.send(usageFrame(1, 2) + DONE).end();
};

interface Case {
  readonly name: string;
  readonly script: (call: FakeCall) => void;
  /** Status and code before the stream has begun, or the code in the stream. */
  readonly status: number;
  readonly code: string;
}

/** Wrong answers whose first byte is wrong already: nothing has been sent to the client. */
const EARLY: readonly Case[] = [
  {
    name: 'garbage instead of HTTP',
    script: call => call.raw('\x00\x01nonsense\r\n\r\n'),
    status: 502,
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: 'garbage instead of SSE',
    script: call => call.stream().send('data: {{{{]]\n\n').end(),
    status: 502,
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: 'SSE of something else',
    script: call => call.stream().send('data: "hello"\n\n').end(),
    status: 502,
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  { name: 'an empty stream', script: call => call.stream().end(), status: 502, code: 'MILLRACE_WORKER_DIED' },
  {
    name: 'a stream of only a comment',
    script: call => call.stream().send(': hi\n\n').end(),
    status: 502,
    code: 'MILLRACE_WORKER_DIED',
  },
  {
    name: 'only [DONE]',
    script: call => call.stream().send(DONE).end(),
    status: 502,
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: 'a first frame that is too long',
    script: call => call.stream().send(`data: {"x":"${'y'.repeat(70_000)}"}\n\n`),
    status: 502,
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: 'a first line without end',
    script: call => call.stream().send(`data: ${'y'.repeat(70_000)}`),
    status: 502,
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: 'an error as the first frame',
    script: call =>
      call.stream().send(`data: {"error":{"message":"no","type":"x","code":400}}\n\n${DONE}`).end(),
    status: 400,
    code: 'MILLRACE_INVALID_REQUEST',
  },
  {
    name: 'a server error as the first frame',
    script: call => call.stream().send(`data: {"error":{"message":"boom","code":500}}\n\n${DONE}`).end(),
    status: 502,
    code: 'MILLRACE_WORKER_FAILED',
  },
  {
    name: '200 with another type',
    script: call => call.respond(200, 'text/html', '<html>'),
    status: 502,
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: '204',
    script: call => call.raw('HTTP/1.1 204 X\r\n\r\n'),
    status: 502,
    code: 'MILLRACE_WORKER_FAILED',
  },
  {
    name: '302',
    script: call => call.respond(302, 'text/html', '', 'location: http://127.0.0.1:1/\r\n'),
    status: 502,
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: '400 in the envelope',
    script: call =>
      call.respond(400, JSON_TYPE, '{"error":{"message":"top_k is odd","param":"top_k","code":400}}'),
    status: 400,
    code: 'MILLRACE_INVALID_REQUEST',
  },
  {
    name: '422 of FastAPI',
    script: call => call.respond(422, JSON_TYPE, '{"detail":[{"loc":["body","top_k"],"msg":"is odd"}]}'),
    status: 400,
    code: 'MILLRACE_INVALID_REQUEST',
  },
  {
    name: '400: the prompt does not fit',
    script: call =>
      call.respond(400, JSON_TYPE, '{"message":"This model\'s maximum context length is 10 tokens"}'),
    status: 400,
    code: 'context_length_exceeded',
  },
  {
    name: '400 without a body',
    script: call => call.respond(400, 'text/plain', ''),
    status: 400,
    code: 'MILLRACE_INVALID_REQUEST',
  },
  {
    name: '401',
    script: call => call.respond(401, JSON_TYPE, '{"error":"Unauthorized"}'),
    status: 502,
    code: 'MILLRACE_WORKER_FAILED',
  },
  {
    name: '404',
    script: call => call.respond(404, JSON_TYPE, '{"error":{"message":"no such model","code":404}}'),
    status: 404,
    code: 'model_not_found',
  },
  {
    name: '429',
    script: call => call.respond(429, JSON_TYPE, '{}'),
    status: 529,
    code: 'MILLRACE_OVERLOADED',
  },
  {
    name: '503',
    script: call => call.respond(503, JSON_TYPE, '{}'),
    status: 529,
    code: 'MILLRACE_OVERLOADED',
  },
  {
    name: '500 with an endless body',
    script: call =>
      call.raw(`HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n20000\r\n${'z'.repeat(0x20000)}\r\n`),
    status: 502,
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: 'endless headers',
    script: call => call.raw(`HTTP/1.1 200 X\r\n${'a: b\r\n'.repeat(20_000)}`),
    status: 502,
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
];

/** Wrong answers after a good first frame. */
const LATE: readonly Omit<Case, 'status'>[] = [
  {
    name: 'garbage',
    script: call => call.send('data: {"choices":[{]}\n\n'),
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: 'a frame that is too long',
    script: call => call.send(textFrame('y'.repeat(9000), [1])),
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: 'a line without end',
    script: call => call.send(`data: ${'y'.repeat(9000)}`),
    code: 'MILLRACE_WORKER_PROTOCOL',
  },
  {
    name: 'an error frame',
    script: call => call.send(`data: {"error":{"message":"boom","code":500}}\n\n`),
    code: 'MILLRACE_WORKER_FAILED',
  },
  { name: 'the end without [DONE]', script: call => call.end(), code: 'MILLRACE_WORKER_DIED' },
  {
    name: 'a close in the middle of a chunk',
    script: call => call.socket.end('ff\r\ndata: {"choi'),
    code: 'MILLRACE_WORKER_DIED',
  },
  { name: 'a wrong chunk length', script: call => call.raw('zz\r\n'), code: 'MILLRACE_WORKER_PROTOCOL' },
  { name: 'a reset', script: call => call.socket.resetAndDestroy(), code: 'MILLRACE_WORKER_DIED' },
];

async function earlyCases(t: Test, fixture: PlaneFixture): Promise<void> {
  const fake = fixture.fakes[0]!;
  for (const { name, script, status, code } of EARLY) {
    await fixture.step(t, `stream: ${name}`, async t => {
      const before = fake.calls.length;
      fake.script = script;
      const reply = await fixture.post(COMPLETIONS, { ...ask, stream: true });
      t.equal(fake.calls.length, before + 1, 'the only worker is asked once');
      if (name === 'only [DONE]' && reply.status === 200) return;
      t.match(errorOf(reply), { status, code });
      if (status === 529) t.ok(reply.headers.get('retry-after'), 'says when to come back');
      t.equal(reply.headers.get('content-type'), JSON_TYPE);
      fake.script = good;
      t.equal(
        streamedText(await fixture.post(COMPLETIONS, { ...ask, stream: true })),
        'Hello world',
        'and lives',
      );
    });
  }
}

async function lateCases(t: Test, fixture: PlaneFixture, mode: string): Promise<void> {
  const fake = fixture.fakes[0]!;
  for (const { name, script, code } of LATE) {
    await fixture.step(t, `mid stream: ${name}`, async t => {
      let calls = 0;
      fake.script = call => {
        calls++;
        call.stream().send(textFrame('Hello', [HELLO[0]!]));
      };
      const open = await fixture.open(COMPLETIONS, { ...ask, stream: true });
      await open.readUntil(text => text.includes('Hello'));
      script(fake.calls.at(-1)!);
      const reply = await open.rest();
      t.ok(reply.done && !reply.broken, 'ends properly');
      // Of a relayed answer the fake engine does not tell the ids of the prompt, or of anything.
      const told = mode === 'token' ? code : 'MILLRACE_CANNOT_MIGRATE';
      t.match(reply.frames.at(-1), { error: { code: told } });
      t.equal(streamedText(reply), 'Hello');
      t.equal(calls, 1, 'a stream that has begun is not begun anew');
    });
  }
}

/** A release that returns no token ids. */
const OLD = '0.10.1';
const MODES = [
  ['token', TOKENIZER, '0.11.0'],
  ['relayIds', null, '0.11.0'],
  ['relay', null, OLD],
] as const;

for (const [mode, tokenizer, version] of MODES) {
  t.test(`${mode}: what a fake engine can do wrong`, async t => {
    const limits = { sseFirstFrameBytesMax: 65_536, sseFrameBytesMax: 8192, unaryAnswerBytesMax: 65_536 };
    const fixture = await startPlane(t, { fakes: [{ version }], tokenizer, limits });
    await earlyCases(t, fixture);
    await lateCases(t, fixture, mode);
    const fake = fixture.fakes[0]!;

    await fixture.step(t, 'the whole answer but for [DONE]', async t => {
      fake.script = call =>
        call
          .stream()
          .send(textFrame('Hello', [HELLO[0]!]) + textFrame(' world', [HELLO[1]!], 'length'))
          .end();
      const reply = await fixture.post(COMPLETIONS, { ...ask, stream: true });
      t.equal(streamedText(reply), 'Hello world');
      t.ok(reply.done);
      // With ids it is known that every choice has finished, so that nothing is missing.
      if (mode !== 'relay') t.notOk(reply.frames.some(frame => 'error' in frame));
      else t.match(reply.frames.at(-1), { error: { code: 'MILLRACE_CANNOT_MIGRATE' } });
    });

    await fixture.step(t, 'a connection that breaks after [DONE]', async t => {
      fake.script = call => {
        call.stream().send(textFrame('Hello', [HELLO[0]!], 'length') + DONE);
        call.socket.end();
      };
      const reply = await fixture.post(COMPLETIONS, { ...ask, stream: true });
      t.equal(reply.text.match(/\[DONE\]/g)?.length, 1);
      t.notMatch(reply.text, 'error');
    });

    await fixture.step(t, 'unary: an answer of the other kind', async t => {
      fake.script = mode === 'relay' ? good : call => call.respond(200, JSON_TYPE, '{"choices":[]}');
      t.match(errorOf(await fixture.post(COMPLETIONS, ask)), {
        status: 502,
        code: 'MILLRACE_WORKER_PROTOCOL',
      });
    });

    await fixture.step(t, 'a chunk boundary at every byte', async t => {
      const text =
        textFrame('Hello', [HELLO[0]!]) +
        textFrame(' world', [HELLO[1]!], 'length') +
        usageFrame(1, 2) +
        DONE;
      fake.script = call => {
        call.stream();
        for (const byte of text) call.send(byte);
        call.end();
      };
      t.equal(streamedText(await fixture.post(COMPLETIONS, { ...ask, stream: true })), 'Hello world');
    });
  });
}

t.test('relay, unary: the answer is passed on as it is', async t => {
  const fixture = await startPlane(t, { fakes: [{ version: OLD }], limits: { unaryAnswerBytesMax: 65_536 } });
  const fake = fixture.fakes[0]!;
  await fixture.step(t, 'as it is', async t => {
    fake.script = call => call.respond(200, `${JSON_TYPE}; charset=utf-8`, '{"any":1,  "usage":null}');
    const reply = await fixture.post(COMPLETIONS, ask);
    t.equal(reply.text, '{"any":1,  "usage":null}');
    t.equal(reply.headers.get('content-type'), `${JSON_TYPE}; charset=utf-8`);
  });
  await fixture.step(t, 'longer than allowed', async t => {
    fake.script = call => call.respond(200, JSON_TYPE, `"${'y'.repeat(70_000)}"`);
    t.match(errorOf(await fixture.post(COMPLETIONS, ask)), { status: 502, code: 'MILLRACE_WORKER_PROTOCOL' });
  });
  await fixture.step(t, 'cut in the middle', async t => {
    fake.script = call => void call.socket.end('HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\n{"cho');
    t.match(errorOf(await fixture.post(COMPLETIONS, ask)), { status: 502, code: 'MILLRACE_WORKER_DIED' });
  });
  await fixture.step(t, 'nothing until the total deadline', async t => {
    fake.script = () => {};
    const reply = fixture.post(COMPLETIONS, ask);
    await until(
      () => fake.calls.at(-1)!.body !== '' && fixture.plane.socket.requestsInFlight === 1,
      'it waits',
    );
    const call = fake.calls.at(-1)!;
    fixture.tick(1_800_100);
    t.match(errorOf(await reply), { status: 504, code: 'MILLRACE_DEADLINE_EXCEEDED' });
    await until(() => call.closed, 'the engine hears of it');
  });
});

t.test('workers that are not there', async t => {
  await t.test('no worker ever: refused at once, and served once one comes up', async t => {
    const probe = await FakeEngine.start();
    const { port } = probe;
    await probe.close();
    const fixture = await startPlane(t, { workers: [`http://127.0.0.1:${port}`] });
    t.match(
      errorOf(await fixture.post(CHAT, { model: FAKE_MODEL, messages: [{ role: 'user', content: 'x' }] })),
      {
        status: 503,
        code: 'MILLRACE_NO_WORKER',
      },
    );
    t.equal(jsonOf(await fixture.get('/health')).status, 'unavailable');
    t.equal((await fixture.get('/health')).status, 503);
    const late = await FakeEngine.start({ port, script: good });
    t.teardown(() => late.close());
    await until(() => {
      fixture.tick(100);
      return fixture.plane.workers[0]!.state === 'ready';
    }, 'the worker is ready');
    t.equal(streamedText(await fixture.post(COMPLETIONS, { ...ask, stream: true })), 'Hello world');
    await fixture.expectIdle(t as Test);
  });

  await t.test('a worker that stops listening goes out of rotation with the first request', async t => {
    const fixture = await startPlane(t, { fakes: [{ script: good }, { script: good }] });
    await fixture.fakes[0]!.close();
    for (let i = 0; i < 4; i++)
      t.equal(streamedText(await fixture.post(COMPLETIONS, { ...ask, stream: true })), 'Hello world');
    t.equal(jsonOf(await fixture.get('/health')).status, 'degraded');
    await fixture.fakes[1]!.close();
    t.match(errorOf(await fixture.post(COMPLETIONS, ask)), {
      status: 502,
      code: 'MILLRACE_WORKER_UNREACHABLE',
    });
    t.match(errorOf(await fixture.post(COMPLETIONS, ask)), { status: 503, code: 'MILLRACE_NO_WORKER' });
    await fixture.expectIdle(t as Test);
  });
});
