/**
 * Which engine answers at an address (R5), for workers whose configuration does not say: who owns the models that it
 * lists, else a route that only one engine has. A server that is none of them is taken for a vLLM that hides itself, whose
 * adapter asks for nothing that is not OpenAI's own when it does not see a version. Runs on the registry's thread.
 */
import type { Fetcher } from './contract.js';
import { objectOf, readModels } from './probe-answers.js';
import { SGLANG } from './sglang-probe.js';
import { TRTLLM } from './trtllm.js';
import { VLLM } from './vllm.js';

/** `owned_by` of the models as each engine lists them. */
const OWNERS: ReadonlyMap<unknown, string> = new Map([
  ['vllm', VLLM],
  ['sglang', SGLANG],
  ['tensorrt_llm', TRTLLM],
]);

/** Name of the engine. Rejects as a probe does: the server does not answer, or lists no models. */
export async function detectEngine(get: Fetcher): Promise<string> {
  const { owners } = readModels(await get('/v1/models'));
  for (const owner of owners) {
    const engine = OWNERS.get(owner);
    if (engine !== undefined) return engine;
  }
  // A model can be served under any owner; what the server says of itself stays.
  for (const path of ['/get_server_info', '/server_info'])
    if (objectOf(await get(path)) !== null) return SGLANG;
  return VLLM;
}
