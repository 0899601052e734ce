/**
 * Measures the engine's half of a plane alone (bench/lib/intake-plane.js): tokens per second and core on their way in, over
 * HTTP and SSE with a connection per stream, or over the link of a `millrace worker`. The engine, the streams and the
 * decoder are the same.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { cpuSeconds, startServer, startWorker } from './children.js';
import { medians } from './report.js';

const ENGINE = fileURLToPath(new URL('./engine.js', import.meta.url));
const INTAKE = fileURLToPath(new URL('./intake-plane.js', import.meta.url));
const BEGIN_DEADLINE_MS = 60_000;
const LOOK_PERIOD_MS = 50;

/**
 * @param {{ way: import('./plane-run.js').Way, engineFlags: readonly string[], streams: number, timing: import('./plane-run.js').Timing }} options
 * @returns {Promise<any>} Medians of the windows per second and per core, `errors`, `errorExamples`.
 */
export async function measureIntake({ way, engineFlags, streams, timing }) {
  const engine = await startServer('the bench engine', [ENGINE, ...engineFlags]);
  const origin = engine.listening.url;
  let plane;
  let worker;
  try {
    plane = await startServer('the intake', [INTAKE], { channel: true });
    const { ask } = plane;
    const look = () => ask({ do: 'look' }, 0);
    if (way === 'link') {
      worker = startWorker(origin, plane.listening.address);
      await until('the worker has linked', async () => (await look()).isLinked);
    }
    await ask({ do: 'open', way, origin, streams }, 0);
    await until('all streams have begun', async () => (await look()).begun === streams);
    await sleep(timing.warmupMs);
    const windows = [];
    let to = await look();
    for (let i = 0; i < timing.windows; i += 1) {
      const from = to;
      const workerFrom = worker && cpuSeconds(worker.pid).all;
      await sleep(timing.windowMs);
      to = await look();
      windows.push(windowOf(from, to, worker && cpuSeconds(worker.pid).all - workerFrom));
    }
    const errors = to.failed + (way === 'link' && to.rowTokens !== to.tokens ? 1 : 0);
    const errorExamples = errors > 0 ? ['streams failed, or ids came as bytes over the link'] : [];
    return { ...medians(windows), errors, errorExamples };
  } finally {
    worker?.stop();
    await plane?.stop();
    await engine.stop();
  }
}

/** @param {string} what @param {() => Promise<boolean>} check */
async function until(what, check) {
  const deadline = performance.now() + BEGIN_DEADLINE_MS;
  while (!(await check())) {
    if (performance.now() > deadline) throw new Error(`not within ${BEGIN_DEADLINE_MS / 1000} s: ${what}`);
    await sleep(LOOK_PERIOD_MS);
  }
}

/** @param {any} from @param {any} to @param {number | undefined} workerCpu */
function windowOf(from, to, workerCpu) {
  const seconds = (to.atMs - from.atMs) / 1000;
  const cpu = to.cpuSeconds - from.cpuSeconds;
  const tokens = to.tokens - from.tokens;
  return {
    tokensPerSecond: tokens / seconds,
    tokensPerSecondPerCore: tokens / cpu,
    planeCpuCores: cpu / seconds,
    ...(workerCpu === undefined ? {} : { workerCpuCores: workerCpu / seconds }),
  };
}
