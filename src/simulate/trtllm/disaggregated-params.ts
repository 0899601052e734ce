/**
 * `disaggregated_params` of trtllm-serve, around the routes of a TensorRT-LLM skin: a `context_only` request stops after
 * one token and tells where its KV is, in a state that is opaque to routers; a `generation_only` one goes on after
 * that token. Source: tensorrt_llm/serve/openai_protocol.py and disaggregated_params.py.
 */
import type { KvConnector, PullSpec } from '../disagg/kv-connector.js';
import { type Body, idsOf, integerOf, objectOf, stringOf } from '../openai/body-fields.js';
import type { EngineSkin, SkinContext } from '../openai/engine-surface.js';
import type { AnswerExtras } from '../openai/frame-format.js';
import type { FirstChoice, GenerationRequest } from '../openai/generation-request.js';
import { HttpError } from '../openai/http-error.js';

const FIELD = 'disaggregated_params';
const KNOWN = new Set([
  'request_type',
  'disagg_request_id',
  'ctx_request_id',
  'first_gen_tokens',
  'first_gen_log_probs',
  'first_gen_logits',
  'encoded_opaque_state',
  'draft_tokens',
  'ctx_dp_rank',
  'ctx_info_endpoint',
  'schedule_style',
  'ctx_usage',
  'conversation_id',
]);
const STYLES = ['context_first', 'generation_first'];

/** The skin of a server with a `cache_transceiver_config`. */
export function withDisaggregatedParams(
  skin: EngineSkin,
  connector: KvConnector,
  { model }: SkinContext,
): EngineSkin {
  const { carrier } = connector.options;
  let contexts = 0;
  const nextContext = (): number => ++contexts;
  const generations = Object.fromEntries(
    Object.entries(skin.generations).map(([path, read]) => [
      path,
      (body: Body) => {
        const request = read(body);
        if ((body[FIELD] ?? null) === null) return request;
        const params = readParams(body);
        if (request.prompts.length > 1 || request.n > 1)
          throw new HttpError(400, `${FIELD} is for one prompt and one choice`, FIELD);
        return params.request_type === 'context_only'
          ? contextRequest(request, params, connector, nextContext)
          : generationRequest(request, params, connector, model.tokenizer.vocabularySize);
      },
    ]),
  );
  const info = {
    [FIELD]: { ctx_dp_rank: 0, ctx_info_endpoint: [`http://${carrier.host}:${carrier.port}`] },
  };
  return { ...skin, generations, gets: { ...skin.gets, '/server_info': () => ({ body: info }) } };
}

/** As pydantic's `extra="forbid"` does. */
function readParams(body: Body): Body {
  const params = objectOf(body[FIELD], FIELD);
  const strange = Object.keys(params).find(name => !KNOWN.has(name));
  if (strange !== undefined)
    throw new HttpError(400, `[{'type': 'extra_forbidden', 'loc': ('body', '${FIELD}', '${strange}')}]`);
  const type = stringOf(params, 'request_type', '');
  if (type !== 'context_only' && type !== 'generation_only')
    throw new HttpError(400, `${FIELD}.request_type must be context_only or generation_only`, FIELD);
  const style = stringOf(params, 'schedule_style', 'context_first');
  if (!STYLES.includes(style))
    throw new HttpError(400, `${FIELD}.schedule_style must be one of ${STYLES.join(', ')}`, FIELD);
  return params;
}

const idOf = (params: Body, name: string): number | null =>
  integerOf(params, name, 0, Number.MAX_SAFE_INTEGER, null);

const keyOf = (contextId: number): string => `context-${contextId}`;

function contextRequest(
  request: GenerationRequest,
  params: Body,
  connector: KvConnector,
  nextContext: () => number,
): GenerationRequest {
  const disaggId = idOf(params, 'disagg_request_id');
  const contextId = disaggId ?? nextContext();
  const { carrier } = connector.options;
  const { engineId } = connector;
  const state = JSON.stringify({ engineId, host: carrier.host, port: carrier.port });
  const extras = ({ ids, promptIds }: FirstChoice): AnswerExtras => {
    const told = {
      request_type: 'context_only',
      disagg_request_id: disaggId,
      ctx_request_id: contextId,
      first_gen_tokens: ids,
      first_gen_log_probs: null,
      encoded_opaque_state: Buffer.from(state).toString('base64'),
      draft_tokens: null,
      ctx_dp_rank: 0,
      ctx_info_endpoint: `http://${carrier.host}:${carrier.port}`,
      schedule_style: stringOf(params, 'schedule_style', 'context_first'),
    };
    return {
      choice: `,"${FIELD}":${JSON.stringify(told)}`,
      top: `,"prompt_token_ids":[${promptIds.join(',')}]`,
    };
  };
  const handover = connector.open({ keepAs: keyOf(contextId), pull: null });
  return { ...request, maxTokens: [1], minTokens: Math.min(1, request.minTokens), handover, extras };
}

function generationRequest(
  request: GenerationRequest,
  params: Body,
  connector: KvConnector,
  vocabularySize: number,
): GenerationRequest {
  const contextId = idOf(params, 'ctx_request_id');
  if (contextId === null) throw new HttpError(400, `${FIELD}.ctx_request_id must be given`, FIELD);
  const firstTokens = [...idsOf(params.first_gen_tokens ?? [], `${FIELD}.first_gen_tokens`, vocabularySize)];
  const pull = { peer: peerOf(params), key: keyOf(contextId), blockIds: null, isFake: false };
  return { ...request, firstTokens, handover: connector.open({ keepAs: null, pull }) };
}

/** From the opaque state of the context answer or, when generation is sent first, from the server's endpoint. */
function peerOf(params: Body): PullSpec['peer'] {
  const state = stringOf(params, 'encoded_opaque_state', null);
  const endpoint = stringOf(params, 'ctx_info_endpoint', '');
  try {
    if (state === null) {
      const { hostname, port } = new URL(endpoint);
      return { engineId: null, host: hostname.replace(/^\[|\]$/g, ''), port: Number(port) };
    }
    const peer = objectOf(JSON.parse(Buffer.from(state, 'base64').toString()), 'state');
    const { engineId, host, port } = peer;
    if (typeof engineId === 'string' && typeof host === 'string' && typeof port === 'number')
      return { engineId, host, port };
  } catch {}
  throw new HttpError(400, `${FIELD} names no context server that can be read`, FIELD);
}
