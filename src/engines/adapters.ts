/** The adapters of all engines (R5), one set for each thread that needs them. */
import type { EngineAdapter } from './contract.js';
import { createSglangAdapter } from './sglang.js';
import type { StreamScanner } from './stream-decoder.js';
import { createTrtllmAdapter } from './trtllm.js';
import { createVllmAdapter } from './vllm.js';

/** Makes them, by the name of the engine. `scanner`: of this thread, where streams are opened. */
export function createAdapters(scanner?: StreamScanner): ReadonlyMap<string, EngineAdapter> {
  const options = scanner === undefined ? {} : { scanner };
  const adapters = [createVllmAdapter(options), createSglangAdapter(options), createTrtllmAdapter(options)];
  return new Map(adapters.map(adapter => [adapter.engine, adapter]));
}
