/**
 * TensorRT-LLM's context and generation servers (R5). Context first: the context server computes the prompt and one token,
 * and its answer says how the generation server gets them. Generation first: both are asked at once and meet by an id of
 * ours. Fields beyond its lists are refused by the server, so nothing else is added. Facts: tensorrt_llm/serve/
 * {openai_protocol,openai_disagg_service}.py, main of mid 2026.
 */
import { strict as assert } from 'node:assert';
import { type DisaggProtocol, type NextStep, ruledOutByAll } from './contract.js';
import { fieldsOf, findField, firstItem, replaceRange, rewriteObject, withFields } from './json-bytes.js';
import { cachedTokensOf, parseAnswer } from './prefill-answer.js';

const FIELD = 'disaggregated_params';
const DROPPED = new Set(['stream_options']);
const NOTHING = new Set<string>();
/** With one of these the answer goes on at the generation server; any other one says that it is over. */
const GOES_ON = ['length', 'not_finished'];

/** The answer of the context server is needed first. */
export const trtllmContextFirst: DisaggProtocol = {
  name: 'trtllm-context-first',
  engine: 'trtllm',
  takesSmallerBlocks: false,
  needsSameVersion: false,
  decodeComputes: true,
  order: 'sequential',
  abort: 'deferred',
  releaseCall: () => null,
  rulesOut: ruledOutByAll,
  stage: ({ prefill, decode, room }) => ({
    prefill: contextBody(prefill.body, { disagg_request_id: room }),
    decode: decode.body,
  }),
  next,
};

/** Both servers are asked at once. */
export const trtllmGenerationFirst: DisaggProtocol = {
  name: 'trtllm-generation-first',
  engine: 'trtllm',
  takesSmallerBlocks: false,
  needsSameVersion: false,
  decodeComputes: true,
  order: 'parallel',
  abort: 'deferred',
  releaseCall: () => null,
  rulesOut: ruledOutByAll,
  stage({ prefill, decode, peer, room }) {
    const style = { disagg_request_id: room, schedule_style: 'generation_first' };
    const generation = {
      request_type: 'generation_only',
      ...style,
      ctx_request_id: room,
      ...(peer.rank === null ? {} : { ctx_dp_rank: peer.rank }),
      ...(peer.infoEndpoint === null ? {} : { ctx_info_endpoint: peer.infoEndpoint }),
    };
    return {
      prefill: contextBody(prefill.body, style),
      decode: withFields(decode.body, [[FIELD, JSON.stringify(generation)]]),
    };
  },
  next: () => assert.fail('generation first does not wait for the context server'),
};

function contextBody(body: Uint8Array, params: Readonly<Record<string, unknown>>): Buffer {
  return rewriteObject(body, DROPPED, [
    [FIELD, JSON.stringify({ request_type: 'context_only', ...params })],
    ['stream', 'false'],
  ]);
}

function next(answer: Uint8Array): NextStep {
  const malformed = (why: string): NextStep => ({ kind: 'malformed', why });
  const parsed = parseAnswer(answer);
  const choices = parsed?.choices;
  const choice = (Array.isArray(choices) ? choices[0] : null) as Readonly<Record<string, unknown>> | null;
  if (parsed === null || typeof choice !== 'object' || choice === null)
    return malformed('the answer of a context server has no choice');
  const fields = fieldsOf(answer);
  const choiceAt = firstItem(answer, findField(fields, 'choices')!.valueStart)!;
  if (typeof choice.finish_reason === 'string' && !GOES_ON.includes(choice.finish_reason))
    return { kind: 'complete', answer: withoutParams(answer, choiceAt) };
  const params = choice[FIELD] ?? null;
  if (params === null) return { kind: 'alone' };
  if (typeof params !== 'object' || Array.isArray(params))
    return malformed(`${FIELD} in the answer of a context server is not an object`);
  const { valueStart, valueEnd } = findField(fieldsOf(answer, choiceAt), FIELD)!;
  const usage = findField(fields, 'usage');
  const value = generationParams(
    answer.subarray(valueStart, valueEnd),
    usage === null ? null : answer.subarray(usage.valueStart, usage.valueEnd),
  );
  const bytes = Buffer.concat([Buffer.from(`"${FIELD}":`), value, Buffer.from(',')]);
  return { kind: 'splice', bytes, cachedTokens: cachedTokensOf(parsed) };
}

/** What the context server said, for the generation server. Releases that know `ctx_usage` show the field. */
function generationParams(params: Uint8Array, usage: Uint8Array | null): Uint8Array {
  const set: [string, string][] = [['request_type', '"generation_only"']];
  if (usage !== null && findField(fieldsOf(params), 'ctx_usage') !== null)
    set.push(['ctx_usage', Buffer.from(usage).toString('utf8')]);
  return rewriteObject(params, NOTHING, set);
}

function withoutParams(answer: Uint8Array, choiceAt: number): Uint8Array {
  const fields = fieldsOf(answer, choiceAt);
  if (findField(fields, FIELD) === null) return answer;
  const end = answer.indexOf(0x7d, fields!.at(-1)!.valueEnd) + 1;
  const choice = rewriteObject(answer.subarray(choiceAt, end), new Set([FIELD]), []);
  return replaceRange(answer, choiceAt, end, choice);
}
