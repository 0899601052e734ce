/**
 * `kv_transfer_params` of vLLM's connectors, around the routes of a vLLM skin: NIXL in pull mode (prefill answers with its
 * blocks, then decode pulls them) and Mooncake (both at once, joined by `transfer_id`). As in vLLM, an engine has no role:
 * each request says what it is. Source: vllm/distributed/kv_transfer/kv_connector/v1/{nixl,mooncake}.
 */
import type { KvConnector, PullSpec, RequestHandover } from '../disagg/kv-connector.js';
import { type Body, booleanOf, integerOf, objectOf, stringOf } from '../openai/body-fields.js';
import type { EngineSkin } from '../openai/engine-surface.js';
import type { GenerationRequest } from '../openai/generation-request.js';
import { HttpError } from '../openai/http-error.js';

const FIELD = 'kv_transfer_params';
const PORT_MAX = 65_535;
const BLOCK_MAX = 4_294_967_295;

/** The skin of a server that runs with a connector. */
export function withKvTransfer(skin: EngineSkin, connector: KvConnector): EngineSkin {
  const generations = Object.fromEntries(
    Object.entries(skin.generations).map(([path, read]) => [
      path,
      (body: Body) => withHandover(read(body), body, connector),
    ]),
  );
  return { ...skin, generations };
}

function withHandover(request: GenerationRequest, body: Body, connector: KvConnector): GenerationRequest {
  const extras = (): { top: string } => ({ top: `,"${FIELD}":${paramsJson(request.handover)}` });
  if ((body[FIELD] ?? null) === null) return { ...request, extras };
  const params = objectOf(body[FIELD], FIELD);
  const isKept = booleanOf(params, 'do_remote_decode', false);
  const isPulled = booleanOf(params, 'do_remote_prefill', false);
  if (request.prompts.length > 1) throw new HttpError(400, `${FIELD} is for one prompt`, FIELD);
  if (isKept && request.n > 1) throw new HttpError(400, 'n must be 1 with do_remote_decode', 'n');
  const isNixl = connector.options.settings.connector === 'nixl';
  const keepAs = !isKept ? null : isNixl ? connector.newKey() : transferId(params);
  const pull = !isPulled ? null : isNixl ? nixlPull(params) : mooncakePull(params);
  if (keepAs === null && pull === null) return { ...request, extras };
  const handover = connector.open({ keepAs, pull });
  return {
    ...request,
    handover,
    // Of a Mooncake prefill nobody needs the answer: decode knows the id.
    extras: () => ({ top: `,"${FIELD}":${isNixl ? paramsJson(handover) : 'null'}` }),
  };
}

/** What decode needs; null where nothing was kept. */
function paramsJson(handover: RequestHandover | undefined): string {
  const kept = handover?.kept ?? null;
  if (handover === undefined || kept === null) return 'null';
  const { engineId, options } = handover.connector;
  return JSON.stringify({
    do_remote_prefill: true,
    do_remote_decode: false,
    remote_block_ids: [kept.blocks],
    remote_engine_id: engineId,
    remote_request_id: handover.spec.keepAs,
    remote_host: options.carrier.host,
    remote_port: options.carrier.port,
    tp_size: 1,
    remote_num_tokens: kept.tokens,
  });
}

/** Null, as in vLLM, where a field is missing: the engine then computes the prompt itself. */
function nixlPull(params: Body): PullSpec | null {
  const engineId = stringOf(params, 'remote_engine_id', null);
  const key = stringOf(params, 'remote_request_id', null);
  const host = stringOf(params, 'remote_host', null);
  const port = integerOf(params, 'remote_port', 0, PORT_MAX, null);
  if (engineId === null || key === null || host === null || port === null) return null;
  return { peer: { engineId, host, port }, key, blockIds: blockIdsOf(params), isFake: false };
}

/** One list per KV group, of which there is one; older releases have the list alone. */
function blockIdsOf(params: Body): number[] {
  const given = params.remote_block_ids;
  const list: unknown = Array.isArray(given) && Array.isArray(given[0]) ? given[0] : given;
  const isId = (one: unknown): boolean =>
    Number.isInteger(one) && Number(one) >= 0 && Number(one) < BLOCK_MAX;
  if (Array.isArray(list) && list.every(isId)) return list as number[];
  throw new HttpError(400, `${FIELD}.remote_block_ids must be a list of block ids per KV group`, FIELD);
}

function transferId(params: Body): string {
  const id = stringOf(params, 'transfer_id', '');
  if (id !== '') return id;
  throw new HttpError(400, `${FIELD}.transfer_id must be a string that is not empty`, FIELD);
}

function mooncakePull(params: Body): PullSpec {
  const engineId = stringOf(params, 'remote_engine_id', null);
  const address = stringOf(params, 'remote_bootstrap_addr', '');
  const url = URL.canParse(address) ? new URL(address) : null;
  if (url === null || url.port === '')
    throw new HttpError(400, `${FIELD}.remote_bootstrap_addr must be a URL with a port`, FIELD);
  const peer = { engineId, host: url.hostname.replace(/^\[|\]$/g, ''), port: Number(url.port) };
  return { peer, key: transferId(params), blockIds: null, isFake: false };
}
