/** Promise: the SGLang and TensorRT-LLM adapters read what a server says, say what could be better, and invent nothing. */
import t from 'tap';
import { createSglangAdapter } from '#millrace/engines/sglang.js';
import { createTrtllmAdapter } from '#millrace/engines/trtllm.js';
import { makeRequest } from '../contract/engine-adapter.js';

type Pages = Record<string, [number, string]>;
const ORIGIN = 'http://10.0.0.7:30000';
const sglang = createSglangAdapter();
const trtllm = createTrtllmAdapter();

const INFO = {
  version: '0.5.9',
  page_size: 16,
  max_total_num_tokens: 16_010,
  dp_size: 2,
  context_length: 4096,
  incremental_streaming_output: true,
  kv_events_config: '{"publisher":"zmq","topic":"kv","replay_endpoint":"tcp://[::]:6557"}',
};
const MODELS = JSON.stringify({
  data: [
    { id: 'base', owned_by: 'sglang', max_model_len: 32768 },
    { id: 'lora', owned_by: 'sglang', parent: 'base' },
  ],
});
const METRICS = `sglang:num_running_reqs{model_name="m",tp_rank="0",dp_rank="0"} 3.0
sglang:num_running_reqs{model_name="m",tp_rank="0",dp_rank="1"} 4.0
sglang:num_queue_reqs{model_name="m"} 2.0
sglang:token_usage{dp_rank="0"} 0.25
sglang:token_usage{dp_rank="1"} 0.75
sglang:prompt_tokens_total{model_name="m"} 1000.0
sglang:cached_tokens_total{cache_source="device"} 300.0
sglang:cached_tokens_total{cache_source="host"} 100.0
sglang:cache_config_info{page_size="32",num_pages="100"} 1.0
`;

const getter = (pages: Pages) => async (path: string) => {
  const [status, body] = pages[path] ?? [404, '{"detail":"Not Found"}'];
  return { status, body };
};
const probeSglang = (info: object | null, changes: Pages = {}) =>
  sglang.probe(
    getter({
      '/v1/models': [200, MODELS],
      '/get_model_info': [200, '{"is_generation":true}'],
      '/metrics': [200, METRICS],
      ...(info === null ? {} : { '/get_server_info': [200, JSON.stringify(info)] }),
      ...changes,
    }),
    ORIGIN,
  );

t.test('SGLang: everything that a server says', async t => {
  const expected = {
    engine: 'sglang',
    version: '0.5.9',
    models: [
      { id: 'base', contextLength: 32768 },
      { id: 'lora', contextLength: 32768, adapter: true, parent: 'base' },
    ],
    blockSize: 16,
    totalBlocks: 2000,
    returnsTokenIds: true,
    answerModes: ['token', 'relay'],
    dpRanks: 2,
    events: [
      { publish: 'tcp://10.0.0.7:5557', replay: 'tcp://10.0.0.7:6557', topic: 'kv' },
      { publish: 'tcp://10.0.0.7:5558', replay: 'tcp://10.0.0.7:6558', topic: 'kv' },
    ],
    handover: { role: null, kvDtype: null, bootstrapPort: null, infoEndpoint: null },
    notices: [],
  };
  t.same(await probeSglang(INFO), expected);
  t.same(
    await probeSglang(null, { '/server_info': [200, JSON.stringify(INFO)] }),
    expected,
    'the newer name',
  );
});

t.test('SGLang: what it does not say is unknown, and what could be better is said', async t => {
  const bare = await probeSglang(null, { '/metrics': [404, ''], '/get_model_info': [404, ''] });
  t.match(bare, { version: null, blockSize: null, totalBlocks: null, dpRanks: null, events: null });
  t.match(bare.notices, [/does not tell its version/, /\/get_server_info is not there/, /--enable-metrics/]);
  t.match(await probeSglang(null), { blockSize: 32, totalBlocks: 100 }, 'its metrics know the cache as well');
  const slow = { version: '0.4.1', page_size: 1, schedule_low_priority_values_first: true };
  t.match((await probeSglang(slow)).notices, [
    /version 0\.4\.1; the adapter is written for 0\.5\.0/,
    /--incremental-streaming-output/,
    /--schedule-low-priority-values-first/,
    /--page-size 16, 32 or 64/,
  ]);
  t.match((await probeSglang({ ...INFO, version: 'dev-build' })).notices, [/version dev-build/]);
  t.same((await probeSglang({ ...INFO, skip_tokenizer_init: true })).answerModes, ['token']);
  const embeds = await probeSglang(INFO, { '/get_model_info': [200, '{"is_generation":false}'] });
  t.match(embeds, { answerModes: ['relay'], returnsTokenIds: false, notices: [/generates no text/] });
  for (const config of [null, 7, '{', '[]', '{"publisher":null}', '{"publisher":"zmq","endpoint":5}']) {
    t.equal((await probeSglang({ ...INFO, kv_events_config: config })).events, null, String(config));
  }
  await t.rejects(probeSglang(INFO, { '/v1/models': [500, ''] }), { code: 'MILLRACE_WORKER_PROTOCOL' });
});

t.test('SGLang: metrics', t => {
  t.same(sglang.parseMetrics(METRICS), {
    running: 7,
    waiting: 2,
    kvUsage: 0.5,
    prefixCacheQueries: 1000,
    prefixCacheHits: 400,
  });
  const none = {
    running: null,
    waiting: null,
    kvUsage: null,
    prefixCacheQueries: null,
    prefixCacheHits: null,
  };
  t.same(sglang.parseMetrics(''), none);
  t.same(trtllm.parseMetrics(METRICS), none);
  t.end();
});

