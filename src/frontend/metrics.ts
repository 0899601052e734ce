/**
 * The metrics of a data plane (R1, R7): Dynamo's front-end names, so that its boards work, and ours under `millrace_`.
 * Each thread of a plane that serves has its own registry of prom-client, which renders the text; several are summed. Requests are counted when they start and end;
 * tokens go to typed arrays; what lives elsewhere (rings, load table) is read at scrape time. Owned by the socket thread.
 */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { AggregatorRegistry, Gauge, type Metric, Registry } from 'prom-client';
import { ERROR_CODES, type ErrorCode } from '../errors.js';
import { ASK_REASONS, type AskReason, END_CAUSES, type EndCause } from '../messages/records.js';
import { createDisaggMetrics, type DeferredAbortCounts, type DisaggMetrics } from './disagg-metrics.js';
import { type ReadIndex, registerIndexMetrics } from './index-metrics.js';
import { type LinkReadings, registerLinkMetrics } from './link-metrics.js';
import { ModelCounter, ModelHistogram } from './model-histogram.js';
import { SeriesCounter } from './series-counter.js';
import { registerWorkerMetrics, type WorkerReadings } from './worker-metrics.js';

/** Models that get a label of their own; a request for any other counts as `unknown`. */
const MODELS_MAX = 256;
const UNKNOWN_MODEL = 'unknown';
const LOOP_DELAY_RESOLUTION_MS = 10;

// Dynamo's default buckets, lib/llm/src/http/service/metrics.rs: 0 and log-spaced values of two digits.
const DURATION_SECONDS = [0, 2, 4, 8, 16, 32, 64, 130, 260, 510];
const INPUT_TOKENS = [0, 100, 210, 430, 870, 1800, 3600, 7400, 15000, 31000, 63000, 130000];
const OUTPUT_TOKENS = [0, 100, 210, 430, 880, 1800, 3700, 7600, 16000, 32000];
const FIRST_TOKEN_SECONDS = [
  0, 0.0022, 0.0047, 0.01, 0.022, 0.047, 0.1, 0.22, 0.47, 1, 2.2, 4.7, 10, 22, 48, 100, 220, 480,
];
const HIT_RATES = Array.from({ length: 21 }, (_, step) => step / 20);
const INTER_TOKEN_SECONDS = [0, 0.0019, 0.0035, 0.0067, 0.013, 0.024, 0.045, 0.084, 0.16, 0.3, 0.56, 1.1, 2];

/** Values that live outside; each is called once per scrape on the socket thread. */
export interface MetricSources {
  readRingDepths(): Iterable<{
    readonly ring: string;
    readonly unit: 'records' | 'bytes';
    readonly depth: number;
  }>;
  readRetainedBytes(): number;
  readDeferredAborts(): DeferredAbortCounts;
  readWorkerLoads(): Iterable<{
    readonly worker: string;
    readonly kind: 'prefill_tokens' | 'decode_blocks' | 'requests';
    readonly load: number;
  }>;
  /** State and health of the workers; null: another thread tells it. */
  readonly readWorkers: (() => readonly WorkerReadings[]) | null;
  /** The prefix index; null: there is none, or another thread tells it. */
  readonly readIngest: ReadIndex | null;
  /** The worker links of this thread; null: none are taken. */
  readonly readLinks: (() => LinkReadings) | null;
}

/** The metrics of one thread as plain values that can be sent to another. */
export type MetricSamples = Awaited<ReturnType<Registry['getMetricsAsJSON']>>;

/** Content type of the exposition text. */
export const METRICS_CONTENT_TYPE = Registry.PROMETHEUS_CONTENT_TYPE;

/** The exposition text of several threads' metrics: series with the same labels are summed. */
export function mergedText(samples: readonly MetricSamples[]): Promise<string> {
  return AggregatorRegistry.aggregate([...samples]).metrics();
}

/** Dynamo's values of the `endpoint` label. */
export type EndpointLabel = 'chat_completions' | 'completions';
/** Dynamo's values of the `request_type` label. */
export type RequestTypeLabel = 'unary' | 'stream';

/** How the worker of a begun answer failed, or what found it dead; or why its ids were given up before that. */
export const MIGRATION_CAUSES = [
  'unreachable',
  'reset',
  'stalled',
  'protocol',
  'health',
  'canary',
  'memory',
  'tokens',
] as const;
/** One of MIGRATION_CAUSES. */
export type MigrationCause = (typeof MIGRATION_CAUSES)[number];
/**
 * continued: another worker has sent its next token. failed: none could. limit: it had gone on `migrationsMax` times.
 * impossible: only the first worker could have gone on with it. given_up: too long to be kept for it, long before.
 */
