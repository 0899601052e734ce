/**
 * The routing bench: requests of a trace, or made multi-turn traffic, live over HTTP through `millrace serve` to mock engine
 * processes, under one policy after the other, beside the virtual replay (`millrace replay`) of exactly the same requests.
 * Times are modelled milliseconds. Exits with 1 for errors and for a speed that the machine cannot keep up with.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { renderReport } from '#millrace/simulate/replay/report-html.js';
import { readTrace } from '#millrace/simulate/replay/trace-reader.js';
import { makeWorkload } from '#millrace/simulate/replay/workloads.js';
import { commit, machine, parseFlags, printResult, progress } from './lib/report.js';
import { TOKENIZER } from './lib/ttft-fleet.js';
import { resultOf, tableOf, verdictOf } from './lib/ttft-result.js';
import { LAG_SHARE_MAX, runLive, TIE_SPREAD } from './lib/ttft-run.js';

const WORKLOAD = 'multi-turn';

const flags = parseFlags({
  usage: 'node bench/ttft.js [flags]',
  summary: [
    'Time to first token by routing policy, live over HTTP and in the virtual replay of the same requests (build first:',
    'npm run build). Arrivals are stretched until round-robin has the wished load in the replay; every policy, live and',
    'replayed, then sees the same arrivals. Times are modelled milliseconds: wall time × speed.',
  ].join('\n'),
  flags: {
    trace: { type: 'string', help: `Mooncake JSONL; without it ${WORKLOAD} traffic is made from the seed` },
    workers: { type: 'number', integer: true, min: 1, max: 64, default: 8, help: 'mock engine processes' },
    policies: {
      type: 'list',
      choices: POLICY_NAMES,
      default: ['ttft', 'kv', 'round-robin', 'least-loaded'],
      help: 'policies to run',
    },
    requests: {
      type: 'number',
      integer: true,
      min: 2,
      max: 20_000,
      default: 1000,
      help: 'requests of a run',
    },
    load: {
      type: 'number',
      min: 0.01,
      max: 10,
      default: 0.7,
      help: 'prefill compute seconds offered under round-robin ÷ worker seconds',
    },
    speed: {
      type: 'number',
      min: 0.01,
      max: 1000,
      help: 'divides modelled time (default: 1 or less, by the TTFT of the replay); one at which event loops are late is refused',
    },
    'lag-share': {
      type: 'number',
      min: 0.001,
      max: 1,
      default: LAG_SHARE_MAX,
      help: 'lateness of an event loop at p99 ÷ mean TTFT above which a run is refused',
    },
    seed: { type: 'number', integer: true, min: 0, max: 2 ** 32 - 1, default: 1, help: 'seeds made traffic' },
    json: { type: 'boolean', help: 'stdout is exactly one JSON object' },
    out: { type: 'string', help: 'also write a report as one HTML file' },
  },
  examples: [
    'node bench/ttft.js --trace mooncake_conversation.jsonl --out report.html',
    'node bench/ttft.js --policies round-robin,least-loaded --requests 200 --json',
  ],
});

const { trace, workers, policies, requests, load, speed, seed, lagShare: lagShareMax } = flags;
if (trace !== undefined && !existsSync(trace)) {
  process.stderr.write(`skipped: there is no trace ${trace}\n`);
  process.exit(0);
}
const facts = machine(); // before the load, as it holds the load average
const bar = progress('ttft', 2 + policies.length);
try {
  const workload =
    trace === undefined ? makeWorkload(WORKLOAD, requests, seed) : await readTrace(trace, requests);
  const onStep = (/** @type {string} */ what) => bar.step(what);
  const options = { workers, policies, load, seed, speed, lagShareMax, onStep };
  const done = await runLive(workload, options);
  bar.done();
  const { blockSize, numGpuBlocks, maxNumBatchedTokens, maxNumSeqs } = done.result.engine;
  const settings = {
    ...(trace === undefined ? { workload: WORKLOAD } : { trace }),
    workers,
    load,
    requests: workload.requests.length,
    seed,
    blockSize,
    numGpuBlocks,
    maxNumBatchedTokens,
    maxNumSeqs,
    speed: done.speed,
    timeScale: done.result.timeScale,
    arrivalSeconds: done.summary.arrivalSeconds,
    lagShareMax,
    tieSpread: TIE_SPREAD,
    prompts: `text to /v1/completions, ${done.promptBytes} bytes in all, so that the plane tokenizes: under 1 ms for 12,000 tokens`,
    tokenizer: TOKENIZER,
  };
  const result = resultOf(done, { commit: commit(), machine: facts, settings });
  printResult(result, { json: flags.json, table: tableOf(result) });
  (flags.json ? process.stderr : process.stdout).write(verdictOf(result));
  if (flags.out !== undefined) {
    const live = new Map([...done.live].map(([policy, { record }]) => [policy, record]));
    writeFileSync(flags.out, renderReport([{ ...done, live }], settings));
  }
  for (const [policy, { errorExamples, figures }] of done.live) {
    for (const example of errorExamples) process.stderr.write(`${policy}: ${example}\n`);
    if (figures.errors > 0) process.exitCode = 1;
  }
} catch (error) {
  process.stderr.write(`\n${error instanceof Error ? error.message : error}\n`);
  process.exit(1);
}
