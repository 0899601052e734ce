/**
 * `millrace replay`: routing policies side by side over a trace or made workloads, on a virtual clock, without engines. The
 * router is the one that `millrace serve` runs, the engines are the cores of `millrace mock`.
 */
import { writeFileSync } from 'node:fs';
import { ConfigError } from '../errors.js';
import { POLICY_NAMES } from '../router/policies/policies.js';
import { loadAddon } from '../runtime/addon.js';
import { systemClock } from '../runtime/clock.js';
import { ENGINE_SETTING_RANGES, type EngineSettings } from '../simulate/engine-settings.js';
import { REPLAY_BLOCKS, type ReplayOptions, type ReplayResult, replay } from '../simulate/replay/replay.js';
import { renderReport } from '../simulate/replay/report-html.js';
import { type ReplaySummary, summarize } from '../simulate/replay/summary.js';
import { renderTable } from '../simulate/replay/table.js';
import { readTrace, TRACE_REQUESTS_MAX } from '../simulate/replay/trace-reader.js';
import type { Workload } from '../simulate/replay/workload.js';
import { makeWorkload, WORKLOAD_NAMES } from '../simulate/replay/workloads.js';
import { type Command, type FlagKind, readFlags } from './command.js';

const REQUESTS_DEFAULT = 4000;
const WORKERS_MAX = 1024;
const LOAD_MIN = 0.01;
const LOAD_MAX = 10;
const SEED_MAX = 2 ** 32 - 1;
const SAMPLES = 240;

/** Flags that are a setting of the simulated engines. */
const ENGINE_FLAGS = {
  speed: 'speed',
  blocks: 'numGpuBlocks',
  'block-size': 'blockSize',
  'max-num-seqs': 'maxNumSeqs',
  'max-batched-tokens': 'maxNumBatchedTokens',
} as const satisfies Record<string, keyof EngineSettings>;

const FLAGS = {
  trace: 'value',
  workload: 'value',
  policies: 'value',
  workers: 'value',
  load: 'value',
  requests: 'value',
  seed: 'value',
  speed: 'value',
  blocks: 'value',
  'block-size': 'value',
  'max-num-seqs': 'value',
  'max-batched-tokens': 'value',
  json: 'switch',
  out: 'value',
} as const satisfies Readonly<Record<string, FlagKind>>;

const HELP = `Usage: millrace replay --trace FILE | --workload NAME|all [flags]

Replays requests under several routing policies on a virtual clock: the router of 'millrace serve' over the engines of
'millrace mock'. Arrivals are stretched until round-robin has the wished load, then every policy sees the same arrivals.

  --trace FILE            Mooncake JSONL: timestamp (ms), input_length, output_length, hash_ids (one per 512 tokens)
  --workload NAME|all     ${WORKLOAD_NAMES.join(', ')}; with --trace: both
  --policies LIST         comma-separated (all: ${POLICY_NAMES.join(', ')})
  --workers N             1 to ${WORKERS_MAX} (8)
  --load X                prefill compute seconds offered under round-robin ÷ worker seconds, ${LOAD_MIN} to ${LOAD_MAX} (0.7)
  --requests N            the first N of a trace, or so many made ones, 2 to ${TRACE_REQUESTS_MAX} (${REQUESTS_DEFAULT})
  --seed S                seeds made workloads and the draws of policies (1)
  --speed X               divides modelled engine time (1)
  --blocks N              KV blocks of a worker (${REPLAY_BLOCKS})
  --block-size N          tokens per KV block (${ENGINE_SETTING_RANGES.blockSize.default})
  --max-num-seqs N        requests that run at one time (${ENGINE_SETTING_RANGES.maxNumSeqs.default})
  --max-batched-tokens N  tokens computed per pass (${ENGINE_SETTING_RANGES.maxNumBatchedTokens.default})
  --json                  one JSON object on stdout
  --out FILE              also write a report as one HTML file

Examples:
  millrace replay --trace mooncake_conversation.jsonl --policies ttft,kv,least-loaded,round-robin
  millrace replay --workload all --policies ttft,least-loaded --json
`;

interface ReplayCommand {
  readonly trace: string | null;
  readonly workloads: readonly string[];
  readonly policies: readonly string[];
  readonly workers: number;
  readonly load: number;
  readonly requests: number;
  readonly seed: number;
  readonly engine: Partial<Record<keyof EngineSettings, number>>;
  readonly json: boolean;
  readonly out: string | null;
}

function numberIn(flag: string, text: string, min: number, max: number, integer: boolean): number {
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (value >= min && value <= max && (!integer || Number.isInteger(value))) return value;
  const kind = integer ? 'an integer' : 'a number';
  throw new ConfigError(`--${flag} must be ${kind} from ${min} to ${max}; got '${text}'`, { param: flag });
}

/** The names of a list; none for a flag that was not given. */
function namesIn(flag: string, text: string | undefined, known: readonly string[]): string[] {
  if (text === undefined) return [];
  const names = [...new Set(text.split(',').map(name => name.trim()))];
  const unknown = names.find(name => !known.includes(name));
  if (unknown === undefined) return names;
  throw new ConfigError(`--${flag}: "${unknown}" is unknown; known are ${known.join(', ')}`, { param: flag });
}

