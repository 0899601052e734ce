// Promise: generate() gives the same answer as HTTP, as Deltas, and stops the engine when its reader stops.
import { getEventListeners } from 'node:events';
import t from 'tap';
import {
  type Delta,
  EvictedError,
  type GenerateRequest,
  InvalidRequestError,
  MillraceError,
  RejectedError,
} from '#millrace/index.js';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { CHAT, chatBody, collect, MODEL, planeOverMock, textOf, until } from './embedded.js';

const messages = [{ role: 'user', content: 'Tell me something.' }];

t.test('Deltas carry text, ids, finish and usage, and say what HTTP says', async t => {
  const { plane } = await planeOverMock(t);
  const deltas = await collect(plane.generate({ model: MODEL, messages, maxTokens: 16 }));
  const response = await plane.fetchHandler()(
    new Request(`http://host${CHAT}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(chatBody()),
    }),
  );
  const body = (await response.json()) as { choices: { message: { content: string } }[] };
  t.equal(textOf(deltas), body.choices[0]!.message.content);
  const ids = deltas.flatMap(delta => delta.ids ?? []);
  t.equal(ids.length, 16);
  const tokenizer = await loadTokenizer('chatml-cl100k');
  const bytes = Buffer.concat(ids.map(id => tokenizer.bytesOf(id)!));
  t.equal(bytes.toString('utf8'), textOf(deltas), 'the ids are those of the text');
  t.match(deltas.at(-2), { index: 0, finish: 'length' });
  t.match(deltas.at(-1), { usage: { completionTokens: 16 } });
});

t.test('ids and text as prompts, several choices, stop strings', async t => {
  const { plane } = await planeOverMock(t);
  const tokenizer = await loadTokenizer('chatml-cl100k');
  const prompt = 'Once upon a time';
  const byText = await collect(plane.generate({ model: MODEL, prompt, maxTokens: 12 }));
  const ids = tokenizer.encode(prompt);
  const byIds = await collect(plane.generate({ model: MODEL, ids, maxTokens: 12 }));
  t.equal(textOf(byIds), textOf(byText));
  const word = textOf(byText).trim().split(' ')[2]!;
  const stopped = await collect(plane.generate({ model: MODEL, prompt, maxTokens: 12, stop: word }));
  t.equal(textOf(stopped), textOf(byText).slice(0, textOf(byText).indexOf(word)));
  t.match(stopped.at(-2), { finish: 'stop', stopReason: word });
  const both = await collect(plane.generate({ model: MODEL, prompt, maxTokens: 5, n: 2, seed: 1 }));
  t.same(
    both
      .filter(delta => delta.finish !== undefined)
      .map(({ index }) => index)
      .sort(),
    [0, 1],
  );
});

t.test('in relay mode the frames of the engine become the same text', async t => {
  const { plane, engine } = await planeOverMock(t, { tokenizer: null });
  const deltas = await collect(plane.generate({ model: MODEL, messages, maxTokens: 16 }));
  const { plane: other } = await planeOverMock(t);
  const told = await collect(other.generate({ model: MODEL, messages, maxTokens: 16 }));
  t.equal(textOf(deltas), textOf(told));
  t.match(deltas.at(-1), { usage: { completionTokens: 16 } });
  t.match(deltas.at(-2), { finish: 'length' });
  t.equal(engine.core.running, 0);
});

t.test('a pin and a session, and the decision behind an answer', async t => {
  const { plane, engine } = await planeOverMock(t);
  const request = { model: MODEL, messages, maxTokens: 3 };
  await collect(plane.generate({ ...request, worker: `${engine.url}/`, session: 's' }));
  const [decision, ...more] = await plane.decisions();
  t.match(decision, { worker: engine.url, model: MODEL, end: 'completed', attempt: 1, requestId: null });
  t.match(decision!.reason, /^session/);
  t.ok(decision!.ttftMs! >= 0);
  t.same(more, []);
  await t.rejects(plane.decisions({ limit: 300 }), { param: 'limit', message: /1 to 256/ });
  await t.rejects(collect(plane.generate({ ...request, worker: 'http://127.0.0.1:9' })), {
    code: 'MILLRACE_NO_WORKER',
  });
  t.throws(() => plane.generate({ ...request, worker: 'x' }), { message: /^worker must be/ });
});

t.test('errors are MillraceErrors: of the call at once, of the request by the iterator', async t => {
  const { plane } = await planeOverMock(t);
  const wrong = (request: object, param: string): void => {
    const call = (): unknown => plane.generate(request as GenerateRequest);
    t.throws(call, { code: 'MILLRACE_INVALID_REQUEST', param });
    t.throws(call, InvalidRequestError);
  };
  wrong({ model: MODEL, prompt: 'a', maxTokenz: 3 }, 'maxTokenz');
  wrong({ model: MODEL, prompt: 'a', messages }, 'prompt');
  wrong({ model: MODEL }, 'prompt');
  wrong({ model: MODEL, prompt: 'a', signal: 'soon' }, 'signal');
  const cyclic: Record<string, unknown> = {};
  cyclic.self = cyclic;
  t.throws(() => plane.generate({ model: MODEL, prompt: 'a', extra: cyclic }), InvalidRequestError);

  const answer = plane.generate({ model: 'nobody', messages });
  await t.rejects(answer.next(), { code: 'MILLRACE_UNKNOWN_MODEL', httpStatus: 404 });
  t.same(await answer.next(), { done: true, value: undefined }, 'an error is told once');
  await t.rejects(collect(plane.generate({ model: MODEL, prompt: 'a', maxTokens: -1 })), InvalidRequestError);
  await plane.close();
  await t.rejects(collect(plane.generate({ model: MODEL, prompt: 'a' })), RejectedError);
});

t.test('return() and the signal stop the engine and leave no listener behind', async t => {
  const { plane, engine } = await planeOverMock(t, {}, { speed: 1 });
  const request = { model: MODEL, messages, maxTokens: 10_000 };
  for await (const delta of plane.generate(request)) {
    if (delta.text !== undefined) break;
  }
  await until(() => engine.core.running === 0, 'return() stopped the engine');

  const controller = new AbortController();
  const answer = plane.generate({ ...request, signal: controller.signal });
  await answer.next();
  controller.abort(new Error('enough'));
  await t.rejects(
    (async () => {
      for (;;) if ((await answer.next()).done === true) return;
    })(),
    { code: 'MILLRACE_CANCELED', cause: { message: 'enough' } },
  );
  await until(() => engine.core.running === 0, 'the signal stopped the engine');
  await t.rejects(plane.generate({ ...request, signal: controller.signal }).next(), EvictedError);

  const long = new AbortController();
  await collect(plane.generate({ ...request, maxTokens: 2, signal: long.signal }));
  t.same(getEventListeners(long.signal, 'abort'), []);
  const early = plane.generate({ ...request, signal: long.signal });
  await early.return?.();
  t.same(await early.next(), { done: true, value: undefined });
  t.equal(plane.health().requestsInFlight, 0);
});

t.test('several next() calls at once are answered in order', async t => {
  const { plane } = await planeOverMock(t);
  const answer = plane.generate({ model: MODEL, prompt: 'a', maxTokens: 3 });
  const results = await Promise.all(Array.from({ length: 8 }, () => answer.next()));
  const whole = await collect(plane.generate({ model: MODEL, prompt: 'a', maxTokens: 3 }));
  t.same(
    results.flatMap(result => (result.done === true ? [] : [result.value])),
    whole,
  );
});

t.test('an iterator that is never read costs nothing, one that is left is cut off', async t => {
  const clock = new ManualClock();
  const started = planeOverMock(t, {
    clock,
    limits: { streamBufferBytesMax: 4096, slowClientDeadlineMs: 500, totalDeadlineMs: 60_000 },
  });
  const { plane, engine } = await started;
  plane.generate({ model: MODEL, messages, maxTokens: 100 });
  t.equal(plane.health().requestsInFlight, 0, 'nothing is sent before the first next()');

  const left = plane.generate({ model: MODEL, messages, maxTokens: 20_000 });
  const first = await left.next();
  t.notOk(first.done);
  const seen: Delta[] = [];
  // The buffer is full and the engine is paused: only the clock can end this request.
  for (let turn = 0; turn < 200; turn++) await new Promise(resolve => setImmediate(resolve));
  t.equal(plane.health().requestsInFlight, 1);
  clock.advance(1000);
  await until(() => plane.health().requestsInFlight === 0, 'the request is cut');
  await until(() => engine.core.running === 0, 'the engine is let go');
  await t.rejects(
    (async () => {
      for await (const delta of { [Symbol.asyncIterator]: () => left }) seen.push(delta);
    })(),
    { code: 'MILLRACE_SLOW_CLIENT' },
  );
  t.same(seen, [], 'what was kept for it is dropped');
});

t.test('a reader that is slow but reads gets everything', async t => {
  const { plane } = await planeOverMock(t, { limits: { streamBufferBytesMax: 4096 } });
  const deltas: Delta[] = [];
  for await (const delta of plane.generate({ model: MODEL, messages, maxTokens: 2000 })) {
    deltas.push(delta);
    if (deltas.length % 64 === 0) await new Promise(resolve => setImmediate(resolve));
  }
  t.equal(deltas.flatMap(delta => delta.ids ?? []).length, 2000);
  t.ok(deltas.at(-1)?.usage);
  t.ok(new MillraceError('MILLRACE_CANCELED', 'x') instanceof EvictedError);
});
