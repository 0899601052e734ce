/**
 * Figures of a run, replayed or live: per policy the distributions that people compare, in the JSON form that
 * `bench/ttft.js` prints too, and the ratios between policies. Pure.
 */
import type { FleetResult } from './fleet.js';
import type { LoadSamples } from './load-samples.js';
import type { ReplayResult } from './replay.js';

/** Milliseconds; null when nothing was measured. */
export interface Distribution {
  readonly mean: number | null;
  readonly p50: number | null;
  readonly p90: number | null;
  readonly p99: number | null;
}

/** What a run noted, replayed or live. Times are modelled milliseconds; NaN for a request without that figure. */
export interface RunRecord {
  readonly ttftMs: Float64Array;
  /** (end − first token) ÷ (tokens − 1), as AIPerf defines it; NaN for an answer of one token. */
  readonly itlMs: Float64Array;
  readonly e2eMs: Float64Array;
  readonly errors: number;
  readonly outputTokens: number;
  /** As the engines report them. */
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** Prompt tokens that were not cached, per worker. */
  readonly computedTokens: Float64Array;
  /** From the first arrival to the last end. */
  readonly spanMs: number;
  readonly load: LoadSamples;
}

/** One policy's run. */
export interface PolicyFigures {
  readonly requests: number;
  /** Requests without a whole answer: in a replay those that no engine could ever run. They are in no distribution. */
  readonly errors: number;
  readonly ttftMs: Distribution;
  /** Per request: (end − first token) ÷ (tokens − 1). */
  readonly itlMs: Distribution;
  readonly e2eMs: Distribution;
  /** Cached ÷ prompt tokens, as the engines report them. */
  readonly hitRate: number;
  /** From the first arrival to the last end. */
  readonly outputTokensPerSecond: number;
  /** Prompt tokens computed by the busiest worker ÷ the mean. */
  readonly workImbalance: number;
}

/** One policy's replay. */
export interface PolicySummary extends PolicyFigures {
  /** What is missing to the hit rate of one infinite cache for all workers. */
  readonly hitRateGap: number;
  /** Requests still came faster than they were begun when the arrivals ended. */
  readonly saturated: boolean;
  /** Of this process, on this machine: decisions ÷ real seconds in them, and virtual ÷ real seconds of the run. */
  readonly decisionsPerSecond: number;
  readonly virtualSecondsPerSecond: number;
}

/** Ratios between policies; null when one of the two was not run. `best` has the lowest mean TTFT. */
export interface Ratios {
  readonly ttftMeanRoundRobinOverBest: number | null;
  readonly ttftMeanLeastLoadedOverBest: number | null;
  readonly ttftP99RoundRobinOverBest: number | null;
}

/** A whole replay. */
export interface ReplaySummary {
  readonly workload: string;
  readonly requests: number;
  /** Prefill and decode seconds ÷ worker seconds under round-robin. */
  readonly load: { readonly prefill: number; readonly decode: number };
  /** Virtual ÷ trace time between arrivals. */
  readonly timeScale: number;
  readonly arrivalSeconds: number;
  readonly infiniteHitRate: number;
  readonly policies: Readonly<Record<string, PolicySummary>>;
  readonly ratios: Ratios;
  readonly best: string;
}

/** Sums up a replay. */
export function summarize(result: ReplayResult): ReplaySummary {
  const { workload, load, decodeLoad, timeScale, runs } = result;
  const policies = Object.fromEntries(
    [...runs].map(([policy, run]) => [policy, summarizeRun(run, workload.infiniteHitRate)]),
  );
  return {
    workload: workload.workload.name,
    requests: workload.requests.length,
    load: { prefill: load, decode: decodeLoad },
    timeScale,
    arrivalSeconds: (workload.spanMs * timeScale) / 1000,
    infiniteHitRate: workload.infiniteHitRate,
    policies,
    ...comparePolicies(policies),
  };
}

/** The policy with the lowest mean TTFT, and the ratios to it. There must be at least one policy. */
export function comparePolicies(policies: Readonly<Record<string, PolicyFigures>>): {
  readonly ratios: Ratios;
  readonly best: string;
} {
  const mean = (policy: string): number => policies[policy]?.ttftMs.mean ?? Number.POSITIVE_INFINITY;
  const best = Object.keys(policies).reduce((a, b) => (mean(b) < mean(a) ? b : a));
  const over = (policy: string, figure: 'mean' | 'p99'): number | null => {
    const [value, lowest] = [policies[policy]?.ttftMs[figure] ?? null, policies[best]!.ttftMs[figure]];
    return value === null || lowest === null ? null : value / lowest;
  };
  const ratios = {
    ttftMeanRoundRobinOverBest: over('round-robin', 'mean'),
    ttftMeanLeastLoadedOverBest: over('least-loaded', 'mean'),
    ttftP99RoundRobinOverBest: over('round-robin', 'p99'),
  };
  return { ratios, best };
}

function summarizeRun(run: FleetResult, infiniteHitRate: number): PolicySummary {
  const figures = figuresOf(run);
  return {
    ...figures,
    hitRateGap: infiniteHitRate - figures.hitRate,
    saturated: run.saturated,
    decisionsPerSecond: (1000 * figures.requests) / run.decideMs,
    virtualSecondsPerSecond: run.spanMs / run.wallMs,
  };
}

/** Sums up one run. */
export function figuresOf(run: RunRecord): PolicyFigures {
  return {
    requests: run.ttftMs.length,
    errors: run.errors,
    ttftMs: distribution(run.ttftMs),
    itlMs: distribution(run.itlMs),
    e2eMs: distribution(run.e2eMs),
    hitRate: run.promptTokens === 0 ? 0 : run.cachedTokens / run.promptTokens,
    outputTokensPerSecond: run.spanMs === 0 ? 0 : (1000 * run.outputTokens) / run.spanMs,
    workImbalance: imbalance(run.computedTokens),
  };
}

function imbalance(values: Float64Array): number {
  const sum = values.reduce((total, value) => total + value, 0);
  return sum === 0 ? 1 : (Math.max(...values) * values.length) / sum;
}

/** The values that are there, in order. */
export function measured(values: Float64Array): Float64Array {
  return values.filter(value => !Number.isNaN(value)).sort();
}

/** Percentiles by the nearest-rank method; NaN is left out. */
export function distribution(values: Float64Array): Distribution {
  const sorted = measured(values);
  const count = sorted.length;
  if (count === 0) return { mean: null, p50: null, p90: null, p99: null };
  const rank = (p: number): number => sorted[Math.ceil((p * count) / 100) - 1]!;
  const mean = sorted.reduce((total, value) => total + value, 0) / count;
  return { mean, p50: rank(50), p90: rank(90), p99: rank(99) };
}
