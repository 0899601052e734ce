// Promise: played by a mock, each engine is understood by its adapter, and all of them give the same tokens.

import t, { type Test } from 'tap';
import type { EncodeInput, EngineAdapter } from '#millrace/engines/contract.js';
import { engineError } from '#millrace/engines/engine-error.js';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { createSglangAdapter } from '#millrace/engines/sglang.js';
import { createTrtllmAdapter } from '#millrace/engines/trtllm.js';
import { fullBlocks } from '#millrace/engines/trtllm-event-translator.js';
import { parseTrtllmEvents, type TrtllmEvent } from '#millrace/engines/trtllm-events.js';
import { createVllmAdapter } from '#millrace/engines/vllm.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import {
  loadMockTokenizer,
  type MockEngineOptions,
  startMockEngine,
} from '#millrace/simulate/mock-engine.js';
import { decode, makeInput, makeRequest } from '../contract/engine-adapter.js';
import { post, postJson, postSse } from './http-probe.js';

const tokenizer = await loadMockTokenizer();
const scanner = createFrameScanner(loadAddon());
const PROMPT = tokenizer.encode('the quick brown fox jumps over the lazy dog');
const adapters: Record<string, EngineAdapter> = {
  vllm: createVllmAdapter({ scanner }),
  sglang: createSglangAdapter({ scanner }),
  trtllm: createTrtllmAdapter({ scanner }),
};
const start = async (t: Test, options: MockEngineOptions) => {
  const engine = await startMockEngine({ speed: 'unlimited', tokenizer, blockSize: 4, ...options });
  t.teardown(() => engine.close());
  return engine;
};
const getFrom = (url: string) => async (path: string) => {
  const response = await fetch(url + path);
  return { status: response.status, body: await response.text() };
};
type Event = { choice: number; ids: number[] | null; finish: string | null; usage: object | null };

/** Encodes, posts, decodes: the ids and the end of each choice. */
async function generate(url: string, adapter: EngineAdapter, changes: Partial<EncodeInput> = {}) {
  const call = adapter.encode(makeInput({ workerModel: 'mock-model', promptIds: PROMPT, ...changes }));
  const response = await fetch(url + call.path, {
    method: call.method,
    headers: [...call.head] as [string, string][],
    body: call.body,
  });
  const bytes = Buffer.from(await response.arrayBuffer());
  const { events, fault, end } = decode(adapter, [bytes]);
  const ids: number[][] = [];
  const finishes: (string | null)[] = [];
  let usage: object | null = null;
  for (const event of events as Event[]) {
    if (event.choice >= 0) ids[event.choice] = [...(ids[event.choice] ?? []), ...(event.ids ?? [])];
    if (event.finish) finishes[event.choice] = event.finish;
    usage = event.usage ?? usage;
  }
  return { status: response.status, ids, finishes, usage, fault, end, bytes, count: events.length };
}

const PLAYS: [string, MockEngineOptions][] = [
  ['vllm', {}],
  ['sglang', { engine: 'sglang' }],
  ['sglang', { engine: 'sglang', incrementalStreams: true }],
  ['trtllm', { engine: 'trtllm' }],
];

t.test('the same tokens from every engine, one or several per frame', async t => {
  const seen = new Set<string>();
  for (const [name, options] of PLAYS) {
    for (const tokensPerStep of [1, 3]) {
      const { url } = await start(t, { ...options, tokensPerStep });
      const request = makeRequest({ sampling: { n: 2 } });
      const { ids, finishes, usage, fault, end, count } = await generate(url, adapters[name]!, {
        request,
        maxTokens: 10,
      });
      t.same([fault, end, finishes], [null, null, ['length', 'length']], `${name} ${tokensPerStep}`);
      t.same(usage, { promptTokens: PROMPT.length, completionTokens: 20, cachedTokens: 0 });
      t.equal(count, 2 * Math.ceil(10 / tokensPerStep) + 2, 'frames, usage and end marker');
      seen.add(JSON.stringify(ids));
    }
  }
  t.equal(seen.size, 1);
});

t.test('probes tell what the server is', async t => {
  const expected: Record<string, object> = {
    vllm: { answerModes: ['token', 'relayIds', 'relay'], notices: [] },
    sglang: { answerModes: ['token', 'relay'], version: /^0\.5/, notices: [/incremental/] },
    trtllm: { answerModes: ['token', 'relay'], version: /^1\./, notices: [] },
  };
  for (const [name, options] of PLAYS) {
    const { url, core } = await start(t, { ...options, numGpuBlocks: 1000 });
    const adapter = adapters[name]!;
    const facts = await adapter.probe(getFrom(url), url);
    const notices = options.incrementalStreams ? { notices: [] } : {};
    t.match(facts, { engine: name, ...expected[name], ...notices, blockSize: 4, totalBlocks: 1000 });
    t.equal(facts.models[0]!.id, 'mock-model');
    const load = adapter.parseMetrics((await getFrom(url)(adapter.metricsPath)).body);
    t.match(load, { running: 0, waiting: 0, kvUsage: core.kvUsage, prefixCacheHits: 0 });
    t.equal((await getFrom(url)(adapter.healthPath)).status, 200);
    const ids = await adapter.tokenize(
      async (path, json) => {
        const response = await post(url, path, JSON.parse(json));
        return { status: response.status, body: await response.text() };
      },
      'mock-model',
      { prompt: 'hello there' },
    );
    t.same(ids, tokenizer.encode('hello there'), `${name} tokenizes`);
  }
  const { url, events } = await start(t, { engine: 'sglang', events: { topic: 'kv' } });
  const facts = await adapters.sglang!.probe(getFrom(url), url);
  t.same(facts.events, [{ publish: events!.publish, replay: events!.replay, topic: 'kv' }]);
});

