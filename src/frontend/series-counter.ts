/**
 * SeriesCounter (R7): a counter or gauge with labels, for what is counted several times per request. prom-client's own
 * costs about a microsecond per touch, as much for ten touches as uWebSockets.js needs for the whole request. One writer,
 * the socket thread that owns the metrics.
 */
import type { ScrapedMetric } from './model-histogram.js';

interface Series {
  readonly labels: readonly string[];
  value: number;
}

/** A value per combination of label values. The caller keeps the number of combinations bounded. */
export class SeriesCounter {
  readonly name: string;
  readonly #type: 'counter' | 'gauge';
  readonly #help: string;
  readonly #labelNames: readonly string[];
  readonly #series = new Map<string, Series>();

  constructor(type: 'counter' | 'gauge', name: string, help: string, labelNames: readonly string[]) {
    this.name = name;
    this.#type = type;
    this.#help = help;
    this.#labelNames = labelNames;
    if (labelNames.length === 0) this.add(0);
  }

  /** Adds to the series with these label values, given in the order of the label names. */
  add(amount: number, ...labels: string[]): void {
    const key = labels.join('\n');
    const series = this.#series.get(key);
    if (series === undefined) this.#series.set(key, { labels, value: amount });
    else series.value += amount;
  }

  /** Called by the registry at scrape time. */
  get(): ScrapedMetric {
    const values = Array.from(this.#series.values(), ({ labels, value }) => ({
      labels: Object.fromEntries(this.#labelNames.map((name, i) => [name, labels[i]!])),
      value,
    }));
    return { name: this.name, help: this.#help, type: this.#type, aggregator: 'sum', values };
  }
}
