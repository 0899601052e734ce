/**
 * Per-model counters and histograms in typed arrays (R7): what is counted per token or several times per request. A
 * prom-client histogram hashes its labels on each observation; this adds to an array and is rendered at scrape time.
 * One writer, the socket thread that owns the metrics.
 */
import type { MetricValue } from 'prom-client';

/** A metric as prom-client's registry asks for it at scrape time. */
export interface ScrapedMetric {
  readonly name: string;
  readonly help: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly aggregator: 'sum';
  readonly values: (MetricValue<string> & { metricName?: string })[];
}

/** Names of the models by index: grows, never shrinks. */
export type ModelNames = readonly string[];

/** A cumulative histogram per model, with the upper bounds (inclusive, ascending) of Prometheus. */
export class ModelHistogram {
  readonly name: string;
  readonly #help: string;
  readonly #bounds: Float64Array;
  readonly #models: ModelNames;
  /** [model][bucket]: observations of that bucket alone; the last bucket is +Inf. */
  readonly #counts: Float64Array;
  readonly #sums: Float64Array;

  constructor(name: string, help: string, bounds: readonly number[], models: ModelNames, modelsMax: number) {
    this.name = name;
    this.#help = help;
    this.#bounds = Float64Array.from(bounds);
    this.#models = models;
    this.#counts = new Float64Array(modelsMax * (bounds.length + 1));
    this.#sums = new Float64Array(modelsMax);
  }

  /** Counts `value` for the model, `weight` times. */
  add(model: number, value: number, weight = 1): void {
    const bounds = this.#bounds;
    let bucket = 0;
    while (bucket < bounds.length && value > bounds[bucket]!) bucket++;
    this.#counts[model * (bounds.length + 1) + bucket]! += weight;
    this.#sums[model]! += value * weight;
  }

  /** Called by the registry at scrape time. */
  get(): ScrapedMetric {
    const values: ScrapedMetric['values'] = [];
    this.#models.forEach((model, index) => {
      const base = index * (this.#bounds.length + 1);
      let total = 0;
      this.#bounds.forEach((le, bucket) => {
        total += this.#counts[base + bucket]!;
        values.push({ metricName: `${this.name}_bucket`, labels: { model, le }, value: total });
      });
      total += this.#counts[base + this.#bounds.length]!;
      values.push({ metricName: `${this.name}_bucket`, labels: { model, le: '+Inf' }, value: total });
      values.push({ metricName: `${this.name}_sum`, labels: { model }, value: this.#sums[index]! });
      values.push({ metricName: `${this.name}_count`, labels: { model }, value: total });
    });
    return { name: this.name, help: this.#help, type: 'histogram', aggregator: 'sum', values };
  }
}

/** A counter per model. */
export class ModelCounter {
  readonly name: string;
  readonly #help: string;
  readonly #models: ModelNames;
  readonly #counts: Float64Array;

  constructor(name: string, help: string, models: ModelNames, modelsMax: number) {
    this.name = name;
    this.#help = help;
    this.#models = models;
    this.#counts = new Float64Array(modelsMax);
  }

  /** Adds `count` for the model. */
  add(model: number, count: number): void {
    this.#counts[model]! += count;
  }

  /** Called by the registry at scrape time. */
  get(): ScrapedMetric {
    const values = this.#models.map((model, index) => ({ labels: { model }, value: this.#counts[index]! }));
    return { name: this.name, help: this.#help, type: 'counter', aggregator: 'sum', values };
  }
}
