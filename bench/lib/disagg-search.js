/** The search of `bench/disagg.js`: the highest rate of arrivals that each fleet carries within the target. Pure but for the runs. */
import { nameOf, pointOf, runAt } from './disagg-fleets.js';

/** The rate is known to this share of it. */
export const TOLERANCE = 0.01;
/** From one rate to the next until one is too high and one is not. */
const STEP = 1.5;
/** A fleet that does not meet the target at the guess ÷ this never does, for this bench. */
const RANGE_DOWN = 32;
/** One that still meets it at the guess × this would do so if all requests came at once: there are too few. */
const RANGE_UP = 256;

/**
 * @typedef {import('./disagg-fleets.js').Fleet} Fleet
 * @typedef {import('./disagg-fleets.js').Stage} Stage
 * @typedef {import('./disagg-fleets.js').Point} Point
 *
 * @typedef {object} Found
 * @property {Fleet} fleet
 * @property {Point | null} best  At the highest rate within the target; null: there is none.
 * @property {readonly Point[]} points  All that were tried, by rate.
 */

/**
 * By halving between a rate at which `probe` says true and one at which it says false; both are sought from `guess` on.
 * @param {(rate: number) => boolean} probe
 * @param {number} guess
 * @returns {number | null} The highest that was seen to be true, Infinity when each one is; null: none was.
 */
export function highestRate(probe, guess) {
  let low = 0;
  let high = Number.POSITIVE_INFINITY;
  let rate = guess;
  while (high / low > 1 + TOLERANCE) {
    if (probe(rate)) low = rate;
    else high = rate;
    if (low === 0) rate /= STEP;
    else if (high === Number.POSITIVE_INFINITY) rate *= STEP;
    else rate = Math.sqrt(low * high);
    if (rate < guess / RANGE_DOWN) return null;
    if (rate > guess * RANGE_UP) return Number.POSITIVE_INFINITY;
  }
  return low;
}

/** Searches one fleet. @param {Stage} stage @param {Fleet} fleet @param {number} guess @returns {Found} */
function search(stage, fleet, guess) {
  /** @type {Point[]} */
  const points = [];
  const rate = highestRate(requestsPerSecond => {
    const point = pointOf(stage, runAt(stage, fleet, requestsPerSecond), requestsPerSecond);
    points.push(point);
    return point.met;
  }, guess);
  if (rate === Number.POSITIVE_INFINITY)
    throw new Error(
      `${nameOf(fleet)} meets the target at any rate: so few requests (--requests) are over before a queue grows`,
    );
  const best = points.find(({ requestsPerSecond }) => requestsPerSecond === rate) ?? null;
  points.sort((a, b) => a.requestsPerSecond - b.requestsPerSecond);
  return { fleet, best, points };
}

/**
 * Searches all fleets, each from where its neighbour ended.
 * @param {Stage} stage
 * @param {readonly Fleet[]} fleets
 * @param {(what: string) => void} onFleet
 */
export function searchAll(stage, fleets, onFleet) {
  let guess = stage.workers;
  return fleets.map(fleet => {
    const found = search(stage, fleet, guess);
    guess = found.best?.requestsPerSecond ?? guess;
    onFleet(nameOf(fleet));
    return found;
  });
}
