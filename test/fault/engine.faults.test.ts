// Promise: whatever a worker does wrong, the client gets a perfect answer from another one or a stable code, at once.

import t from 'tap';
import {
  CHAT,
  COMPLETIONS,
  errorOf,
  jsonOf,
  MOCK_MODEL,
  startPlane,
  streamedText,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const ask = { model: MOCK_MODEL, prompt: 'tell me of rivers', max_tokens: 12 };

for (const tokenizer of [null, TOKENIZER]) {
  const mode = tokenizer === null ? 'relayIds' : 'token';

  t.test(`${mode}: faults of one of two workers before its first token`, async t => {
    const fixture = await startPlane(t, {
      mocks: [{}, {}],
      tokenizer,
      limits: { firstTokenDeadlineMs: 5000, breakerFailuresMax: 1000 },
    });
    const [first, second] = fixture.mocks as [(typeof fixture.mocks)[0], (typeof fixture.mocks)[0]];
    const whole = streamedText(await fixture.post(COMPLETIONS, { ...ask, stream: true }));
    t.ok(whole.length > 0);
    const kinds = ['refuse', 'error500', 'dieBefore', 'reset'] as const;
    for (const kind of kinds) {
      for (const stream of [true, false]) {
        await fixture.step(t, `${kind}, ${stream ? 'stream' : 'unary'}`, async t => {
          const before = first.faults.fired[kind] + second.faults.fired[kind];
          const retries = await fixture.metric('millrace_asks_total{reason="worker_failed"}');
          // The policy is round-robin: arming both and clearing one keeps the test free of its cursor.
          const target = (first.counters.requests + second.counters.requests) % 2 === 0 ? first : second;
          target.faults.next(kind);
          let reply = await fixture.post(COMPLETIONS, { ...ask, stream });
          if (first.faults.fired[kind] + second.faults.fired[kind] === before)
            reply = await fixture.post(COMPLETIONS, { ...ask, stream });
          t.equal(first.faults.fired[kind] + second.faults.fired[kind], before + 1, 'the fault took place');
          t.equal(reply.status, 200);
          t.equal(stream ? streamedText(reply) : jsonOf(reply).choices[0].text, whole, 'a perfect answer');
          t.equal(await fixture.metric('millrace_asks_total{reason="worker_failed"}'), retries + 1);
        });
      }
    }
  });

  t.test(`${mode}: faults of the only worker`, async t => {
    const limits = { firstTokenDeadlineMs: 5000, betweenTokensDeadlineMs: 3000 };
    const fixture = await startPlane(t, { mocks: [{}], tokenizer, limits });
    const mock = fixture.mocks[0]!;
    const codes = {
      refuse: 'MILLRACE_WORKER_DIED',
      error500: 'MILLRACE_WORKER_FAILED',
      dieBefore: 'MILLRACE_WORKER_DIED',
      reset: 'MILLRACE_WORKER_DIED',
    } as const;
    for (const [kind, code] of Object.entries(codes)) {
      for (const stream of [true, false]) {
        await fixture.step(t, `${kind}, ${stream ? 'stream' : 'unary'}`, async t => {
          mock.faults.next(kind as keyof typeof codes);
          t.match(errorOf(await fixture.post(COMPLETIONS, { ...ask, stream })), { status: 502, code });
        });
      }
    }
    for (const kind of ['dieAfter', 'halfFrame'] as const) {
      await fixture.step(t, `${kind}: the stream ends with an error frame`, async t => {
        mock.faults.next(kind, 3);
        const reply = await fixture.post(COMPLETIONS, { ...ask, stream: true });
        t.equal(reply.status, 200);
        t.ok(reply.done && !reply.broken, 'with its end marker');
        t.match(reply.frames.at(-1), { error: { code: 'MILLRACE_WORKER_DIED', type: 'worker_error' } });
        t.ok(streamedText(reply).length > 0);
      });
    }
    await fixture.step(t, 'stall after some tokens', async t => {
      mock.faults.next('stall', 3);
      const open = await fixture.open(COMPLETIONS, { ...ask, stream: true });
      await until(() => mock.faults.fired.stall === 1, 'the engine stalls');
      await open.readUntil(text => text.split('\n\n').length > 3);
      fixture.tick(2900);
      t.equal(fixture.plane.socket.requestsInFlight, 1, 'not before its deadline');
      fixture.tick(200);
      const reply = await open.rest();
      t.match(reply.frames.at(-1), { error: { code: 'MILLRACE_WORKER_STALLED' } });
      t.ok(reply.done);
      await until(() => mock.counters.aborted === 1, 'the engine hears of it');
    });
    await fixture.step(t, 'stall before the first token', async t => {
      mock.faults.next('stall', 0);
      const reply = fixture.post(COMPLETIONS, { ...ask, stream: true });
      await until(() => mock.faults.fired.stall === 2, 'the engine stalls');
      fixture.tick(5100);
      t.match(errorOf(await reply), { status: 504, code: 'MILLRACE_WORKER_STALLED' });
    });
    await fixture.step(t, 'a good answer after all of them', async t => {
      t.equal(
        (
          await fixture.post(CHAT, {
            model: MOCK_MODEL,
            messages: [{ role: 'user', content: 'x' }],
            max_tokens: 3,
          })
        ).status,
        200,
      );
    });
  });
}
