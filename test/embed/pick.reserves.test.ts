// Promise: pick() chooses as a request would, holds the worker's load until it is released or expires, and gives it back once.
import t from 'tap';
import { createDataPlane, InvalidRequestError, RejectedError } from '#millrace/index.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import { MODEL } from './embedded.js';

const engines = await Promise.all([1, 2].map(() => startMockEngine({ serverKind: 'node' })));
const clock = new ManualClock();
const plane = await createDataPlane({
  workers: engines.map(engine => engine.url),
  tokenizer: 'chatml-cl100k',
  policy: 'least-requests',
  poolThreads: 1,
  logLevel: 'silent',
  clock,
});
t.teardown(async () => {
  await plane.close();
  await Promise.all(engines.map(engine => engine.close()));
});

/** Load of one kind by worker, from the metrics. */
async function load(kind: string): Promise<Record<string, number>> {
  const rows = [...(await plane.metrics()).matchAll(/^millrace_worker_load\{(.*?)\} (\S+)$/gm)];
  return Object.fromEntries(
    rows
      .filter(([, labels]) => labels!.includes(`kind="${kind}"`))
      .map(([, labels, value]) => [/worker="(.*?)"/.exec(labels!)![1]!, Number(value)]),
  );
}
const total = async (kind: string): Promise<number> =>
  Object.values(await load(kind)).reduce((sum, value) => sum + value, 0);

t.test('what was picked counts for the next pick', async t => {
  const first = await plane.pick({ model: MODEL, prompt: 'one two three' });
  const second = await plane.pick({ model: MODEL, messages: [{ role: 'user', content: 'hi' }] });
  t.same([first.worker, second.worker].sort(), engines.map(engine => engine.url).sort(), 'one each');
  t.equal(first.model, MODEL);
  t.equal(first.promptTokens, 3);
  t.same(await load('requests'), { [first.worker]: 1, [second.worker]: 1 });
  const third = await plane.pick({ model: MODEL, ids: [1, 2, 3, 4] });
  t.equal(third.promptTokens, 4);
  t.equal(await total('requests'), 3);

  t.equal((await load('prefill_tokens'))[first.worker]! > 0, true);
  const before = await total('prefill_tokens');
  first.reservation.firstToken();
  first.reservation.firstToken();
  t.equal(await total('prefill_tokens'), before - 3, 'the prompt is no work any more, once');
  for (const picked of [first, second, third, first]) picked.reservation.release();
  first.reservation.firstToken();
  t.equal(await total('requests'), 0);
  t.equal(await total('prefill_tokens'), 0);
  t.equal(plane.health().requestsInFlight, 0);
});

t.test('a forgotten reservation expires', async t => {
  const standard = await plane.pick({ model: MODEL, prompt: 'a' });
  const short = await plane.pick({ model: MODEL, prompt: 'a', expiresInMs: 500 });
  t.equal(standard.reservation.expiresAt, clock.wallMs() + 60_000);
  t.equal(short.reservation.expiresAt, clock.wallMs() + 500);
  clock.advance(500);
  t.equal(await total('requests'), 1);
  clock.advance(60_000);
  t.equal(await total('requests'), 0);
});

t.test('a pick says why, and keeps to a pin and a session', async t => {
  const picks = await Promise.all([
    plane.pick({ model: MODEL, prompt: 'a' }),
    ...engines.map(({ url }) => plane.pick({ model: MODEL, prompt: 'a', worker: url })),
    ...engines.map(() => plane.pick({ model: MODEL, prompt: 'a', session: 's' })),
  ]);
  const [free, one, two, ...session] = picks;
  t.match(free, { cachedTokens: 0, reason: /^least-requests: 0 reserved/ });
  t.same(
    [one!.worker, two!.worker],
    engines.map(({ url }) => url),
  );
  t.equal(session[0]!.worker, session[1]!.worker);
  t.match(session[0]!.reason, /^session: /);
  for (const { reservation } of picks) reservation.release();
  const unknown = { model: MODEL, prompt: 'a', worker: 'http://127.0.0.1:9' };
  await t.rejects(plane.pick(unknown), { code: 'MILLRACE_NO_WORKER' });
  await t.rejects(plane.pick({ ...unknown, worker: 'nobody' }), {
    param: 'worker',
    message: /^worker must be/,
  });
  await t.rejects(plane.pick({ model: MODEL, prompt: 'a', session: 'x'.repeat(300) }), {
    message: /^session has 300/,
  });
  await t.rejects(plane.pick({ model: MODEL, prompt: 'a', session: 5 as never }), {
    message: /^session must be/,
  });
});

t.test('bad picks are rejected', async t => {
  await t.rejects(plane.pick({ model: 'nobody', prompt: 'a' }), { code: 'MILLRACE_UNKNOWN_MODEL' });
  await t.rejects(plane.pick({ model: MODEL }), InvalidRequestError);
  await t.rejects(plane.pick({ model: MODEL, prompt: 'a', expiresInMs: 5 }), {
    param: 'expiresInMs',
    message: /100 to 1800000/,
  });
  await t.rejects(plane.pick({ model: MODEL, prompt: 'a'.repeat(5 << 20) }), {
    code: 'MILLRACE_BODY_TOO_LARGE',
  });
  t.equal(plane.health().requestsInFlight, 0);
});

t.test('a plane that closes releases what is held, and picks no more', async t => {
  const held = await plane.pick({ model: MODEL, prompt: 'a' });
  await plane.close();
  t.doesNotThrow(() => held.reservation.release());
  await t.rejects(plane.pick({ model: MODEL, prompt: 'a' }), RejectedError);
});
