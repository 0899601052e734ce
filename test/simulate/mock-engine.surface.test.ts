// Promise: over a real socket, the mock engine answers as a stock vLLM server does.

import OpenAI from 'openai';
import t, { type Test } from 'tap';
import {
  loadMockTokenizer,
  type MockEngineOptions,
  startMockEngine,
} from '#millrace/simulate/mock-engine.js';
import { post, postJson, postSse } from './http-probe.js';

const tokenizer = await loadMockTokenizer();
const start = async (t: Test, options: MockEngineOptions = {}) => {
  const engine = await startMockEngine({ speed: 'unlimited', tokenizer, ...options });
  t.teardown(() => engine.close());
  return engine;
};
const COMPLETIONS = '/v1/completions';
const CHAT = '/v1/chat/completions';
const messages = [{ role: 'user' as const, content: 'hello' }];

t.test('completions: stream and whole answer hold the same text and ids', async t => {
  const { url, counters } = await start(t);
  const body = { prompt: 'the quick brown fox', max_tokens: 40, return_token_ids: true };
  const whole = await postJson(url, COMPLETIONS, body);
  const choice = whole.json.choices[0];
  t.equal(whole.json.object, 'text_completion');
  t.match(whole.json.id, /^cmpl-/);
  t.equal(choice.token_ids.length, 40);
  t.equal(choice.finish_reason, 'length');
  t.same(choice.prompt_token_ids, [...tokenizer.encode(body.prompt)]);
  t.match(whole.json.usage, { prompt_tokens: 4, completion_tokens: 40, total_tokens: 44 });
  const bytes = choice.token_ids.map((id: number) => tokenizer.bytesOf(id)!);
  t.equal(Buffer.concat(bytes).toString(), choice.text, 'ids and text agree');

  const sse = await postSse(url, COMPLETIONS, body);
  t.equal(sse.frames.length, 40, 'one frame per choice and step');
  t.ok(sse.done);
  t.equal(sse.frames.map(frame => frame.choices[0].text).join(''), choice.text);
  t.same(
    sse.frames.flatMap(frame => frame.choices[0].token_ids),
    choice.token_ids,
  );
  t.same(Object.keys(sse.frames[1].choices[0]), [
    'index',
    'text',
    'logprobs',
    'finish_reason',
    'stop_reason',
    'token_ids',
  ]);
  t.same(
    sse.frames.map(frame => frame.choices[0].prompt_token_ids !== undefined).indexOf(true, 1),
    -1,
    'prompt ids only in the first frame',
  );
  t.equal(sse.frames.at(-1).choices[0].finish_reason, 'length');
  t.notOk('usage' in sse.frames[0]);
  const ids = await postJson(url, COMPLETIONS, { prompt: choice.prompt_token_ids, max_tokens: 40 });
  t.equal(ids.json.choices[0].text, choice.text, 'a prompt of ids is the same prompt');
  t.match(counters, { requests: 3, finished: 3, running: 0, aborted: 0 });
});

t.test('an answer moved to another engine goes on as if nothing had happened', async t => {
  const first = await start(t);
  const second = await start(t, { blockSize: 16 });
  const ask = { prompt: 'move me', max_tokens: 30, n: 2, return_token_ids: true };
  const { json } = await postJson(first.url, COMPLETIONS, ask);
  for (const choice of json.choices) {
    const prompt = [...choice.prompt_token_ids, ...choice.token_ids.slice(0, 11)];
    const rest = await postJson(second.url, COMPLETIONS, { prompt, max_tokens: 19, return_token_ids: true });
    t.same(rest.json.choices[0].token_ids, choice.token_ids.slice(11));
  }
});

t.test('several choices, several prompts and usage', async t => {
  const { url } = await start(t);
  const options = { include_usage: true, continuous_usage_stats: true };
  const sse = await postSse(url, COMPLETIONS, { prompt: ['a b', 'c d e'], n: 2, stream_options: options });
  const last = sse.frames.pop();
  t.same(last.choices, []);
  t.match(last.usage, { prompt_tokens: 5, completion_tokens: 64, total_tokens: 69 });
  const of = (index: number) => sse.frames.filter(frame => frame.choices[0].index === index);
  const texts = [0, 1, 2, 3].map(index =>
    of(index)
      .map(frame => frame.choices[0].text)
      .join(''),
  );
  t.equal(new Set(texts).size, 4);
  t.same(
    of(3).map(frame => frame.usage.completion_tokens),
    Array.from({ length: 16 }, (_, at) => at + 1),
  );
  const plain = await postSse(url, COMPLETIONS, { prompt: 'a', stream_options: { include_usage: true } });
  t.equal(plain.frames[0].usage, null);
});

