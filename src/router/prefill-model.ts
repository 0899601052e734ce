/**
 * How long a worker is expected to compute (R4): the constants that the router reckons with, and the arithmetic over them.
 * They are those of Dynamo's mocker (`common/perf_model.rs`, early 1.x), an 8 B model on one large GPU; what a worker is
 * measured to need (prefill-drain.ts) scales them. Pure; milliseconds and tokens.
 */

/** Tokens that a worker computes in one pass at most (vLLM's `max_num_batched_tokens`). */
const PASS_TOKENS = 8192;
const PASS_MS = 16.50142;
const TOKEN_MS = 1.518344e-2;
const TOKEN_SQUARED_MS = 4.209989e-7;
const DECODE_MS = [5.74, 54.01, -25.74] as const;

const passMs = (tokens: number): number => PASS_MS + TOKEN_MS * tokens + TOKEN_SQUARED_MS * tokens * tokens;
const FULL_PASS_MS = passMs(PASS_TOKENS);

/** Compute time of one prompt token in a full pass. */
export const FULL_PASS_TOKEN_MS = FULL_PASS_MS / PASS_TOKENS;

/** Milliseconds of one decode step when `load`, 0 to 1, of the KV memory is in use. */
export function expectedDecodeMs(load: number): number {
  const u = Math.min(load, 1);
  return DECODE_MS[0] + (DECODE_MS[1] + DECODE_MS[2] * u) * u;
}

/** Milliseconds until `tokens` of prompts are computed, in full passes and a last one, each with a decode step. */
export function expectedPrefillMs(tokens: number, decodeMs: number): number {
  const full = Math.floor(tokens / PASS_TOKENS);
  const rest = tokens - full * PASS_TOKENS;
  return full * (FULL_PASS_MS + decodeMs) + (rest > 0 ? passMs(rest) + decodeMs : 0);
}