function readCommand(argv: readonly string[]): ReplayCommand {
  const given = readFlags(argv, FLAGS);
  if (given.trace === undefined && given.workload === undefined)
    throw new ConfigError('--trace FILE or --workload NAME is needed');
  const engine: Partial<Record<keyof EngineSettings, number>> = {};
  for (const [flag, setting] of Object.entries(ENGINE_FLAGS)) {
    const text = given[flag as keyof typeof ENGINE_FLAGS];
    const { min, max, integer } = ENGINE_SETTING_RANGES[setting];
    if (text !== undefined) engine[setting] = numberIn(flag, text, min, max, integer);
  }
  const { workload, policies } = given;
  const made = workload === 'all' ? WORKLOAD_NAMES : namesIn('workload', workload, WORKLOAD_NAMES);
  return {
    trace: given.trace ?? null,
    workloads: made,
    policies: policies === undefined ? POLICY_NAMES : namesIn('policies', policies, POLICY_NAMES),
    workers: numberIn('workers', given.workers ?? '8', 1, WORKERS_MAX, true),
    load: numberIn('load', given.load ?? '0.7', LOAD_MIN, LOAD_MAX, false),
    requests: numberIn('requests', given.requests ?? String(REQUESTS_DEFAULT), 2, TRACE_REQUESTS_MAX, true),
    seed: numberIn('seed', given.seed ?? '1', 0, SEED_MAX, true),
    engine,
    json: given.json ?? false,
    out: given.out ?? null,
  };
}

async function* workloadsOf(given: ReplayCommand): AsyncGenerator<Workload> {
  if (given.trace !== null) yield readTrace(given.trace, given.requests);
  for (const name of given.workloads) yield makeWorkload(name, given.requests, given.seed);
}

function settingsOf(given: ReplayCommand, { engine }: ReplayResult): Record<string, unknown> {
  const { trace, workloads, workers, load, requests, seed } = given;
  const { blockSize, numGpuBlocks, maxNumBatchedTokens, maxNumSeqs, speed } = engine;
  return {
    ...(trace === null ? {} : { trace }),
    ...(workloads.length === 0 ? {} : { workloads }),
    workers,
    load,
    requests,
    seed,
    blockSize,
    numGpuBlocks,
    maxNumBatchedTokens,
    maxNumSeqs,
    speed,
    decodeLoad: 'sum of context lengths',
    addon: loadAddon() !== null,
  };
}

function printTable({ workload, load, ...summary }: ReplaySummary): void {
  const { requests, arrivalSeconds, infiniteHitRate, best, ratios } = summary;
  const times = (value: number | null): string => (value === null ? '-' : `${value.toFixed(2)} ×`);
  process.stdout.write(
    `\n${workload}: ${requests} requests in ${arrivalSeconds.toFixed(1)} s, prefill load ${load.prefill.toFixed(3)}, ` +
      `decode ${load.decode.toFixed(3)} on top, infinite cache ${infiniteHitRate.toFixed(3)}; times in ms\n` +
      `${renderTable({ workload, load, ...summary })}\n` +
      `best: ${best}; mean TTFT of round-robin ${times(ratios.ttftMeanRoundRobinOverBest)}, ` +
      `of least-loaded ${times(ratios.ttftMeanLeastLoadedOverBest)}; p99 of round-robin ${times(ratios.ttftP99RoundRobinOverBest)}\n`,
  );
}

async function run(argv: readonly string[]): Promise<number> {
  const given = readCommand(argv);
  const options: ReplayOptions = {
    ...given,
    clock: systemClock,
    addon: loadAddon(),
    samples: SAMPLES,
    onRun: what => process.stderr.write(`${what}\n`),
  };
  const replays: { result: ReplayResult; summary: ReplaySummary }[] = [];
  for await (const workload of workloadsOf(given)) {
    const result = replay(workload, options);
    const summary = summarize(result);
    if (!given.json) printTable(summary);
    replays.push({ result, summary });
  }
  const settings = settingsOf(given, replays[0]!.result);
  if (given.out !== null) writeReport(given.out, renderReport(replays, settings));
  if (!given.json) {
    process.stdout.write(`\nsettings: ${JSON.stringify(settings)}\n`);
    return 0;
  }
  const summaries = replays.map(({ summary }) => summary);
  const body =
    summaries.length === 1
      ? summaries[0]
      : { workloads: Object.fromEntries(summaries.map(summary => [summary.workload, summary])) };
  process.stdout.write(`${JSON.stringify({ settings, ...body })}\n`);
  return 0;
}

function writeReport(path: string, html: string): void {
  try {
    writeFileSync(path, html);
  } catch (cause) {
    throw new ConfigError(`--out ${path} cannot be written: ${(cause as Error).message}`, {
      param: 'out',
      cause,
    });
  }
}

/** The `replay` subcommand. `run` resolves with 0, and throws ConfigError for wrong flags, files and lines of a trace. */
export const command: Command = {
  name: 'replay',
  summary: 'compare routing policies over a trace on a virtual clock',
  help: HELP,
  run,
};
