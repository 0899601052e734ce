// Promise: the numbers of the index are read once per scrape and shown under their names; an index that cannot be read
// shows nothing and takes no other metric with it; expected and reported cache hits can be compared.
import t from 'tap';
import type { IndexReadings } from '#millrace/frontend/index-metrics.js';
import { createMetrics, type EndedRequest, mergedText } from '#millrace/frontend/metrics.js';

const NOTHING = {
  readRingDepths: () => [],
  readRetainedBytes: () => 0,
  readDeferredAborts: () => ({ open: 0, deferred: 0, cut: 0 }),
  readWorkers: null,
  readWorkerLoads: () => [],
  readLinks: null,
};
const READINGS: IndexReadings = {
  events: { batches: 7, gaps: 0 },
  lag: { p50: 0.001, p99: 0.25, max: 3 },
  index: { blocks: 10, blocksMax: 100, engineHashes: 12, holders: 2, predictions: 4 },
  predictionsDropped: 5,
};

t.test('one reading for all series of a scrape', async t => {
  let reads = 0;
  const readIngest = async (): Promise<IndexReadings> => {
    reads += 1;
    return READINGS;
  };
  const metrics = createMetrics([], { ...NOTHING, readIngest }, 'main');
  t.teardown(() => metrics.close());
  const text = await metrics.text();
  t.equal(reads, 1);
  for (const line of [
    '# TYPE millrace_kv_events_total counter',
    'millrace_kv_events_total{kind="batches"} 7',
    'millrace_kv_events_total{kind="gaps"} 0',
    'millrace_kv_event_lag_seconds{quantile="0.99"} 0.25',
    'millrace_index_blocks 10',
    'millrace_index_blocks_max 100',
    'millrace_index_engine_hashes 12',
    'millrace_index_holders 2',
    'millrace_index_predictions 4',
    'millrace_predictions_dropped_total 5',
  ]) {
    t.ok(text.split('\n').includes(line), line);
  }
  const other = createMetrics([], { ...NOTHING, readIngest: null }, 'socket-0');
  t.teardown(() => other.close());
  t.notMatch(await other.text(), /millrace_index/, 'one thread tells them');
  const merged = await mergedText([await metrics.samples(), await other.samples()]);
  t.match(merged, /^millrace_index_blocks 10$/m);
  t.equal(reads, 2);
});

t.test('an index that is not known', async t => {
  const readIngest = async (): Promise<IndexReadings> => ({
    ...READINGS,
    events: {},
    lag: null,
    index: null,
  });
  const metrics = createMetrics([], { ...NOTHING, readIngest }, 'main');
  t.teardown(() => metrics.close());
  const text = await metrics.text();
  t.notMatch(text, /^millrace_(index|kv_event)/m);
  t.match(text, /^millrace_retained_bytes 0$/m);
});

t.test('cached tokens: expected and reported', async t => {
  const metrics = createMetrics(['m'], { ...NOTHING, readIngest: null }, 'main');
  t.teardown(() => metrics.close());
  const request: EndedRequest = {
    model: 'm',
    endpoint: 'completions',
    type: 'unary',
    cause: 'completed',
    code: null,
    seconds: 1,
    promptTokens: 100,
    cachedTokens: 48,
    expectedCachedTokens: 50,
    completionTokens: 1,
  };
  metrics.requestEnded(request);
  metrics.requestEnded({ ...request, cachedTokens: null, expectedCachedTokens: 100 });
  metrics.requestEnded({ ...request, promptTokens: null, cachedTokens: null });
  const text = await metrics.text();
  for (const line of [
    'millrace_prompt_tokens_total 100',
    'millrace_cached_tokens_total{source="reported"} 48',
    'millrace_cached_tokens_total{source="expected"} 50',
    'dynamo_component_router_kv_hit_rate_bucket{model="m",le="0.45"} 0',
    'dynamo_component_router_kv_hit_rate_bucket{model="m",le="0.5"} 1',
    'dynamo_component_router_kv_hit_rate_count{model="m"} 2',
    'dynamo_component_router_kv_hit_rate_sum{model="m"} 1.5',
  ]) {
    t.ok(text.split('\n').includes(line), `${line}`);
  }
});
