/**
 * The metrics of prompts that one worker computes and another one answers (R7): where they are computed and why, what
 * becomes of each hand-over, how long it takes, and what is finished for nobody. One set per socket thread, which owns it.
 */
import { Gauge, type Metric, type Registry } from 'prom-client';
import { DISAGG_PROTOCOLS, type DisaggProtocolName, type SplitReason } from '../messages/disagg.js';
import { IDS_SOURCES, type IdsSource } from '../messages/records.js';
import { ModelHistogram } from './model-histogram.js';
import { SeriesCounter } from './series-counter.js';

/** Bounds of both histograms: a hand-over inside a host takes milliseconds, a long prompt minutes. */
const SECONDS = [
  0.001, 0.0022, 0.0047, 0.01, 0.022, 0.047, 0.1, 0.22, 0.47, 1, 2.2, 4.7, 10, 22, 48, 100, 220, 480,
];

/**
 * What became of a hand-over. handed_over: decode's first token came. whole_answer: the prefill worker gave all of the answer.
 * local: decode was asked to compute the prompt itself. refused: the prefill worker found the request wrong.
 * prefill_failed, decode_failed: the worker failed when decode was waiting for KV; the request is asked again or ends.
 * dropped: nobody waited any more, or decode stayed silent.
 */
export const HANDOVER_OUTCOMES = [
  'handed_over',
  'whole_answer',
  'local',
  'refused',
  'prefill_failed',
  'decode_failed',
  'dropped',
] as const;
/** One of HANDOVER_OUTCOMES. */
export type HandoverOutcome = (typeof HANDOVER_OUTCOMES)[number];

/**
 * Why decode computed a prompt that a prefill worker was to compute. busy: that worker wants no more now. malformed: its
 * answer is not what the protocol promises. nothing_kept: it has kept nothing for decode. memory: the decode body could not be
 * kept meanwhile. The others: how it failed.
 */
export const FALLBACK_CAUSES = [
  'unreachable',
  'reset',
  'stalled',
  'protocol',
  'busy',
  'malformed',
  'nothing_kept',
  'memory',
] as const;
/** One of FALLBACK_CAUSES. */
export type FallbackCause = (typeof FALLBACK_CAUSES)[number];

/** Hand-overs that were finished for nobody: under way now; since the start, those that were, and those that were cut. */
export interface DeferredAbortCounts {
  readonly open: number;
  readonly deferred: number;
  readonly cut: number;
}

/** See the head of the file. `model`: index of `Metrics.modelIndex`. */
export interface DisaggMetrics {
  /** A call of a PLAN that is carried out. */
  decided(decision: 'split' | 'local' | 'refused', reason: SplitReason): void;
  /** Where the ids came from by which a PLAN was made. */
  routedBy(source: IdsSource): void;
  handoverEnded(protocol: DisaggProtocolName, outcome: HandoverOutcome): void;
  fellBack(cause: FallbackCause): void;
  prefillAnswered(model: number, seconds: number): void;
  handedOver(model: number, seconds: number): void;
}

/** Adds the metrics to a registry. `models`: names by index, which grow. */
export function createDisaggMetrics(
  registry: Registry,
  models: readonly string[],
  modelsMax: number,
  readDeferredAborts: () => DeferredAbortCounts,
): DisaggMetrics {
  const register = <M extends { readonly name: string }>(metric: M): M => {
    // The registry needs no more than a name and get(), which its types do not say.
    registry.registerMetric(metric as unknown as Metric);
    return metric;
  };
  const counter = (name: string, help: string, ...labels: string[]): SeriesCounter =>
    register(new SeriesCounter('counter', name, help, labels));
  const histogram = (name: string, help: string): ModelHistogram =>
    register(new ModelHistogram(name, help, SECONDS, models, modelsMax));
  const decisions = counter(
    'millrace_disagg_decisions_total',
    'Prompts of models with prefill workers, by where they were to be computed (split: by a prefill worker; local: where they are answered; refused: nowhere) and why',
    'decision',
    'reason',
  );
  const handovers = counter(
    'millrace_handovers_total',
    'Hand-overs of a prompt from a prefill to a decode worker, by protocol and what became of them',
    'protocol',
    'outcome',
  );
  const fallbacks = counter(
    'millrace_prefill_fallbacks_total',
    'Prompts that a prefill worker was to compute and the decode worker has computed, by cause',
    'cause',
  );
  const routing = counter(
    'millrace_routing_ids_total',
    'Plans by where the token ids came from by which their worker was chosen (client, tokenizer: ours, worker: its /tokenize, missing: it did not answer in time, unused: the policy asks for none)',
    'source',
  );
  const prefill = histogram(
    'millrace_prefill_duration_seconds',
    'From the request to a prefill worker to its answer, of prompts that were computed there',
  );
  const handover = histogram(
    'millrace_handover_duration_seconds',
    'From the request to the decode worker to its first token, of prompts that were handed over; with a protocol that asks both workers at once it contains the computing of the prompt',
  );
  registerDeferredAborts(registry, register, readDeferredAborts);
  // A series that exists from the start shows its first increase.
  for (const source of IDS_SOURCES) routing.add(0, source);
  for (const cause of FALLBACK_CAUSES) fallbacks.add(0, cause);
  for (const protocol of DISAGG_PROTOCOLS) handovers.add(0, protocol, 'handed_over');
  return {
    decided: (decision, reason) => decisions.add(1, decision, reason),
    routedBy: source => routing.add(1, source),
    handoverEnded: (protocol, outcome) => handovers.add(1, protocol, outcome),
    fellBack: cause => fallbacks.add(1, cause),
    prefillAnswered: (model, seconds) => prefill.add(model, seconds),
    handedOver: (model, seconds) => handover.add(model, seconds),
  };
}

function registerDeferredAborts(
  registry: Registry,
  register: (metric: { readonly name: string; get(): unknown }) => unknown,
  read: () => DeferredAbortCounts,
): void {
  new Gauge({
    name: 'millrace_deferred_aborts',
    help: 'Hand-overs that are being finished although nobody waits for the answer',
    registers: [registry],
    collect() {
      this.set(read().open);
    },
  });
  const name = 'millrace_deferred_aborts_total';
  const help = 'Hand-overs that nobody waited for any more: deferred, or cut because deferredAbortsMax were';
  const get = () => {
    const { deferred, cut } = read();
    const values = [
      { labels: { outcome: 'deferred' }, value: deferred },
      { labels: { outcome: 'cut' }, value: cut },
    ];
    return { name, help, type: 'counter', aggregator: 'sum', values };
  };
  register({ name, get });
}
