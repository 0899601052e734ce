/**
 * The throughput and latency bench of the plane, over its real HTTP surface: `millrace serve` runs alone in a child
 * process between a bench engine and a load generator. "Per core" is units divided by the user and system CPU seconds of
 * the plane's process over a steady window. Rows: see `--help`.
 */
import { measureIntake } from './lib/intake-run.js';
import { MODES, measureIdle, measureStreams, measureTtft, WAYS } from './lib/plane-run.js';
import { commit, machine, parseFlags, printResult, progress } from './lib/report.js';

const ROWS = ['paced', 'burst', 'requests', 'ttft', 'loop', 'hosts', 'idle', 'link', 'intake'];
/** Hosts of the row `hosts`; the others are compared with the first. */
const HOSTS = /** @type {const} */ (['serve-node', 'express', 'fetch']);
/** What the row `idle` holds: the client's half of a stream alone, and whole streams with their engine's half. */
const HALVES = /** @type {const} */ ({ client: 'client', withEngine: 'plane' });

/** What each row sends; part of the result, so that a figure can be read on its own. */
const LOADS = {
  paced: { engineFlags: ['--mode', 'paced', '--period-ms', '20'], promptTokens: 32, maxTokens: 256 },
  burst: {
    engineFlags: ['--mode', 'paced', '--period-ms', '20', '--frames-per-write', '8'],
    promptTokens: 32,
    maxTokens: 2048,
  },
  requests: { engineFlags: ['--mode', 'instant'], streams: 64, promptTokens: 32, maxTokens: 1 },
  ttft: { engineFlags: ['--mode', 'instant'], promptTokens: 512, maxTokens: 1 },
  loop: {
    engineFlags: ['--mode', 'paced', '--period-ms', '20'],
    classes: [
      { streams: 64, promptTokens: 512, maxTokens: 64 },
      { streams: 4, promptTokens: 60_000, maxTokens: 16 },
    ],
  },
  hosts: {
    engineFlags: ['--mode', 'paced', '--period-ms', '20'],
    streams: 400,
    promptTokens: 32,
    maxTokens: 256,
  },
  /** Answers of 40 s: a row of tokens, not of requests. Token mode. */
  link: {
    paced: { engineFlags: ['--mode', 'paced', '--period-ms', '20'], promptTokens: 32, maxTokens: 2048 },
    burst: {
      engineFlags: ['--mode', 'paced', '--period-ms', '20', '--frames-per-write', '8'],
      promptTokens: 32,
      maxTokens: 16_384,
    },
  },
  idle: {
    engineFlags: ['--mode', 'paced', '--period-ms', '1000'],
    streams: 2000,
    promptTokens: 32,
    maxTokens: 1_000,
  },
};

const flags = parseFlags({
  usage: 'node bench/frontend.js [flags]',
  summary: [
    'CPU cost, added latency and event-loop delay of the plane (build first: npm run build). Linux only. Rows:',
    '  paced     streams that get one token every 20 ms each; also the same load sent to the engine directly',
    '  burst     streams that get eight frames in one read every 20 ms; also directly',
    '  requests  64 connections sending one-token requests in a closed loop; also directly',
    '  ttft      added time to first token: paired requests to plane and engine, 512-token prompts, one in flight',
    '  loop      event-loop delay of the socket thread while 512-token and 60,000-token prompts are mixed',
    '  hosts     the paced load through `serve` on node:http, an express app and a fetch server, in one mode',
    '  idle      resident bytes per stream that gets a token every second: its client half alone, and all of it',
    '  link      token-mode streams over HTTP and over a worker link, paced and eight tokens at a time, in turns',
    '  intake    the same tokens on their way into the plane, without clients',
  ].join('\n'),
  flags: {
    json: { type: 'boolean', help: 'stdout is exactly one JSON object' },
    quick: { type: 'boolean', help: 'one short window per row and 400 streams only, for CI' },
    rows: { type: 'list', choices: ROWS, default: ROWS, help: 'rows to run' },
    modes: { type: 'list', choices: MODES, default: MODES, help: 'modes of answer to run' },
    streams: {
      type: 'list',
      numeric: true,
      integer: true,
      min: 1,
      max: 10_000,
      help: 'stream counts of paced and burst (default 400,1000; 400 with --quick)',
    },
    duration: {
      type: 'number',
      min: 0.2,
      max: 60,
      help: 'seconds of one window (default 5; 1.5 with --quick)',
    },
  },
  examples: [
    'node bench/frontend.js --quick --json',
    'node bench/frontend.js --rows paced,burst --streams 400,1000 --duration 10',
    'node bench/frontend.js --rows ttft --modes token',
    'node bench/frontend.js --rows link,intake --streams 1000 --json',
  ],
});

