/**
 * GET /metrics of a mock engine that plays vLLM: vLLM's names and labels, in the text format of Prometheus. Gauges and
 * totals are read from the core when asked. Pure.
 */
import type { EngineCore } from '../engine-core.js';
import type { SequenceOwner } from '../live-engine.js';
import { type EngineMetrics, familyText, labelText } from '../openai/engine-metrics.js';

/** The whole page. */
export function vllmMetrics(
  core: EngineCore<SequenceOwner>,
  metrics: EngineMetrics,
  modelName: string,
): string {
  const { settings, totals } = core;
  const engine = 'engine="0"';
  const labels = `${engine},model_name="${labelText(modelName)}"`;
  const line = (kind: 'gauge' | 'counter', name: string, value: number): string =>
    familyText(kind, `vllm:${name}`, labels, value);
  const config = `block_size="${settings.blockSize}",num_gpu_blocks="${settings.numGpuBlocks}",enable_prefix_caching="True"`;
  const ended = Object.entries(metrics.ended)
    .map(([why, count]) => `vllm:request_success_total{${labels},finished_reason="${why}"} ${count}\n`)
    .join('');
  return [
    line('gauge', 'num_requests_running', core.running),
    line('gauge', 'num_requests_waiting', core.waiting),
    line('gauge', 'kv_cache_usage_perc', core.kvUsage),
    line('counter', 'prefix_cache_queries_total', totals.prefixQueries),
    line('counter', 'prefix_cache_hits_total', totals.prefixHits),
    line('counter', 'num_preemptions_total', totals.preemptions),
    line('counter', 'prompt_tokens_total', totals.promptTokens),
    line('counter', 'generation_tokens_total', totals.generatedTokens),
    `# TYPE vllm:request_success_total counter\n${ended}`,
    `# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{${config},${engine}} 1\n`,
    metrics.timeToFirstToken.render('vllm:time_to_first_token_seconds', labels),
    metrics.interTokenLatency.render('vllm:inter_token_latency_seconds', labels),
    metrics.requestLatency.render('vllm:e2e_request_latency_seconds', labels),
  ].join('');
}
