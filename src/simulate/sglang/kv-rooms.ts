/**
 * SGLang's hand-over of KV, around the routes of a SGLang skin: a server is for prefill or for decode, and both get the same
 * body at once, joined by `bootstrap_room`. The prefill server stops after the first token by itself and answers when decode
 * has its blocks. Source: sglang/srt/disaggregation/{prefill,decode,common/conn}.py.
 */
import type { KvConnector } from '../disagg/kv-connector.js';
import { type Body, integerOf, stringOf } from '../openai/body-fields.js';
import type { EngineSkin, SkinAnswer } from '../openai/engine-surface.js';
import type { GenerationRequest } from '../openai/generation-request.js';
import { HttpError } from '../openai/http-error.js';

/** With this host decode skips the transfer: for warm-up and benchmarks. */
const FAKE_HOST = '2.2.2.2';
const PORT_MAX = 65_535;

/** The skin of a server with `--disaggregation-mode`; under the role `both` it runs without. */
export function withRooms(skin: EngineSkin, connector: KvConnector): EngineSkin {
  const { role } = connector.options.settings;
  if (role === 'both') return skin;
  const generations = Object.fromEntries(
    Object.entries(skin.generations).map(([path, read]) => [
      path,
      (body: Body) => withRoom(read(body), body, connector, role),
    ]),
  );
  const infoOf = (get: (() => SkinAnswer) | undefined) => (): SkinAnswer => ({
    body: {
      ...(get?.().body as object),
      disaggregation_mode: role,
      disaggregation_bootstrap_port: connector.options.carrier.port,
    },
  });
  const { gets } = skin;
  const infos = ['/server_info', '/get_server_info'].map(path => [path, infoOf(gets[path])]);
  return { ...skin, generations, gets: { ...gets, ...Object.fromEntries(infos) } };
}

function withRoom(
  request: GenerationRequest,
  body: Body,
  connector: KvConnector,
  role: 'prefill' | 'decode',
): GenerationRequest {
  // Rooms go up to 2^63 − 1; above 2^53 two of them could not be told apart here.
  const room = integerOf(body, 'bootstrap_room', 0, Number.MAX_SAFE_INTEGER, null);
  const host = stringOf(body, 'bootstrap_host', null);
  const port = integerOf(body, 'bootstrap_port', 0, PORT_MAX, null);
  if (room === null || host === null)
    throw new HttpError(400, 'Disaggregated request received without bootstrap room id', 'bootstrap_room');
  if (request.prompts.length > 1 || (request.n > 1 && role === 'prefill'))
    throw new HttpError(400, 'a room is for one prompt and one choice', 'n');
  const key = `room-${room}`;
  if (role === 'prefill') {
    const handover = connector.open({ keepAs: key, pull: null, holdsAnswer: true });
    return { ...request, maxTokens: [1], minTokens: Math.min(1, request.minTokens), handover };
  }
  const peer = { engineId: null, host: host.replace(/^\[|\]$/g, ''), port: port ?? 0 };
  const pull = { peer, key, blockIds: null, isFake: host === FAKE_HOST };
  return { ...request, handover: connector.open({ keepAs: null, pull }) };
}
