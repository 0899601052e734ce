/**
 * What a token costs the process of a plane on its way in: over a worker link (`millrace worker` beside the engine, ids in
 * frames) against HTTP and SSE, one connection per stream. Both in one run, in turns, with the same engine, the same
 * streams and the same decoder; the process of the plane does nothing else. "per core" = tokens ÷ its CPU seconds. The CPU
 * of the worker process is shown too: the link moves the scan of the stream to the engine's host, it does not remove it.
 */
import { fork, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { cpuSeconds, startServer } from './lib/children.js';
import { commit, machine, median, parseFlags, printResult, progress } from './lib/report.js';

const flags = parseFlags({
  usage: 'node bench/link.js [flags]',
  summary: 'Tokens per second and core of a plane over a worker link, and over HTTP in the same run.',
  flags: {
    json: { type: 'boolean', help: 'print one JSON object' },
    streams: {
      type: 'number',
      default: 1000,
      min: 1,
      max: 10_000,
      integer: true,
      help: 'streams at one time',
    },
    'period-ms': {
      type: 'number',
      default: 20,
      min: 1,
      max: 1000,
      integer: true,
      help: 'time between two tokens of a stream',
    },
    'window-s': {
      type: 'number',
      default: 5,
      min: 1,
      max: 60,
      integer: true,
      help: 'measured time of each turn',
    },
    turns: { type: 'number', default: 3, min: 1, max: 20, integer: true, help: 'turns of each way' },
  },
  examples: ['node bench/link.js', 'node bench/link.js --json --streams 4000 --turns 5'],
});
const WARM_UP_MS = 2000;
const OPEN_DEADLINE_MS = 60_000;
const LOOK_PERIOD_MS = 50;
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

const engine = await startServer('bench/lib/engine.js', [
  fileURLToPath(new URL('./lib/engine.js', import.meta.url)),
  '--period-ms',
  String(flags.periodMs),
]);
const origin = engine.listening.url;
const plane = fork(new URL('./lib/link-plane.js', import.meta.url), { stdio: ['ignore', 2, 2, 'ipc'] });

/** Who waits for a message of the plane's process, by event. */
const waiting = new Map();
plane.on('message', message => waiting.get(message.event)?.resolve(message));
plane.on('exit', () => {
  for (const { reject } of waiting.values()) reject(new Error('the process of the plane ended'));
});

/** The next message of `event`. */
function heard(event) {
  return new Promise((resolve, reject) => waiting.set(event, { resolve, reject }));
}

function ask(message) {
  const answer = heard('counts');
  plane.send(message);
  return answer;
}

const { port } = await heard('listening');
const linked = heard('linked');
const worker = spawn(
  process.execPath,
  [
    fileURLToPath(new URL('../dist/cli/main.js', import.meta.url)),
    ...['worker', '--engine', origin, '--plane', `127.0.0.1:${port}`, '--log-level', 'warn'],
  ],
  { stdio: ['ignore', 2, 2] },
);
process.on('exit', () => {
  worker.kill('SIGKILL');
  plane.kill('SIGKILL');
});
await linked;

async function turn(way) {
  await ask({ do: 'open', way, origin, streams: flags.streams });
  const endMs = performance.now() + OPEN_DEADLINE_MS;
  for (let begun = 0; begun < flags.streams; ) {
    if (performance.now() > endMs) throw new Error(`${way}: only ${begun} of ${flags.streams} streams began`);
    await sleep(LOOK_PERIOD_MS);
    begun = (await ask({ do: 'look' })).begun;
  }
  await sleep(WARM_UP_MS);
  const workerBefore = cpuSeconds(worker.pid).all;
  plane.send({ do: 'begin' });
  await sleep(flags.windowS * 1000);
  const counts = await ask({ do: 'end' });
  const workerCpu = cpuSeconds(worker.pid).all - workerBefore;
  plane.send({ do: 'close' });
  await sleep(LOOK_PERIOD_MS * 10);
  if (counts.failed > 0) throw new Error(`${way}: ${counts.failed} streams failed`);
  if (way === 'link' && counts.rowTokens !== counts.tokens)
    throw new Error('tokens came as bytes over the link');
  return {
    tokensPerSecond: counts.windowTokens / counts.wallSeconds,
    tokensPerSecondAndCore: counts.windowTokens / counts.cpuSeconds,
    planeCores: counts.cpuSeconds / counts.wallSeconds,
    workerCores: workerCpu / counts.wallSeconds,
    addon: counts.addon,
  };
}

const turns = { http: [], link: [] };
const bar = progress('turns', flags.turns * 2);
for (let at = 0; at < flags.turns; at++) {
  for (const way of ['http', 'link']) {
    turns[way].push(await turn(way));
    bar.step(way);
  }
}
bar.done();
const fold = way =>
  Object.fromEntries(
    ['tokensPerSecond', 'tokensPerSecondAndCore', 'planeCores', 'workerCores'].map(key => [
      key,
      median(turns[way].map(one => one[key])),
    ]),
  );
const results = { http: fold('http'), link: fold('link') };
const ratio = results.link.tokensPerSecondAndCore / results.http.tokensPerSecondAndCore;
const { streams, periodMs, windowS } = flags;
const settings = { streams, periodMs, windowS, turns: flags.turns, addon: turns.http[0].addon };
printResult(
  { bench: 'link', commit: commit(), machine: machine(), settings, results, ratio, turns },
  {
    json: flags.json,
    table: [
      ...Object.entries(results).map(([way, row]) => ({ way, ...row })),
      { way: 'link ÷ http', tokensPerSecondAndCore: ratio },
    ],
  },
);
worker.kill('SIGTERM');
plane.disconnect();
await engine.stop();
