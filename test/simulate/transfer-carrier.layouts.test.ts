// Promise: over the transfer engine two engines meet once; blocks of the other order arrive turned, what does not fit is refused
// with both values, and an engine that was started again is met again while its earlier offers are refused.
import t, { type Test } from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import type { MockEngine, MockEngineOptions } from '#millrace/simulate/mock-engine.js';
import { type CarrierName, idsOf, leakOf, needsOf, prefill, startTiny, until } from './disagg-probe.js';
import { type Json, post, postJson } from './http-probe.js';

const seed = Number(process.env.SEED ?? 20_261_126);
t.comment(`SEED=${seed}`);
const random = seededRandom(seed);
const promptOf = (length: number): number[] => Array.from({ length }, () => randomInteger(random, 50_000));
const completions = '/v1/completions';
const WAYS = ['shm', 'tcp'] as const;

/** An engine that hands KV over by one transport. */
function start(
  t: Test,
  way: CarrierName,
  { disagg, ...more }: Partial<MockEngineOptions> = {},
): Promise<MockEngine> {
  const transfer = { transports: [way as 'shm'], ...disagg?.transfer };
  return startTiny(t, { ...more, disagg: { ...disagg, transfer } });
}

const peersOf = ({ memory }: MockEngine): unknown => memory!.stats().agent.peers;

async function expectSame(t: Test, p: MockEngine, d: MockEngine, alone: MockEngine): Promise<void> {
  const prompt = promptOf(1 + randomInteger(random, 90));
  const params = await prefill(p.url, prompt);
  t.same(await idsOf(d.url, prompt, 12, params), await idsOf(alone.url, prompt, 12));
  await until(() => p.connector!.desk.open === 0);
}

for (const way of WAYS)
  for (const blockSize of [1, 8, 32])
    t.test(`orders of the numbers in blocks of ${blockSize}, ${way}`, needsOf(way), async t => {
      const alone = await startTiny(t, { blockSize, numGpuBlocks: 128 });
      const [nhd, hnd, other] = await Promise.all(
        (['nhd', 'hnd', 'hnd'] as const).map(order =>
          start(t, way, { blockSize, numGpuBlocks: 128, disagg: { transfer: { order } } }),
        ),
      );
      for (const [p, d] of [
        [nhd, hnd],
        [hnd, nhd],
        [hnd, other],
      ])
        for (let round = 0; round < 4; round++) await expectSame(t, p!, d!, alone);
      t.same(
        [nhd, hnd, other].map(one => peersOf(one!)),
        [1, 2, 1],
        'each pair has met once',
      );
      t.same(
        [nhd, hnd, other].map(one => leakOf(one!)),
        [null, null, null],
      );
    });

t.test('what does not fit is refused, with both values named', needsOf('shm'), async t => {
  const p = await start(t, 'shm');
  const cases: [Partial<MockEngineOptions>, CarrierName, RegExp][] = [
    [{ blockSize: 8 }, 'shm', /blockTokens differs: 8 at the puller, 16 at the holder/],
    [{ seed: 5 }, 'shm', /model differs: "tiny, seed 5" at the puller, "tiny, seed 0" at the holder/],
    [{}, 'tcp', /no transport reaches this peer/],
  ];
  for (const [more, way, message] of cases) {
    const d = await start(t, way, more);
    const prompt = promptOf(40);
    const params = await prefill(p.url, prompt);
    const body = { prompt, max_tokens: 2, kv_transfer_params: params };
    const { status, json } = await postJson(d.url, completions, body);
    t.equal(status, 500);
    t.match(json.error.message, message);
    p.connector!.desk.withdraw(params.remote_request_id);
    t.same([leakOf(p), leakOf(d), d.connector!.pulls.failed], [null, null, 1]);
  }
});

