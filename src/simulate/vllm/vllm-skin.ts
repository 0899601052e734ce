/** The routes of a stock vLLM server, with vLLM's bodies, defaults and errors, for a mock engine's surface. Pure. */
import type { Body } from '../openai/body-fields.js';
import type { EngineSkin, SkinContext } from '../openai/engine-surface.js';
import { type GenerationRequest, readGenerationRequest } from '../openai/generation-request.js';
import { listedAdapters } from '../openai/listed-adapters.js';
import { detokenizeAnswer, tokenizeAnswer } from '../openai/tokenize-routes.js';
import { vllmChanges } from './engine-routes.js';
import { vllmMetrics } from './vllm-metrics.js';

const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8';
/** The vLLM release whose surface this is, marked as a mock. */
const VERSION = '0.11.0+millrace.mock';
/** The last one that does not know `return_token_ids`. */
const VERSION_WITHOUT_IDS = '0.10.1+millrace.mock';

const ERROR_TYPES: Readonly<Record<number, string>> = {
  400: 'BadRequestError',
  404: 'NotFoundError',
  405: 'MethodNotAllowed',
  408: 'RequestTimeout',
  413: 'BadRequestError',
  500: 'InternalServerError',
};

/** `returnsTokenIds` false: an older release, which ignores `return_token_ids`. */
export function vllmSkin(context: SkinContext, returnsTokenIds: boolean): EngineSkin {
  const { engine, model, metrics, changes, startedSeconds } = context;
  const read = (api: 'chat' | 'completions', body: Body): GenerationRequest => {
    const asked = readGenerationRequest(api, body, model);
    return returnsTokenIds ? asked : { ...asked, returnTokenIds: false };
  };
  const listed = {
    id: model.name,
    object: 'model',
    created: startedSeconds,
    // What a probe knows a mock by; one that plays an older release is to be judged by it.
    owned_by: returnsTokenIds ? 'millrace-mock' : 'vllm',
    root: model.name,
    parent: null,
    max_model_len: model.maxModelLen,
  };
  return {
    gets: {
      '/health': () => ({ body: '' }),
      '/ping': () => ({ body: '' }),
      '/version': () => ({ body: { version: returnsTokenIds ? VERSION : VERSION_WITHOUT_IDS } }),
      '/v1/models': () => ({ body: { object: 'list', data: [listed, ...listedAdapters(model, listed)] } }),
      '/is_sleeping': () => ({ body: { is_sleeping: changes.isAsleep } }),
      '/metrics': () => ({ type: METRICS_TYPE, body: vllmMetrics(engine.core, metrics, model.name) }),
    },
    posts: {
      ...vllmChanges(context),
      // 200 also when it keeps the cache because requests hold blocks; the event goes with the next pass.
      '/reset_prefix_cache': () => {
        engine.core.pool.reset();
        return { body: '' };
      },
      '/tokenize': body => ({ body: tokenizeAnswer(body, model) }),
      '/detokenize': body => ({ body: detokenizeAnswer(body, model) }),
    },
    generations: {
      '/v1/completions': body => read('completions', body),
      '/v1/chat/completions': body => read('chat', body),
    },
    errorBody: ({ status, message, param }) => ({
      error: { message, type: ERROR_TYPES[status] ?? 'InternalServerError', param, code: status },
    }),
  };
}
