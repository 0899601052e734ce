/**
 * The servers of one case of the fault bench: `millrace mock` engines, each in a process of its own that can be killed, and
 * `millrace serve` before them in another. Also what they say of themselves: counters, readiness, and what has not come
 * back to zero. Fresh for every case, so that no case inherits what the one before has broken.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { startServer } from './children.js';
import { promptText } from './words.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const PROBE = fileURLToPath(new URL('./fault-probe.js', import.meta.url));
const MODEL = 'mock-model';
const TOKENIZER = 'chatml-cl100k';
const READY_DEADLINE_MS = 30_000;
const ANSWER_DEADLINE_MS = 30_000;
const LEAK_DEADLINE_MS = 5000;
const POLL_MS = 50;
const PROMPT_TOKENS = 48;
/** Serial numbers of prompts that no measured request has. */
const WARM_SERIAL = 1_000_000;
const WARM_TOKENS = 8;

/** The setting `tokenizer` of `millrace serve` by mode of answer. */
export const MODE_TOKENIZERS = { token: TOKENIZER, relayIds: null };

/**
 * Limits of the plane, so that the faults that only a deadline can find are found while the streams run; the others are the
 * defaults.
 */
export const PLANE_LIMITS = {
  firstTokenDeadlineMs: 5000,
  betweenTokensDeadlineMs: 2000,
  probePeriodMs: 500,
  probeDeadlineMs: 1000,
};

/**
 * @typedef {Awaited<ReturnType<typeof startServer>>} Server
 * @typedef {keyof typeof MODE_TOKENIZERS} Mode
 * @typedef {{ id: string, path: string, body: { stream: boolean, [key: string]: unknown } }} Ask
 *
 * @typedef {object} Fleet
 * @property {string} host
 * @property {number} port  Of the plane.
 * @property {readonly Server[]} mocks  Engines that answer requests.
 * @property {readonly Server[]} prefills  Engines that only compute prompts, one for each of `mocks`; none unless the fleet is split.
 * @property {readonly Server[]} agents  `millrace worker` beside each of `mocks`; none unless the fleet is linked.
 * @property {Server} plane
 * @property {() => Promise<void>} stop
 */

/** The `index`-th request: its prompt differs from all others; chat and plain completions take turns. @param {number} index @param {number} maxTokens @returns {Ask} */
export function askOf(index, maxTokens) {
  const text = promptText(PROMPT_TOKENS, index);
  const shared = { model: MODEL, max_tokens: maxTokens, stream: true };
  const id = `fault-${index}`;
  if (index % 2 === 0) return { id, path: '/v1/completions', body: { ...shared, prompt: text } };
  const messages = [{ role: 'user', content: text }];
  return { id, path: '/v1/chat/completions', body: { ...shared, messages } };
}

/** @param {string | number} speed @param {boolean} handsOver */
function startMock(speed, handsOver) {
  const flags = ['--json', '--exit-with-stdin', '--speed', String(speed)];
  const args = [
    '--import',
    PROBE,
    MAIN,
    'mock',
    ...flags,
    ...(handsOver ? ['--disagg', '--kv-connector', 'nixl'] : []),
  ];
  return startServer('a mock engine', args, { channel: true });
}

/**
 * The undisturbed texts: what one engine alone answers to the same requests, without a plane.
 * @param {readonly Ask[]} asks
 * @returns {Promise<string[]>}
 */
export async function referenceTexts(asks) {
  const mock = await startMock('unlimited', false);
  try {
    const answers = asks.map(async ({ path: route, body }) => {
      const text = await fetched(`${mock.listening.url}${route}`, { ...body, stream: false });
      const [choice] = JSON.parse(text).choices;
      return choice.text ?? choice.message.content;
    });
    return await Promise.all(answers);
  } finally {
    await mock.stop();
  }
}

/**
 * Starts engines and plane. Rejects, with nothing left running, when one of them does not start.
 * @param {{ workers: number, speed: number, mode: Mode, split?: boolean, linked?: boolean }} options  `split`: prefill and
 *   decode on workers of their own, `workers` of each. `linked`: the answers come over worker links.
 * @returns {Promise<Fleet>}
 */
