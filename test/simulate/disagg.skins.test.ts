// Promise: mocks of SGLang and TensorRT-LLM hand KV over by their own contracts, and the text is the aggregated one.
import t, { type Test } from 'tap';
import { ManualClock } from '#millrace/runtime/clock.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import type { MockEngine, MockEngineOptions } from '#millrace/simulate/mock-engine.js';
import { type CarrierName, disaggOf, leakOf, needsOf, startTiny, until } from './disagg-probe.js';
import { type Json, post, postJson, postSse } from './http-probe.js';

const seed = Number(process.env.SEED ?? 20_261_124);
t.comment(`SEED=${seed}`);
const random = seededRandom(seed);
const promptOf = (length: number): number[] => Array.from({ length }, () => randomInteger(random, 50_000));

const sglang = { engine: 'sglang', incrementalStreams: true } as const;

async function sglangPair(
  t: Test,
  carrier: CarrierName,
  more: Partial<MockEngineOptions> = {},
): Promise<[MockEngine, MockEngine]> {
  const shared = disaggOf(carrier);
  const start = (role: 'prefill' | 'decode'): Promise<MockEngine> =>
    startTiny(t, { ...sglang, ...more, disagg: { ...shared, ...more.disagg, role } });
  return [await start('prefill'), await start('decode')];
}

const roomOf = (p: MockEngine, room: number): object => {
  const { host, port } = p.connector!.options.carrier;
  return { bootstrap_host: host, bootstrap_port: port, bootstrap_room: room };
};

for (const carrier of ['local', 'http', 'tcp'] as const)
  t.test(`SGLang: both sides at once, whoever comes first, ${carrier}`, needsOf(carrier), async t => {
    const alone = await startTiny(t, sglang);
    const [p, d] = await sglangPair(t, carrier);
    for (let round = 0; round < 8; round++) {
      const body = {
        input_ids: promptOf(1 + randomInteger(random, 90)),
        sampling_params: { max_new_tokens: 12 },
      };
      const both = { ...body, ...roomOf(p, 1000 + round) };
      const sends = [() => postJson(p.url, '/generate', both), () => postSse(d.url, '/generate', both)];
      const first = randomInteger(random, 2);
      const early = sends[first]!();
      await until(() => p.core.pool.pinned > 0 || d.connector!.pulls.pulling > 0);
      const late = sends[1 - first]!();
      const answers = await Promise.all([early, late]);
      const [fromP, fromD] = (first === 0 ? answers : answers.reverse()) as [Json, Json];
      t.same(fromP.json.output_ids.length, 1, 'prefill stops after the first token by itself');
      const ids = fromD.frames.flatMap((frame: Json) => frame.output_ids);
      t.same(ids, (await postJson(alone.url, '/generate', body)).json.output_ids);
      t.equal(ids[0], fromP.json.output_ids[0]);
    }
    await until(() => p.connector!.desk.open === 0);
    t.same([p.connector!.desk.counters.released, leakOf(p), leakOf(d)], [8, null, null]);
  });

t.test('SGLang: no room, a fake host, and abort_request on either side', async t => {
  const [p, d] = await sglangPair(t, 'local');
  const input = { input_ids: promptOf(40), sampling_params: { max_new_tokens: 4 } };
  for (const engine of [p, d]) {
    const { status, json } = await postJson(engine.url, '/generate', input);
    t.equal(status, 400);
    t.match(json.message, /without bootstrap room id/);
  }
  const fake = { ...input, ...roomOf(p, 1), bootstrap_host: '2.2.2.2' };
  t.equal((await postJson(d.url, '/generate', fake)).json.output_ids.length, 4, 'decode without any KV');
  const waiting = postJson(d.url, '/generate', { ...input, ...roomOf(p, 2), rid: 'wait' });
  await until(() => d.connector!.pulls.pulling === 1);
  await post(d.url, '/abort_request', { rid: 'wait' });
  t.equal((await waiting).json.meta_info.finish_reason.type, 'abort');
  const late = await postJson(p.url, '/generate', { ...input, ...roomOf(p, 2) });
  t.equal(late.json.output_ids.length, 1, 'the prefill of a room that was given up ends at once');
  const held = postJson(p.url, '/generate', { ...input, ...roomOf(p, 3), rid: 'held' });
  await until(() => p.connector!.desk.open === 1);
  await post(p.url, '/abort_request', { rid: 'held' });
  await held;
  const info = (await (await fetch(`${d.url}/get_server_info`)).json()) as Json;
  t.match(info, { disaggregation_mode: 'decode', disaggregation_bootstrap_port: Number, page_size: 16 });
  t.same([leakOf(p), leakOf(d)], [null, null]);
});

