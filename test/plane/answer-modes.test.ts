// Promise: whichever way an answer comes (token, relayIds, relay), the client gets what the engine alone would give it.

import t, { type Test } from 'tap';
import {
  CHAT,
  COMPLETIONS,
  jsonOf,
  MOCK_MODEL,
  type PlaneFixture,
  type Reply,
  startPlane,
  streamedText,
  TOKENIZER,
} from '../plane-fixture.js';

type Json = Record<string, unknown>;

const messages = [{ role: 'user', content: 'tell me of "rivers"' }];
const APIS = [
  [CHAT, { messages }],
  [COMPLETIONS, { prompt: 'the quick brown fox' }],
] as const;

/** The engine's own answer to the same body. */
async function direct(fixture: PlaneFixture, path: string, body: Json): Promise<Reply> {
  const response = await fetch(fixture.mocks[0]!.url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  const text = await response.text();
  const lines = text.split('\n').filter(line => line.startsWith('data: {'));
  return {
    status: response.status,
    headers: response.headers,
    text,
    frames: lines.map(line => JSON.parse(line.slice(6))),
    done: text.includes('data: [DONE]'),
    broken: false,
  };
}

/** Without what is another one in every answer, and what another request before it has changed. */
function plain(value: Json): Json {
  const { id: _, created: __, ...rest } = value;
  const usage = rest.usage as Json | null | undefined;
  if (usage) rest.usage = { ...usage, prompt_tokens_details: null };
  return rest;
}

const OUTPUT_TOKENS = `dynamo_frontend_output_tokens_total{model="${MOCK_MODEL}"}`;

async function start(t: Test, tokenizer: string | null, returnsTokenIds = true): Promise<PlaneFixture> {
  return startPlane(t, { mocks: [{ returnsTokenIds }], tokenizer });
}

t.test('relayIds: streams are the engine’s own, without the ids', async t => {
  const fixture = await start(t, null);
  for (const [path, prompt] of APIS) {
    const ask = { model: MOCK_MODEL, ...prompt, max_tokens: 12, n: 2, logprobs: path === CHAT ? true : 1 };
    for (const options of [
      undefined,
      { include_usage: true },
      { include_usage: true, continuous_usage_stats: true },
    ]) {
      const body = { ...ask, stream: true, ...(options === undefined ? {} : { stream_options: options }) };
      await fixture.step(t, `${path} ${JSON.stringify(options)}`, async t => {
        const got = await fixture.post(path, body);
        const wanted = await direct(fixture, path, body);
        t.ok(got.done);
        const seen = got.frames.map(frame => (options === undefined ? withoutNullUsage(frame) : frame));
        t.same(seen.map(plain), wanted.frames.map(plain));
        t.notMatch(got.text, /token_ids/);
      });
    }
  }
});

/** Where the client asked for no usage the engine was asked, and says null until it knows. */
function withoutNullUsage(frame: Json): Json {
  const { usage, ...rest } = frame;
  return usage === null ? rest : frame;
}

t.test('relayIds: who asks for ids keeps them, streamed and unary', async t => {
  const fixture = await start(t, null);
  for (const [path, prompt] of APIS) {
    const ask = { model: MOCK_MODEL, ...prompt, max_tokens: 9, return_token_ids: true };
    await fixture.step(t, path, async t => {
      const stream = { ...ask, stream: true, stream_options: { include_usage: true } };
      const got = await fixture.post(path, stream);
      t.same(got.frames.map(plain), (await direct(fixture, path, stream)).frames.map(plain));
      t.equal(got.frames.flatMap(frame => frame.choices[0]?.token_ids ?? []).length, 9);
      const whole = await fixture.post(path, ask);
      t.same(plain(jsonOf(whole)), plain(jsonOf(await direct(fixture, path, ask))));
    });
  }
});

t.test('relayIds: a folded body is the engine’s unary body', async t => {
  const fixture = await start(t, null);
  for (const [path, prompt] of APIS) {
    const logprobs = path === CHAT ? { logprobs: true, top_logprobs: 3 } : { logprobs: 3 };
    for (const more of [{}, { n: 3 }, logprobs, { ...logprobs, n: 2, stop: ['e'] }]) {
      await fixture.step(t, `${path} ${JSON.stringify(more)}`, async t => {
        const ask = { model: MOCK_MODEL, ...prompt, max_tokens: 11, ...more };
        const got = await fixture.post(path, ask);
        t.equal(got.headers.get('content-type'), 'application/json');
        t.same(plain(jsonOf(got)), plain(jsonOf(await direct(fixture, path, ask))));
      });
    }
  }
});

t.test('relayIds: token counts are exact, a body over its limit is refused', async t => {
  const fixture = await startPlane(t, { mocks: [{}], limits: { unaryAnswerBytesMax: 4096 } });
  await fixture.step(t, 'counts', async t => {
    const before = await fixture.metric(OUTPUT_TOKENS);
    await fixture.post(CHAT, { model: MOCK_MODEL, messages, max_tokens: 7, n: 2, stream: true });
    t.equal((await fixture.metric(OUTPUT_TOKENS)) - before, 14);
  });
  await fixture.step(t, 'limit', async t => {
    const reply = await fixture.post(CHAT, { model: MOCK_MODEL, messages, max_tokens: 100 });
    t.equal(reply.status, 502);
    t.match(jsonOf(reply).error, { code: 'MILLRACE_WORKER_PROTOCOL', message: /4096 bytes/ });
  });
});

for (const returnsTokenIds of [true, false]) {
  t.test(`logprobs: equal in token mode and ${returnsTokenIds ? 'relayIds' : 'relay'}`, async t => {
    const relay = await start(t, null, returnsTokenIds);
    const token = await start(t, TOKENIZER);
    for (const [path, prompt] of APIS) {
      const kinds =
        path === CHAT
          ? [{ logprobs: true }, { logprobs: true, top_logprobs: 5 }]
          : [{ logprobs: 0 }, { logprobs: 1 }, { logprobs: 5 }];
      for (const logprobs of kinds) {
        await token.step(t, `${path} ${JSON.stringify(logprobs)}`, async t => {
          const ask = { model: MOCK_MODEL, ...prompt, max_tokens: 40, ignore_eos: true, ...logprobs };
          const wanted = jsonOf(await direct(token, path, ask)).choices[0];
          t.ok(JSON.stringify(wanted.logprobs).length > 500);
          for (const fixture of [relay, token]) {
            t.same(jsonOf(await fixture.post(path, ask)).choices[0].logprobs, wanted.logprobs);
            const streamed = await fixture.post(path, { ...ask, stream: true });
            t.equal(streamedText(streamed), wanted.text ?? wanted.message.content);
            t.same(joinLogprobs(streamed), wanted.logprobs);
          }
        });
      }
    }
  });
}

/** The log-probabilities of all frames, list by list. */
function joinLogprobs(reply: Reply): Record<string, unknown[]> {
  const joined: Record<string, unknown[]> = {};
  for (const { choices } of reply.frames) {
    for (const [name, list] of Object.entries(choices[0]?.logprobs ?? {})) {
      joined[name] = [...(joined[name] ?? []), ...(list as unknown[])];
    }
  }
  return joined;
}

t.test('token mode: what a stop string hides has no log-probabilities', async t => {
  const fixture = await start(t, TOKENIZER);
  const ask = { model: MOCK_MODEL, messages, max_tokens: 40, ignore_eos: true, logprobs: true };
  const { choices } = jsonOf(await fixture.post(CHAT, ask));
  const tokens: string[] = choices[0].logprobs.content.map((entry: { token: string }) => entry.token);
  t.equal(tokens.join(''), choices[0].message.content);
  // From inside the sixth token to the end of the eighth.
  const stop = tokens[5]!.slice(-1) + tokens[6] + tokens[7];
  for (const stream of [false, true]) {
    const reply = await fixture.post(CHAT, { ...ask, stop, stream });
    const content = stream ? joinLogprobs(reply).content : jsonOf(reply).choices[0].logprobs.content;
    t.same(content, choices[0].logprobs.content.slice(0, 6), `stream: ${stream}`);
  }
  const whole = jsonOf(await fixture.post(CHAT, { ...ask, stop, include_stop_str_in_output: true }));
  t.same(whole.choices[0].logprobs.content, choices[0].logprobs.content.slice(0, 8));
});

t.test('relay: an older worker is asked for no ids, and keeps its own body', async t => {
  const fixture = await start(t, null, false);
  for (const [path, prompt] of APIS) {
    await fixture.step(t, path, async t => {
      const ask = { model: MOCK_MODEL, ...prompt, max_tokens: 5 };
      t.same(plain(jsonOf(await fixture.post(path, ask))), plain(jsonOf(await direct(fixture, path, ask))));
      const stream = await fixture.post(path, { ...ask, stream: true });
      t.same(
        stream.frames.map(withoutNullUsage).map(plain),
        (await direct(fixture, path, { ...ask, stream: true })).frames.map(plain),
      );
    });
  }
});