export async function startFleet({ workers, speed, mode, split = false, linked = false }) {
  const engines = split ? 2 * workers : workers;
  /** @type {Server[]} */
  const servers = [];
  const stop = async () => {
    await Promise.all(servers.map(server => server.stop()));
  };
  /** All of them, or an error once each has started or failed. @param {readonly Promise<Server>[]} starting */
  const started = async starting => {
    const results = await Promise.allSettled(starting);
    const good = results.flatMap(result => (result.status === 'fulfilled' ? [result.value] : []));
    servers.push(...good);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
    return good;
  };
  try {
    const all = await started(Array.from({ length: engines }, () => startMock(speed, split)));
    const [mocks, prefills] = [all.slice(0, workers), all.slice(workers)];
    const [plane] = await started([startPlane(mocks, prefills, mode, linked)]);
    const agents = await started(linked ? mocks.map(mock => startAgent(mock, plane)) : []);
    const fleet = { host: '127.0.0.1', port: plane.listening.port, mocks, prefills, agents, plane, stop };
    const areReady = async () => (await health(fleet)).workers.ready === engines;
    await polled(areReady, READY_DEADLINE_MS, 'some workers are not ready');
    await warm(fleet);
    return fleet;
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Resolves when it is linked. @param {Server} mock @param {Server} plane */
function startAgent({ listening: engine }, { listening: plane }) {
  const args = [MAIN, 'worker', '--engine', engine.url, '--plane', plane.linkAddress];
  return startServer('a worker link', args, { readyLog: /linked to a data plane/ });
}

/** The configuration goes through a file, as flags have no room for roles. @param {readonly Server[]} mocks @param {readonly Server[]} prefills @param {Mode} mode @param {boolean} linked */
async function startPlane(mocks, prefills, mode, linked) {
  const folder = mkdtempSync(path.join(tmpdir(), 'millrace-faults-'));
  try {
    const file = path.join(folder, 'millrace.json');
    const urlOf = (/** @type {Server} */ mock) => mock.listening.url;
    const roles = [
      ...mocks.map(mock => ({ url: urlOf(mock), role: 'decode' })),
      ...prefills.map(mock => ({ url: urlOf(mock), role: 'prefill' })),
    ];
    const tokenizer = MODE_TOKENIZERS[mode];
    const model = { workers: roles, tokenizer, disaggregation: { policy: 'always' } };
    const served =
      prefills.length === 0 ? { workers: mocks.map(urlOf), tokenizer } : { models: { [MODEL]: model } };
    const linkListen = linked ? '127.0.0.1:0' : null;
    const shared = { port: 0, policy: 'round-robin', logLevel: 'warn', limits: PLANE_LIMITS, linkListen };
    // YAML is a superset of JSON.
    writeFileSync(file, JSON.stringify({ ...shared, ...served }));
    return await startServer('the plane', [MAIN, 'serve', '--json', '--config', file]);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Two requests per worker through the whole way, so that the first measured one meets compiled code. @param {Fleet} fleet */
async function warm(fleet) {
  const asks = Array.from({ length: 2 * fleet.mocks.length }, (_, at) =>
    askOf(WARM_SERIAL + at, WARM_TOKENS),
  );
  await Promise.all(asks.map(({ path: route, body }) => fetched(`${planeUrl(fleet)}${route}`, body)));
  await Promise.all([...fleet.mocks, ...fleet.prefills].map(mock => mock.ask({ reset: true }, 0)));
}

/** @param {Fleet} fleet */
const planeUrl = ({ host, port }) => `http://${host}:${port}`;

/** The text of an answer. Rejects for a status that is no success. @param {string} url @param {object} [body]  Absent: a GET. */
export async function fetched(url, body) {
  const headers = { 'content-type': 'application/json' };
  const post = body === undefined ? {} : { method: 'POST', headers, body: JSON.stringify(body) };
  const response = await fetch(url, { ...post, signal: AbortSignal.timeout(ANSWER_DEADLINE_MS) });
  const text = await response.text();
  if (!response.ok) throw new Error(`${url} answered ${response.status}: ${text.slice(0, 300)}`);
  return text;
}

/** Calls `holds` until it does; throws at the deadline. @param {() => Promise<boolean>} holds @param {number} withinMs @param {string} otherwise */
async function polled(holds, withinMs, otherwise) {
  const deadline = performance.now() + withinMs;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`${otherwise} after ${withinMs} ms`);
    await sleep(POLL_MS);
  }
}

/** What `/health` of the plane says, also while it says 503. @param {Fleet} fleet */
async function health(fleet) {
  const response = await fetch(`${planeUrl(fleet)}/health`, {
    signal: AbortSignal.timeout(ANSWER_DEADLINE_MS),
  });
  return /** @type {Promise<{ workers: { ready: number }, requestsInFlight: number }>} */ (response.json());
}

/** Looks at the number of ready workers until it is stopped. @param {Fleet} fleet @returns {() => Promise<number>} Stops; the fewest that were seen. */
export function watchReady(fleet) {
  let fewest = fleet.mocks.length + fleet.prefills.length;
  const stopped = new AbortController();
  const watching = (async () => {
    while (!stopped.signal.aborted) {
      fewest = Math.min(fewest, (await health(fleet)).workers.ready);
      await sleep(POLL_MS);
    }
  })();
  return async () => {
    stopped.abort();
    await watching;
    return fewest;
  };
}

/** Sum of a family's samples whose labels hold `label`. @param {string} text @param {string} family @param {string} [label] */
export function sumOf(text, family, label = '') {
  const lines = text
    .split('\n')
    .filter(line => line.startsWith(`${family} `) || line.startsWith(`${family}{`));
  if (lines.length === 0) throw new Error(`the metrics have no ${family}`);
  const chosen = lines.filter(line => line.includes(label));
  return chosen.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
}

/** How often the plane moved streams and asked again. @param {Fleet} fleet */
export async function planeCounters(fleet) {
  const text = await fetched(`${planeUrl(fleet)}/metrics`);
  return {
    migrations: sumOf(text, 'millrace_migrations_total', 'outcome="continued"'),
    retries: sumOf(text, 'millrace_asks_total', 'reason="worker_failed"'),
  };
}

/** Ids of requests that were placed more than once. @param {Fleet} fleet @returns {Promise<Set<string>>} */
export async function placedAgain(fleet) {
  const answer = JSON.parse(await fetched(`${planeUrl(fleet)}/debug/decisions?limit=256`));
  const seen = new Set();
  const again = new Set();
  for (const { requestId } of answer.decisions) (seen.has(requestId) ? again : seen).add(requestId);
  return again;
}

/**
 * What is not back to zero within its deadline after the load, by kind; empty when nothing leaks.
 * @param {Fleet} fleet
 * @param {readonly Server[]} answering  Engines that live and can be asked.
 * @param {number} [withinMs]
 * @returns {Promise<Record<string, number>>}
 */
export async function leaksOf(fleet, answering, withinMs = LEAK_DEADLINE_MS) {
  /** @type {Record<string, number>} */
  let left = {};
  const look = async () => {
    const [text, { requestsInFlight }, ...engines] = await Promise.all([
      fetched(`${planeUrl(fleet)}/metrics`),
      health(fleet),
      ...answering.map(mock => fetched(`${mock.listening.url}/metrics`)),
    ]);
    const open = (/** @type {string} */ name) =>
      engines.reduce((sum, page) => sum + sumOf(page, `vllm:num_requests_${name}`), 0);
    const seen = {
      requestsInFlight,
      activeRequests: sumOf(text, 'dynamo_frontend_active_requests'),
      retainedBytes: sumOf(text, 'millrace_retained_bytes'),
      reservations: sumOf(text, 'millrace_worker_load', 'kind="requests"'),
      reservedPrefillTokens: sumOf(text, 'millrace_worker_load', 'kind="prefill_tokens"'),
      reservedBlocks: sumOf(text, 'millrace_worker_load', 'kind="decode_blocks"'),
      engineRequests: open('running') + open('waiting'),
    };
    left = Object.fromEntries(Object.entries(seen).filter(([, value]) => value !== 0));
    return Object.keys(left).length === 0;
  };
  await polled(look, withinMs, 'leaks').catch(error => {
    if (Object.keys(left).length === 0) throw error; // it was the look that failed
  });
  return left;
}
