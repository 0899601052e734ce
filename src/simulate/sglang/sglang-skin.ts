/**
 * The routes of a stock SGLang server for a mock engine's surface: the native /generate beside OpenAI's, what the server
 * says of itself, and its metrics. Pure. Source: sglang/srt/entrypoints/http_server.py.
 */
import { type Body, booleanOf, stringOf } from '../openai/body-fields.js';
import { familyText, labelText } from '../openai/engine-metrics.js';
import type { EngineSkin, EngineSurface, SkinAnswer, SkinContext } from '../openai/engine-surface.js';
import { type GenerationRequest, readGenerationRequest } from '../openai/generation-request.js';
import { listedAdapters } from '../openai/listed-adapters.js';
import { TokenLogprobs } from '../openai/token-logprobs.js';
import { detokenizeAnswer, tokenizeAnswer } from '../openai/tokenize-routes.js';
import { sglangChanges } from './engine-routes.js';
import type { GenerateLogprobs } from './generate-form.js';
import { namedAdapter, readGenerateRequest } from './generate-request.js';

/** The SGLang release whose surface this is, marked as a mock. */
const VERSION = '0.5.9+millrace.mock';
const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

/** How this server was started. */
export interface SglangSkinOptions {
  /** `--incremental-streaming-output`. */
  readonly incremental: boolean;
  /** `--kv-events-config`; null: it publishes none. */
  readonly kvEventsConfig: string | null;
  /** Name of a request that has none. */
  readonly newId: () => string;
}

/** The skin. */
export function sglangSkin(context: SkinContext, options: SglangSkinOptions): EngineSkin {
  const { model, startedSeconds } = context;
  const listed = {
    id: model.name,
    object: 'model',
    created: startedSeconds,
    owned_by: 'sglang',
    root: model.name,
    parent: null,
    max_model_len: model.maxModelLen,
  };
  const info = (): SkinAnswer => ({ body: serverInfo(context, options) });
  const generate = { ...options, model, logprobs: generateLogprobs(context) };
  return {
    gets: {
      '/health': () => ({ body: '' }),
      '/health_generate': () => ({ body: '' }),
      '/ping': () => ({ body: '' }),
      '/v1/models': () => ({ body: { object: 'list', data: [listed, ...listedAdapters(model, listed)] } }),
      '/get_server_info': info,
      '/server_info': info,
      '/get_model_info': () => ({
        body: { model_path: model.name, is_generation: true, preferred_sampling_params: null },
      }),
      '/metrics': () => ({ type: METRICS_TYPE, body: sglangMetrics(context) }),
    },
    posts: {
      ...sglangChanges(context),
      '/flush_cache': () => flushCache(context),
      '/abort_request': abortRequest,
      '/tokenize': body => ({ body: tokenizeAnswer(body, model) }),
      '/detokenize': body => ({ body: detokenizeAnswer(body, model) }),
    },
    generations: {
      '/generate': body => readGenerateRequest(body, generate),
      '/v1/completions': body => openAiRequest('completions', body, context),
      '/v1/chat/completions': body => openAiRequest('chat', body, context),
    },
    errorBody: ({ status, message, param }) => ({
      object: 'error',
      message,
      type: String(status),
      param,
      code: status,
    }),
  };
}

/** Requests that hold blocks keep the cache, and this server says so. */
function flushCache({ engine: { core } }: SkinContext): SkinAnswer {
  const isIdle = core.running + core.waiting === 0;
  if (isIdle) core.pool.reset();
  return { status: isIdle ? 200 : 400, body: 'Cache flushed.\n' };
}

function abortRequest(body: Body, surface: EngineSurface): SkinAnswer {
  if (booleanOf(body, 'abort_all', false)) surface.abortAll();
  else surface.abort(stringOf(body, 'rid', ''));
  return { body: '' };
}

/** Its OpenAI routes know no `return_token_ids`. */
function openAiRequest(api: 'chat' | 'completions', body: Body, { model }: SkinContext): GenerationRequest {
  // It looks at no name of a model but for an adapter behind a colon; `lora_path` names one as well.
  const behind = stringOf(body, 'model', '').split(':')[1];
  const adapter = namedAdapter(behind === undefined ? body : { lora_path: behind }, model);
  const request = readGenerationRequest(api, { ...body, model: model.name }, model);
  return { ...request, adapter, returnTokenIds: false, abortId: stringOf(body, 'rid', null) };
}

function serverInfo({ engine, model }: SkinContext, options: SglangSkinOptions): object {
  const { settings } = engine.core;
  return {
    model_path: model.name,
    served_model_name: model.name,
    page_size: settings.blockSize,
    max_total_num_tokens: settings.blockSize * settings.numGpuBlocks,
    max_req_input_len: model.maxModelLen - 1,
    context_length: null,
    dp_size: 1,
    tp_size: 1,
    skip_tokenizer_init: false,
    enable_metrics: true,
    incremental_streaming_output: options.incremental,
    schedule_low_priority_values_first: false,
    enable_lora: true,
    enable_memory_saver: true,
    enable_weights_cpu_backup: false,
    disaggregation_mode: 'null',
    kv_events_config: options.kvEventsConfig,
    internal_states: [{}],
    version: VERSION,
  };
}

function generateLogprobs({ vocabulary, model }: SkinContext): GenerateLogprobs {
  const source = new TokenLogprobs(vocabulary, model.tokenizer);
  return (ids, top) => {
    const positions = ids.map(id => source.likely(id, top));
    const entry = ({ id, logprob }: { id: number; logprob: number }): unknown[] => [logprob, id, null];
    return {
      drawn: positions.map(likely => entry(likely[0]!)),
      // The likeliest alone: the drawn one is among them, or it is not.
      tops: positions.map(likely =>
        [...likely]
          .sort((one, other) => other.logprob - one.logprob)
          .slice(0, top)
          .map(entry),
      ),
    };
  };
}

function sglangMetrics({ engine: { core }, metrics, model }: SkinContext): string {
  const { settings, totals } = core;
  const labels = `model_name="${labelText(model.name)}",engine_type="unified",tp_rank="0",pp_rank="0"`;
  const line = (kind: 'gauge' | 'counter', name: string, value: number): string =>
    familyText(kind, `sglang:${name}`, labels, value);
  const config = `${labels},page_size="${settings.blockSize}",num_pages="${settings.numGpuBlocks}"`;
  return [
    line('gauge', 'num_running_reqs', core.running),
    line('gauge', 'num_queue_reqs', core.waiting),
    line('gauge', 'token_usage', core.kvUsage),
    line('gauge', 'cache_hit_rate', totals.prefixHits / Math.max(1, totals.prefixQueries)),
    line('counter', 'prompt_tokens_total', totals.promptTokens),
    line('counter', 'generation_tokens_total', totals.generatedTokens),
    familyText('counter', 'sglang:cached_tokens_total', `${labels},cache_source="device"`, totals.prefixHits),
    line('counter', 'num_retracted_requests_total', totals.preemptions),
    familyText('gauge', 'sglang:cache_config_info', config, 1),
    metrics.timeToFirstToken.render('sglang:time_to_first_token_seconds', labels),
    metrics.interTokenLatency.render('sglang:inter_token_latency_seconds', labels),
    metrics.requestLatency.render('sglang:e2e_request_latency_seconds', labels),
  ].join('');
}
