/**
 * Which engine answers at an address (R5), for workers whose configuration does not say: who owns the models that it
 * lists, else a route that only one engine has. A server that is none of them is taken for a vLLM that hides itself, whose
 * adapter asks for nothing that is not OpenAI's own when it does not see a version. Runs on the registry's thread.
 */
import type { EngineAdapter, Fetcher } from './contract.js';
import { objectOf, readModels } from './probe-answers.js';
import { SGLANG } from './sglang-probe.js';
import { VLLM } from './vllm.js';

/** The engine of a server, as one of `adapters`. Rejects as a probe does: the server does not answer, or lists no models. */
export async function detectEngine(
  get: Fetcher,
  adapters: ReadonlyMap<string, Pick<EngineAdapter, 'modelOwner'>>,
): Promise<string> {
  const { owners } = readModels(await get('/v1/models'));
  for (const [engine, { modelOwner }] of adapters)
    if (modelOwner !== undefined && owners.has(modelOwner)) return engine;
  // A model can be served under any owner; what the server says of itself stays.
  for (const path of ['/get_server_info', '/server_info'])
    if (objectOf(await get(path)) !== null) return SGLANG;
  return VLLM;
}
