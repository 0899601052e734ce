// Promise: whatever breaks a hand-over, the request ends, blocks come back on both sides, and the faults really happened.
import t from 'tap';
import { ManualClock } from '#millrace/runtime/clock.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { LocalEngines } from '#millrace/simulate/disagg/local-carrier.js';
import { idsOf, leakOf, needsOf, prefill, startPair, startTiny, until } from './disagg-probe.js';
import { post, postJson, postSse } from './http-probe.js';

const seed = Number(process.env.SEED ?? 20_261_122);
t.comment(`SEED=${seed}`);
const random = seededRandom(seed);
const promptOf = (length: number): number[] => Array.from({ length }, () => randomInteger(random, 50_000));
const completions = '/v1/completions';

t.test('a lease ends without heartbeats and lives with them', async t => {
  const clock = new ManualClock();
  const [p, d] = await startPair(t, 'local', { clock, disagg: { leaseMs: 30_000 } });
  const prompt = promptOf(50);
  const params = await prefill(p.url, prompt);
  clock.advance(29_999);
  t.equal(p.core.pool.pinned, 4);
  clock.advance(1);
  t.same([p.core.pool.pinned, p.connector!.desk.counters.expired], [0, 1]);
  const body = { prompt, max_tokens: 2, kv_transfer_params: params };
  const late = await postJson(d.url, completions, body);
  t.equal(late.status, 500);
  t.match(late.json.error.message, /lease has run out/);
  const again = await prefill(p.url, prompt);
  d.faults.next('handoverStall');
  const waiting = post(d.url, completions, { ...body, kv_transfer_params: again });
  await until(() => d.connector!.pulls.pulling === 1);
  clock.advance(29_999);
  t.equal(p.connector!.desk.counters.heartbeats, 5, 'one every sixth of a lease');
  t.equal(p.core.pool.pinned, 4);
  clock.advance(1);
  t.equal((await waiting).status, 500, 'the pull has a deadline of its own');
  clock.advance(30_000);
  t.equal(p.connector!.desk.counters.expired, 2, 'no heartbeat after a failed pull');
  t.same([leakOf(p), leakOf(d)], [null, null]);
});

for (const carrier of ['local', 'http', 'shm', 'tcp'] as const)
  t.test(`a read under way outlives its offer, ${carrier}`, needsOf(carrier), async t => {
    const clock = new ManualClock();
    const [p, d] = await startPair(t, carrier, { clock, disagg: { leaseMs: 1000, pullDeadlineMs: 60_000 } });
    const prompt = promptOf(60);
    p.faults.next('handoverStall');
    const params = await prefill(p.url, prompt);
    const controller = new AbortController();
    const body = { prompt, kv_transfer_params: params };
    const answer = post(d.url, completions, body, controller.signal).catch(() => null);
    await until(() => p.connector!.desk.counters.reads === 1);
    clock.advance(5000);
    t.equal(p.core.pool.pinned, 4, 'heartbeats keep it');
    p.connector!.desk.notice(null, params.remote_request_id, 'done');
    t.equal(p.core.pool.pinned, 4, 'done, and still being read');
    controller.abort();
    await answer;
    await until(() => p.connector!.desk.open + d.connector!.pulls.pulling === 0);
    t.same([d.connector!.pulls.cancelled, leakOf(p), leakOf(d)], [1, null, null]);
  });

t.test(
  'wrong engine, wrong request, wrong blocks, wrong layout: refused, with both values named',
  async t => {
    const engines = new LocalEngines();
    const p = await startTiny(t, { disagg: { engines } });
    const d = await startTiny(t, { disagg: { engines } });
    const small = await startTiny(t, { disagg: { engines }, blockSize: 8 });
    const hollow = await startTiny(t, { disagg: { engines }, tiny: false });
    const prompt = promptOf(40);
    const cases = [
      [d, { remote_engine_id: 'gone' }, /no engine gone/],
      [d, { remote_request_id: 'other' }, /no offer other/],
      [d, { remote_block_ids: [[0, 1, 63]] }, /block 63 is not offered/],
      [d, { remote_block_ids: [[0]] }, /3 were wanted/],
      [small, {}, /8 tokens per block, the holder 16/],
      [hollow, {}, /0 bytes per block, the holder 4096/],
    ] as const;
    for (const [engine, change, message] of cases) {
      const params = await prefill(p.url, prompt);
      const body = { prompt, max_tokens: 2, kv_transfer_params: { ...params, ...change } };
      const { status, json } = await postJson(engine.url, completions, body);
      t.equal(status, 500);
      t.match(json.error.message, message);
      p.connector!.desk.withdraw(params.remote_request_id);
      const streamed = await postSse(engine.url, completions, body);
      t.match(streamed.frames, [{ error: { code: 500 } }], 'a stream has begun, and says it in a frame');
      t.ok(streamed.done);
    }
    t.same([p, d, small, hollow].map(leakOf), [null, null, null, null]);
    t.equal(d.counters.failed, 8);
  },
);

