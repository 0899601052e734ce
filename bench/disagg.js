/**
 * The bench of prefill and decode on workers of their own: one workload in virtual time over fleets of the same number of
 * workers, aggregated (every worker does everything), disaggregated (every prompt is computed by a prefill worker and handed
 * over) and conditional (the router's default decision), with the published timing of the mock engine. It searches for each
 * fleet the highest rate of arrivals within a target of TTFT and ITL, and compares the modes at one rate. Exits with 1 when
 * the conditional mode is worse than the better pure one by more than 3 % in throughput within the target or in mean E2E.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { DISAGG_RANGES } from '#millrace/simulate/disagg/disagg-settings.js';
import { resolveEngineSettings } from '#millrace/simulate/engine-settings.js';
import { REPLAY_BLOCKS } from '#millrace/simulate/replay/replay.js';
import { readTrace } from '#millrace/simulate/replay/trace-reader.js';
import { prepare } from '#millrace/simulate/replay/workload.js';
import { makeWorkload, WORKLOAD_NAMES } from '#millrace/simulate/replay/workloads.js';
import { spreadArrivals } from './lib/disagg-arrivals.js';
import { DEFAULT_RULES, fleetsOf, nameOf, PERCENTILE, POLICY, runAt } from './lib/disagg-fleets.js';
import { renderDisagg } from './lib/disagg-report.js';
import { MARGIN, resultOf, tableOf, verdictOf } from './lib/disagg-result.js';
import { searchAll, TOLERANCE } from './lib/disagg-search.js';
import { commit, machine, parseFlags, printResult, progress } from './lib/report.js';

const GB = 1e9;
/** From the ask for the KV to its first byte. */
const HANDOVER_LATENCY_MS = 5;

const flags = parseFlags({
  usage: 'node bench/disagg.js [flags]',
  summary: [
    'Aggregated, disaggregated and conditional fleets of the same number of workers, in virtual time (build first: npm run',
    'build). For every split of the workers the highest rate of arrivals within the target is searched; then all fleets see',
    'the same arrivals. Times are modelled milliseconds.',
  ].join('\n'),
  flags: {
    trace: { type: 'string', help: 'Mooncake JSONL; without it traffic is made from the seed' },
    workload: { type: 'string', choices: WORKLOAD_NAMES, default: 'multi-turn', help: 'traffic to make' },
    workers: { type: 'number', integer: true, min: 2, max: 64, default: 8, help: 'workers of every fleet' },
    requests: {
      type: 'number',
      integer: true,
      min: 2,
      max: 50_000,
      default: 1500,
      help: 'requests of a run',
    },
    load: {
      type: 'number',
      min: 0.05,
      max: 3,
      default: 1,
      help: 'rate at which modes are compared ÷ the highest of the aggregated fleet within the target',
    },
    'ttft-ms': {
      type: 'number',
      min: 1,
      max: 600_000,
      default: 2000,
      help: `target of TTFT at p${PERCENTILE}, ms`,
    },
    'itl-ms': {
      type: 'number',
      min: 1,
      max: 10_000,
      default: 25,
      help: `target of ITL at p${PERCENTILE}, ms`,
    },
    link: {
      type: 'number',
      min: 0.001,
      max: 10_000,
      default: DISAGG_RANGES.kvBytesPerSecond.default / GB,
      help: 'bandwidth of a worker’s link, GB/s each way',
    },
    seed: {
      type: 'number',
      integer: true,
      min: 0,
      max: 2 ** 32 - 1,
      default: 1,
      help: 'seeds traffic and draws',
    },
    json: { type: 'boolean', help: 'stdout is exactly one JSON object' },
    out: { type: 'string', help: 'also write a report as one HTML file' },
  },
  examples: [
    'node bench/disagg.js --trace mooncake_conversation.jsonl --out report.html',
    'node bench/disagg.js --workload fan-out --workers 4 --requests 1000 --json',
  ],
});

const { trace, workload: made, workers, requests, load, ttftMs, itlMs, link, seed } = flags;
if (trace !== undefined && !existsSync(trace)) {
  process.stderr.write(`skipped: there is no trace ${trace}\n`);
  process.exit(0);
}
const facts = machine(); // before the runs, as it holds the load average
const fleets = fleetsOf(workers);
const bar = progress('disagg', 2 * fleets.length);
try {
  const workload =
    trace === undefined
      ? makeWorkload(made, requests, seed)
      : spreadArrivals(await readTrace(trace, requests), seed);
  const { blockSize } = resolveEngineSettings({});
  const engine = resolveEngineSettings({
    numGpuBlocks: REPLAY_BLOCKS,
    maxModelLen: REPLAY_BLOCKS * blockSize,
  });
  const cost = {
    kvBytesPerToken: DISAGG_RANGES.kvBytesPerToken.default,
    linkBytesPerSecond: link * GB,
    latencyMs: HANDOVER_LATENCY_MS,
  };
  const target = { ttftMs, itlMs };
  const stage = { workload: prepare(workload, blockSize), engine, workers, seed, cost, target };
  const searched = searchAll(stage, fleets, what => bar.step(what));
  const rate = searched[0].best?.requestsPerSecond;
  if (rate === undefined)
    throw new Error(`the aggregated fleet never meets --ttft-ms ${ttftMs} and --itl-ms ${itlMs}: raise them`);
  const requestsPerSecond = load * rate;
  const all = searched.map(found => {
    const run = runAt(stage, found.fleet, requestsPerSecond);
    bar.step(`${nameOf(found.fleet)} at the common rate`);
    return { ...found, run };
  });
  bar.done();
  const { numGpuBlocks, maxNumBatchedTokens, maxNumSeqs } = engine;
  const settings = {
    ...(trace === undefined
      ? { workload: made }
      : { trace: basename(trace), arrivals: 'drawn within the trace’s steps of time' }),
    workers,
    requests: workload.requests.length,
    load,
    target: { ...target, percentile: PERCENTILE },
    policy: POLICY,
    rules: DEFAULT_RULES,
    handover: cost,
    seed,
    blockSize,
    numGpuBlocks,
    maxNumBatchedTokens,
    maxNumSeqs,
    rateTolerance: TOLERANCE,
    margin: MARGIN,
  };
  const result = resultOf(
    all,
    { workers, requestsPerSecond },
    { commit: commit(), machine: facts, settings },
  );
  printResult(result, { json: flags.json, table: tableOf(result) });
  (flags.json ? process.stderr : process.stdout).write(verdictOf(result));
  if (flags.out !== undefined) writeFileSync(flags.out, renderDisagg(all, result, { workers, target }));
  if (!result.headline.conditionalHolds || all.some(({ run }) => run.errors > 0)) process.exitCode = 1;
} catch (error) {
  process.stderr.write(`\n${error instanceof Error ? error.message : error}\n`);
  process.exit(1);
}
