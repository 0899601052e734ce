/**
 * GET /metrics of the mock's vLLM surface: vLLM's names and labels, in the text format of Prometheus. Gauges and totals
 * are read from the core when asked; the three latency histograms are fed by the answers. One per engine.
 */
import type { EngineCore } from '../engine-core.js';
import type { SequenceOwner } from '../live-engine.js';

const SECONDS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60] as const;

/** A histogram over fixed bounds in seconds. */
export class LatencyHistogram {
  readonly #counts = new Float64Array(SECONDS.length + 1);
  #sum = 0;

  /** Adds one observation. */
  observe(seconds: number): void {
    let at = 0;
    while (at < SECONDS.length && seconds > SECONDS[at]!) at++;
    this.#counts[at]!++;
    this.#sum += seconds;
  }

  /** The lines of the family `name`. */
  render(name: string, labels: string): string {
    let total = 0;
    let text = `# TYPE ${name} histogram\n`;
    this.#counts.forEach((count, at) => {
      total += count;
      text += `${name}_bucket{${labels},le="${SECONDS[at] ?? '+Inf'}"} ${total}\n`;
    });
    return `${text}${name}_sum{${labels}} ${this.#sum}\n${name}_count{${labels}} ${total}\n`;
  }
}

/** See the head of the file. */
export class EngineMetrics {
  readonly timeToFirstToken = new LatencyHistogram();
  readonly interTokenLatency = new LatencyHistogram();
  readonly requestLatency = new LatencyHistogram();
  /** Choices that ended, by reason. */
  readonly ended = { stop: 0, length: 0, abort: 0 };

  /** The whole page. */
  render(core: EngineCore<SequenceOwner>, modelName: string): string {
    const { settings, totals } = core;
    const engine = 'engine="0"';
    const model = modelName.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
    const labels = `${engine},model_name="${model}"`;
    const line = (kind: string, name: string, value: number): string =>
      `# TYPE vllm:${name} ${kind}\nvllm:${name}{${labels}} ${value}\n`;
    const config = `block_size="${settings.blockSize}",num_gpu_blocks="${settings.numGpuBlocks}",enable_prefix_caching="True"`;
    const ended = Object.entries(this.ended)
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
      this.timeToFirstToken.render('vllm:time_to_first_token_seconds', labels),
      this.interTokenLatency.render('vllm:inter_token_latency_seconds', labels),
      this.requestLatency.render('vllm:e2e_request_latency_seconds', labels),
    ].join('');
  }
}
