/**
 * The metrics of the prefix index and its KV events (R7): read from the ingest thread at scrape time, once for all series
 * of a scrape. One thread of a plane tells them.
 */
import type { Metric, Registry } from 'prom-client';
import type { ScrapedMetric } from './model-histogram.js';

/** What is read of the index. */
export interface IndexReadings {
  /** Anomalies and work of event sources and index since the start, by kind. */
  readonly events: Readonly<Record<string, number>>;
  /** How late events are delivered, in seconds; null: none came. */
  readonly lag: { readonly p50: number; readonly p99: number; readonly max: number } | null;
  readonly index: {
    readonly blocks: number;
    readonly blocksMax: number;
    readonly engineHashes: number;
    readonly holders: number;
    readonly predictions: number;
  } | null;
  /** Predictions for which there was no room on the way to the index. */
  readonly predictionsDropped: number;
}

/** Reads the index; never rejects: what is not known is null. */
export type ReadIndex = () => Promise<IndexReadings>;

type Values = ScrapedMetric['values'];
type Shape = Pick<ScrapedMetric, 'name' | 'help' | 'type'> & {
  readonly values: (read: IndexReadings) => Values;
};

const one = (value: number | undefined): Values => (value === undefined ? [] : [{ labels: {}, value }]);

const gauge = (name: string, help: string, of: keyof NonNullable<IndexReadings['index']>): Shape => ({
  name: `millrace_index_${name}`,
  help,
  type: 'gauge',
  values: ({ index }) => one(index?.[of]),
});

const SHAPES: readonly Shape[] = [
  gauge('blocks', 'KV blocks in the prefix index', 'blocks'),
  gauge('blocks_max', 'KV blocks that the prefix index takes at most', 'blocksMax'),
  gauge('engine_hashes', "Engines' own names of blocks in the prefix index", 'engineHashes'),
  gauge('holders', 'Workers that the prefix index knows', 'holders'),
  gauge('predictions', 'Blocks that are expected at a worker and not confirmed', 'predictions'),
  {
    name: 'millrace_kv_events_total',
    help: 'KV events: work and anomalies, by kind',
    type: 'counter',
    values: ({ events }) => Object.entries(events).map(([kind, value]) => ({ labels: { kind }, value })),
  },
  {
    name: 'millrace_kv_event_lag_seconds',
    help: 'Time from an engine publishing KV events to their delivery, over the last ones',
    type: 'gauge',
    values: ({ lag }) =>
      lag === null
        ? []
        : [
            { labels: { quantile: '0.5' }, value: lag.p50 },
            { labels: { quantile: '0.99' }, value: lag.p99 },
            { labels: { quantile: '1' }, value: lag.max },
          ],
  },
  {
    name: 'millrace_predictions_dropped_total',
    help: 'Predictions that found no room on the way to the prefix index',
    type: 'counter',
    values: ({ predictionsDropped }) => one(predictionsDropped),
  },
];

/** Adds the metrics to a registry. */
export function registerIndexMetrics(registry: Registry, read: ReadIndex): void {
  let reading: Promise<IndexReadings> | null = null;
  const readOnce = (): Promise<IndexReadings> => {
    reading ??= read().finally(() => {
      reading = null;
    });
    return reading;
  };
  for (const { name, help, type, values } of SHAPES) {
    const get = async (): Promise<ScrapedMetric> => ({
      name,
      help,
      type,
      aggregator: 'sum',
      values: values(await readOnce()),
    });
    // The registry needs no more than a name and get(), which its types do not say.
    registry.registerMetric({ name, get } as unknown as Metric);
  }
}
