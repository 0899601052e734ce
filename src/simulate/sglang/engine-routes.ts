/**
 * The routes of an SGLang server that change it, for a mock engine that was started with --enable-lora and
 * --enable-memory-saver: adapters, and memory that is released by tags. Pure but for the changes. Source:
 * sglang/srt/entrypoints/http_server.py and sglang/srt/lora/lora_registry.py.
 */
import { type Body, stringOf } from '../openai/body-fields.js';
import { MEMORY_TAGS, type MemoryTag } from '../openai/engine-changes.js';
import type { EngineSkin, SkinAnswer, SkinContext } from '../openai/engine-surface.js';

/** See the head of the file. */
export function sglangChanges(context: SkinContext): EngineSkin['posts'] {
  const { changes, model } = context;
  const carriedOut = (isDone: boolean, otherwise: string): SkinAnswer =>
    isDone
      ? { type: 'application/json', body: 'null' }
      : { status: 400, body: { error: { message: otherwise } } };
  return {
    '/load_lora_adapter': body => load(body, context),
    '/unload_lora_adapter': body => unload(body, context),
    // Nothing keeps the weights: the server runs without --enable-weights-cpu-backup.
    '/release_memory_occupation': body =>
      carriedOut(
        changes.release(tagsOf(body), true),
        'release_memory_occupation should be called only when server is idle.',
      ),
    '/resume_memory_occupation': body => carriedOut(changes.resume(tagsOf(body)), 'not released'),
    '/update_weights_from_disk': body =>
      stringOf(body, 'model_path', '') === model.name && changes.reloadWeights()
        ? { body: { success: true, message: 'Succeeded to update model weights.' } }
        : { status: 400, body: { success: false, message: 'Failed to update weights' } },
  };
}

function load(body: Body, { changes }: SkinContext): SkinAnswer {
  const name = stringOf(body, 'lora_name', '');
  if (changes.adapters.has(name)) return failed(`LoRA with name ${name} already exists`, changes.adapters);
  changes.adapters.set(name, stringOf(body, 'lora_path', ''));
  return succeeded(changes.adapters);
}

function unload(body: Body, { changes }: SkinContext): SkinAnswer {
  const name = stringOf(body, 'lora_name', '');
  if (!changes.adapters.delete(name))
    return failed(`LoRA with name ${name} does not exist`, changes.adapters);
  return succeeded(changes.adapters);
}

function succeeded(adapters: ReadonlyMap<string, string>): SkinAnswer {
  const loaded = Object.fromEntries(adapters);
  return { body: { success: true, error_message: null, loaded_adapters: loaded } };
}

function failed(message: string, adapters: ReadonlyMap<string, string>): SkinAnswer {
  const names = [...adapters.keys()].map(name => `'${name}'`).join(', ');
  const error = `${message}. Loaded LoRAs: dict_keys([${names}])`;
  return { status: 400, body: { success: false, error_message: error, loaded_adapters: null } };
}

function tagsOf({ tags }: Body): readonly MemoryTag[] {
  const given = Array.isArray(tags) && tags.length > 0 ? (tags as unknown[]) : MEMORY_TAGS;
  return MEMORY_TAGS.filter(tag => given.includes(tag));
}
