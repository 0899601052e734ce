// Promise: each protocol sends the bodies that its engines expect, and hands on what an engine said byte for byte.
import t from 'tap';
import { answerFrames } from '#millrace/engines/disagg/answer-frames.js';
import { prefillVerdict, type StageInput } from '#millrace/engines/disagg/contract.js';
import { replaceRange } from '#millrace/engines/disagg/json-bytes.js';
import { defaultProtocol, protocolOf } from '#millrace/engines/disagg/protocols.js';
import { DISAGG_PROTOCOLS } from '#millrace/messages/disagg.js';
import type { TokenRequest } from '#millrace/messages/token-request.js';

const BODY =
  '{"prompt":[1,2,3],"model":"m","stream":true,"stream_options":{"include_usage":true},"return_token_ids":true,' +
  '"max_tokens":50,"min_tokens":5,"n":1,"stop_token_ids":[9],"temperature":0,"vllm_xargs":{"a":"}"}}';

function input(body = BODY): StageInput {
  const call = {
    method: 'POST',
    path: '/v1/completions',
    head: [],
    body: Buffer.from(body),
    usageInjected: true,
    idsInjected: true,
  };
  const peer = { host: 'fd00::7', port: 8998, engineId: 'engine-1', infoEndpoint: 'tcp://p:1', rank: null };
  return { prefill: call, decode: call, peer, key: 'hand-over-1', room: 2 ** 53 - 1025 };
}

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString();
const json = (bytes: Uint8Array): Record<string, unknown> => JSON.parse(text(bytes));
const splice = (body: Uint8Array, bytes: Uint8Array): string => text(replaceRange(body, 1, 1, bytes));

t.test('NIXL: one token for prefill; the client body for decode', async t => {
  const { prefill, decode } = protocolOf('nixl').stage(input());
  t.equal(text(decode), BODY);
  t.equal(
    text(prefill),
    '{"kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,' +
      '"remote_block_ids":null,"remote_host":null,"remote_port":null},"stream":false,"max_tokens":1,"n":1,' +
      '"ignore_eos":true,"prompt":[1,2,3],"model":"m","temperature":0,"vllm_xargs":{"a":"}"}}',
  );
});

const PARAMS =
  '{ "do_remote_prefill":true, "remote_block_ids":[[1,2,9007199254740993]], "odd":"}]\\"{", "é": 1e400,\n"x":[{}]}';
const ANSWER = `{"id":"c","choices":[{"text":"{\\"kv_transfer_params\\":{}}"}],"kv_transfer_params": ${PARAMS} ,"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}`;

t.test('NIXL: the object of the answer goes into the decode body as it is', async t => {
  const { next } = protocolOf('nixl');
  const step = next(Buffer.from(ANSWER));
  t.match(step, { kind: 'splice', cachedTokens: 2 });
  if (step.kind !== 'splice') return;
  t.equal(text(step.bytes), `"kv_transfer_params":${PARAMS},`);
  t.equal(splice(Buffer.from(BODY), step.bytes), `{"kv_transfer_params":${PARAMS},${BODY.slice(1)}`);
  t.match(next(Buffer.from('{"kv_transfer_params":{},"usage":{"prompt_tokens_details":null}}')), {
    cachedTokens: 0,
  });
  t.match(next(Buffer.from('{"kv_transfer_params":{"a":1},"usage":{}}')), { cachedTokens: null });
});

t.test('NIXL: without the object decode does it all; what is cut or wrong is malformed', async t => {
  const { next } = protocolOf('nixl');
  t.strictSame(next(Buffer.from('{"choices":[]}')), { kind: 'alone' });
  t.strictSame(next(Buffer.from('{"kv_transfer_params":null}')), { kind: 'alone' });
  for (const params of ['[]', '"x"', '7', 'true'])
    t.equal(next(Buffer.from(`{"kv_transfer_params":${params}}`)).kind, 'malformed', params);
  const bytes = Buffer.from(ANSWER);
  for (let end = 0; end < bytes.length; end += 1)
    if (next(bytes.subarray(0, end)).kind !== 'malformed') t.fail(`cut at ${end} was taken`);
  for (const bad of ['[]', 'null', '', 'data: {}', '{}}'])
    t.equal(next(Buffer.from(bad)).kind, 'malformed', bad);
});

t.test('NIXL: a long answer is handed on whole', async t => {
  const ids = Array.from({ length: 200_000 }, (_, id) => id).join(',');
  const params = `{"remote_block_ids":[[${ids}]],"deep":${'['.repeat(500)}${']'.repeat(500)}}`;
  const step = protocolOf('nixl').next(Buffer.from(`{"kv_transfer_params":${params}}`));
  t.ok(step.kind === 'splice' && text(step.bytes) === `"kv_transfer_params":${params},`);
});

t.test('Mooncake: both are told the same transfer, decode where the bootstrap server is', async t => {
  const { prefill, decode } = protocolOf('mooncake').stage(input());
  t.strictSame(json(prefill).kv_transfer_params, {
    do_remote_decode: true,
    do_remote_prefill: false,
    transfer_id: 'hand-over-1',
  });
  t.match(json(prefill), { max_tokens: 1, stream: false, ignore_eos: true });
  t.notOk('stop_token_ids' in json(prefill), 'it ends by its length');
  t.equal(
    text(decode),
    '{"kv_transfer_params":{"do_remote_decode":false,"do_remote_prefill":true,"transfer_id":"hand-over-1",' +
      `"remote_engine_id":"engine-1","remote_bootstrap_addr":"http://[fd00::7]:8998"},${BODY.slice(1)}`,
  );
  t.throws(() => protocolOf('mooncake').next(Buffer.from('{}')));
});

