// Promise: an answer whose prompt was computed elsewhere is the aggregated one, token for token, and no block stays pinned.

import t from 'tap';
import { ManualClock } from '#millrace/runtime/clock.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { idsOf, leakOf, needsOf, prefill, startPair, startTiny, until } from './disagg-probe.js';
import { type Json, postJson, postSse } from './http-probe.js';

const seed = Number(process.env.SEED ?? 20_261_121);
t.comment(`SEED=${seed}`);
const random = seededRandom(seed);
const promptOf = (length: number): number[] => Array.from({ length }, () => randomInteger(random, 50_000));

for (const carrier of ['local', 'http', 'shm', 'tcp'] as const) {
  t.test(`random prompts over the ${carrier} carrier`, needsOf(carrier), async t => {
    const alone = await startTiny(t);
    const [p, d] = await startPair(t, carrier);
    let cached: number[] = [];
    for (let round = 0; round < 25; round++) {
      // Some prompts repeat the start of the one before: parts of them are on one side, on both, or on none.
      const head = cached.slice(0, randomInteger(random, 3) * 16);
      const prompt = [...head, ...promptOf(1 + randomInteger(random, 90))];
      cached = prompt;
      if (randomInteger(random, 4) === 0) await idsOf(d.url, prompt.slice(0, 40), 1);
      const params = await prefill(p.url, prompt);
      t.equal(p.core.pool.pinned, Math.ceil(prompt.length / 16), 'pinned until decode is done');
      const body = { prompt, max_tokens: 20, return_token_ids: true, kv_transfer_params: params };
      const { json } = await postJson(d.url, '/v1/completions', body);
      t.same(json.choices[0].token_ids, await idsOf(alone.url, prompt, 20));
      t.equal(json.usage.prompt_tokens_details.cached_tokens, prompt.length - 1, 'transferred is cached');
      await until(() => p.connector!.desk.open === 0);
    }
    t.equal(p.connector!.desk.counters.released, 25);
    t.ok(d.connector!.pulls.pulled > 15, `${d.connector!.pulls.pulled} pulls`);
    t.equal(d.connector!.pulls.pulled + d.connector!.pulls.complete, 25);
    t.same([leakOf(p), leakOf(d)], [null, null]);
  });
}

t.test('the contract of the prefill answer', async t => {
  const [p, d] = await startPair(t, 'http');
  const prompt = promptOf(40);
  const params: Json = await prefill(p.url, prompt);
  t.match(params, {
    do_remote_prefill: true,
    do_remote_decode: false,
    remote_engine_id: p.connector!.engineId,
    remote_request_id: String,
    remote_host: '127.0.0.1',
    remote_port: p.connector!.options.carrier.port,
    tp_size: 1,
    remote_num_tokens: 40,
  });
  t.equal(params.remote_block_ids[0].length, 3, 'one list per KV group');
  const flat = { ...params, remote_block_ids: params.remote_block_ids[0] };
  const plain = await idsOf(p.url, prompt, 8);
  t.same(await idsOf(d.url, prompt, 8, flat), plain, 'the list of older releases is understood');
  const { json } = await postJson(d.url, '/v1/completions', { prompt, max_tokens: 2 });
  t.equal(json.kv_transfer_params, null, 'nothing was kept');
  const without = await startTiny(t);
  t.equal(await prefill(without.url, prompt), undefined, 'no connector, nothing to transfer');
  await until(() => p.connector!.desk.open === 0);
  t.same([leakOf(p), leakOf(d)], [null, null]);
});

t.test('choices, streams and several tokens per step', async t => {
  const alone = await startTiny(t);
  const [p, d] = await startPair(t, 'local', { tokensPerStep: 4 });
  const prompt = promptOf(50);
  const body = { prompt, n: 3, max_tokens: 17, return_token_ids: true };
  const params = await prefill(p.url, prompt);
  const { frames } = await postSse(d.url, '/v1/completions', { ...body, kv_transfer_params: params });
  const streamed: number[][] = [[], [], []];
  for (const { choices } of frames) streamed[choices[0].index]!.push(...choices[0].token_ids);
  const whole = (await postJson(alone.url, '/v1/completions', body)).json;
  t.same(
    streamed,
    whole.choices.map((choice: Json) => choice.token_ids),
  );
  t.ok(frames.length <= 3 * 6, `${frames.length} frames carry 51 ids`);
  await until(() => p.connector!.desk.open === 0);
  t.equal(p.connector!.desk.counters.released, 1, 'one end for all choices');
  t.same([leakOf(p), leakOf(d)], [null, null]);
});