t.test('a holder of another kind', needsOf('shm'), async t => {
  const p = await startTiny(t, { disagg: {} });
  const d = await start(t, 'shm');
  const prompt = promptOf(40);
  const body = { prompt, max_tokens: 2, kv_transfer_params: await prefill(p.url, prompt) };
  const { json } = await postJson(d.url, completions, body);
  t.match(json.error.message, /does not hand KV over by the transfer engine/);
  t.equal(leakOf(d), null);
});

for (const way of WAYS)
  t.test(`a holder that was started again, ${way}`, needsOf(way), async t => {
    const alone = await startTiny(t);
    const d = await start(t, way, { disagg: { connector: 'mooncake' } });
    const first = await start(t, way, { disagg: { connector: 'mooncake' } });
    const { host, port } = first.connector!.options.carrier;
    // Without an engine id the holder is whoever is at the address.
    const run = async (p: MockEngine, id: string, engineId: string | null): Promise<Json> => {
      const prompt = promptOf(50);
      const keep = { do_remote_decode: true, transfer_id: id };
      const pull = {
        do_remote_prefill: true,
        transfer_id: id,
        remote_engine_id: engineId,
        remote_bootstrap_addr: `http://${host}:${port}`,
      };
      await prefill(p.url, prompt, { kv_transfer_params: keep });
      const body = { prompt, max_tokens: 9, return_token_ids: true, kv_transfer_params: pull };
      const { json } = await postJson(d.url, completions, body);
      if (json.choices !== undefined)
        t.same(json.choices[0].token_ids, await idsOf(alone.url, prompt, 9), 'as one alone');
      return json;
    };
    t.equal((await run(first, 'a', first.connector!.engineId)).error, undefined);
    const stale = first.connector!.engineId;
    await first.close();
    const second = await start(t, way, { disagg: { connector: 'mooncake', port } });
    const { error } = await run(second, 'b', stale);
    t.match(error.message, new RegExp(`this engine is ${second.connector!.engineId}, not ${stale}`));
    second.connector!.desk.withdraw('b');
    t.equal((await run(second, 'c', null)).error, undefined, 'met again');
    t.equal((await run(second, 'd', second.connector!.engineId)).error, undefined);
    await until(() => second.connector!.desk.open === 0);
    t.same([leakOf(second), leakOf(d)], [null, null]);
  });

t.test('clients that leave in the middle of pulls leave nothing behind', needsOf('tcp'), async t => {
  const rates = { handoverFailure: 0.1, handoverStall: 0.15 };
  const [p, d] = [await start(t, 'tcp', { faults: rates }), await start(t, 'tcp', { numGpuBlocks: 40 })];
  const alone = await startTiny(t);
  let left = 0;
  const one = async (): Promise<void> => {
    const prompt = promptOf(1 + randomInteger(random, 60));
    const params = await prefill(p.url, prompt);
    const controller = new AbortController();
    const body = { prompt, max_tokens: 6, return_token_ids: true, kv_transfer_params: params };
    const answer = post(d.url, completions, body, controller.signal).then(response => response.json());
    const { pulls } = d.connector!;
    // A stalled one never ends by itself.
    const leave = setTimeout(() => controller.abort(), 20 + randomInteger(random, 30));
    const json = (await answer.catch(() => null)) as Json;
    clearTimeout(leave);
    if (json === null) left++;
    if (json?.choices !== undefined)
      t.same(json.choices[0].token_ids, await idsOf(alone.url, prompt, 6), `after ${pulls.pulled}`);
    p.connector!.desk.withdraw(params.remote_request_id);
  };
  for (let round = 0; round < 12; round++) await Promise.all(Array.from({ length: 5 }, one));
  await until(() => d.connector!.pulls.pulling === 0 && p.connector!.desk.open === 0);
  t.ok(left > 2 && p.faults.fired.handoverStall > 2, `${left} left, ${p.faults.fired.handoverStall} stalled`);
  await until(() => leakOf(p) === null && leakOf(d) === null);
});
