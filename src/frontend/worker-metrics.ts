/**
 * The metrics of workers and their health (R7): read from the registry and the monitor at scrape time, so that the series of
 * a worker end when it leaves. One thread of a plane tells them.
 */
import type { Metric, Registry } from 'prom-client';
import { WORKER_ROLES, type WorkerRole } from '../messages/disagg.js';
import type { ScrapedMetric } from './model-histogram.js';

/** Values of the label `state`. */
const STATES = ['probing', 'ready', 'draining', 'sleeping', 'unavailable'] as const;

/** What is read of one worker. */
export interface WorkerReadings {
  /** Its name: URL and rank. */
  readonly worker: string;
  readonly state: (typeof STATES)[number];
  /** Signals against it by cause, and its canaries by outcome, since it was taken in. */
  readonly failures: Readonly<Record<string, number>>;
  readonly canaries: Readonly<Record<string, number>>;
  readonly role: WorkerRole;
  /** Prompt tokens that it still has to compute for requests of this plane. */
  readonly prefillTokens: number;
  /** Its worker link; null: it never had one. */
  readonly link: { readonly state: 'up' | 'gone'; readonly reconnects: number } | null;
}

type Values = ScrapedMetric['values'];
type Shape = Pick<ScrapedMetric, 'name' | 'help' | 'type'> & {
  readonly values: (read: WorkerReadings) => Values;
};

const counted = (worker: string, label: string, counts: Readonly<Record<string, number>>): Values =>
  Object.entries(counts).map(([name, value]) => ({ labels: { worker, [label]: name }, value }));

const SHAPES: readonly Shape[] = [
  {
    name: 'millrace_worker_state',
    help: 'State of a worker: 1 for the one that it is in',
    type: 'gauge',
    values: ({ worker, state }) =>
      STATES.map(name => ({ labels: { worker, state: name }, value: name === state ? 1 : 0 })),
  },
  {
    name: 'millrace_worker_role',
    help: 'What a worker does of a request, as it is configured: 1 for its role',
    type: 'gauge',
    values: ({ worker, role }) =>
      WORKER_ROLES.map(name => ({ labels: { worker, role: name }, value: name === role ? 1 : 0 })),
  },
  {
    name: 'millrace_prefill_queue_tokens',
    help: 'Prompt tokens that a prefill worker still has to compute; at prefillQueueTokensMax it gets no more',
    type: 'gauge',
    values: ({ worker, role, prefillTokens }) =>
      role === 'prefill' ? [{ labels: { worker }, value: prefillTokens }] : [],
  },
  {
    name: 'millrace_canaries_total',
    help: 'Canary requests to a worker, by outcome',
    type: 'counter',
    values: ({ worker, canaries }) => counted(worker, 'outcome', canaries),
  },
  {
    name: 'millrace_worker_failures_total',
    help: 'Signals against a worker, by cause',
    type: 'counter',
    values: ({ worker, failures }) => counted(worker, 'cause', failures),
  },
  {
    name: 'millrace_worker_link_up',
    help: 'Whether the link of a worker that has had one is up',
    type: 'gauge',
    values: ({ worker, link }) =>
      link === null ? [] : [{ labels: { worker }, value: link.state === 'up' ? 1 : 0 }],
  },
  {
    name: 'millrace_worker_link_reconnects_total',
    help: 'Times that the link of a worker came again',
    type: 'counter',
    values: ({ worker, link }) => (link === null ? [] : [{ labels: { worker }, value: link.reconnects }]),
  },
];

/** Adds the metrics to a registry. */
export function registerWorkerMetrics(registry: Registry, read: () => readonly WorkerReadings[]): void {
  for (const { name, help, type, values } of SHAPES) {
    const get = (): ScrapedMetric => ({
      name,
      help,
      type,
      aggregator: 'sum',
      values: read().flatMap(values),
    });
    // The registry needs no more than a name and get(), which its types do not say.
    registry.registerMetric({ name, get } as unknown as Metric);
  }
}
