/**
 * Runs the plane alone in a child process between the bench engine and the load generator, and measures it over windows of
 * steady load. Mode `direct` leaves the plane out: the same load goes straight to the engine, which shows what of a
 * figure is the bench itself. Every process is fresh for every measurement.
 */
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { cpuSeconds, startLoad, startServer, startWorker } from './children.js';
import { median, medians, percentile } from './report.js';

const ENGINE = fileURLToPath(new URL('./engine.js', import.meta.url));
const PLANE = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const HOST = fileURLToPath(new URL('./host.js', import.meta.url));
const MODEL = 'bench-model';
const READY_DEADLINE_MS = 30_000;
const READY_RETRY_MS = 50;
const SCRAPE_DEADLINE_MS = 10_000;

/** The flags of `millrace serve` and of the bench engine in each mode of answer that is measured. */
const MODE_FLAGS = {
  relay: { plane: [], engine: ['--ids', 'no'] },
  relayIds: { plane: [], engine: [] },
  token: { plane: ['--tokenizer', 'chatml-cl100k'], engine: [] },
  direct: { plane: [], engine: [] },
};
/** The modes of answer of the plane. */
export const MODES = ['relay', 'relayIds', 'token'];

/** The ways of an answer from the engine to the plane. */
export const WAYS = /** @type {const} */ (['http', 'link']);

/**
 * @typedef {'direct' | 'relay' | 'relayIds' | 'token'} Mode
 * @typedef {typeof WAYS[number]} Way
 * @typedef {'serve' | 'serve-node' | 'express' | 'fetch' | 'plane' | 'client'} Host  What the plane runs in: `millrace serve` on
 *   its first choice of server or on node:http, or a kind of bench/lib/host.js.
 * @typedef {{ warmupMs: number, windowMs: number, windows: number }} Timing
 * @typedef {{ host: string, port: number, model: string }} Target
 * @typedef {Awaited<ReturnType<typeof startServer>>} Server
 * @typedef {{ engine: Server, plane: Server | undefined, worker: ReturnType<typeof startWorker> | undefined, target: Target, direct: Target, load: ReturnType<typeof startLoad> }} Rig
 */

/** @param {number} port @returns {Target} */
const targetAt = port => ({ host: '127.0.0.1', port, model: MODEL });

