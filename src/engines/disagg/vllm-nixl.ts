/**
 * vLLM with its NixlConnector in pull mode (R5): prefill first, whose answer says where its blocks are; decode then reads
 * them. The blocks are leased (30 s by default) until decode has them. Facts: vllm/distributed/kv_transfer/
 * kv_connector/v1/nixl, docs/features/nixl_connector_usage.md.
 */
import { type DisaggProtocol, type NextStep, ruledOutByAll } from './contract.js';
import { fieldsOf, findField } from './json-bytes.js';
import { cachedTokensOf, parseAnswer } from './prefill-answer.js';
import { vllmPrefillBody } from './vllm-prefill.js';

const FIELD = 'kv_transfer_params';

/** What asks a vLLM to keep the blocks of a prompt for another one. */
const PREFILL_PARAMS = JSON.stringify({
  do_remote_decode: true,
  do_remote_prefill: false,
  remote_engine_id: null,
  remote_block_ids: null,
  remote_host: null,
  remote_port: null,
});

/** See the head of the file. */
export const vllmNixl: DisaggProtocol = {
  name: 'nixl',
  engine: 'vllm',
  takesSmallerBlocks: true,
  // Its handshake compares them.
  needsSameVersion: true,
  decodeComputes: true,
  order: 'sequential',
  // An abort while decode reads has crashed engines; and a prompt that nobody fetches stays until its lease ends.
  abort: 'deferred',
  releaseCall: () => null,
  rulesOut: ruledOutByAll,
  stage: ({ prefill, decode }) => ({
    prefill: vllmPrefillBody(prefill.body, PREFILL_PARAMS),
    decode: decode.body,
  }),
  next,
};

function next(answer: Uint8Array): NextStep {
  const parsed = parseAnswer(answer);
  if (parsed === null) return { kind: 'malformed', why: 'the answer to a prefill is not a JSON object' };
  const params = parsed[FIELD] ?? null;
  if (params === null) return { kind: 'alone' };
  if (typeof params !== 'object' || Array.isArray(params))
    return { kind: 'malformed', why: `${FIELD} in the answer to a prefill is not an object` };
  const { valueStart, valueEnd } = findField(fieldsOf(answer), FIELD)!;
  const value = answer.subarray(valueStart, valueEnd);
  const bytes = Buffer.concat([Buffer.from(`"${FIELD}":`), value, Buffer.from(',')]);
  return { kind: 'splice', bytes, cachedTokens: cachedTokensOf(parsed) };
}
