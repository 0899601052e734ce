/**
 * Loaded into a mock engine's process before its own code (`--import`): a bench arms faults for the next requests of the
 * engine over the process's channel, and asks how many took place, as the engine itself counts them. Never keeps the
 * process alive; one engine per process.
 */
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
let requests = 0;
const { draw, record } = FaultPlan.prototype;

FaultPlan.prototype.draw = function drawArmed() {
  requests += 1;
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
    if (reset) requests = 0;
    process.send?.({ fired, requests });
  },
);
process.channel?.unref();
