// Promise: the worker that goes on with an answer is asked for exactly the rest of it, and where no worker can go on the
// client is told so, and why, with a code that does not change.

import t, { type Test } from 'tap';
import { STATE_WORDS } from '#millrace/discovery/registry.js';
import { DONE, type FakeCall, textFrame, usageFrame } from '../fake-engine.js';
import {
  CHAT,
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
const WORLD = 1917;
const BANG = 0;
const PROMPT = [87, 88];
const ask = { model: FAKE_MODEL, prompt: PROMPT, max_tokens: 8, stream: true };
const chat = { model: FAKE_MODEL, messages: [{ role: 'user', content: 'x' }], max_tokens: 8, stream: true };

/** A frame with the ids of the prompt, as the first one of a vLLM server. */
const firstFrame = (text: string, ids: readonly number[], index = 0): string =>
  textFrame(text, ids).replace('"index":0', `"index":${index},"prompt_token_ids":[${PROMPT}]`);
const frameOf = (index: number, ids: readonly number[], finish: string | null = null): string =>
  textFrame('', ids, finish).replace('"index":0', `"index":${index}`);

const finish = (call: FakeCall): void => {
  call
    .stream()
    .send(textFrame(' world', [WORLD], 'stop') + usageFrame(9, 1) + DONE)
    .end();
};

/** The first call of a test gets `begin`, all later ones `rest`, whichever worker they come to. */
function script(fixture: PlaneFixture, begin: (call: FakeCall) => void, rest = finish): FakeCall[] {
  const calls: FakeCall[] = [];
  for (const fake of fixture.fakes)
    fake.script = call => {
      calls.push(call);
      (calls.length === 1 ? begin : rest)(call);
    };
  return calls;
}

const errorIn = (reply: Reply): { code: string; message: string } => reply.frames.at(-1).error;
const twoFakes = {
  fakes: [{ contextLength: 4096 }, { contextLength: 4096 }],
  limits: { breakerFailuresMax: 1000 },
};

for (const tokenizer of [TOKENIZER, null]) {
  const mode = tokenizer === null ? 'relayIds' : 'token';

  t.test(`${mode}: what the next worker is asked for`, async t => {
    const fixture = await startPlane(t, { ...twoFakes, tokenizer });

    await fixture.step(t, 'ids, lengths, sampling', async t => {
      const calls = script(fixture, call => {
        call.stream().send(firstFrame('Hello', [HELLO]) + textFrame('!', [BANG]));
        call.socket.end();
      });
      const more = { min_tokens: 5, seed: 40, temperature: 0, top_k: 3, stop_token_ids: [55], user: 'me' };
      const reply = await fixture.post(COMPLETIONS, {
        ...ask,
        ...more,
        stream_options: { include_usage: true },
      });
      t.equal(streamedText(reply), 'Hello! world');
      t.equal(calls.length, 2);
      const { json, path } = calls[1]!;
      t.equal(path, COMPLETIONS);
      t.match(json, {
        model: FAKE_MODEL,
        max_tokens: 6,
        min_tokens: 3,
        seed: 40,
        temperature: 0,
        top_k: 3,
      });
      t.match(json, { stop_token_ids: [55], user: 'me', stream: true, return_token_ids: true });
      t.same(json.prompt, [...PROMPT, HELLO, BANG]);
      t.equal(json.n, undefined);
      const usage = { prompt_tokens: 2, completion_tokens: 3, total_tokens: 5 };
      t.match(reply.frames.at(-1), { choices: { length: 0 }, usage });
      t.equal(reply.frames.at(-2).choices[0].finish_reason, 'stop');
      const ids = calls.map(call => /x-request-id: (\S+)/i.exec(call.head)![1]);
      t.equal(new Set(ids).size, 2, 'each call has an id of its own');
    });

    await fixture.step(t, 'only the choices that have not finished, each by itself', async t => {
      const calls = script(
        fixture,
        call => {
          const first = [0, 1, 2].map(index => firstFrame('', [HELLO], index)).join('');
          call.stream().send(first.replaceAll('"text":""', '"text":"Hello"'));
          call.send(frameOf(1, [BANG], 'stop').replace('"text":""', '"text":"!"'));
          call.socket.destroySoon();
        },
        call => finish(call),
      );
      const reply = await fixture.post(COMPLETIONS, { ...ask, n: 3, seed: 40, temperature: 0 });
      t.same(
        [0, 1, 2].map(index => streamedText(reply, index)),
        ['Hello world', 'Hello!', 'Hello world'],
      );
      t.same(
        calls.slice(1).map(call => call.json.seed),
        [40, 42],
        'vLLM’s seeds of the choices 0 and 2',
      );
      t.ok(calls.slice(1).every(call => call.json.n === undefined && call.json.max_tokens === 7));
      const ends = reply.frames
        .flatMap(frame => frame.choices)
        .filter(choice => choice.finish_reason !== null);
      t.same(ends.map(choice => choice.index).sort(), [0, 1, 2], 'each one finishes once');
    });

    await fixture.step(t, 'an answer that lacks nothing but the word for it', async t => {
      const calls = script(fixture, call => {
        call.stream().send(firstFrame('Hello', [HELLO]) + textFrame(' world', [WORLD], 'stop'));
        call.socket.destroySoon();
      });
      const reply = await fixture.post(COMPLETIONS, { ...ask, stream_options: { include_usage: true } });
      t.equal(streamedText(reply), 'Hello world');
      t.match(reply.frames.at(-1), { usage: { prompt_tokens: 2, completion_tokens: 2 } });
      t.ok(reply.done);
      t.equal(calls.length, 1);
    });

    await fixture.step(t, 'an error that blames the request is final', async t => {
      const calls = script(fixture, call => {
        call.stream().send(firstFrame('Hello', [HELLO]));
        call.send('data: {"error":{"message":"top_k is odd","code":400}}\n\n');
      });
      const reply = await fixture.post(COMPLETIONS, ask);
      t.match(errorIn(reply), { code: 'MILLRACE_INVALID_REQUEST' });
      t.equal(calls.length, 1);
    });

    for (const [name, end] of [
      ['an error frame', 'data: {"error":{"message":"shutting down","code":500}}\n\n'],
      ['an aborted choice', textFrame('', [], 'abort')],
      ['nonsense', 'data: {"choices":[{]}\n\n'],
    ] as const) {
      await fixture.step(t, `${name} migrates`, async t => {
        const calls = script(
          fixture,
          call =>
            void call
              .stream()
              .send(firstFrame('Hello', [HELLO]))
              .send(end),
        );
        const reply = await fixture.post(COMPLETIONS, ask);
        t.equal(streamedText(reply), 'Hello world');
        t.notMatch(reply.text, /abort|shutting/);
        t.equal(calls.length, 2);
      });
    }

    await fixture.step(t, 'no worker is left', async t => {
      const dies = (call: FakeCall): void => {
        call.stream().send(firstFrame('Hello', [HELLO]));
        call.socket.destroySoon();
      };
      script(fixture, dies, call => call.socket.destroy());
      const reply = await fixture.post(COMPLETIONS, ask);
      t.equal(streamedText(reply), 'Hello');
      t.match(errorIn(reply), { code: 'MILLRACE_WORKER_DIED' });
      t.ok(reply.done && !reply.broken);
    });

    await fixture.step(t, 'the client leaves while the rest is asked for', async () => {
      const calls = script(
        fixture,
        call => {
          call.stream().send(firstFrame('Hello', [HELLO]));
          call.socket.destroySoon();
        },
        () => {},
      );
      const open = await fixture.open(COMPLETIONS, ask);
      await until(() => calls.length === 2, 'the second worker is asked');
      open.leave();
      await until(() => calls[1]!.closed, 'it hears of it');
    });
  });

  t.test(`${mode}: what cannot go on`, async t => {
    const fixture = await startPlane(t, { ...twoFakes, tokenizer });
    const dies = (call: FakeCall): void => {
      call.stream().send(firstFrame('Hello', [HELLO]));
      call.socket.destroySoon();
    };
    const cases: [object, RegExp][] = [
      [{ response_format: { type: 'json_object' } }, /response_format/],
      [{ guided_json: {} }, /guided_json/],
      [{ tools: [{}] }, /tools/],
      [{ echo: true }, /echo/],
      [{ presence_penalty: 0.5 }, /presence_penalty .* by vllm/],
      [{ frequency_penalty: -0.5 }, /frequency_penalty/],
      [{ seed: 7 }, /a seed with a temperature above 0/],
    ];
    if (mode === 'relayIds') cases.push([{ logprobs: 1 }, /logprobs/], [{ stop: 'z' }, /stop strings/]);
    for (const [fields, why] of cases) {
      await fixture.step(t, JSON.stringify(fields), async t => {
        const calls = script(fixture, dies);
        const reply = await fixture.post(COMPLETIONS, { ...ask, ...fields });
        t.equal(streamedText(reply), 'Hello');
        t.match(errorIn(reply), { code: 'MILLRACE_CANNOT_MIGRATE', message: why, type: 'worker_error' });
        t.equal(calls.length, 1);
        script(fixture, dies);
        // Unary, nothing has been shown: the answer can begin anew.
        const unary = await fixture.post(COMPLETIONS, { ...ask, ...fields, stream: false });
        t.equal(jsonOf(unary).choices[0].text, ' world');
      });
    }
  });
}

t.test('relayIds: text that the worker parses or holds back', async t => {
  const fixture = await startPlane(t, { ...twoFakes });
  const chatFrame = (delta: object, ids: number[] | null, top: object = {}): string =>
    `data: ${JSON.stringify({ id: 'c', object: 'chat.completion.chunk', created: 1, model: FAKE_MODEL, choices: [{ index: 0, delta, finish_reason: null, ...(ids === null ? {} : { token_ids: ids }) }], ...top })}\n\n`;
  const role = chatFrame({ role: 'assistant', content: '' }, null, { prompt_token_ids: PROMPT });

  await fixture.step(t, 'reasoning', async t => {
    script(fixture, call => {
      call.stream().send(role + chatFrame({ reasoning_content: 'hm' }, [HELLO]));
      call.socket.destroySoon();
    });
    t.match(errorIn(await fixture.post(CHAT, chat)), { code: 'MILLRACE_CANNOT_MIGRATE', message: /parsed/ });
  });
  await fixture.step(t, 'a chat goes on in the frames of a chat', async t => {
    const calls = script(fixture, call => {
      // Half a character has ids and no text yet: its tokens are made anew.
      call
        .stream()
        .send(role + chatFrame({ content: 'Hello' }, [HELLO]) + chatFrame({ content: '' }, [BANG]));
      call.socket.destroySoon();
    });
    const reply = await fixture.post(CHAT, chat);
    t.equal(streamedText(reply), 'Hello world');
    t.same(calls[1]!.json.prompt, [...PROMPT, HELLO]);
    t.equal(calls[1]!.json.max_tokens, 7);
    t.equal(calls[1]!.json.messages, undefined);
    t.ok(reply.frames.every(frame => frame.id === 'c' && frame.object === 'chat.completion.chunk'));
    t.equal(reply.frames.filter(frame => frame.choices[0].delta.role).length, 1);
  });
  await fixture.step(t, 'no prompt ids', async t => {
    script(fixture, call => {
      call.stream().send(textFrame('Hello', [HELLO]));
      call.socket.destroySoon();
    });
    t.match(errorIn(await fixture.post(COMPLETIONS, ask)), { message: /ids of the prompt/ });
  });
});

t.test('what is tried again before the first token', async t => {
  const fixture = await startPlane(t, { fakes: [{}, {}], tokenizer: TOKENIZER });
  for (const status of [429, 500, 502, 503, 504]) {
    await fixture.step(t, `${status}`, async t => {
      const calls = script(fixture, call => call.respond(status, 'application/json', '{}'));
      t.equal(streamedText(await fixture.post(COMPLETIONS, ask)), ' world');
      t.equal(calls.length, 2);
    });
  }
  await fixture.step(t, '501 is not', async t => {
    const calls = script(fixture, call => call.respond(501, 'application/json', '{}'));
    t.match(errorOf(await fixture.post(COMPLETIONS, ask)), { status: 502, code: 'MILLRACE_WORKER_FAILED' });
    t.equal(calls.length, 1);
  });
  await fixture.step(t, 'Retry-After: told to the client within bounds, and the worker rests', async t => {
    for (const [given, told] of [
      ['7', '7'],
      ['999999', '60'],
      ['tomorrow', '1'],
    ] as const) {
      const busy = (call: FakeCall): void =>
        call.respond(503, 'application/json', '{}', `retry-after: ${given}\r\n`);
      script(fixture, busy, busy);
      const reply = await fixture.post(COMPLETIONS, ask);
      t.equal(reply.headers.get('retry-after'), told);
      fixture.tick(5100);
    }
    const calls = script(fixture, call => call.respond(503, 'application/json', '{}', 'retry-after: 3\r\n'));
    for (let round = 0; round < 5; round++) await fixture.post(COMPLETIONS, ask);
    t.equal(calls.length, 6);
    const [first, ...others] = calls.map(call => call.socket.localPort);
    t.notOk(others.includes(first), 'it is left alone');
  });
});

t.test('a drained worker finishes what it has; one that cuts it is a worker that failed', async t => {
  const fixture = await startPlane(t, { ...twoFakes, tokenizer: TOKENIZER });
  for (const [end, text] of [
    [(call: FakeCall): void => call.send(textFrame('!', [BANG], 'stop') + DONE).end(), 'Hello!'],
    [(call: FakeCall): void => call.end(), 'Hello world'],
  ] as const) {
    await fixture.step(t as Test, text, async t => {
      const calls = script(fixture, call => void call.stream().send(firstFrame('Hello', [HELLO])));
      const open = await fixture.open(COMPLETIONS, ask);
      await open.readUntil(got => got.includes('Hello'));
      const slot = fixture.fakes.findIndex(fake => fake.calls.includes(calls[0]!));
      const { generation } = fixture.plane.loadTable.snapshot(slot)!;
      fixture.plane.loadTable.setState(slot, generation, STATE_WORDS.draining);
      for (let round = 0; round < 3; round++) await fixture.post(COMPLETIONS, ask);
      t.equal(
        fixture.fakes[slot]!.calls.filter(call => calls.includes(call)).length,
        1,
        'it gets nothing new',
      );
      end(calls[0]!);
      t.equal(streamedText(await open.rest()), text);
      fixture.plane.loadTable.setState(slot, generation, STATE_WORDS.ready);
    });
  }
});
