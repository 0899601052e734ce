/** Promise: the vLLM adapter reads a server's capabilities and load as they are, and never takes "absent" for 0. */
import t from 'tap';
import { modelFault } from '#millrace/engines/probe-answers.js';
import { createVllmAdapter } from '#millrace/engines/vllm.js';

const adapter = createVllmAdapter();

const METRICS = `# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a} \\"b\\" 9"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 50.0
vllm:num_requests_waiting{engine="0"} 2
vllm:kv_cache_usage_perc{engine="0"} 0.25 1700000000000
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:prefix_cache_queries_total{engine="0",} 1e+06
vllm:prefix_cache_queries_created{engine="0"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0"} 5
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1000"} 1.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="1",num_gpu_blocks="1000"} 1.0
`;
const MODELS = JSON.stringify({
  object: 'list',
  data: [
    { id: 'base', owned_by: 'vllm', max_model_len: 32768, root: '/models/base', parent: null },
    { id: 'lora', owned_by: 'vllm', parent: 'base' },
  ],
});

type Pages = Record<string, [number, string]>;
const pages: Pages = {
  '/v1/models': [200, MODELS],
  '/version': [200, '{"version":"0.11.0"}'],
  '/metrics': [200, METRICS],
};
const probe = (changes: Pages = {}) =>
  adapter.probe(async path => {
    const [status, body] = { ...pages, ...changes }[path] ?? [404, ''];
    return { status, body };
  }, 'http://10.0.0.7:8000');

t.test('metrics: sums over engines, mean of ratios, exact names', t => {
  t.same(adapter.parseMetrics(METRICS), {
    running: 7,
    waiting: 2,
    kvUsage: 0.5,
    prefixCacheQueries: 1_000_000,
    prefixCacheHits: 5,
  });
  const unknown = {
    running: null,
    waiting: null,
    kvUsage: null,
    prefixCacheQueries: null,
    prefixCacheHits: null,
  };
  t.same(adapter.parseMetrics(''), unknown);
  t.same(adapter.parseMetrics('# vllm:num_requests_running 3\nx_vllm:num_requests_running 3\n'), unknown);
  const broken =
    'vllm:num_requests_running NaN\nvllm:num_requests_waiting{a="1\nvllm:kv_cache_usage_perc{} \n';
  t.same(adapter.parseMetrics(broken), unknown);
  t.match(adapter.parseMetrics('vllm:gpu_cache_usage_perc 0.5\nvllm:num_requests_running 0'), {
    kvUsage: 0.5,
    running: 0,
  });
  t.match(adapter.parseMetrics('vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.1'), {
    kvUsage: 0.1,
  });
  t.end();
});

t.test('probe: everything that a server says', async t => {
  t.same(await probe(), {
    engine: 'vllm',
    version: '0.11.0',
    models: [
      { id: 'base', contextLength: 32768 },
      { id: 'lora', contextLength: 32768, adapter: true, parent: 'base' },
    ],
    blockSize: 16,
    totalBlocks: 2000,
    returnsTokenIds: true,
    answerModes: ['token', 'relayIds', 'relay'],
    dpRanks: 2,
    events: null,
    handover: { role: null, kvDtype: 'auto', bootstrapPort: null, infoEndpoint: null },
    notices: [],
  });
});

t.test('probe: where each rank publishes its KV events', async t => {
  const entry = {
    enable_kv_cache_events: true,
    publisher: 'zmq',
    endpoint: 'tcp://*:5557',
    replay_endpoint: 'tcp://*:5558',
    topic: '',
  };
  const recent: Pages = { '/version': [200, '{"version":"0.32.0"}'] };
  const events = async (sources: unknown) =>
    (await probe({ ...recent, '/kv_event_sources': [200, JSON.stringify(sources)] })).events;
  const first = { publish: 'tcp://10.0.0.7:5557', replay: 'tcp://10.0.0.7:5558', topic: '' };
  t.same(await events({ 0: entry }), [first], 'as vLLM 0.32.0 answers');
  const second = { publish: 'tcp://10.0.0.7:5558', replay: 'tcp://10.0.0.7:5559', topic: '' };
  t.same(await events({ 1: entry, 0: entry }), [first, second], 'the configured endpoint counts up');
  const list = [
    { data_parallel_rank: 1, endpoint: 'tcp://h:7', replay_endpoint: null, topic: 'kv' },
    { data_parallel_rank: 0, endpoint: 'ipc:///run/a', topic: 'kv' },
  ];
  t.same(await events(list), [
    { publish: 'ipc:///run/a', replay: null, topic: 'kv' },
    { publish: 'tcp://h:7', replay: null, topic: 'kv' },
  ]);
  const none = [
    {},
    [],
    null,
    'x',
    { 1: entry },
    { x: entry },
    { 0: { ...entry, enable_kv_cache_events: false } },
    { 0: { ...entry, publisher: 'null' } },
    { 0: { ...entry, endpoint: null } },
  ];
  for (const sources of none) t.equal(await events(sources), null, JSON.stringify(sources));
  t.equal((await probe({ ...recent, '/kv_event_sources': [200, '{'] })).events, null);
  t.equal((await probe(recent)).events, null, 'no such route');
  const older: Pages = { '/kv_event_sources': [200, JSON.stringify({ 0: entry })] };
  t.equal((await probe(older)).events, null, 'an older release is not asked');
});

t.test('probe: token ids from 0.10.2 on, or from our mock', async t => {
  const versions: [string, boolean][] = [
    ['0.10.1.1', false],
    ['0.9.20', false],
    ['0.10.2', true],
    ['0.10.2rc1.dev5+gabc', true],
    ['v1.0', true],
    ['dev', false],
  ];
  for (const [version, expected] of versions) {
    const { returnsTokenIds } = await probe({ '/version': [200, JSON.stringify({ version })] });
    t.equal(returnsTokenIds, expected, version);
  }
  t.match(await probe({ '/version': [404, ''] }), { version: null, returnsTokenIds: false });
  const mock = JSON.stringify({ data: [{ id: 'm', owned_by: 'millrace-mock', max_model_len: 0 }] });
  t.match(await probe({ '/version': [404, ''], '/v1/models': [200, mock] }), {
    returnsTokenIds: true,
    models: [{ id: 'm', contextLength: null }],
  });
});

t.test('another model than the declared one is told', async t => {
  const { models } = await probe();
  t.equal(modelFault(models, 'lora'), null);
  t.equal(modelFault(models, 'other'), 'it is declared to serve "other", but lists "base", "lora"');
});

t.test('probe: a cache that is not sized yet, and no metrics, leave the sizes unknown', async t => {
  const unsized = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0';
  t.match(await probe({ '/metrics': [200, unsized] }), { blockSize: 16, totalBlocks: null });
  t.match(await probe({ '/metrics': [404, ''] }), { blockSize: null, totalBlocks: null });
});

t.test('probe: errors say what the server did', async t => {
  const cases: [[number, string], RegExp][] = [
    [[500, ''], /\/v1\/models answered 500, expected 200/],
    [[401, ''], /API key/],
    [[200, '<html>'], /did not answer/],
    [[200, 'null'], /did not answer/],
    [[200, '{"data":[null]}'], /without an id/],
    [[200, '{"data":[{"id":3}]}'], /without an id/],
    [[200, '{"data":[]}'], /no model/],
  ];
  for (const [page, message] of cases) {
    await t.rejects(probe({ '/v1/models': page }), { code: 'MILLRACE_WORKER_PROTOCOL', message });
  }
});