t.test('OpenAI routes of all, and what is refused', async t => {
  for (const [name, options] of PLAYS) {
    const { url } = await start(t, options);
    const messages = [{ role: 'user', content: 'hi' }];
    const { json } = await postJson(url, '/v1/chat/completions', {
      model: 'mock-model',
      messages,
      max_tokens: 5,
    });
    t.match(json, { object: 'chat.completion', usage: { completion_tokens: 5 } });
    const sse = await postSse(url, '/v1/completions', { model: 'mock-model', prompt: 'a b', max_tokens: 5 });
    t.equal(sse.frames.map(frame => frame.choices[0].text).join('').length > 0, true);
    t.equal(sse.done, true);
    t.notOk('token_ids' in sse.frames[0].choices[0], `${name} returns no ids unasked`);
    const bad = await post(url, '/v1/completions', { model: 'mock-model', prompt: 7 });
    t.match(engineError(bad.status, await bad.text()), {
      code: 'MILLRACE_INVALID_REQUEST',
      message: /prompt/,
    });
  }
});

t.test('SGLang: log-probabilities by id, stop ids, the abort route, the cache', async t => {
  const { url, core, counters } = await start(t, { engine: 'sglang', speed: 1 });
  const adapter = adapters.sglang!;
  const output = { ...makeRequest().output, logprobs: 2 };
  const { ids, fault } = await generate(url, adapter, { request: makeRequest({ output }), maxTokens: 4 });
  t.same([ids[0]!.length, fault], [4, null]);
  const stop = { ...makeRequest().stop, tokenIds: [ids[0]![2]!] };
  const stopped = await generate(url, adapter, { request: makeRequest({ stop }), maxTokens: 9 });
  t.same([stopped.ids, stopped.finishes], [[ids[0]!.slice(0, 3)], ['stop']]);

  const long = generate(url, adapter, { maxTokens: 20_000, requestId: 'to-be-ended' });
  while (counters.running === 0) await new Promise(resolve => setImmediate(resolve));
  t.equal((await post(url, '/flush_cache', {})).status, 400, 'not while it works');
  const abort = adapter.abortCall('to-be-ended')!;
  await fetch(url + abort.path, {
    method: abort.method,
    headers: [...abort.head] as [string, string][],
    body: abort.body,
  });
  const ended = await long;
  t.match(ended.bytes.toString(), /"type":"abort"/);
  t.same([ended.fault, ended.end, core.running + core.waiting], [null, null, 0]);
  t.equal((await post(url, '/flush_cache', {})).status, 200);
  const strange = await post(url, '/generate', { input_ids: [1], sampling_params: { max_tokens: 3 } });
  t.equal(strange.status, 500, "a name that is not SGLang's");
  const whole = await postJson(url, '/generate', { text: 'a b', sampling_params: { max_new_tokens: 3 } });
  t.match(whole.json, { output_ids: [Number, Number, Number], meta_info: { completion_tokens: 3 } });
});

t.test('TensorRT-LLM: strangers are refused by name, events are fetched once', async t => {
  const { url } = await start(t, { engine: 'trtllm', numGpuBlocks: 16, maxModelLen: 60, events: {} });
  const adapter = adapters.trtllm!;
  for (const stranger of [
    { return_token_ids: true },
    { stream_options: { x: 1 }, stream: true },
    { guided_json: {} },
  ]) {
    const bad = await post(url, '/v1/completions', { model: 'mock-model', prompt: [1], ...stranger });
    const error = engineError(bad.status, await bad.text());
    const name = Object.keys(stranger)[0] === 'stream_options' ? 'x' : Object.keys(stranger)[0]!;
    t.match(error, { code: 'MILLRACE_INVALID_REQUEST', message: new RegExp(`'${name}'.*not permitted`) });
  }
  await generate(url, adapter, { maxTokens: 30 });
  const fetchEvents = async () => parseTrtllmEvents(await (await post(url, '/kv_cache_events', {})).text());
  const events = await fetchEvents();
  const idsOf = (list: readonly TrtllmEvent[]) => list.map(({ id }) => id);
  t.same(idsOf(events), [...events.keys()]);
  t.same(events[0]!.change, { type: 'created', blocksPerCacheLevel: [16, 0] });
  const stored = events.map(event => event.change).filter(change => change.type === 'stored');
  t.equal(stored[0]!.parent, null);
  const tokens = stored.flatMap(change => fullBlocks(change.blocks, 4).flatMap(block => block.tokens));
  t.same(tokens.slice(0, PROMPT.length), [...PROMPT]);
  t.ok(stored.some(change => change.blocks.some(block => (block.hash as bigint) > 2n ** 53n)));
  t.same(await fetchEvents(), [], 'they are gone');
  for (let at = 0; at < 3; at++) {
    await generate(url, adapter, { promptIds: PROMPT.map(id => id + at + 1), maxTokens: 30 });
  }
  const later = await fetchEvents();
  t.same(
    idsOf(later),
    [...later.keys()].map(at => events.length + at),
  );
  t.ok(
    later.some(event => event.change.type === 'removed'),
    'the pool is full',
  );
});
