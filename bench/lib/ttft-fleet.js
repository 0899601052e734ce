/**
 * The servers of one policy's live run: mock engines, each in a process of its own, and `millrace serve` before them in
 * another. Fresh for every policy, so that each begins with empty caches; warm before the first measured request.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { createSelector } from '#millrace/router/policies/policies.js';
import { startServer } from './children.js';
import { textOf } from './ttft-prompts.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const LAG_PROBE = fileURLToPath(new URL('./ttft-lag-probe.js', import.meta.url));
const HOST = '127.0.0.1';
const MODEL = 'mock-model';
const READY_DEADLINE_MS = 30_000;
const READY_RETRY_MS = 50;
const ANSWER_DEADLINE_MS = 30_000;
/** Per worker; enough that the compilers of all processes have seen the hot paths, and 1 % of a cache. */
const WARM_REQUESTS = 12;
const WARM_PROMPT_TOKENS = 1024;
const WARM_OUTPUT_TOKENS = 16;
/** Ids that no trace uses, so that warm prompts share nothing with it. */
const WARM_HASH_ID = 2 ** 52;
const BLOCK_TOKENS = 512;

/** Tokenizer of the mock engines, and so of the plane. */
export const TOKENIZER = 'chatml-cl100k';

/**
 * @typedef {Awaited<ReturnType<typeof startServer>>} Server
 * @typedef {import('#millrace/simulate/engine-settings.js').EngineSettings} EngineSettings
 *
 * @typedef {object} Fleet
 * @property {string} host
 * @property {number} port  Of the plane.
 * @property {string} model
 * @property {readonly Server[]} mocks
 * @property {readonly string[]} mockUrls
 * @property {Server} plane
 * @property {() => Promise<void>} stop
 */

/** @param {EngineSettings} engine @param {number} speed @param {boolean} events  Whether they publish KV events. */
function mockArgs({ numGpuBlocks, blockSize, maxNumSeqs, maxNumBatchedTokens, maxModelLen }, speed, events) {
  const flags = {
    '--speed': speed,
    '--blocks': numGpuBlocks,
    '--block-size': blockSize,
    '--max-num-seqs': maxNumSeqs,
    '--max-batched-tokens': maxNumBatchedTokens,
    '--max-model-len': maxModelLen,
  };
  const values = Object.entries(flags).flatMap(([flag, value]) => [flag, String(value)]);
  if (events) values.push('--events');
  return ['--import', LAG_PROBE, MAIN, 'mock', '--json', '--exit-with-stdin', '--port', '0', ...values];
}

/**
 * Starts the servers of one run. Rejects, with nothing left running, when one of them does not start.
 * @param {{ workers: number, engine: EngineSettings, speed: number, policy: string }} options
 * @returns {Promise<Fleet>}
 */
export async function startFleet({ workers, engine, speed, policy }) {
  const args = mockArgs(engine, speed, createSelector(policy).usesPrefix);
  const started = await Promise.allSettled(
    Array.from({ length: workers }, () => startServer('a mock engine', args, { channel: true })),
  );
  const mocks = started.flatMap(result => (result.status === 'fulfilled' ? [result.value] : []));
  /** @type {Server[]} */
  const servers = [...mocks];
  const stop = async () => {
    await Promise.all(servers.map(server => server.stop()));
  };
  try {
    for (const result of started) if (result.status === 'rejected') throw result.reason;
    const plane = await startPlane(mocks, policy);
    servers.push(plane);
    const { port } = plane.listening;
    const mockUrls = mocks.map(({ listening }) => listening.url);
    const fleet = { host: HOST, port, model: MODEL, mocks, mockUrls, plane, stop };
    await untilReady(fleet);
    await warm(fleet);
    return fleet;
  } catch (error) {
    await stop();
    throw error;
  }
}