export type MigrationOutcome = 'continued' | 'failed' | 'limit' | 'impossible' | 'given_up';

const OUTCOMES: readonly MigrationOutcome[] = ['continued', 'failed', 'limit', 'impossible'];
const GIVEN_UP: readonly MigrationOutcome[] = ['given_up'];

/**
 * won: the second worker gave the first token. lost: the first one did. refused: no second worker was found. abandoned: the
 * request ended, or began anew, before either. capped: it was not hedged, because too many were.
 */
export const HEDGE_OUTCOMES = ['won', 'lost', 'refused', 'abandoned', 'capped'] as const;
/** One of HEDGE_OUTCOMES. */
export type HedgeOutcome = (typeof HEDGE_OUTCOMES)[number];

/** What is known of a request when it ends. */
export interface EndedRequest {
  readonly model: string;
  readonly endpoint: EndpointLabel;
  readonly type: RequestTypeLabel;
  readonly cause: EndCause;
  /** The error that it ended with, or null for a success. */
  readonly code: ErrorCode | null;
  readonly seconds: number;
  /** Token counts; null: never known, not counted. */
  readonly promptTokens: number | null;
  readonly cachedTokens: number | null;
  /** Cached tokens by which its worker was chosen. */
  readonly expectedCachedTokens: number | null;
  readonly completionTokens: number | null;
}

/** The counters of one plane. */
export interface Metrics {
  readonly disagg: DisaggMetrics;
  /** Gives a served model its own label; over 256 models it shares `unknown`. Returns its index for `tokens`. */
  addModel(model: string): number;
  /** Index of a model for `tokens`; that of `unknown` for one that was not added. */
  modelIndex(model: string): number;
  /** A request came to this thread. */
  requestAccepted(): void;
  requestStarted(model: string, endpoint: EndpointLabel, type: RequestTypeLabel): void;
  requestEnded(request: EndedRequest): void;
  /** Time from the request's arrival to its first token. */
  firstToken(model: string, seconds: number): void;
  /**
   * `count` tokens of a choice arrived `gapSeconds` after the ones before them: the gap counts once per token, in equal
   * parts. A negative gap marks the first tokens of a choice, which have none.
   */
  tokens(modelIndex: number, count: number, gapSeconds: number): void;
  asked(reason: AskReason): void;
  migrated(cause: MigrationCause, outcome: MigrationOutcome): void;
  hedged(outcome: HedgeOutcome): void;
  poolThreadRestarted(): void;
  /** The exposition text (version 0.0.4). */
  text(): Promise<string>;
  /** The same as values, for `mergedText`. */
  samples(): Promise<MetricSamples>;
  /** Stops measuring the event loop. */
  close(): void;
}

/** Dynamo's value of the `error_type` label for an error. */
function errorType(code: ErrorCode | null): string {
  if (code === null) return '';
  const { status } = ERROR_CODES[code];
  if (status === 404) return 'not_found';
  if (status === 499) return 'cancelled';
  if (status === 529) return 'overload';
  if (status === 503) return 'unavailable';
  return status < 500 ? 'validation' : 'internal';
}

/** Makes a metric of ours appear in the text. */
function register<M extends ModelCounter | ModelHistogram | SeriesCounter>(registry: Registry, metric: M): M {
  // The registry needs no more than a name and get(), which its types do not say.
  registry.registerMetric(metric as unknown as Metric);
  return metric;
}

function createModelMetrics(registry: Registry, models: readonly string[]) {
  const histogram = (name: string, help: string, bounds: readonly number[]): ModelHistogram =>
    register(registry, new ModelHistogram(`dynamo_frontend_${name}`, help, bounds, models, MODELS_MAX));
  const tokensName = 'dynamo_frontend_output_tokens_total';
  return {
    duration: histogram('request_duration_seconds', 'Whole request', DURATION_SECONDS),
    input: histogram('input_sequence_tokens', 'Prompt tokens of a request', INPUT_TOKENS),
    cached: histogram('cached_tokens', 'Prompt tokens taken from a KV cache', INPUT_TOKENS),
    output: histogram('output_sequence_tokens', 'Generated tokens of a request', OUTPUT_TOKENS),
    firstToken: histogram('time_to_first_token_seconds', 'Arrival to first token', FIRST_TOKEN_SECONDS),
    interToken: histogram(
      'inter_token_latency_seconds',
      'Time per token after the first',
      INTER_TOKEN_SECONDS,
    ),
    // The name that Dynamo's router gives it.
    hitRate: register(
      registry,
      new ModelHistogram(
        'dynamo_component_router_kv_hit_rate',
        'Share of the prompt that the chosen worker was expected to have cached',
        HIT_RATES,
        models,
        MODELS_MAX,
      ),
    ),
    tokens: register(registry, new ModelCounter(tokensName, 'Generated tokens', models, MODELS_MAX)),
  };
}