t.test('SGLang: both get the same room, in digits that no float has changed', async t => {
  const { prefill, decode } = protocolOf('sglang-rooms').stage(input());
  const room = '"bootstrap_host":"[fd00::7]","bootstrap_port":8998,"bootstrap_room":9007199254739967,';
  t.equal(text(decode), `{${room}${BODY.slice(1)}`);
  const whole = BODY.slice(1).replace('"stream":true,"stream_options":{"include_usage":true},', '');
  t.equal(text(prefill), `{${room}"stream":false,${whole}`, 'its status is to say how it went');
  t.match(protocolOf('sglang-rooms').releaseCall('r-1'), { method: 'POST', path: '/abort_request' });
  t.equal(protocolOf('nixl').releaseCall('r-1'), null);
  const ranked = input();
  const staged = protocolOf('sglang-rooms').stage({ ...ranked, peer: { ...ranked.peer, rank: 3 } });
  t.equal(json(staged.decode).disagg_prefill_dp_rank, 3);
  t.notOk('disagg_prefill_dp_rank' in json(staged.prefill));
  t.throws(() => protocolOf('sglang-rooms').stage({ ...ranked, room: 2 ** 53 }), 'not a safe number');
});

t.test('TensorRT-LLM: context first', async t => {
  const { stage, next } = protocolOf('trtllm-context-first');
  const { prefill, decode } = stage(input());
  t.equal(text(decode), BODY);
  t.match(json(prefill), {
    disaggregated_params: { request_type: 'context_only', disagg_request_id: 2 ** 53 - 1025 },
    stream: false,
    max_tokens: 50,
  });
  t.notOk('stream_options' in json(prefill));
  const params =
    '{"request_type":"context_only","ctx_request_id":9223372036854775807,"first_gen_tokens":[7],"ctx_usage":null}';
  const answer = `{"choices":[{"index":0,"disaggregated_params":${params},"finish_reason":"length"}],"usage":{"prompt_tokens":3}}`;
  const step = next(Buffer.from(answer));
  t.ok(step.kind === 'splice');
  if (step.kind === 'splice') {
    t.equal(
      text(step.bytes),
      '"disaggregated_params":{"request_type":"generation_only","ctx_usage":{"prompt_tokens":3},' +
        '"ctx_request_id":9223372036854775807,"first_gen_tokens":[7]},',
    );
  }
  const older = answer.replace(',"ctx_usage":null', '');
  t.notMatch(text((next(Buffer.from(older)) as { bytes: Uint8Array }).bytes), /ctx_usage/);
  t.equal(next(Buffer.from('{"choices":[{"finish_reason":"length"}]}')).kind, 'alone');
  t.equal(next(Buffer.from('{"choices":[]}')).kind, 'malformed');
  const bytes = Buffer.from(answer);
  for (let end = 0; end < bytes.length; end += 1) t.equal(next(bytes.subarray(0, end)).kind, 'malformed');
});

t.test('TensorRT-LLM: an answer that is over after its first token is the whole answer', async t => {
  const answer =
    '{"object":"chat.completion","choices":[{"index":0,"message":{"content":"}"},"disaggregated_params":{"a":"}]"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}';
  const step = protocolOf('trtllm-context-first').next(Buffer.from(answer));
  t.ok(step.kind === 'complete');
  if (step.kind !== 'complete') return;
  const whole = answer.replace('"disaggregated_params":{"a":"}]"},', '');
  t.equal(text(step.answer), whole);
  const chunk = whole.replace('"message"', '"delta"').replace('chat.completion', 'chat.completion.chunk');
  t.equal(text(answerFrames(step.answer, 'chat')), `data: ${chunk}\n\ndata: [DONE]\n\n`);
  t.equal(
    text(answerFrames(Buffer.from('{\n"choices":[]}'), 'completions')),
    'data: { "choices":[]}\n\ndata: [DONE]\n\n',
  );
});

t.test('TensorRT-LLM: generation first', async t => {
  const { prefill, decode } = protocolOf('trtllm-generation-first').stage(input());
  const id = 2 ** 53 - 1025;
  t.strictSame(json(prefill).disaggregated_params, {
    request_type: 'context_only',
    disagg_request_id: id,
    schedule_style: 'generation_first',
  });
  t.strictSame(json(decode).disaggregated_params, {
    request_type: 'generation_only',
    disagg_request_id: id,
    schedule_style: 'generation_first',
    ctx_request_id: id,
    ctx_info_endpoint: 'tcp://p:1',
  });
});

t.test('statuses: the request’s own faults go to the client, the worker’s to decode', async t => {
  t.equal(prefillVerdict(200), 'answered');
  for (const status of [400, 404, 413, 422, 451]) t.equal(prefillVerdict(status), 'refused', String(status));
  for (const status of [201, 302, 401, 403, 407, 408, 429, 500, 503])
    t.equal(prefillVerdict(status), 'failed', String(status));
});

t.test('requests that cannot be split say why', async t => {
  const request = (raw: Record<string, unknown>, n = 1): TokenRequest =>
    ({ raw, sampling: { n } }) as unknown as TokenRequest;
  for (const name of DISAGG_PROTOCOLS) {
    const { rulesOut } = protocolOf(name);
    t.equal(rulesOut(request({ prompt_logprobs: null, echo: false })), null);
    t.match(rulesOut(request({}, 2)), /^n is/);
    t.match(rulesOut(request({ prompt_logprobs: 0 })), /prompt_logprobs/);
    t.match(rulesOut(request({ echo: true })), /echo/);
    t.equal(protocolOf(name).name, name);
  }
  t.equal(defaultProtocol('vllm'), 'nixl');
  t.equal(defaultProtocol('other'), null);
});
