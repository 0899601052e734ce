/** The LoRA adapters in a mock engine's GET /v1/models, as vLLM and SGLang list them. Pure. */
import type { ServedModel } from './generation-request.js';

/** One entry for each adapter, with `root` its path; `listed` is the entry of their model. */
export function listedAdapters({ name, adapters }: ServedModel, listed: object): object[] {
  return [...adapters].map(([id, path]) => ({
    ...listed,
    id,
    root: path,
    parent: name,
    max_model_len: null,
  }));
}
