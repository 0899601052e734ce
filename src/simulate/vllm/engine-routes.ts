/**
 * The routes of a vLLM server that change it, for a mock engine: adapters and sleep, with the server's own words. Pure but
 * for the changes. Source: vllm/entrypoints/serve/{lora,dev/sleep,dev/rpc}/api_router.py and
 * vllm/entrypoints/openai/models/serving.py, 0.32.0.
 */
import { type Body, stringOf } from '../openai/body-fields.js';
import { MEMORY_TAGS } from '../openai/engine-changes.js';
import type { EngineSkin, SkinAnswer, SkinContext } from '../openai/engine-surface.js';
import { HttpError } from '../openai/http-error.js';

/** Adapter paths that begin so are not there. */
const MISSING_PATH = '/missing/';

/** They are there where the server was started with both of its switches. */
export function vllmChanges(context: SkinContext): EngineSkin['posts'] {
  return {
    '/v1/load_lora_adapter': body => load(body, context),
    '/v1/unload_lora_adapter': body => unload(body, context),
    '/sleep': (_body, _surface, query) => sleep(query, context),
    '/wake_up': (_body, _surface, query) => wakeUp(query, context),
    '/collective_rpc': body => collectiveRpc(body, context),
  };
}

function load(body: Body, { changes, model }: SkinContext): SkinAnswer {
  const name = stringOf(body, 'lora_name', '');
  const path = stringOf(body, 'lora_path', '');
  if (name === '' || path === '')
    throw new HttpError(400, "Both 'lora_name' and 'lora_path' must be provided.");
  if (name === model.name)
    throw new HttpError(400, `The lora adapter '${name}' conflicts with a served base model.`);
  if (changes.adapters.has(name))
    throw new HttpError(
      400,
      `The lora adapter '${name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.`,
    );
  if (path.startsWith(MISSING_PATH))
    throw new HttpError(404, `Loading lora ${name} failed: No adapter found for ${path}`);
  changes.adapters.set(name, path);
  return { body: `Success: LoRA adapter '${name}' added successfully.` };
}

/** Requests that run with it go on. */
function unload(body: Body, { changes }: SkinContext): SkinAnswer {
  const name = stringOf(body, 'lora_name', '');
  if (!changes.adapters.delete(name)) throw new HttpError(404, `The lora adapter '${name}' cannot be found.`);
  return { body: `Success: LoRA adapter '${name}' removed successfully.` };
}

function sleep(query: URLSearchParams, { changes }: SkinContext): SkinAnswer {
  const level = Number(query.get('level') ?? '1');
  if (level !== 1 && level !== 2) throw new HttpError(400, 'Input should be less than or equal to 2');
  // The real one waits for them, or aborts them; said here, so that a test shows what was cut.
  if (!changes.release(MEMORY_TAGS, level === 2)) throw new HttpError(500, 'requests are running');
  return { body: { status: 'sleeping', level } };
}

function wakeUp(query: URLSearchParams, { changes }: SkinContext): SkinAnswer {
  const tags = query.getAll('tags');
  const wanted = MEMORY_TAGS.filter(tag => tags.length === 0 || tags.includes(tag));
  if (!changes.resume(wanted)) throw new HttpError(500, `not asleep: ${wanted.join(', ')}`);
  return { body: { status: changes.isAsleep ? 'sleeping' : 'awake', tags: tags.length === 0 ? null : tags } };
}

function collectiveRpc(body: Body, { changes }: SkinContext): SkinAnswer {
  if (stringOf(body, 'method', '') !== 'reload_weights')
    throw new HttpError(400, "Missing 'method' in request body");
  if (!changes.reloadWeights()) throw new HttpError(500, 'the weights have no memory');
  return { body: { results: [null] } };
}