t.test('chat: the role first, then text; ids of the rendered prompt', async t => {
  const { url } = await start(t);
  const sse = await postSse(url, CHAT, { messages, max_tokens: 6, return_token_ids: true });
  t.same(sse.frames[0].choices[0].delta, { role: 'assistant', content: '' });
  t.ok(sse.frames[0].prompt_token_ids.length > 5);
  t.equal(sse.frames.length, 7);
  t.equal(sse.frames[0].object, 'chat.completion.chunk');
  const whole = await postJson(url, CHAT, { messages, max_completion_tokens: 6 });
  const text = sse.frames.map(frame => frame.choices[0].delta.content).join('');
  t.same(whole.json.choices[0].message, { role: 'assistant', content: text });
  const parts = [{ role: 'user', content: [{ type: 'text', text: 'hello' }] }];
  t.equal(
    (await postJson(url, CHAT, { messages: parts, max_tokens: 6 })).json.choices[0].message.content,
    text,
  );
});

t.test('stop strings cut the text, also across tokens; stop ids hide theirs', async t => {
  const { url, core } = await start(t);
  const ask = { prompt: 'stop here', max_tokens: 30, return_token_ids: true };
  const plain = (await postJson(url, COMPLETIONS, ask)).json.choices[0];
  const stop = plain.text.slice(20, 28);
  const cut = plain.text.slice(0, plain.text.indexOf(stop));
  for (const api of ['whole', 'stream'] as const) {
    const run = async (more: object) => {
      if (api === 'whole') return (await postJson(url, COMPLETIONS, { ...ask, ...more })).json.choices[0];
      const { frames } = await postSse(url, COMPLETIONS, { ...ask, ...more });
      const text = frames.map(frame => frame.choices[0].text).join('');
      return { ...frames.at(-1).choices[0], text };
    };
    t.match(await run({ stop }), { text: cut, finish_reason: 'stop', stop_reason: stop }, api);
    t.match(await run({ stop: ['@@@', stop], include_stop_str_in_output: true }), { text: cut + stop }, api);
    t.match(await run({ stop, min_tokens: 30 }), { text: plain.text, finish_reason: 'length' }, api);
    const id = plain.token_ids[4];
    const stopped = await run({ stop_token_ids: [id] });
    t.match(stopped, { finish_reason: 'stop', stop_reason: id }, api);
    t.ok(plain.text.startsWith(stopped.text) && stopped.text.length < plain.text.length, api);
  }
  t.equal(core.pool.active, 0, 'a stopped choice holds no blocks');
});

t.test('cached prompt tokens are reported, and counted in the metrics', async t => {
  const { url } = await start(t, { blockSize: 16 });
  const prompt = Array.from({ length: 100 }, (_, at) => at + 1);
  const cold = await postJson(url, COMPLETIONS, { prompt, max_tokens: 1 });
  const warm = await postJson(url, COMPLETIONS, { prompt, max_tokens: 1 });
  t.equal(cold.json.usage.prompt_tokens_details.cached_tokens, 0);
  t.equal(warm.json.usage.prompt_tokens_details.cached_tokens, 96);
  const metrics = await (await fetch(`${url}/metrics`)).text();
  t.match(metrics, /^vllm:prefix_cache_queries_total\{engine="0",model_name="mock-model"\} 200$/m);
  t.match(metrics, /^vllm:prefix_cache_hits_total\{.*\} 96$/m);
  t.match(metrics, /^vllm:cache_config_info\{block_size="16",num_gpu_blocks="16384".*\} 1$/m);
  t.match(metrics, /^vllm:time_to_first_token_seconds_count\{.*\} 2$/m);
  t.match(metrics, /^vllm:num_requests_running\{.*\} 0$/m);
});

t.test('a client that goes away frees its blocks', async t => {
  const { url, core, counters } = await start(t, { speed: 1, maxModelLen: 32_768 });
  const leave = new AbortController();
  const response = await post(
    url,
    COMPLETIONS,
    { prompt: 'x', max_tokens: 30_000, stream: true },
    leave.signal,
  );
  await response.body!.getReader().read();
  t.equal(core.running, 1);
  leave.abort();
  while (counters.aborted === 0) await new Promise(resolve => setImmediate(resolve));
  t.same([core.running, core.waiting, core.pool.active, counters.running], [0, 0, 0, 0]);
});

