/**
 * Adapters and sleep of an SGLang server (R5, core). What it calls releasing its memory goes by tags; weights that were
 * released come back only where the server keeps them in host memory (`enable_weights_cpu_backup`), else they are read
 * from the disk. Wire facts: sglang/srt/entrypoints/http_server.py and managers/io_struct.py (LoRAUpdateOutput), main of
 * mid 2026.
 */
import {
  ALREADY,
  type ControlAsk,
  type ControlOutcome,
  DONE,
  type EngineControl,
  outcomeOf,
} from './control-contract.js';
import { objectOf, protocolError } from './probe-answers.js';

const NO_ADAPTERS = 'this server changes no adapters: start it with --enable-lora';
const NO_SLEEP = 'this server cannot be put to sleep: start it with --enable-memory-saver';
const IS_LOADED = /LoRA .*already (exists|loaded)/i;
const IS_UNKNOWN = /LoRA .*(does not exist|is not loaded)/i;
/** `EngineAdapter.control` for SGLang. */
export const sglangControl: EngineControl = {
  holdsAdapters: true,
  async loadAdapter(ask, { name, path }) {
    // Its OpenAI routes read a model's name as "model:adapter".
    if (name.includes(':')) return { kind: 'refused', message: 'the name of an adapter must have no colon' };
    const body = { lora_name: name, lora_path: path };
    const outcome = outcomeOf(await ask('POST', '/load_lora_adapter', body), NO_ADAPTERS);
    return outcome.kind === 'refused' && IS_LOADED.test(outcome.message) ? ALREADY : outcome;
  },
  async unloadAdapter(ask, name) {
    const outcome = outcomeOf(await ask('POST', '/unload_lora_adapter', { lora_name: name }), NO_ADAPTERS);
    return outcome.kind === 'refused' && IS_UNKNOWN.test(outcome.message) ? ALREADY : outcome;
  },
  async sleep(ask, level) {
    const { savesMemory, keepsWeights } = await memoryOf(ask);
    // Without it the server answers 200 and only empties its cache.
    if (!savesMemory) return { kind: 'unsupported', message: NO_SLEEP };
    const tags = level === 2 || keepsWeights ? ['kv_cache', 'weights'] : ['kv_cache'];
    return told(ask, '/release_memory_occupation', { tags });
  },
  async wake(ask, level) {
    const { keepsWeights, modelPath } = await memoryOf(ask);
    const steps: [path: string, body: object][] = [];
    if (level === 2 || keepsWeights) steps.push(['/resume_memory_occupation', { tags: ['weights'] }]);
    if (level === 2 && !keepsWeights) steps.push(['/update_weights_from_disk', { model_path: modelPath }]);
    steps.push(['/resume_memory_occupation', { tags: ['kv_cache'] }]);
    for (const [path, body] of steps) {
      const outcome = await told(ask, path, body);
      if (outcome.kind !== 'done') return outcome;
    }
    return DONE;
  },
  async isSleeping(ask) {
    // Its health route makes a token, for which a server that sleeps has no memory.
    const { status } = await ask('GET', '/v1/models');
    if (status !== 200) throw protocolError(`/v1/models answered ${status}, expected 200`);
    return null;
  },
};

const told = async (ask: ControlAsk, path: string, body: object): Promise<ControlOutcome> =>
  outcomeOf(await ask('POST', path, body), NO_SLEEP);

interface ServerMemory {
  readonly savesMemory: boolean;
  readonly keepsWeights: boolean;
  readonly modelPath: string;
}

/** The server's arguments. */
async function memoryOf(ask: ControlAsk): Promise<ServerMemory> {
  const info = objectOf(await ask('GET', '/get_server_info')) ?? objectOf(await ask('GET', '/server_info'));
  const { enable_memory_saver, enable_weights_cpu_backup, model_path } = info ?? {};
  if (typeof model_path !== 'string') throw protocolError('/get_server_info tells no model_path');
  return {
    savesMemory: enable_memory_saver === true,
    keepsWeights: enable_weights_cpu_backup === true,
    modelPath: model_path,
  };
}
