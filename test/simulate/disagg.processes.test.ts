// Promise: KV goes from process to process, and a holder that is killed before, during or after the pull harms only what it must.
import t from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { idsOf, leakOf, prefill, startTiny, until } from './disagg-probe.js';
import { kill, startProcess } from './engine-process.js';
import { post, postJson } from './http-probe.js';

const seed = Number(process.env.SEED ?? 20_261_123);
t.comment(`SEED=${seed}`);
const random = seededRandom(seed);
const promptOf = (length: number): number[] => Array.from({ length }, () => randomInteger(random, 50_000));
const completions = '/v1/completions';

t.test('prefill in one process, decode in another, and the text of one alone', async t => {
  const holder = await startProcess(t);
  const d = await startTiny(t, { disagg: {} });
  const alone = await startTiny(t);
  for (let round = 0; round < 12; round++) {
    const prompt = promptOf(1 + randomInteger(random, 200));
    const params = await prefill(holder.url, prompt);
    t.same(await idsOf(d.url, prompt, 24, params), await idsOf(alone.url, prompt, 24));
  }
  t.equal(d.connector!.pulls.pulled, 12);
  t.equal(leakOf(d), null);
  const prompt = promptOf(64);
  const params = await prefill(holder.url, prompt);
  await kill(holder.child);
  const { status, json } = await postJson(d.url, completions, { prompt, kv_transfer_params: params });
  t.equal(status, 500, 'killed before the pull');
  t.match(json.error.message, /ECONNREFUSED|ECONNRESET|socket hang up/);
  t.equal(leakOf(d), null);
});

t.test('killed during the pull: the request fails or is computed here, and the blocks are free', async t => {
  const alone = await startTiny(t);
  for (const loadFailure of ['fail', 'recompute'] as const) {
    const holder = await startProcess(t, '--faults', 'handoverStall=1');
    const d = await startTiny(t, { disagg: { loadFailure } });
    const prompt = promptOf(160);
    const params = await prefill(holder.url, prompt);
    const body = { prompt, max_tokens: 8, return_token_ids: true, kv_transfer_params: params };
    const answer = post(d.url, completions, body);
    const block = (): Uint8Array[] =>
      d.core.pool.active === 0
        ? []
        : [...d.core.pool.snapshot().blocks.keys()].map(at => d.pages!.bytesOf(at));
    await until(() => block().some(bytes => bytes.some(byte => byte !== 0)));
    t.ok(
      block().some(bytes => bytes.every(byte => byte === 0)),
      'a part has come, a part has not',
    );
    await kill(holder.child);
    const response = await answer;
    t.equal(response.status, loadFailure === 'fail' ? 500 : 200);
    const json = (await response.json()) as { choices: { token_ids: number[] }[] };
    if (loadFailure === 'recompute') t.same(json.choices[0]!.token_ids, await idsOf(alone.url, prompt, 8));
    t.same([d.connector!.pulls.failed, leakOf(d)], [1, null]);
    // What had been written is in no cache: the same prompt again is right.
    t.same(await idsOf(d.url, prompt, 8), await idsOf(alone.url, prompt, 8));
  }
});

t.test('killed after the pull: decode goes on', async t => {
  const holder = await startProcess(t);
  const alone = await startTiny(t);
  const d = await startTiny(t, { disagg: {}, speed: 20 });
  const prompt = promptOf(100);
  const params = await prefill(holder.url, prompt);
  const answer = idsOf(d.url, prompt, 60, params);
  await until(() => d.core.totals.generatedTokens > 1);
  await kill(holder.child);
  t.same(await answer, await idsOf(alone.url, prompt, 60));
  t.equal(leakOf(d), null);
});