t.test('a client that reads late gets every frame', async t => {
  const { url, core, counters } = await start(t);
  const ask = { prompt: 'x', max_tokens: 30_000, n: 2, stream: true, return_token_ids: true };
  const response = await post(url, COMPLETIONS, ask);
  while (core.running > 0) await new Promise(resolve => setImmediate(resolve));
  t.equal(counters.running, 1, 'the engine is done, its answer waits for the client');
  const frames = (await response.text()).split('\n\n');
  t.equal(frames.length, 2 * 30_000 + 2);
  t.equal(frames.at(-2), 'data: [DONE]');
});

t.test('the openai client understands it', async t => {
  const { url } = await start(t);
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none' });
  const model = (await client.models.list()).data[0]!.id;
  const whole = await client.chat.completions.create({ model, messages, max_tokens: 9 });
  let text = '';
  let tokens = 0;
  const options = { include_usage: true };
  const stream = await client.chat.completions.create({
    model,
    messages,
    max_tokens: 9,
    stream: true,
    stream_options: options,
  });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? '';
    tokens += chunk.usage?.completion_tokens ?? 0;
  }
  t.equal(text, whole.choices[0]!.message.content);
  t.equal(tokens, 9);
  await t.rejects(client.completions.create({ model, prompt: 'x', max_tokens: 99_999 }), {
    message: /^400 /,
  });
});

t.test('errors have the envelope of vLLM', async t => {
  const { url, counters } = await start(t, { maxModelLen: 64 });
  const cases: [string, object, number, string | null][] = [
    [COMPLETIONS, { prompt: 'x', model: 'nope' }, 404, 'model'],
    [COMPLETIONS, { prompt: 'x', max_tokens: 64 }, 400, 'input_tokens'],
    [CHAT, { messages: [{ role: 'user', content: 'word '.repeat(80) }] }, 400, 'input_tokens'],
    [COMPLETIONS, {}, 400, 'prompt'],
    [COMPLETIONS, { prompt: [1, -1] }, 400, 'prompt'],
    [COMPLETIONS, { prompt: 'x', n: 0 }, 400, 'n'],
    [COMPLETIONS, { prompt: 'x', max_tokens: 1.5 }, 400, 'max_tokens'],
    [COMPLETIONS, { prompt: 'x', max_tokens: 4, min_tokens: 5 }, 400, 'min_tokens'],
    [COMPLETIONS, { prompt: 'x', stop: [''] }, 400, 'stop'],
    [COMPLETIONS, { prompt: 'x', stream: 'yes' }, 400, 'stream'],
    [COMPLETIONS, { prompt: 'x', stream_options: { include_usage: true } }, 400, 'stream_options'],
    [COMPLETIONS, { prompt: 'x', stop_token_ids: Array(257).fill(1) }, 400, 'stop_token_ids'],
    [COMPLETIONS, { prompt: 'x', logprobs: 21 }, 400, 'logprobs'],
    [CHAT, { messages, top_logprobs: 1 }, 400, 'top_logprobs'],
    [CHAT, { messages: [] }, 400, 'messages'],
    [CHAT, { messages: [{ role: 'user', content: [{ type: 'image_url' }] }] }, 400, 'messages[0].content'],
    ['/tokenize', { prompt: 3 }, 400, 'prompt'],
    ['/health', {}, 405, null],
  ];
  for (const [path, body, status, param] of cases) {
    const answer = await postJson(url, path, body);
    t.equal(answer.status, status, JSON.stringify(body));
    t.match(answer.json.error, { message: String, type: /Error$|NotAllowed$/, param, code: status });
  }
  t.same((await postJson(url, '/nowhere', {})).json, { detail: 'Not Found' }, 'the web framework, not vLLM');
  const broken = await fetch(url + COMPLETIONS, { method: 'POST', body: '{"prompt":' });
  t.equal(broken.status, 400);
  t.match(counters, { requests: 17, refused: 17, running: 0 });
});

t.test('the other routes', async t => {
  const { url } = await start(t, { model: 'small', maxModelLen: 512 });
  const models = (await (await fetch(`${url}/v1/models`)).json()) as { data: unknown[] };
  t.match(models.data, [{ id: 'small', max_model_len: 512, owned_by: 'millrace-mock' }]);
  t.equal((await fetch(`${url}/health`)).status, 200);
  t.match(await (await fetch(`${url}/version`)).json(), { version: /^\d+\.\d+\.\d+/ });
  const text = 'Grüße, 世界 🙂';
  const { json } = await postJson(url, '/tokenize', { prompt: text, return_token_strs: true });
  t.match(json, { count: json.tokens.length, max_model_len: 512, token_strs: { length: json.count } });
  t.same((await postJson(url, '/detokenize', { tokens: json.tokens })).json, { prompt: text });
  const chat = await postJson(url, '/tokenize', { messages });
  t.ok(chat.json.count > 5);
});
