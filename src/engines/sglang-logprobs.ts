/**
 * SGLang's log-probabilities in the form in which a TokenAnswer reads them (engines/event-logprobs.ts): tokens by id. Its
 * lists hold `[logprob, id, text | null]` per token, from the start of the answer or for the newest tokens only;
 * `output_token_logprobs_length` counts from the start in both. Source: `add_logprob_to_meta_info` of
 * sglang/srt/managers/tokenizer_manager.py. Pure, socket thread.
 */

type Weighed = readonly [number, number];

/**
 * The log-probabilities of the ids `fresh`, of which `before` stand in front in the answer; null when they are not there
 * or are those of other ids.
 */
export function sglangLogprobs(
  meta: Readonly<Record<string, unknown>>,
  before: number,
  fresh: readonly number[],
): object | null {
  const drawn = meta.output_token_logprobs;
  const tops = meta.output_top_logprobs ?? null;
  if (!Array.isArray(drawn) || (tops !== null && !Array.isArray(tops))) return null;
  const total = meta.output_token_logprobs_length ?? drawn.length;
  if (typeof total !== 'number') return null;
  const first = before - (total - drawn.length);
  const logprobs: number[] = [];
  const topLogprobs: Record<string, number>[] = [];
  for (const [at, id] of fresh.entries()) {
    const one = weighed(drawn[first + at]);
    const top = topOf(tops === null ? null : tops[first + at - (drawn.length - tops.length)]);
    if (one === null || top === null || one[1] !== id) return null;
    logprobs.push(one[0]);
    // The likeliest in their order; the drawn one comes last where it is not among them.
    topLogprobs.push(
      Object.fromEntries([...top, one].map(([logprob, token]) => [`token_id:${token}`, logprob])),
    );
  }
  return { token_logprobs: logprobs, top_logprobs: topLogprobs };
}

/** Null and absent: the server lists none for this token. */
function topOf(value: unknown): Weighed[] | null {
  if (value === null || value === undefined) return [];
  if (!Array.isArray(value)) return null;
  const top = value.map(weighed);
  return top.includes(null) ? null : (top as Weighed[]);
}

function weighed(value: unknown): Weighed | null {
  if (!Array.isArray(value)) return null;
  const [logprob, id] = value as unknown[];
  return typeof logprob === 'number' && Number.isSafeInteger(id) ? [logprob, id as number] : null;
}
