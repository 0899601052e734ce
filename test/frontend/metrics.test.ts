// Promise: the text has Dynamo's names, labels and buckets, its sums add up, labels are bounded, and two planes in one
// process share nothing.
import t from 'tap';
import { createMetrics, type EndedRequest, type MetricSources } from '#millrace/frontend/metrics.js';

const SOURCES: MetricSources = {
  readRingDepths: () => [{ ring: 'ask0', unit: 'bytes', depth: 96 }],
  readRetainedBytes: () => 1234,
  readDeferredAborts: () => ({ open: 3, deferred: 5, cut: 2 }),
  readWorkers: null,
  readWorkerLoads: () => [{ worker: 'w0', kind: 'prefill_tokens', load: 77 }],
  readIngest: null,
  readLinks: null,
};

const REQUEST: EndedRequest = {
  model: 'm',
  endpoint: 'chat_completions',
  type: 'stream',
  cause: 'completed',
  code: null,
  seconds: 3,
  promptTokens: 100,
  cachedTokens: null,
  expectedCachedTokens: null,
  completionTokens: 33_000,
};

/** Sample lines by name and labels; throws on a line that is neither a sample nor a comment. */
function parse(text: string): Map<string, number> {
  const samples = new Map<string, number>();
  for (const line of text.split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    const match = /^([a-z_]+(?:\{[^}]*\})?) (\S+)$/.exec(line);
    if (match === null || samples.has(match[1]!)) throw new Error(`bad or repeated line: ${line}`);
    samples.set(match[1]!, Number(match[2]));
  }
  return samples;
}

t.test('requests, tokens and sources', async t => {
  const metrics = createMetrics(['m'], SOURCES, 'socket-0');
  t.teardown(() => metrics.close());
  for (const model of ['m', 'm', 'not served', 'm', 'm']) {
    metrics.requestStarted(model, 'chat_completions', 'stream');
  }
  metrics.firstToken('m', 0.0047);
  metrics.tokens(metrics.modelIndex('m'), 1, -1);
  metrics.tokens(metrics.modelIndex('m'), 4, 0.04);
  metrics.tokens(metrics.modelIndex('m'), 1, 5);
  metrics.requestEnded(REQUEST);
  metrics.requestEnded({ ...REQUEST, cause: 'client_gone', code: 'MILLRACE_CANCELED', cachedTokens: 50 });
  metrics.requestEnded({
    ...REQUEST,
    cause: 'slow_client',
    code: 'MILLRACE_SLOW_CLIENT',
    promptTokens: null,
  });
  metrics.requestEnded({
    ...REQUEST,
    model: 'not served',
    cause: 'rejected',
    code: 'MILLRACE_UNKNOWN_MODEL',
  });
  metrics.asked('first');
  metrics.poolThreadRestarted();
  const text = await metrics.text();
  const samples = parse(text);
  const kind = 'model="m",endpoint="chat_completions",request_type="stream"';
  const unknown = kind.replace('"m"', '"unknown"');
  const expected: Record<string, number> = {
    [`dynamo_frontend_requests_started_total{${kind}}`]: 4,
    [`dynamo_frontend_requests_total{${kind},status="success",error_type=""}`]: 1,
    [`dynamo_frontend_requests_total{${kind},status="error",error_type="cancelled"}`]: 2,
    [`dynamo_frontend_requests_total{${unknown},status="error",error_type="not_found"}`]: 1,
    'dynamo_frontend_active_requests{model="m"}': 1,
    'dynamo_frontend_active_requests{model="unknown"}': 0,
    dynamo_frontend_disconnected_clients: 1,
    [`dynamo_frontend_model_cancellation_total{${kind}}`]: 1,
    'dynamo_frontend_model_rejection_total{model="unknown",endpoint="chat_completions"}': 1,
    'dynamo_frontend_request_duration_seconds_bucket{model="m",le="2"}': 0,
    'dynamo_frontend_request_duration_seconds_bucket{model="m",le="4"}': 3,
    'dynamo_frontend_request_duration_seconds_sum{model="m"}': 9,
    'dynamo_frontend_input_sequence_tokens_bucket{model="m",le="100"}': 2,
    'dynamo_frontend_cached_tokens_count{model="m"}': 1,
    'dynamo_frontend_output_sequence_tokens_bucket{model="m",le="32000"}': 0,
    'dynamo_frontend_output_sequence_tokens_bucket{model="m",le="+Inf"}': 3,
    'dynamo_frontend_output_tokens_total{model="m"}': 6,
    'dynamo_frontend_time_to_first_token_seconds_bucket{model="m",le="0.0047"}': 1,
    'dynamo_frontend_inter_token_latency_seconds_bucket{model="m",le="0.0067"}': 0,
    'dynamo_frontend_inter_token_latency_seconds_bucket{model="m",le="0.013"}': 4,
    'dynamo_frontend_inter_token_latency_seconds_bucket{model="m",le="+Inf"}': 5,
    'dynamo_frontend_inter_token_latency_seconds_sum{model="m"}': 5.04,
    'millrace_asks_total{reason="first"}': 1,
    'millrace_asks_total{reason="pool_lost"}': 0,
    'millrace_requests_ended_total{cause="completed"}': 1,
    'millrace_requests_ended_total{cause="deadline"}': 0,
    millrace_slow_clients_total: 1,
    millrace_pool_thread_restarts_total: 1,
    'millrace_ring_depth{ring="ask0",unit="bytes"}': 96,
    millrace_retained_bytes: 1234,
    'millrace_worker_load{worker="w0",kind="prefill_tokens"}': 77,
  };
  for (const [name, value] of Object.entries(expected)) t.equal(samples.get(name), value, name);
  t.notMatch(text, 'not served', 'a model that is not served is no label');
  for (const quantile of ['0.5', '0.99', '1']) {
    t.ok(samples.get(`millrace_event_loop_delay_seconds{thread="socket-0",quantile="${quantile}"}`)! >= 0);
  }
  const perToken = [...samples].filter(([name]) =>
    name.startsWith('dynamo_frontend_inter_token_latency_seconds_bucket{model="m"'),
  );
  const counts = perToken.map(([, value]) => value);
  t.same(
    counts,
    counts.toSorted((a, b) => a - b),
    'buckets are cumulative',
  );
  t.equal(counts.at(-1), samples.get('dynamo_frontend_inter_token_latency_seconds_count{model="m"}'));
});

t.test('planes are independent, and models over the cap share a label', async t => {
  const one = createMetrics([], SOURCES, 'socket-0');
  const two = createMetrics([], SOURCES, 'socket-0');
  t.teardown(() => one.close());
  t.teardown(() => two.close());
  one.asked('first');
  t.equal(parse(await two.text()).get('millrace_asks_total{reason="first"}'), 0);
  const indexes = Array.from({ length: 300 }, (_, i) => two.addModel(`m${i}`));
  t.equal(new Set(indexes).size, 256);
  t.equal(indexes[299], two.modelIndex('never added'));
  t.equal(two.addModel('m5'), two.modelIndex('m5'), 'adding twice changes nothing');
  two.tokens(indexes[254]!, 3, 0.1);
  t.equal(parse(await two.text()).get('dynamo_frontend_output_tokens_total{model="m254"}'), 3);
});