t.test('recompute: a failed load costs time and nothing else', async t => {
  const [p, d] = await startPair(t, 'http', { disagg: { loadFailure: 'recompute' } });
  const alone = await startTiny(t);
  for (const fault of ['handoverFailure', 'gone'] as const) {
    const prompt = promptOf(70);
    const params = await prefill(p.url, prompt);
    if (fault === 'gone') await p.close();
    else d.faults.next(fault);
    t.same(await idsOf(d.url, prompt, 15, params), await idsOf(alone.url, prompt, 15));
  }
  t.equal(d.faults.fired.handoverFailure, 1);
  t.equal(d.connector!.pulls.failed, 2);
  t.equal(leakOf(d), null);
});

t.test('abort of the prefill frees at once, and tells a decode that waits for it', async t => {
  const clock = new ManualClock();
  const [p, d] = await startPair(t, 'local', { clock, speed: 1, disagg: { connector: 'mooncake' } });
  const prompt = promptOf(40);
  const ids = { transfer_id: 'x', remote_engine_id: p.connector!.engineId };
  const pull = { ...ids, do_remote_prefill: true, remote_bootstrap_addr: 'http://localhost:1' };
  const keep = { kv_transfer_params: { do_remote_decode: true, ...ids } };
  const controller = new AbortController();
  const aborted = post(p.url, completions, { prompt, ...keep }, controller.signal).catch(() => null);
  const decode = postJson(d.url, completions, { prompt, kv_transfer_params: pull });
  await until(() => p.core.running === 1 && d.connector!.pulls.pulling === 1);
  controller.abort();
  t.match((await decode).json.error.message, /prefill of x was aborted/);
  await aborted;
  t.same([leakOf(p), leakOf(d)], [null, null]);
});

t.test('abort of a decode in the queue releases its prefill', async t => {
  const engines = new LocalEngines();
  const clock = new ManualClock();
  const p = await startTiny(t, { disagg: { engines } });
  const d = await startTiny(t, { disagg: { engines }, clock, speed: 1, maxNumSeqs: 1 });
  const params = await prefill(p.url, promptOf(40));
  const controllers = [new AbortController(), new AbortController()];
  const bodies = [{}, { kv_transfer_params: params }];
  const answers = bodies.map((more, at) =>
    post(d.url, completions, { prompt: promptOf(40), ...more }, controllers[at]!.signal).catch(() => null),
  );
  await until(() => d.core.running === 1 && d.core.waiting === 1);
  controllers[1]!.abort();
  await until(() => p.connector!.desk.open === 0);
  t.same([p.connector!.desk.counters.released, d.connector!.pulls.cancelled], [1, 1]);
  controllers[0]!.abort();
  await Promise.all(answers);
  await until(() => d.core.running === 0);
  t.same([leakOf(p), leakOf(d)], [null, null]);
});

t.test('5 % of hand-overs fail, some clients leave: every request ends, no block stays pinned', async t => {
  const engines = new LocalEngines();
  const rates = { handoverFailure: 0.05 };
  const clock = new ManualClock();
  const p = await startTiny(t, { disagg: { engines }, faults: rates, numGpuBlocks: 80, clock });
  const d = await startTiny(t, {
    disagg: { engines, loadFailure: 'recompute' },
    faults: rates,
    numGpuBlocks: 40,
  });
  const alone = await startTiny(t);
  let left = 0;
  const one = async (): Promise<void> => {
    const prompt = promptOf(1 + randomInteger(random, 60));
    const params = await prefill(p.url, prompt);
    if (random() < 0.15) {
      left++;
      const controller = new AbortController();
      const answer = post(d.url, completions, { prompt, kv_transfer_params: params }, controller.signal);
      setImmediate(() => controller.abort());
      await answer.then(response => response.text()).catch(() => null);
      return;
    }
    const got = await idsOf(d.url, prompt, 8, params);
    const wanted = await idsOf(alone.url, prompt, 8);
    if (got.join() !== wanted.join()) t.fail(`${got.join()} is not ${wanted.join()}`);
  };
  for (let round = 0; round < 25; round++) await Promise.all(Array.from({ length: 8 }, one));
  await until(() => d.core.running + d.core.waiting + d.connector!.pulls.pulling === 0);
  const { desk } = p.connector!;
  const { failed } = d.connector!.pulls;
  // Nobody speaks any more for a failed pull, or for a client that left before its request was read.
  clock.advance(30_000);
  t.ok(failed > 3 && left > 10, `${failed} failed, ${left} left`);
  t.ok(p.faults.fired.handoverFailure > 0 && d.faults.fired.handoverFailure > 0);
  t.same([leakOf(p), leakOf(d)], [null, null]);
  t.equal(desk.counters.offered, 200);
  t.equal(desk.counters.released + desk.counters.expired, 200, `${desk.counters.expired} leases ran out`);
});