for (const carrier of ['local', 'http', 'shm'] as const)
  t.test(
    `Mooncake: both at once, in any order, joined by the transfer id, ${carrier}`,
    needsOf(carrier),
    async t => {
      const alone = await startTiny(t);
      const [p, d] = await startPair(t, carrier, { disagg: { connector: 'mooncake' } });
      const { port, host } = p.connector!.options.carrier;
      for (let round = 0; round < 10; round++) {
        const prompt = promptOf(1 + randomInteger(random, 90));
        const transfer_id = `transfer-${round}`;
        const sides = [
          () => prefill(p.url, prompt, { kv_transfer_params: { do_remote_decode: true, transfer_id } }),
          () =>
            idsOf(d.url, prompt, 12, {
              do_remote_prefill: true,
              transfer_id,
              remote_engine_id: p.connector!.engineId,
              remote_bootstrap_addr: `http://${host}:${port}`,
            }),
        ];
        if (round % 2 === 0) sides.reverse();
        const [first, second] = await Promise.all(sides.map(send => send()));
        t.same(round % 2 === 0 ? first : second, await idsOf(alone.url, prompt, 12));
        await until(() => p.connector!.desk.open === 0);
      }
      t.same([leakOf(p), leakOf(d)], [null, null]);
    },
  );

t.test('one flipped bit in a pinned block changes the answer of decode', async t => {
  const [p, d] = await startPair(t, 'http');
  const alone = await startTiny(t);
  for (let round = 0; round < 10; round++) {
    const prompt = promptOf(33 + randomInteger(random, 30));
    const plain = await idsOf(alone.url, prompt, 6);
    const params = await prefill(p.url, prompt);
    const block = params.remote_block_ids[0][randomInteger(random, 2)];
    p.pages!.bytesOf(block)[randomInteger(random, p.pages!.blockBytes)]! ^= 1 << randomInteger(random, 8);
    t.notSame(await idsOf(d.url, prompt, 6, params), plain);
    await until(() => p.connector!.desk.open === 0);
  }
});

t.test('without pages the transfer is modelled: bytes by bandwidth, and the same contract', async t => {
  const clock = new ManualClock();
  const more = { tiny: false, clock, disagg: { kvBytesPerToken: 1000, kvBytesPerSecond: 1_000_000 } };
  for (const carrier of ['local', 'http'] as const) {
    const [p, d] = await startPair(t, carrier, { ...more, speed: 1000 });
    const prompt = promptOf(100);
    const paced = async <Value>(answer: Promise<Value>): Promise<Value> => {
      let isOver = false;
      void answer.then(() => {
        isOver = true;
      });
      await until(() => {
        clock.advance(0.001);
        return isOver;
      });
      return answer;
    };
    const params = await paced(prefill(p.url, prompt));
    const answer = idsOf(d.url, prompt, 4, params);
    await until(() => p.connector!.desk.counters.reads === 1);
    for (let turn = 0; turn < 100; turn++) await new Promise(resolve => setImmediate(resolve));
    // Seven blocks of 16 tokens take 112 ms of modelled time.
    clock.advance(0.1119);
    for (let turn = 0; turn < 100; turn++) await new Promise(resolve => setImmediate(resolve));
    t.equal(d.connector!.pulls.pulling, 1);
    clock.advance(0.0002);
    await until(() => d.connector!.pulls.pulled === 1);
    t.same(await paced(answer), await paced(idsOf(p.url, prompt, 4)));
    await until(() => p.connector!.desk.open === 0);
    t.same([leakOf(p), leakOf(d)], [null, null]);
  }
});