function migrationCounter(registry: Registry): SeriesCounter {
  const help = 'Answers whose worker failed after their first token, by choice';
  const labels = ['cause', 'outcome'];
  const counter = register(registry, new SeriesCounter('counter', 'millrace_migrations_total', help, labels));
  for (const cause of MIGRATION_CAUSES) {
    const outcomes = cause === 'memory' || cause === 'tokens' ? GIVEN_UP : OUTCOMES;
    for (const outcome of outcomes) counter.add(0, cause, outcome);
  }
  return counter;
}

function createRequestMetrics(registry: Registry) {
  const counter = (name: string, help: string, ...labelNames: string[]): SeriesCounter =>
    register(registry, new SeriesCounter('counter', name, help, labelNames));
  const gauge = (name: string, help: string, ...labelNames: string[]): SeriesCounter =>
    register(registry, new SeriesCounter('gauge', name, help, labelNames));
  const kind = ['model', 'endpoint', 'request_type'];
  return {
    migrations: migrationCounter(registry),
    hedges: counter(
      'millrace_hedges_total',
      'Requests without a token that a second worker was asked for',
      'outcome',
    ),
    ended: counter('dynamo_frontend_requests_total', 'Requests ended', ...kind, 'status', 'error_type'),
    started: counter('dynamo_frontend_requests_started_total', 'Requests begun', ...kind),
    active: gauge('dynamo_frontend_active_requests', 'Requests in flight', 'model'),
    disconnected: gauge('dynamo_frontend_disconnected_clients', 'Clients that left before the end'),
    rejected: counter('dynamo_frontend_model_rejection_total', 'Requests refused', 'model', 'endpoint'),
    canceled: counter('dynamo_frontend_model_cancellation_total', 'Requests canceled by clients', ...kind),
    accepted: counter('millrace_requests_accepted_total', 'Requests taken, by thread', 'thread'),
    asks: counter('millrace_asks_total', 'ASKs sent to the pool', 'reason'),
    cachedTokens: counter(
      'millrace_cached_tokens_total',
      'Prompt tokens in a cache, of requests whose engine tells: reported by it, and expected when it was chosen',
      'source',
    ),
    causes: counter('millrace_requests_ended_total', 'Requests ended, by cause', 'cause'),
    slowClients: counter('millrace_slow_clients_total', 'Streams cut because the client did not read'),
    restarts: counter('millrace_pool_thread_restarts_total', 'Pool threads started again'),
    promptTokens: counter('millrace_prompt_tokens_total', 'Prompt tokens of requests whose engine tells'),
  };
}

/** Gauges that are read at scrape time. Returns what stops the measurement of the event loop. */
function createScrapedGauges(registry: Registry, sources: MetricSources, thread: string): () => void {
  const registers = [registry];
  if (sources.readWorkers !== null) registerWorkerMetrics(registry, sources.readWorkers);
  if (sources.readLinks !== null) registerLinkMetrics(registry, sources.readLinks);
  new Gauge({
    name: 'millrace_ring_depth',
    help: 'Records or bytes waiting in a ring',
    labelNames: ['ring', 'unit'],
    registers,
    collect() {
      this.reset();
      for (const { ring, unit, depth } of sources.readRingDepths()) this.set({ ring, unit }, depth);
    },
  });
  new Gauge({
    name: 'millrace_retained_bytes',
    help: 'Bodies and ids kept for requests in flight',
    registers,
    collect() {
      this.set(sources.readRetainedBytes());
    },
  });
  new Gauge({
    name: 'millrace_worker_load',
    help: 'Reserved load of a worker',
    labelNames: ['worker', 'kind'],
    registers,
    collect() {
      this.reset();
      for (const { worker, kind, load } of sources.readWorkerLoads()) this.set({ worker, kind }, load);
    },
  });
  const delay = monitorEventLoopDelay({ resolution: LOOP_DELAY_RESOLUTION_MS });
  delay.enable();
  new Gauge({
    name: 'millrace_event_loop_delay_seconds',
    help: 'Lateness of the event loop of a thread since the last scrape',
    labelNames: ['thread', 'quantile'],
    registers,
    collect() {
      // What node records is the time between two timers, of which the resolution is no delay.
      const late = (ns: number): number => Math.max(0, ns / 1e9 - LOOP_DELAY_RESOLUTION_MS / 1e3);
      const empty = delay.count === 0;
      this.set({ thread, quantile: '0.5' }, empty ? 0 : late(delay.percentile(50)));
      this.set({ thread, quantile: '0.99' }, empty ? 0 : late(delay.percentile(99)));
      this.set({ thread, quantile: '1' }, empty ? 0 : late(delay.max));
      delay.reset();
    },
  });
  return () => delay.disable();
}

