/** Arrivals of a trace whose clock has coarse steps, for `bench/disagg.js`. Pure. */
import { seededRandom } from '#millrace/runtime/random.js';

/**
 * The workload with the requests of each moment drawn evenly over the time to the next moment, in their order. Public traces
 * count in steps of seconds; sped up as they are, ten prompts would come at once, which no client did.
 * @param {import('#millrace/simulate/replay/workload.js').Workload} workload
 * @param {number} seed
 * @returns {import('#millrace/simulate/replay/workload.js').Workload}
 */
export function spreadArrivals(workload, seed) {
  const random = seededRandom(seed);
  const { requests } = workload;
  /** @type {import('#millrace/simulate/replay/workload.js').WorkloadRequest[]} */
  const spread = [];
  let from = 0;
  while (from < requests.length) {
    const { arrivalMs } = requests[from];
    let to = from;
    while (to < requests.length && requests[to].arrivalMs === arrivalMs) to += 1;
    const gapMs = (requests[to]?.arrivalMs ?? arrivalMs) - arrivalMs;
    const offsets = Float64Array.from({ length: to - from }, () => gapMs * random()).sort();
    offsets.forEach((offsetMs, at) => {
      spread.push({ ...requests[from + at], arrivalMs: arrivalMs + offsetMs });
    });
    from = to;
  }
  return { ...workload, requests: spread };
}
