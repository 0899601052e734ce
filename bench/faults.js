/**
 * The fault bench: streams through `millrace serve` over mock engine processes, one fault after the other, each proven to
 * have happened. Every text is compared byte for byte with the undisturbed one, every pause is measured, and what is left
 * behind is counted. Exits with 1 when a fault did not happen, or a request failed, changed or left something behind.
 */
import { FAULT_CASES } from './lib/fault-cases.js';
import { askOf, MODE_TOKENIZERS, PLANE_LIMITS, referenceTexts } from './lib/fault-fleet.js';
import { isKept, runCase } from './lib/fault-run.js';
import { commit, machine, parseFlags, printResult, progress } from './lib/report.js';

const NAMES = FAULT_CASES.map(({ name }) => name);
const MODES = Object.keys(MODE_TOKENIZERS);
/** Tokens of an answer of the second wave. */
const LATER_TOKENS = 16;

const flags = parseFlags({
  usage: 'node bench/faults.js [flags]',
  summary: [
    'Streams through faults of their workers (build first: npm run build). Linux only. Cases:',
    ...FAULT_CASES.map(({ name, what }) => `  ${name.padEnd(14)} ${what}`),
  ].join('\n'),
  flags: {
    cases: { type: 'list', choices: NAMES, default: NAMES, help: 'cases to run' },
    modes: { type: 'list', choices: MODES, default: MODES, help: 'modes of answer to run them in' },
    streams: { type: 'number', integer: true, min: 2, max: 200, default: 64, help: 'concurrent streams' },
    workers: { type: 'number', integer: true, min: 2, max: 16, default: 4, help: 'mock engine processes' },
    tokens: {
      type: 'number',
      integer: true,
      min: 32,
      max: 4096,
      default: 256,
      help: 'tokens of an answer; the fault strikes at a quarter of them',
    },
    speed: {
      type: 'number',
      min: 0.01,
      max: 100,
      default: 0.25,
      help: 'speed of the engines: at 1 a token takes about 6 ms',
    },
    json: { type: 'boolean', help: 'stdout is exactly one JSON object' },
  },
  examples: ['node bench/faults.js', 'node bench/faults.js --cases sigkill,sigterm --modes token --json'],
});

/** @param {import('./lib/fault-run.js').CaseResult} result */
function tableRow(result) {
  const { name, mode, happened, requests, failed, textMismatches, touched, migrations, retries } = result;
  return {
    case: name,
    mode,
    happened: happened ? 'yes' : 'NO',
    requests,
    failed,
    mismatches: textMismatches,
    touched,
    migrations,
    retries,
    'gap p50 ms': result.gapMs.p50,
    'gap p99 ms': result.gapMs.p99,
    'target p99 ms': result.gapTargetMs,
    leaked: result.leaked,
    kept: isKept(result) ? 'yes' : 'NO',
    proof: result.proof,
  };
}

const { streams, workers, tokens, speed, modes } = flags;
const injectAfter = tokens >> 2;
const facts = machine(); // before the load, as it holds the load average
const asks = Array.from({ length: streams }, (_, index) => askOf(index, tokens));
const laterAsks = Array.from({ length: 2 * workers }, (_, at) => askOf(streams + at, LATER_TOKENS));
const chosen = FAULT_CASES.filter(({ name }) => flags.cases.includes(name));
const bar = progress('faults', 1 + chosen.length * modes.length);
/** @type {import('./lib/fault-run.js').CaseResult[]} */
const cases = [];
try {
  const all = [...asks, ...laterAsks];
  const undisturbed = await referenceTexts(all);
  const texts = new Map(all.map(({ id }, at) => [id, undisturbed[at]]));
  bar.step('undisturbed texts');
  for (const faultCase of chosen) {
    for (const mode of modes) {
      const options = { mode, workers, speed, injectAfter, asks, laterAsks, texts };
      const result = await runCase(faultCase, options);
      cases.push(result);
      bar.step(`${faultCase.name} ${mode}: ${isKept(result) ? 'kept' : 'BROKEN'}`);
    }
  }
  bar.done();
} catch (error) {
  process.stderr.write(`\n${error instanceof Error ? error.message : error}\n`);
  process.exit(1);
}

const settings = {
  streams,
  workers,
  tokens,
  speed,
  injectAfter,
  modes,
  limits: PLANE_LIMITS,
  policy: 'round-robin',
};
const result = { bench: 'faults', commit: commit(), machine: facts, settings, cases };
printResult(result, { json: flags.json, table: cases.map(tableRow) });
for (const seen of cases) {
  if (isKept(seen)) continue;
  process.exitCode = 1;
  const leaks = Object.entries(seen.leaks).map(([kind, count]) => `left behind: ${count} ${kind}`);
  for (const line of [...seen.broken, ...leaks, ...seen.errors])
    process.stderr.write(`${seen.name} ${seen.mode}: ${line}\n`);
}