/** The plane's configuration goes through a file, as flags have no room for a worker's event sockets. @param {readonly Server[]} mocks @param {string} policy */
async function startPlane(mocks, policy) {
  const folder = mkdtempSync(path.join(tmpdir(), 'millrace-ttft-'));
  try {
    const file = path.join(folder, 'millrace.json');
    const workers = mocks.map(({ listening: { url, kvEvents, kvEventsReplay } }) =>
      kvEvents === null ? url : { url, kvEvents, kvEventsReplay },
    );
    // YAML is a superset of JSON.
    writeFileSync(file, JSON.stringify({ workers, policy, tokenizer: TOKENIZER, port: 0, logLevel: 'warn' }));
    return await startServer('the plane', [MAIN, 'serve', '--json', '--config', file]);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** @param {string} url @param {object} [body] */
async function ask(url, body) {
  const post = {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  };
  const response = await fetch(url, {
    ...(body === undefined ? {} : post),
    signal: AbortSignal.timeout(ANSWER_DEADLINE_MS),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${url} answered ${response.status}: ${text.slice(0, 300)}`);
  return text;
}

/** Waits until the plane takes all its workers as ready, or the first requests would go to the few that are. @param {Fleet} fleet */
async function untilReady({ host, port, mocks, plane }) {
  const deadline = performance.now() + READY_DEADLINE_MS;
  for (;;) {
    const died = plane.failed() ?? mocks.map(mock => mock.failed()).find(why => why !== undefined);
    if (died !== undefined) throw new Error(died);
    const { workers } = JSON.parse(await ask(`http://${host}:${port}/health`));
    if (workers.ready === mocks.length) return;
    if (performance.now() > deadline)
      throw new Error(
        `only ${workers.ready} of ${mocks.length} workers are ready after ${READY_DEADLINE_MS} ms`,
      );
    await sleep(READY_RETRY_MS);
  }
}

/** @param {string} prompt @param {number} maxTokens */
const completion = (prompt, maxTokens) => ({ model: MODEL, max_tokens: maxTokens, stream: false, prompt });

/** Requests of no meaning through the whole way, a few at a time. @param {Fleet} fleet */
async function warm({ host, port, mocks }) {
  for (let round = 0; round < WARM_REQUESTS; round += 1) {
    const asked = mocks.map((_, worker) => {
      const hashIds = [0, 1].map(part => WARM_HASH_ID + 2 * (round * mocks.length + worker) + part);
      const text = textOf({ promptTokens: WARM_PROMPT_TOKENS, hashIds }, BLOCK_TOKENS);
      const body = { ...completion(text, WARM_OUTPUT_TOKENS), stream: round % 2 === 0 };
      return ask(`http://${host}:${port}/v1/completions`, body);
    });
    await Promise.all(asked);
  }
}

/**
 * Proves that an engine saw the ids that a prompt was made of: the mock's text is a function of all ids before it, so the
 * plane's answer to the text must be the engine's own answer to the ids. Throws when they differ.
 * @param {Fleet} fleet
 * @param {string} text
 * @param {Uint32Array} ids
 */
export async function checkIds({ host, port, mockUrls }, text, ids) {
  const answers = await Promise.all([
    ask(`http://${host}:${port}/v1/completions`, completion(text, 8)),
    ask(`${mockUrls[0]}/v1/completions`, { ...completion('', 8), prompt: [...ids] }),
  ]);
  const [byText, byIds] = answers.map(answer => JSON.parse(answer).choices[0].text);
  if (byText !== byIds)
    throw new Error(`a prompt of ${ids.length} tokens reached the engine as other ids than it was made of`);
}

/** @param {string} text @param {string} name */
function metricOf(text, name) {
  const found = new RegExp(`^${name}\\{[^}]*\\} (\\S+)$`, 'm').exec(text);
  if (found === null) throw new Error(`a mock engine's /metrics have no ${name}`);
  return Number(found[1]);
}

/** What each mock engine says of itself. @param {Fleet} fleet */
export function mockMetrics({ mockUrls }) {
  return Promise.all(
    mockUrls.map(async url => {
      const text = await ask(`${url}/metrics`);
      const of = (/** @type {string} */ name) => metricOf(text, `vllm:${name}`);
      return {
        running: of('num_requests_running'),
        waiting: of('num_requests_waiting'),
        computedTokens: of('prefix_cache_queries_total') - of('prefix_cache_hits_total'),
      };
    }),
  );
}

const LOOP_DELAY_P99 = /^millrace_event_loop_delay_seconds\{[^}]*quantile="0\.99"[^}]*\} (\S+)$/gm;

/** The latest event loop of the plane since the last call, in milliseconds at p99. @param {Fleet} fleet */
export async function planeLagP99Ms({ host, port }) {
  const text = await ask(`http://${host}:${port}/metrics`);
  const seconds = [...text.matchAll(LOOP_DELAY_P99)].map(match => Number(match[1]));
  if (seconds.length === 0) throw new Error("the plane's /metrics have no millrace_event_loop_delay_seconds");
  return 1000 * Math.max(...seconds);
}

/** The same of the mock engines; `lagReset` begins a new window. @param {Fleet} fleet @param {'lag' | 'lagReset'} type */
export async function mocksLagP99Ms({ mocks }, type) {
  const answers = await Promise.all(mocks.map(mock => mock.ask({ type }, 0)));
  return Math.max(...answers.map(({ p99Ms }) => p99Ms));
}