t.test('TensorRT-LLM: what a server says', async t => {
  const page = `trtllm_kv_cache_tokens_per_block{model_name="m"} 32.0
trtllm_kv_cache_max_blocks{model_name="m"} 500.0
trtllm_kv_cache_utilization{model_name="m"} 0.5
trtllm_num_requests_running{model_name="m"} 2.0
trtllm_num_requests_waiting{model_name="m"} 1.0
trtllm_kv_cache_reused_blocks_total{model_name="m"} 30.0
trtllm_kv_cache_missed_blocks_total{model_name="m"} 70.0
`;
  const probe = (changes: Pages = {}) =>
    trtllm.probe(
      getter({
        '/v1/models': [200, '{"data":[{"id":"m","owned_by":"tensorrt_llm"}]}'],
        '/version': [200, '{"version":"1.1.0rc2"}'],
        '/prometheus/metrics': [200, page],
        '/kv_cache_events': [405, ''],
        ...changes,
      }),
      ORIGIN,
    );
  t.same(await probe(), {
    engine: 'trtllm',
    version: '1.1.0rc2',
    models: [{ id: 'm', contextLength: null }],
    blockSize: 32,
    totalBlocks: 500,
    returnsTokenIds: true,
    answerModes: ['token', 'relay'],
    dpRanks: null,
    events: [{ publish: `${ORIGIN}/kv_cache_events`, replay: null, topic: '' }],
    handover: { role: null, kvDtype: null, bootstrapPort: null, infoEndpoint: null },
    notices: [],
  });
  const none: [number, string] = [404, ''];
  const bare = await probe({ '/version': none, '/prometheus/metrics': none, '/kv_cache_events': none });
  t.match(bare, { version: null, blockSize: null, totalBlocks: null, events: null });
  t.match(bare.notices, [/does not tell its version/, /return_perf_metrics/, /no \/kv_cache_events/]);
  t.same(trtllm.parseMetrics(page), {
    running: 2,
    waiting: 1,
    kvUsage: 0.5,
    prefixCacheQueries: 100,
    prefixCacheHits: 30,
  });
});

t.test('asking for ids: prompts alone, and nothing that the route does not take', async t => {
  const asked: [string, unknown][] = [];
  const post = (status: number, body: string) => async (path: string, json: string) => {
    asked.push([path, JSON.parse(json)]);
    return { status, body };
  };
  const special = makeRequest({ raw: { add_special_tokens: false }, engineOnly: ['add_special_tokens'] });
  const media = makeRequest({ api: 'chat', prompt: { kind: 'messages', messages: [] } });
  t.same([sglang.sampleOf(media), trtllm.sampleOf(media), trtllm.sampleOf(special)], [null, null, null]);
  const sample = sglang.sampleOf(special)!;
  t.same(await sglang.tokenize(post(200, '{"tokens":[1,2]}'), 'm', sample), Uint32Array.of(1, 2));
  t.equal(await trtllm.tokenize(post(404, ''), 'm', { prompt: 'x' }), null);
  t.equal(await sglang.tokenize(post(200, ''), 'm', { messages: [] }), null);
  t.equal(await trtllm.tokenize(post(200, ''), 'm', { messages: [] }), null);
  await t.rejects(trtllm.tokenize(post(200, '{"tokens":[-1]}'), 'm', { prompt: 'x' }), {
    message: /_internal\/tokenize did not answer/,
  });
  t.same(asked, [
    ['/tokenize', { add_special_tokens: false, model: 'm', prompt: 'hi' }],
    ['/_internal/tokenize', { model: 'm', prompt: 'x' }],
    ['/_internal/tokenize', { model: 'm', prompt: 'x' }],
  ]);
});

t.test('what servers say of handing KV over', async t => {
  const prefill = { ...INFO, disaggregation_mode: 'prefill', disaggregation_bootstrap_port: 9001 };
  const said = await probeSglang({ ...prefill, kv_cache_dtype: 'fp8_e5m2' });
  t.same(said.handover, { role: 'prefill', kvDtype: 'fp8_e5m2', bootstrapPort: 9001, infoEndpoint: null });
  const both = await probeSglang({
    ...INFO,
    disaggregation_mode: 'null',
    disaggregation_bootstrap_port: 70_000,
  });
  t.same(both.handover, { role: null, kvDtype: null, bootstrapPort: null, infoEndpoint: null });
  const models = JSON.stringify({ data: [{ id: 'm', owned_by: 'tensorrt_llm' }] });
  const context = async (endpoint: unknown): Promise<unknown> => {
    const info = JSON.stringify({ disaggregated_params: { ctx_dp_rank: 0, ctx_info_endpoint: endpoint } });
    const pages: Pages = { '/v1/models': [200, models], '/server_info': [200, info] };
    return (await trtllm.probe(getter(pages), ORIGIN)).handover?.infoEndpoint;
  };
  t.equal(await context(['tcp://10.0.0.1:5000', 'tcp://10.0.0.1:5001']), 'tcp://10.0.0.1:5000');
  t.equal(await context('tcp://10.0.0.1:5000'), 'tcp://10.0.0.1:5000', 'older releases give no list');
  for (const nothing of [null, [], [7], '', 'x'.repeat(1025)]) t.equal(await context(nothing), null);
});