const streamCounts = flags.streams ?? (flags.quick ? [400] : [400, 1000]);
const timing = {
  warmupMs: flags.quick ? 1000 : 3000,
  windowMs: (flags.duration ?? (flags.quick ? 1.5 : 5)) * 1000,
  windows: flags.quick ? 1 : 3,
};
const headlineMode = flags.modes.includes('token') ? 'token' : flags.modes[0];

/** @type {Array<{ row: string, mode: any, streams?: number, measure(): Promise<any> }>} */
const plan = [];
for (const row of ROWS.filter(name => flags.rows.includes(name))) {
  if (row === 'paced' || row === 'burst') {
    const { engineFlags, ...load } = LOADS[row];
    for (const streams of streamCounts) {
      for (const mode of ['direct', ...flags.modes]) {
        const classes = [{ streams, ...load }];
        plan.push({
          row,
          mode,
          streams,
          measure: () => measureStreams({ mode, engineFlags, classes, timing }),
        });
      }
    }
  } else if (row === 'requests') {
    const { engineFlags, ...load } = LOADS.requests;
    for (const mode of ['direct', ...flags.modes]) {
      const measure = () => measureStreams({ mode, engineFlags, classes: [load], timing });
      plan.push({ row, mode, streams: load.streams, measure });
    }
  } else if (row === 'hosts') {
    const { engineFlags, ...load } = LOADS.hosts;
    for (const host of HOSTS) {
      const measure = () =>
        measureStreams({ mode: headlineMode, engineFlags, classes: [load], timing, host });
      plan.push({ row, mode: host, streams: load.streams, measure });
    }
  } else if (row === 'idle') {
    for (const [half, host] of Object.entries(HALVES)) {
      const measure = () => measureIdle({ mode: headlineMode, host, ...LOADS.idle });
      plan.push({ row, mode: half, streams: LOADS.idle.streams, measure });
    }
  } else if (row === 'link' || row === 'intake') {
    const streams = streamCounts[streamCounts.length - 1];
    for (const [load, { engineFlags, ...each }] of Object.entries(LOADS.link)) {
      for (const way of WAYS) {
        const measure = () =>
          row === 'link'
            ? measureStreams({ mode: 'token', engineFlags, classes: [{ streams, ...each }], timing, way })
            : measureIntake({ engineFlags, streams, timing, way });
        plan.push({ row, mode: `${load} ${way}`, streams, measure });
      }
    }
  } else {
    for (const mode of flags.modes) {
      const measure = () =>
        row === 'ttft'
          ? measureTtft({ mode, ...LOADS.ttft, timing })
          : measureStreams({ mode, ...LOADS.loop, timing, loopDelay: true });
      plan.push({ row, mode, measure });
    }
  }
}

