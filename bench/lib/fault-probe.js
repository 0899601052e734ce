/**
 * Loaded into a mock engine's process before its own code (`--import`): a bench arms faults for the next requests of the
 * engine over the process's channel, and asks how many took place and how many prompts were handed over, as the engine
 * itself counts them. Never keeps the process alive; one engine per process.
 */
import { KvConnector } from '#millrace/simulate/disagg/kv-connector.js';
import { FaultPlan } from '#millrace/simulate/faults.js';

/**
 * @typedef {object} ArmedFaults  What the next requests of an engine meet, in the order of their arrival.
 * @property {import('#millrace/simulate/faults.js').FaultKind | 'handoverFailure' | 'sigkill' | null} kind  `sigkill`: the process
 *   kills itself once the request is under way; null: no fault.
 * @property {number} afterTokens  Tokens that are sent first, for the kinds that send some.
 * @property {number} requests  How many requests meet it.
 */

/** @type {ArmedFaults[]} */
const armed = [];
/** @type {Record<string, number>} */
const fired = {};
/** Of the engine; null until a request says something of a hand-over. @type {KvConnector | null} */
let connector = null;
let before = { given: 0, taken: 0 };
const { draw, record } = FaultPlan.prototype;
const { open } = KvConnector.prototype;

KvConnector.prototype.open = function openNoted(spec) {
  connector = this;
  return open.call(this, spec);
};

/**
 * Prompts handed over. given: computed here, and fetched by another engine to the end. taken: computed elsewhere, and here
 * with all their KV.
 */
function handOvers() {
  const { desk, pulls } = connector ?? { desk: null, pulls: { pulled: 0, complete: 0 } };
  return { given: desk?.counters.released ?? 0, taken: pulls.pulled + pulls.complete };
}

FaultPlan.prototype.draw = function drawArmed() {
  const next = armed[0];
  if (next === undefined) return draw.call(this);
  next.requests -= 1;
  if (next.requests === 0) armed.shift();
  const { kind, afterTokens } = next;
  if (kind === 'sigkill') setImmediate(() => process.kill(process.pid, 'SIGKILL'));
  return kind === null || kind === 'sigkill' ? null : { kind, afterTokens };
};

FaultPlan.prototype.record = function recordFired(kind) {
  fired[kind] = (fired[kind] ?? 0) + 1;
  record.call(this, kind);
};

process.on(
  'message',
  (/** @type {{ arm?: ArmedFaults[], reset?: boolean }} */ { arm = [], reset = false }) => {
    armed.push(...arm);
    if (reset) before = handOvers();
    const { given, taken } = handOvers();
    process.send?.({ fired, given: given - before.given, taken: taken - before.taken });
  },
);
process.channel?.unref();
