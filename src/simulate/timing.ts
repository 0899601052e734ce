/**
 * Timing of a simulated pass: how long an engine would compute for so many new and so many held tokens. Pure arithmetic
 * in milliseconds, used by the mock engine's core under a real or a virtual clock. The constants are those of Dynamo's
 * mocker (`common/perf_model.rs`, early 1.x), so that replays of both can be compared.
 */

/** Shortest decode step: two tokens of one request never share a moment. */
const DECODE_MS_MIN = 1;

/**
 * Milliseconds to prefill `tokens` new tokens in one pass (over all requests of the pass). 0 for 0: the constant term
 * belongs to a prefill that happens.
 */
export function prefillMs(tokens: number): number {
  if (tokens <= 0) return 0;
  return 4.209989e-7 * tokens * tokens + 1.518344e-2 * tokens + 16.50142;
}

/**
 * Milliseconds of one decode step that is not empty, by load `u` = held KV tokens ÷ capacity in tokens. The parabola
 * peaks at u = 1.049; shared prefixes count once per request, so `u` may pass 1, and is cut there to stay monotone.
 */
export function decodeMs(load: number): number {
  const u = Math.min(Math.max(load, 0), 1);
  return Math.max(DECODE_MS_MIN, -25.74 * u * u + 54.01 * u + 5.74);
}

/**
 * New tokens of a prefill batch, from counts over its requests: batch × (mean length − mean prefix). Both means are
 * integer divisions, as in the reference, so the result may differ from the plain sum by less than the batch size.
 */
export function prefillBatchTokens(requests: number, lengthSum: number, prefixSum: number): number {
  if (requests === 0) return 0;
  return requests * (Math.floor(lengthSum / requests) - Math.floor(prefixSum / requests));
}