t.test('SGLang: a prefill that nobody comes for ends with an error and frees its blocks', async t => {
  const clock = new ManualClock();
  const [p, d] = await sglangPair(t, 'local', { clock, disagg: { leaseMs: 5000 } });
  const body = { input_ids: promptOf(40), ...roomOf(p, 5) };
  const held = postJson(p.url, '/generate', body);
  await until(() => p.connector!.desk.open === 1);
  t.equal(p.core.pool.pinned, 3);
  clock.advance(5000);
  const { status, json } = await held;
  t.equal(status, 500);
  t.match(json.message, /offer has expired/);
  t.same([leakOf(p), leakOf(d), p.connector!.desk.counters.expired], [null, null, 1]);
});

const trtllm = { engine: 'trtllm' } as const;

for (const carrier of ['local', 'http', 'shm'] as const)
  t.test(
    `TensorRT-LLM: context, then generation from its opaque state, ${carrier}`,
    needsOf(carrier),
    async t => {
      const alone = await startTiny(t, trtllm);
      const disagg = disaggOf(carrier);
      const p = await startTiny(t, { ...trtllm, disagg });
      const d = await startTiny(t, { ...trtllm, disagg });
      for (let round = 0; round < 8; round++) {
        const body = { prompt: promptOf(1 + randomInteger(random, 90)), max_tokens: 12, detokenize: false };
        const asked = {
          request_type: 'context_only',
          ...(round % 2 === 0 ? {} : { disagg_request_id: 70 + round }),
        };
        const context = await postJson(p.url, '/v1/completions', { ...body, disaggregated_params: asked });
        const params = context.json.choices[0].disaggregated_params;
        t.same(context.json.prompt_token_ids, body.prompt);
        t.equal(context.json.choices[0].finish_reason, 'length');
        const generation = { ...params, request_type: 'generation_only' };
        const { json } = await postJson(d.url, '/v1/completions', {
          ...body,
          disaggregated_params: generation,
        });
        const plain = (await postJson(alone.url, '/v1/completions', body)).json;
        t.same(json.choices[0].token_ids, plain.choices[0].token_ids);
        await until(() => p.connector!.desk.open === 0);
      }
      const body = { prompt: promptOf(20), max_tokens: 6, detokenize: false };
      const start = { request_type: 'context_only' };
      const context = await postJson(p.url, '/v1/completions', { ...body, disaggregated_params: start });
      const params = { ...context.json.choices[0].disaggregated_params, request_type: 'generation_only' };
      const wrong = { ...params, first_gen_tokens: [params.first_gen_tokens[0] + 1] };
      const { json } = await postJson(d.url, '/v1/completions', { ...body, disaggregated_params: wrong });
      const plain = (await postJson(alone.url, '/v1/completions', body)).json;
      t.notSame(
        json.choices[0].token_ids.slice(1),
        plain.choices[0].token_ids.slice(1),
        'a wrong first token shows',
      );
      await until(() => p.connector!.desk.open === 0);
      t.same([leakOf(p), leakOf(d)], [null, null]);
    },
  );

t.test('TensorRT-LLM: generation first, and what is refused', async t => {
  const p = await startTiny(t, { ...trtllm, disagg: {} });
  const d = await startTiny(t, { ...trtllm, disagg: {} });
  const alone = await startTiny(t, trtllm);
  const info = (await (await fetch(`${p.url}/server_info`)).json()) as Json;
  const shared = { disagg_request_id: 9, schedule_style: 'generation_first' };
  const body = { prompt: promptOf(50), max_tokens: 10, detokenize: false };
  const send = (url: string, disaggregated_params: object) =>
    postJson(url, '/v1/completions', { ...body, disaggregated_params });
  const generation = send(d.url, {
    ...shared,
    request_type: 'generation_only',
    ctx_request_id: 9,
    ctx_info_endpoint: info.disaggregated_params.ctx_info_endpoint[0],
  });
  await until(() => d.connector!.pulls.pulling === 1);
  await send(p.url, { ...shared, request_type: 'context_only' });
  const plain = (await postJson(alone.url, '/v1/completions', body)).json;
  t.same((await generation).json.choices[0].token_ids, plain.choices[0].token_ids);
  const refused = [
    [{ request_type: 'both' }, /request_type must be/],
    [{ request_type: 'context_only', remote_host: 'x' }, /extra_forbidden/],
    [{ request_type: 'generation_only' }, /ctx_request_id/],
    [{ request_type: 'generation_only', ctx_request_id: 1, encoded_opaque_state: 'e30=' }, /context server/],
  ] as const;
  for (const [params, message] of refused) {
    const { status, json } = await send(d.url, params);
    t.equal(status, 400);
    t.match(JSON.stringify(json), message);
  }
  await until(() => p.connector!.desk.open === 0);
  t.same([leakOf(p), leakOf(d)], [null, null]);
});