/** Waits until the target answers a request, as a plane that has just started may still be probing its worker. @param {Target} target */
async function untilReady({ host, port, model }) {
  const deadline = performance.now() + READY_DEADLINE_MS;
  const body = JSON.stringify({
    model,
    stream: true,
    max_tokens: 1,
    messages: [{ role: 'user', content: 'ready?' }],
  });
  for (let seen = 'no answer'; ; ) {
    try {
      const response = await fetch(`http://${host}:${port}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body,
        signal: AbortSignal.timeout(READY_DEADLINE_MS),
      });
      const text = await response.text();
      if (response.ok) return;
      seen = `${response.status} ${text.slice(0, 300)}`;
    } catch (error) {
      seen = String(error);
    }
    if (performance.now() > deadline)
      throw new Error(`the plane served no request within ${READY_DEADLINE_MS / 1000} s: ${seen}`);
    await sleep(READY_RETRY_MS);
  }
}

/** Waits until the engine's worker has linked in. @param {Target} target */
async function untilLinked(target) {
  const deadline = performance.now() + READY_DEADLINE_MS;
  while ((await scrape(target, LINK_UP)).length === 0) {
    if (performance.now() > deadline)
      throw new Error(`the worker did not link within ${READY_DEADLINE_MS / 1000} s`);
    await sleep(READY_RETRY_MS);
  }
}

/**
 * Starts engine, plane (unless `direct`), over `link` a worker between them, and load generator, hands them to `use`, and
 * stops them all whatever happens.
 * @template T
 * @param {Mode} mode
 * @param {readonly string[]} engineFlags
 * @param {(rig: Rig) => Promise<T>} use
 * @param {Host} host
 * @param {Way} way
 * @returns {Promise<T>}
 */
async function withRig(mode, engineFlags, use, host = 'serve', way = 'http') {
  const engine = await startServer('the bench engine', [ENGINE, ...engineFlags, ...MODE_FLAGS[mode].engine]);
  const direct = targetAt(Number(new URL(engine.listening.url).port));
  let plane;
  let worker;
  let load;
  try {
    if (mode !== 'direct') {
      if (!existsSync(PLANE)) throw new Error('dist/cli/main.js is missing: run `npm run build` first');
      const args = host.startsWith('serve')
        ? [
            PLANE,
            'serve',
            '--port',
            '0',
            '--json',
            ...(host === 'serve-node' ? ['--http-server', 'node'] : []),
            ...(way === 'link' ? ['--link-listen', '127.0.0.1:0'] : []),
          ]
        : ['--expose-gc', HOST, '--kind', host];
      plane = await startServer('the plane', [
        ...args,
        '--worker',
        engine.listening.url,
        ...MODE_FLAGS[mode].plane,
      ]);
    }
    const target = plane ? targetAt(plane.listening.port) : direct;
    if (host !== 'client') await untilReady(target);
    if (plane && way === 'link') {
      worker = startWorker(engine.listening.url, plane.listening.linkAddress);
      await untilLinked(target);
    }
    load = startLoad();
    return await use({ engine, plane, worker, target, direct, load });
  } catch (error) {
    const cause = plane?.failed() ?? engine.failed(); // a server that died explains all that failed after it
    throw cause === undefined ? error : new Error(cause);
  } finally {
    load?.stop();
    worker?.stop();
    await plane?.stop();
    await engine.stop();
  }
}

/** Totals and CPU clocks at one moment. @param {Rig} rig */
async function sample({ engine, plane, worker, load }) {
  const totals = await load.ask({ type: 'snapshot' }, 0);
  return {
    totals,
    plane: plane && cpuSeconds(plane.pid),
    worker: worker && cpuSeconds(worker.pid).all,
    engine: cpuSeconds(engine.pid).all,
    load: cpuSeconds(load.pid).all,
  };
}

/** @typedef {Awaited<ReturnType<typeof sample>>} Sample */

/** What happened between two samples. @param {Sample} from @param {Sample} to */
function windowOf(from, to) {
  const seconds = (to.totals.atMs - from.totals.atMs) / 1000;
  const tokens = to.totals.tokens - from.totals.tokens;
  const requests = to.totals.requests - from.totals.requests;
  const rates = {
    tokensPerSecond: tokens / seconds,
    requestsPerSecond: requests / seconds,
    ttftP50Ms: percentile(to.totals.ttftsMs, 50),
    ttftP99Ms: percentile(to.totals.ttftsMs, 99),
    engineCpuCores: (to.engine - from.engine) / seconds,
    loadCpuCores: (to.load - from.load) / seconds,
    ...(from.worker === undefined || to.worker === undefined
      ? {}
      : { workerCpuCores: (to.worker - from.worker) / seconds }),
  };
  if (!from.plane || !to.plane) return rates;
  const cpu = to.plane.all - from.plane.all;
  return {
    tokensPerSecondPerCore: tokens / cpu,
    requestsPerSecondPerCore: requests / cpu,
    planeCpuCores: cpu / seconds,
    planeMainThreadCpuCores: (to.plane.mainThread - from.plane.mainThread) / seconds,
    ...rates,
  };
}

/** @param {any} totals @param {number} units  What the windows saw at least; zero means a standstill that no request reported. */
function errorsOf(totals, units) {
  if (totals.errors > 0 || units > 0) return { errors: totals.errors, errorExamples: totals.errorExamples };
  return { errors: 1, errorExamples: ['nothing came back during a whole window'] };
}

/**
 * Closed-loop streams, and the medians of what the windows saw.
 * @param {{ mode: Mode, engineFlags: readonly string[], classes: import('./load.js').StreamClass[], timing: Timing, loopDelay?: boolean, host?: Host, way?: Way }} options
 *   `loopDelay` adds `loopDelayMs`, the event-loop delay that the plane's `/metrics` report for the window.
 * @returns {Promise<any>} Figures per second and per core, `server`, `errors`, `errorExamples`.
 */
export function measureStreams({ mode, engineFlags, classes, timing, loopDelay = false, host, way }) {
  const measure = async (/** @type {Rig} */ rig) => {
    rig.load.tell({ type: 'start', target: rig.target, classes });
    await sleep(timing.warmupMs);
    const windows = [];
    let last;
    for (let i = 0; i < timing.windows; i += 1) {
      if (loopDelay) await scrapeLoopDelay(rig.target); // a scrape resets the gauges
      const from = await sample(rig);
      await sleep(timing.windowMs);
      last = await sample(rig);
      const delay = loopDelay ? await scrapeLoopDelay(rig.target) : {};
      windows.push({ ...windowOf(from, last), ...delay });
    }
    const errors = errorsOf(last?.totals, Math.min(...windows.map(window => window.tokensPerSecond)));
    if (way === 'link') await expectLinked(rig.target);
    return { ...medians(windows), server: rig.plane?.listening.server, ...errors };
  };
  return withRig(mode, engineFlags, measure, host, way);
}

const LINK_UP = /^millrace_worker_link_up\{[^}]*\} (1)$/gm;
const HTTP_CALLS = /^millrace_link_calls_total\{way="http"\} (\d+)$/gm;

/** Throws unless all calls since the link is there went over it. @param {Target} target */
async function expectLinked(target) {
  // The request that proved the plane ready.
  const [[, calls] = ['', 'none']] = await scrape(target, HTTP_CALLS);
  if (calls !== '1') throw new Error(`${calls} calls went over HTTP while the link was measured`);
}

/** Streams that are open before the first look at the memory, so that one-time costs are paid. */
const WARM_STREAMS = 1000;
const SETTLE_MS = 3000;

/**
 * Resident bytes of the plane per stream that stands still: after a collection, the growth by `streams` more of them.
 * @param {{ host: 'plane' | 'client', mode: Mode, engineFlags: readonly string[], streams: number, promptTokens: number, maxTokens: number }} options
 *   Host `client` holds the client's half of a stream only.
 * @returns {Promise<any>} `bytesPerStream`, `streams`, `errors`, `errorExamples`.
 */
export function measureIdle({ host, mode, engineFlags, streams, promptTokens, maxTokens }) {
  const measure = async (/** @type {Rig} */ rig) => {
    const open = async (/** @type {number} */ count) => {
      const classes = [{ streams: count, promptTokens, maxTokens }];
      rig.load.tell({ type: 'start', target: rig.target, classes });
      await sleep(SETTLE_MS);
      const response = await fetch(rig.plane?.listening.control, {
        signal: AbortSignal.timeout(SCRAPE_DEADLINE_MS),
      });
      return Number(await response.text());
    };
    const before = await open(WARM_STREAMS);
    const after = await open(streams);
    const totals = await rig.load.ask({ type: 'snapshot' }, 0);
    return { bytesPerStream: (after - before) / streams, streams, ...errorsOf(totals, totals.tokens) };
  };
  return withRig(mode, engineFlags, measure, host);
}

/**
 * TTFT that the plane adds: paired requests to the plane and to its engine, one in flight, in alternating order.
 * @param {{ mode: Mode, engineFlags: readonly string[], promptTokens: number, maxTokens: number, timing: Timing }} options
 * @returns {Promise<any>} `directMs`, `planeMs` and `addedMs` as {p50, p99} (medians of the windows), `pairs`, `errors`.
 */
export function measureTtft({ mode, engineFlags, promptTokens, maxTokens, timing }) {
  return withRig(mode, engineFlags, async rig => {
    const durationMs = timing.windowMs * timing.windows;
    const request = { type: 'pairs', plane: rig.target, direct: rig.direct, promptTokens, maxTokens };
    const seen = await rig.load.ask(
      { ...request, warmupMs: timing.warmupMs, durationMs },
      timing.warmupMs + durationMs,
    );
    const added = seen.planeMs.map(
      (/** @type {number} */ ms, /** @type {number} */ i) => ms - seen.directMs[i],
    );
    const spread = (/** @type {number[]} */ values) => {
      const size = Math.ceil(values.length / timing.windows);
      const parts = Array.from({ length: timing.windows }, (_, i) => values.slice(i * size, (i + 1) * size));
      const at = (/** @type {number} */ p) =>
        median(parts.filter(part => part.length > 0).map(part => percentile(part, p)));
      return { p50: at(50), p99: at(99) };
    };
    return {
      directMs: spread(seen.directMs),
      planeMs: spread(seen.planeMs),
      addedMs: spread(added),
      pairs: added.length,
      server: rig.plane?.listening.server,
      ...errorsOf(seen, added.length),
    };
  });
}

/** The lines of `/metrics` that match. @param {Target} target @param {RegExp} line */
async function scrape({ host, port }, line) {
  const response = await fetch(`http://${host}:${port}/metrics`, {
    signal: AbortSignal.timeout(SCRAPE_DEADLINE_MS),
  });
  return [...(await response.text()).matchAll(line)];
}

const LOOP_DELAY = /^millrace_event_loop_delay_seconds\{[^}]*quantile="([\d.]+)"[^}]*\} (\S+)$/gm;

/** The largest event-loop delay among the socket threads since the last scrape. @param {Target} target */
async function scrapeLoopDelay(target) {
  /** @type {Record<string, number>} */
  const seconds = {};
  for (const [, quantile, value] of await scrape(target, LOOP_DELAY)) {
    seconds[quantile] = Math.max(seconds[quantile] ?? 0, Number(value));
  }
  for (const quantile of ['0.5', '0.99', '1']) {
    if (seconds[quantile] === undefined) {
      throw new Error(
        `the plane's /metrics have no millrace_event_loop_delay_seconds{quantile="${quantile}"}`,
      );
    }
  }
  return {
    loopDelayP50Ms: seconds['0.5'] * 1000,
    loopDelayP99Ms: seconds['0.99'] * 1000,
    loopDelayMaxMs: seconds['1'] * 1000,
  };
}