/** The results by row and mode, and the headline figures. @param {Array<{ row: string, mode: string, streams?: number, seen: any }>} done */
function resultsOf(done) {
  /** @type {Record<string, any>} */
  const results = {};
  for (const { row, mode, streams, seen } of done) {
    results[row] ??= {};
    if (row === 'paced' || row === 'burst') {
      if (streams === streamCounts[0]) results[row][mode] = seen;
      results[row].byStreams ??= {};
      results[row].byStreams[String(streams)] ??= {};
      results[row].byStreams[String(streams)][mode] = seen;
    } else {
      results[row][mode] = seen;
    }
  }
  const loop = results.loop?.[headlineMode];
  const perCore = (/** @type {string} */ row, /** @type {string} */ mode) =>
    results[row]?.[mode]?.tokensPerSecondPerCore;
  /** Tokens per second and core in relay+ids mode, divided by those in relay mode. @param {string} row */
  const idsToRelay = row => perCore(row, 'relayIds') / perCore(row, 'relay') || undefined;
  /** CPU of the plane per token over HTTP, divided by that over the link. @param {string} row @param {string} load */
  const httpToLink = (row, load) => perCore(row, `${load} link`) / perCore(row, `${load} http`) || undefined;
  /** @param {string} row */
  const httpToLinkOf = row =>
    results[row] && { paced: httpToLink(row, 'paced'), burst: httpToLink(row, 'burst') };
  /** @param {string} host */
  const hostToServe = host => perCore('hosts', host) / perCore('hosts', HOSTS[0]) || undefined;
  return {
    ...results,
    hostsToServeNode: results.hosts && { express: hostToServe('express'), fetch: hostToServe('fetch') },
    bytesPerIdleStream: results.idle && {
      client: results.idle.client.bytesPerStream,
      withEngine: results.idle.withEngine.bytesPerStream,
    },
    cpuPerTokenHttpToLink: { link: httpToLinkOf('link'), intake: httpToLinkOf('intake') },
    relayIdsToRelay: { paced: idsToRelay('paced'), burst: idsToRelay('burst') },
    requestsPerSecondPerCore: results.requests?.[headlineMode].requestsPerSecondPerCore,
    addedTtftMs: results.ttft?.[headlineMode].addedMs,
    eventLoopDelayMs: loop && {
      p50: loop.loopDelayP50Ms,
      p99: loop.loopDelayP99Ms,
      max: loop.loopDelayMaxMs,
    },
  };
}

/** @param {{ row: string, mode: string, streams?: number, seen: any }} measured */
function tableRow({ row, mode, streams, seen }) {
  const latency = {
    ttft: { p50: seen.addedMs?.p50, p99: seen.addedMs?.p99 },
    loop: { p50: seen.loopDelayP50Ms, p99: seen.loopDelayP99Ms },
  };
  const { p50, p99 } = latency[row] ?? { p50: seen.ttftP50Ms, p99: seen.ttftP99Ms };
  return {
    row,
    mode,
    streams,
    'tokens/s': seen.tokensPerSecond,
    'tokens/s/core': seen.tokensPerSecondPerCore,
    'req/s': seen.requestsPerSecond,
    'req/s/core': seen.requestsPerSecondPerCore,
    'bytes/stream': seen.bytesPerStream,
    'plane cores': seen.planeCpuCores,
    'main thread': seen.planeMainThreadCpuCores,
    'engine cores': seen.engineCpuCores,
    'worker cores': seen.workerCpuCores,
    'load cores': seen.loadCpuCores,
    measure: { ttft: 'added TTFT', loop: 'loop delay' }[row] ?? 'TTFT',
    'p50 ms': p50,
    'p99 ms': p99,
    errors: seen.errors,
  };
}

const facts = machine(); // before the load, as it holds the load average
const bar = progress('frontend', plan.length);
const done = [];
for (const { row, mode, streams, measure } of plan) {
  const name = `${row} ${mode}${streams ? ` ${streams}` : ''}`;
  try {
    done.push({ row, mode, streams, seen: await measure() });
  } catch (error) {
    process.stderr.write(`\n${name} failed: ${error instanceof Error ? error.message : error}\n`);
    process.exit(1);
  }
  bar.step(name);
}
bar.done();

const errors = done.reduce((sum, { seen }) => sum + seen.errors, 0);
const settings = {
  rows: flags.rows,
  modes: flags.modes,
  streams: streamCounts,
  timing,
  loads: LOADS,
  headlineMode,
};
const result = {
  bench: 'frontend',
  commit: commit(),
  machine: facts,
  settings,
  results: resultsOf(done),
  errors,
};
printResult(result, { json: flags.json, table: done.map(tableRow) });
for (const { row, mode, seen } of done) {
  for (const example of seen.errorExamples) process.stderr.write(`${row} ${mode}: ${example}\n`);
}
if (errors > 0) process.exitCode = 1;
