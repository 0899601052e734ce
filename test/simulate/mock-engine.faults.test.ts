// Promise: each injected fault happens as described, is counted, and leaves the engine able to serve.

import t from 'tap';
import { seededRandom } from '#millrace/runtime/random.js';
import { FAULT_KINDS, FaultPlan, parseFaultRates } from '#millrace/simulate/faults.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import { post, postJson, postSse } from './http-probe.js';

const COMPLETIONS = '/v1/completions';
const ask = { prompt: 'please fail', max_tokens: 8 };

for (const serverKind of ['uws', 'node'] as const)
  t.test(`armed faults, one by one, on ${serverKind}`, async t => {
    const engine = await startMockEngine({ speed: 'unlimited', serverKind });
    t.teardown(() => engine.close());
    const { url, faults, counters, core } = engine;
    const whole = await postSse(url, COMPLETIONS, ask);
    const expected = whole.frames.map(frame => frame.choices[0].text);

    faults.next('refuse');
    await t.rejects(post(url, COMPLETIONS, ask));
    faults.next('error500');
    t.match(await postJson(url, COMPLETIONS, ask), { status: 500, json: { error: { code: 500 } } });
    for (const kind of ['reset', 'dieBefore'] as const) {
      faults.next(kind);
      const answer = await postSse(url, COMPLETIONS, ask);
      t.match(answer, { broken: true, frames: { length: 0 }, done: false }, kind);
      t.equal(faults.fired[kind], 1, kind);
    }
    for (const kind of ['dieAfter', 'halfFrame'] as const) {
      faults.next(kind, 3);
      const answer = await postSse(url, COMPLETIONS, ask);
      t.match(answer, { broken: true, status: 200, done: false }, kind);
      t.same(
        answer.frames.map(frame => frame.choices[0].text),
        expected.slice(0, 3),
        `${kind} after exactly three tokens`,
      );
      t.equal(answer.rest.startsWith('data: {'), kind === 'halfFrame', kind);
      t.throws(() => JSON.parse(answer.rest.slice(6)), kind);
    }
    faults.next('halfFrame');
    const response = await post(url, COMPLETIONS, ask);
    await t.rejects(response.text(), 'half a whole answer');

    faults.next('stall', 2);
    const leave = new AbortController();
    const stalled = await post(url, COMPLETIONS, { ...ask, stream: true }, leave.signal);
    const reader = stalled.body!.getReader();
    let text = '';
    while (text.split('\n\n').length < 3) text += new TextDecoder().decode((await reader.read()).value);
    while (faults.fired.stall === 0) await new Promise(resolve => setImmediate(resolve));
    t.equal(text.split('\n\n').length, 3, 'two frames and then nothing');
    t.equal(counters.running, 1);
    leave.abort();
    while (counters.aborted === 0) await new Promise(resolve => setImmediate(resolve));

    faults.next('badFrame', 2);
    const leaveBad = new AbortController();
    const bad = await post(url, COMPLETIONS, { ...ask, stream: true }, leaveBad.signal);
    const badReader = bad.body!.getReader();
    let frames = '';
    while (frames.split('\n\n').length < 4)
      frames += new TextDecoder().decode((await badReader.read()).value);
    t.throws(
      () => JSON.parse(frames.split('\n\n')[2]!.slice('data: '.length)),
      'a whole frame that is no JSON',
    );
    t.equal(counters.running, 1, 'the connection stays open');
    leaveBad.abort();
    while (counters.aborted === 1) await new Promise(resolve => setImmediate(resolve));

    t.same(faults.fired, {
      refuse: 1,
      error500: 1,
      reset: 1,
      dieBefore: 1,
      dieAfter: 1,
      halfFrame: 2,
      stall: 1,
      handoverFailure: 0,
      handoverStall: 0,
      badFrame: 1,
    });
    t.match(counters, { requests: 10, finished: 1, faulted: 7, aborted: 2, running: 0 });
    t.same([core.running, core.waiting, core.pool.active], [0, 0, 0]);
    t.ok((await postSse(url, COMPLETIONS, ask)).done, 'still serves');
  });

t.test('drawn faults follow their rates and their seed', async t => {
  const rates = parseFaultRates('error500=0.2, dieAfter=0.1');
  const draws = (seed: number) => {
    const plan = new FaultPlan(rates, seededRandom(seed));
    return Array.from({ length: 4000 }, () => plan.draw());
  };
  const first = draws(1);
  t.equal(JSON.stringify(draws(1)), JSON.stringify(first));
  t.not(JSON.stringify(draws(2)), JSON.stringify(first));
  const share = (kind: string) => first.filter(fault => fault?.kind === kind).length / first.length;
  t.ok(Math.abs(share('error500') - 0.2) < 0.03, `${share('error500')}`);
  t.ok(Math.abs(share('dieAfter') - 0.1) < 0.03, `${share('dieAfter')}`);
  t.ok(
    first.every(fault => fault === null || (fault.afterTokens >= 1 && fault.afterTokens <= 8)),
    'tokens before a fault',
  );
  t.throws(() => parseFaultRates('boom=0.1'), { message: new RegExp(FAULT_KINDS.join(', ')) });
  t.throws(() => parseFaultRates('stall=2'), { message: /from 0 to 1/ });
  t.throws(() => parseFaultRates('stall=0.6,refuse=0.6'), { message: /add up/ });
  t.same(new FaultPlan(parseFaultRates(''), seededRandom(1)).draw(), null);
});
