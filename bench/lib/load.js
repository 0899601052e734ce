/**
 * The load generator of the plane bench, forked by bench/frontend.js and driven by messages. `start` keeps a number of
 * streams open in a closed loop; `snapshot` answers with the totals since `start` and the TTFTs since the last snapshot;
 * `pairs` sends the same kind of request to two servers in turn and answers with both TTFTs. It ends when its parent does.
 */
import { Connection } from './load-connection.js';

const CONNECTS_PER_TURN = 50;
const CONNECT_TURN_MS = 20;
const RETRY_MS = 200;
const WATCHDOG_MS = 1000;
const STALL_TURNS_MAX = 10;
const TTFTS_MAX = 200_000;
const ERROR_EXAMPLES_MAX = 5;

/**
 * @typedef {object} StreamClass  Streams of one kind.
 * @property {number} streams  Kept open at once.
 * @property {number} promptTokens
 * @property {number} maxTokens  Of every answer but a stream's first, which is shorter so that the streams do not end in step.
 *
 * @typedef {{ host: string, port: number, model: string }} Target
 */

const totals = { tokens: 0, requests: 0, errors: 0 };
/** @type {string[]} */
const errorExamples = [];
/** @type {number[]} */
let ttftsMs = [];
/** @type {Set<Connection>} */
const connections = new Set();

const countTokens = (/** @type {number} */ count, /** @type {number | undefined} */ ttftMs) => {
  totals.tokens += count;
  if (ttftMs !== undefined && ttftsMs.length < TTFTS_MAX) ttftsMs.push(ttftMs);
};

/** @param {import('./load-connection.js').Answer} answer */
function countAnswer(answer) {
  if (answer.error !== undefined) {
    totals.errors += 1;
    if (errorExamples.length < ERROR_EXAMPLES_MAX) errorExamples.push(answer.error);
    return;
  }
  totals.requests += 1;
}

/** @param {Target} target @param {StreamClass} kind @param {number} index */
function openStream(target, { streams, promptTokens, maxTokens }, index) {
  const next = () => connection.send(promptTokens, maxTokens);
  const connection = new Connection(
    target,
    answer => {
      countAnswer(answer);
      if (answer.error === undefined) next();
      else setTimeout(next, RETRY_MS); // a server that refuses must not be hammered
    },
    countTokens,
  );
  connections.add(connection);
  connection.send(promptTokens, 1 + Math.floor((index * maxTokens) / streams));
}

/** @param {{ target: Target, classes: StreamClass[] }} message */
function start({ target, classes }) {
  const opens = classes.flatMap(kind =>
    Array.from({ length: kind.streams }, (_, index) => () => openStream(target, kind, index)),
  );
  const timer = setInterval(() => {
    for (const open of opens.splice(0, CONNECTS_PER_TURN)) open();
    if (opens.length === 0) clearInterval(timer);
  }, CONNECT_TURN_MS);
}

function snapshot() {
  const taken = { atMs: performance.now(), ...totals, errorExamples, ttftsMs };
  ttftsMs = [];
  return taken;
}

/** A connection whose answers are promises. @param {Target} target */
function prober(target) {
  /** @type {(answer: import('./load-connection.js').Answer) => void} */
  let resolve;
  const connection = new Connection(target, answer => resolve(answer), countTokens);
  connections.add(connection);
  return (/** @type {number} */ promptTokens, /** @type {number} */ maxTokens) =>
    new Promise(done => {
      resolve = answer => {
        countAnswer(answer);
        done(answer);
      };
      connection.send(promptTokens, maxTokens);
    });
}

/**
 * One request in flight at a time; which server goes first alternates, so that drift falls on both alike. Ends early at an error.
 * @param {{ plane: Target, direct: Target, promptTokens: number, maxTokens: number, warmupMs: number, durationMs: number }} message
 */
async function pairs({ plane, direct, promptTokens, maxTokens, warmupMs, durationMs }) {
  const ask = { plane: prober(plane), direct: prober(direct) };
  const planeMs = [];
  const directMs = [];
  const from = performance.now() + warmupMs;
  for (let turn = 0; performance.now() < from + durationMs && totals.errors === 0; turn += 1) {
    /** @type {Array<'plane' | 'direct'>} */
    const order = turn % 2 === 0 ? ['plane', 'direct'] : ['direct', 'plane'];
    const ms = { plane: 0, direct: 0 };
    for (const side of order) ms[side] = (await ask[side](promptTokens, maxTokens)).ttftMs;
    if (performance.now() < from) continue;
    planeMs.push(ms.plane);
    directMs.push(ms.direct);
  }
  return { planeMs, directMs, ...totals, errorExamples };
}

setInterval(() => {
  for (const connection of connections) {
    if (!connection.busy) continue;
    connection.idleTurns += 1;
    if (connection.idleTurns > STALL_TURNS_MAX) connection.fail(`no byte for ${STALL_TURNS_MAX} s`);
  }
}, WATCHDOG_MS);

process.on('message', async (/** @type {any} */ message) => {
  if (message.type === 'start') start(message);
  else if (message.type === 'snapshot') process.send?.(snapshot());
  else process.send?.(await pairs(message));
});
process.on('disconnect', () => process.exit(0));
