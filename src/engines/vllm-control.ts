/**
 * Adapters and sleep of a vLLM server (R5, core). Its routes for adapters are there with
 * VLLM_ALLOW_RUNTIME_LORA_UPDATING, those for sleep with VLLM_SERVER_DEV_MODE. Wire facts:
 * vllm/entrypoints/serve/{lora,dev/sleep,dev/rpc}/api_router.py and vllm/entrypoints/openai/models/serving.py, 0.32.0.
 */
import {
  ALREADY,
  type ControlAsk,
  type ControlOutcome,
  DONE,
  type EngineControl,
  outcomeOf,
  type SleepLevel,
} from './control-contract.js';
import { objectOf } from './probe-answers.js';

const NO_ADAPTERS =
  'this server changes no adapters: start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1';
const NO_SLEEP =
  'this server cannot be put to sleep: start it with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1';
/** Its words for an adapter that is there, in all versions seen; and for one that is not. */
const IS_LOADED = /has already been loaded|already loaded/i;
const IS_UNKNOWN = /lora adapter .* cannot be found/i;

/** `EngineAdapter.control` for vLLM. */
export const vllmControl: EngineControl = {
  holdsAdapters: true,
  async loadAdapter(ask, { name, path }) {
    const body = { lora_name: name, lora_path: path };
    const outcome = outcomeOf(await ask('POST', '/v1/load_lora_adapter', body), NO_ADAPTERS);
    return outcome.kind === 'refused' && IS_LOADED.test(outcome.message) ? ALREADY : outcome;
  },
  async unloadAdapter(ask, name) {
    const outcome = outcomeOf(await ask('POST', '/v1/unload_lora_adapter', { lora_name: name }), NO_ADAPTERS);
    return outcome.kind === 'refused' && IS_UNKNOWN.test(outcome.message) ? ALREADY : outcome;
  },
  async sleep(ask, level) {
    // Requests of others end first; servers before 0.13 know no mode, and ignore it.
    return outcomeOf(await ask('POST', `/sleep?level=${level}&mode=wait`), NO_SLEEP);
  },
  async wake(ask, level) {
    for (const [path, body] of wakeCalls(level)) {
      const outcome = await told(ask, path, body);
      if (outcome.kind !== 'done') return outcome;
    }
    return DONE;
  },
  async isSleeping(ask) {
    const said = objectOf(await ask('GET', '/is_sleeping'))?.is_sleeping;
    return typeof said === 'boolean' ? said : null;
  },
};

const told = async (ask: ControlAsk, path: string, body: object | undefined): Promise<ControlOutcome> =>
  outcomeOf(await ask('POST', path, body), NO_SLEEP);

/** Weights that level 2 has dropped are read from the disk before there is a KV cache again. */
function wakeCalls(level: SleepLevel): readonly (readonly [path: string, body?: object])[] {
  if (level === 1) return [['/wake_up']];
  return [
    ['/wake_up?tags=weights'],
    ['/collective_rpc', { method: 'reload_weights' }],
    ['/wake_up?tags=kv_cache'],
  ];
}
