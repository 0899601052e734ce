/**
 * Constrained decoding for vLLM (R5, pool thread): its releases of 2025 know `guided_json` and its like, later ones
 * `structured_outputs` alone, and each ignores the other's field without a word. So a request with the older fields gets
 * the newer one as well. Source: vllm/entrypoints/openai/completion/protocol.py, 0.10 and 0.32. Pure.
 */

/** Names inside `structured_outputs` by those of the older fields. */
const NEWER: Readonly<Record<string, string>> = {
  guided_json: 'json',
  guided_regex: 'regex',
  guided_grammar: 'grammar',
  guided_choice: 'choice',
};

/** Adds `structured_outputs` to a body whose client wrote the older fields. What it wrote itself stays. */
export function addStructuredOutputs(body: Record<string, unknown>): void {
  if ((body.structured_outputs ?? null) !== null) return;
  const given = Object.keys(NEWER).filter(name => (body[name] ?? null) !== null);
  if (given.length === 0) return;
  body.structured_outputs = Object.fromEntries(given.map(name => [NEWER[name]!, body[name]]));
}