/** A series that exists from the start shows its first increase; one that appears with it does not. */
function beginSeries(counts: ReturnType<typeof createRequestMetrics>, thread: string): void {
  counts.accepted.add(0, thread);
  for (const reason of ASK_REASONS) counts.asks.add(0, reason);
  for (const outcome of HEDGE_OUTCOMES) counts.hedges.add(0, outcome);
  for (const cause of END_CAUSES) counts.causes.add(0, cause);
  for (const source of ['expected', 'reported']) counts.cachedTokens.add(0, source);
}

/**
 * Creates the metrics of one thread of a plane, with a registry of its own. `models` are added as by `addModel`;
 * `thread` labels what is told of each thread by itself.
 */
export function createMetrics(models: readonly string[], sources: MetricSources, thread: string): Metrics {
  const registry = new Registry();
  const names: string[] = [UNKNOWN_MODEL];
  const indexOf = new Map<string, number>([[UNKNOWN_MODEL, 0]]);
  const perModel = createModelMetrics(registry, names);
  const counts = createRequestMetrics(registry);
  const disagg = createDisaggMetrics(registry, names, MODELS_MAX, sources.readDeferredAborts);
  const stop = createScrapedGauges(registry, sources, thread);
  if (sources.readIngest !== null) registerIndexMetrics(registry, sources.readIngest);
  beginSeries(counts, thread);

  const modelIndex = (model: string): number => indexOf.get(model) ?? 0;
  const addModel = (model: string): number => {
    if (!indexOf.has(model) && names.length < MODELS_MAX) indexOf.set(model, names.push(model) - 1);
    return modelIndex(model);
  };
  for (const model of models) addModel(model);

  return {
    disagg,
    addModel,
    modelIndex,
    requestAccepted: () => counts.accepted.add(1, thread),
    requestStarted(name, endpoint, type) {
      const model = names[modelIndex(name)]!;
      counts.started.add(1, model, endpoint, type);
      counts.active.add(1, model);
    },
    requestEnded(request) {
      const { endpoint, type, cause, code, promptTokens, cachedTokens, completionTokens } = request;
      const index = modelIndex(request.model);
      const model = names[index]!;
      counts.ended.add(1, model, endpoint, type, code === null ? 'success' : 'error', errorType(code));
      counts.active.add(-1, model);
      counts.causes.add(1, cause);
      if (cause === 'rejected') counts.rejected.add(1, model, endpoint);
      if (cause === 'slow_client') counts.slowClients.add(1);
      if (cause === 'client_gone') {
        counts.canceled.add(1, model, endpoint, type);
        counts.disconnected.add(1);
      }
      perModel.duration.add(index, request.seconds);
      if (promptTokens !== null) perModel.input.add(index, promptTokens);
      if (cachedTokens !== null) {
        perModel.cached.add(index, cachedTokens);
        counts.cachedTokens.add(cachedTokens, 'reported');
        counts.cachedTokens.add(request.expectedCachedTokens ?? 0, 'expected');
      }
      if (completionTokens !== null) perModel.output.add(index, completionTokens);
      if (promptTokens !== null && promptTokens > 0) {
        const expected = request.expectedCachedTokens;
        if (cachedTokens !== null) counts.promptTokens.add(promptTokens);
        if (expected !== null) perModel.hitRate.add(index, Math.min(expected / promptTokens, 1));
      }
    },
    firstToken: (name, seconds) => perModel.firstToken.add(modelIndex(name), seconds),
    tokens(index, count, gapSeconds) {
      perModel.tokens.add(index, count);
      if (gapSeconds >= 0) perModel.interToken.add(index, gapSeconds / count, count);
    },
    asked: reason => counts.asks.add(1, reason),
    migrated: (cause, outcome) => counts.migrations.add(1, cause, outcome),
    hedged: outcome => counts.hedges.add(1, outcome),
    poolThreadRestarted: () => counts.restarts.add(1),
    text: () => registry.metrics(),
    samples: () => registry.getMetricsAsJSON(),
    close: stop,
  };
}
