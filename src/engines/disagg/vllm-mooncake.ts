/**
 * vLLM with its MooncakeConnector (R5): prefill and decode are asked at once and find each other by a `transfer_id` of
 * ours; decode asks the prefill worker's bootstrap server where its engine is. Facts: vllm/distributed/kv_transfer/
 * kv_connector/v1/mooncake and its example proxy, as of 2026.
 */
import { strict as assert } from 'node:assert';
import { type DisaggProtocol, type PrefillPeer, ruledOutByAll } from './contract.js';
import { withFields } from './json-bytes.js';
import { vllmPrefillBody } from './vllm-prefill.js';

/** Brackets around an IPv6 address. */
export const bracketed = (host: string): string => (host.includes(':') ? `[${host}]` : host);

/** Origin of a bootstrap server. */
export function bootstrapOrigin({ host, port }: Pick<PrefillPeer, 'host' | 'port'>): string {
  return `http://${bracketed(host)}:${port}`;
}

/** See the head of the file. */
export const vllmMooncake: DisaggProtocol = {
  name: 'mooncake',
  engine: 'vllm',
  takesSmallerBlocks: false,
  needsSameVersion: false,
  decodeComputes: true,
  order: 'parallel',
  abort: 'deferred',
  releaseCall: () => null,
  rulesOut: ruledOutByAll,
  stage({ prefill, decode, peer, key }) {
    const prefillParams = { do_remote_decode: true, do_remote_prefill: false, transfer_id: key };
    const decodeParams = {
      do_remote_decode: false,
      do_remote_prefill: true,
      transfer_id: key,
      ...(peer.engineId === null ? {} : { remote_engine_id: peer.engineId }),
      remote_bootstrap_addr: bootstrapOrigin(peer),
    };
    return {
      prefill: vllmPrefillBody(prefill.body, JSON.stringify(prefillParams)),
      decode: withFields(decode.body, [['kv_transfer_params', JSON.stringify(decodeParams)]]),
    };
  },
  next: () => assert.fail('the answer to a Mooncake prefill is not read'),
};
