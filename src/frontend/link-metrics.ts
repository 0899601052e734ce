/**
 * The metrics of worker links (R5, R7): read at scrape time from the threads that hold them, and summed. What is told of
 * one worker's link is with the worker (worker-metrics.ts).
 */
import type { Metric, Registry } from 'prom-client';
import type { ScrapedMetric } from './model-histogram.js';

/** What is read of the links of one thread, all since the start. */
export interface LinkReadings {
  /** Calls to workers by their way; null: this thread makes none. */
  readonly calls: { readonly overLink: number; readonly overHttp: number } | null;
  readonly traffic: {
    readonly bytesIn: number;
    readonly bytesOut: number;
    readonly framesIn: number;
    readonly framesOut: number;
  };
  readonly connections: { readonly opened: number; readonly ended: number; readonly refused: number };
}

type Shape = Pick<ScrapedMetric, 'name' | 'help'> & {
  readonly label: string;
  readonly values: (read: LinkReadings) => readonly (readonly [label: string, value: number])[];
};

const SHAPES: readonly Shape[] = [
  {
    name: 'millrace_link_calls_total',
    help: 'Calls to workers, over their link or over HTTP',
    label: 'way',
    values: ({ calls }) =>
      calls === null
        ? []
        : [
            ['link', calls.overLink],
            ['http', calls.overHttp],
          ],
  },
  {
    name: 'millrace_link_bytes_total',
    help: 'Bytes of worker links',
    label: 'direction',
    values: ({ traffic }) => [
      ['in', traffic.bytesIn],
      ['out', traffic.bytesOut],
    ],
  },
  {
    name: 'millrace_link_frames_total',
    help: 'Frames of worker links',
    label: 'direction',
    values: ({ traffic }) => [
      ['in', traffic.framesIn],
      ['out', traffic.framesOut],
    ],
  },
  {
    name: 'millrace_link_connections_total',
    help: 'Connections of worker links: admitted, ended after that, not admitted',
    label: 'event',
    values: ({ connections }) => Object.entries(connections),
  },
];

/** Adds the metrics to a registry. */
export function registerLinkMetrics(registry: Registry, read: () => LinkReadings): void {
  for (const { name, help, label, values } of SHAPES) {
    const get = (): ScrapedMetric => ({
      name,
      help,
      type: 'counter',
      aggregator: 'sum',
      values: values(read()).map(([key, value]) => ({ labels: { [label]: key }, value })),
    });
    // The registry needs no more than a name and get(), which its types do not say.
    registry.registerMetric({ name, get } as unknown as Metric);
  }
}
