/**
 * Adapters and sleep of a TensorRT-LLM server (R5, core): it has no route for either. A request brings the path of its
 * adapter (`lora_request`), which the engine loads with the first one; its memory routes belong to training and need an
 * executor of their own. Source: tensorrt_llm/serve/openai_server.py, main of mid 2026.
 */
import { type ControlOutcome, DONE, type EngineControl } from './control-contract.js';
import { protocolError } from './probe-answers.js';

const NO_SLEEP: ControlOutcome = {
  kind: 'unsupported',
  message: 'TensorRT-LLM has no sleep for servers of requests',
};

/** `EngineAdapter.control` for TensorRT-LLM. */
export const trtllmControl: EngineControl = {
  holdsAdapters: false,
  loadAdapter: async () => DONE,
  unloadAdapter: async () => DONE,
  sleep: async () => NO_SLEEP,
  wake: async () => NO_SLEEP,
  async isSleeping(ask) {
    const { status } = await ask('GET', '/health');
    if (status !== 200) throw protocolError(`/health answered ${status}, expected 200`);
    return false;
  },
};
