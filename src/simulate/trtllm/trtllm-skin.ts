/**
 * The routes of a stock `trtllm-serve` for a mock engine's surface: OpenAI's, with its refusal of every field that it does
 * not know, ids in the place of text, and KV cache events that are fetched. Pure. Source:
 * tensorrt_llm/serve/{openai_server,openai_protocol,postprocess_handlers}.py.
 */
import { type Body, booleanOf, integerOf, objectOf, stringOf } from '../openai/body-fields.js';
import { familyText, labelText } from '../openai/engine-metrics.js';
import type { EngineSkin, SkinContext } from '../openai/engine-surface.js';
import { type GenerationRequest, readGenerationRequest } from '../openai/generation-request.js';
import { HttpError } from '../openai/http-error.js';
import type { CacheEvents } from './cache-events.js';
import { CHAT_FIELDS, COMPLETION_FIELDS, NESTED_FIELDS } from './request-fields.js';

/** The release whose surface this is, marked as a mock. */
const VERSION = '1.2.0+millrace.mock';
const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

/** The skin. `events` null: the server runs without an event buffer. */
export function trtllmSkin(context: SkinContext, events: CacheEvents | null): EngineSkin {
  const { model, startedSeconds } = context;
  const listed = { id: model.name, object: 'model', created: startedSeconds, owned_by: 'tensorrt_llm' };
  return {
    gets: {
      '/health': () => ({ body: '' }),
      '/health_generate': () => ({ body: '' }),
      '/version': () => ({ body: { version: VERSION } }),
      '/v1/models': () => ({ body: { object: 'list', data: [listed] } }),
      '/server_info': () => ({ body: { disaggregated_params: {} } }),
      '/prometheus/metrics': () => ({ type: METRICS_TYPE, body: trtllmMetrics(context) }),
    },
    posts: {
      '/kv_cache_events': () => ({ type: 'application/json', body: events?.drain() ?? '[]' }),
      '/_internal/tokenize': body => ({ body: tokenize(body, context) }),
    },
    generations: {
      '/v1/completions': body => read('completions', body, context),
      '/v1/chat/completions': body => read('chat', body, context),
    },
    errorBody: ({ status, message, param }) =>
      status === 400 && param === null
        ? { error: message }
        : { object: 'error', message, type: 'BadRequestError', param, code: status },
  };
}

function read(api: 'chat' | 'completions', body: Body, { model, engine }: SkinContext): GenerationRequest {
  refuseStrangers(body, api === 'chat' ? CHAT_FIELDS : COMPLETION_FIELDS, ['body']);
  for (const [name, fields] of Object.entries(NESTED_FIELDS)) {
    const value = body[name] ?? null;
    if (typeof value === 'object' && value !== null) refuseStrangers(value as Body, fields, ['body', name]);
  }
  const { priority = 0.5 } = body;
  if (typeof priority !== 'number' || priority < 0 || priority > 1) {
    throw new HttpError(400, "[{'loc': ('body', 'priority'), 'msg': 'Input should be from 0 to 1'}]");
  }
  // Without a length the server fills the context, in completions too.
  const filled =
    api === 'chat' || (body.max_tokens ?? null) !== null ? body : withAllTokens(body, engine.core.settings);
  const idsOnly = api === 'completions' && !booleanOf(body, 'detokenize', true);
  const adapter = adapterOf(body.lora_request ?? null);
  return { ...readGenerationRequest(api, filled, model), adapter, returnTokenIds: false, idsOnly };
}

/** The name in a `lora_request`, whose path is all that loads it; '' for none. */
function adapterOf(given: unknown): string {
  if (given === null) return '';
  const request = objectOf(given, 'lora_request');
  const name = stringOf(request, 'lora_name', null);
  const number = integerOf(request, 'lora_int_id', 0, 2_147_483_647, null);
  if (name === null || number === null || stringOf(request, 'lora_path', '') === '')
    throw new HttpError(400, "[{'loc': ('body', 'lora_request'), 'msg': 'Field required'}]");
  return name;
}

function withAllTokens(body: Body, { maxModelLen }: { readonly maxModelLen: number }): Body {
  const { prompt } = body;
  const isIds = Array.isArray(prompt) && typeof prompt[0] === 'number';
  return isIds ? { ...body, max_tokens: Math.max(1, maxModelLen - prompt.length) } : body;
}

/** As pydantic's `extra="forbid"` does. */
function refuseStrangers(value: Body, known: ReadonlySet<string>, path: readonly string[]): void {
  const strange = Object.keys(value).filter(name => !known.has(name));
  if (strange.length === 0) return;
  const errors = strange.map(
    name =>
      `{'type': 'extra_forbidden', 'loc': (${[...path, name].map(part => `'${part}'`).join(', ')}), 'msg': 'Extra inputs are not permitted'}`,
  );
  throw new HttpError(400, `[${errors.join(', ')}]`);
}

function tokenize(body: Body, { model }: SkinContext): object {
  refuseStrangers(body, new Set(['model', 'prompt']), ['body']);
  const prompt = stringOf(body, 'prompt', null);
  if (prompt === null) throw new HttpError(400, "[{'loc': ('body', 'prompt'), 'msg': 'Field required'}]");
  const tokens = [...model.tokenizer.encode(prompt)];
  return { count: tokens.length, tokens };
}

function trtllmMetrics({ engine: { core }, metrics, model }: SkinContext): string {
  const { settings, totals, pool } = core;
  const labels = `model_name="${labelText(model.name)}",engine_type="pytorch"`;
  const line = (kind: 'gauge' | 'counter', name: string, value: number): string =>
    familyText(kind, `trtllm_${name}`, labels, value);
  const blocksOf = (tokens: number): number => Math.floor(tokens / settings.blockSize);
  return [
    line('gauge', 'num_requests_running', core.running),
    line('gauge', 'num_requests_waiting', core.waiting),
    line('gauge', 'kv_cache_utilization', core.kvUsage),
    line('gauge', 'kv_cache_max_blocks', settings.numGpuBlocks),
    line('gauge', 'kv_cache_used_blocks', pool.active),
    line('gauge', 'kv_cache_tokens_per_block', settings.blockSize),
    line('counter', 'kv_cache_reused_blocks_total', blocksOf(totals.prefixHits)),
    line('counter', 'kv_cache_missed_blocks_total', blocksOf(totals.prefixQueries - totals.prefixHits)),
    line('counter', 'prompt_tokens_total', totals.promptTokens),
    line('counter', 'generation_tokens_total', totals.generatedTokens),
    metrics.timeToFirstToken.render('trtllm_time_to_first_token_seconds', labels),
    metrics.interTokenLatency.render('trtllm_time_per_output_token_seconds', labels),
    metrics.requestLatency.render('trtllm_e2e_request_latency_seconds', labels),
  ].join('');
}
