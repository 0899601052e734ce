// Promise: OpenAI's own client works against the plane as against OpenAI, in both modes of answer and on both servers.
import OpenAI, {
  APIError,
  APIUserAbortError,
  BadRequestError,
  InternalServerError,
  NotFoundError,
} from 'openai';
import t, { type Test } from 'tap';
import { loadConfig } from '#millrace/config.js';
import { Plane } from '#millrace/plane/plane.js';
import { TOKENIZER_NAMES } from '#millrace/preprocess/tokenizers/load.js';
import { POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { type MockEngine, startMockEngine } from '#millrace/simulate/mock-engine.js';
import { until } from '../cli/serve-process.js';

const model = 'mock-model';
const messages = [{ role: 'user' as const, content: 'Count the mill wheels.' }];
const prompt = 'Once upon a time';
const names = { policies: POLICY_NAMES, tokenizers: TOKENIZER_NAMES };

interface Fixture {
  readonly plane: Plane;
  readonly engine: MockEngine;
  /** Its client does not retry, so that every error is seen. */
  readonly client: OpenAI;
}

async function startPlane(
  t: Test,
  options: Record<string, unknown>,
): Promise<{ plane: Plane; baseURL: string }> {
  const config = loadConfig(names, { options });
  const logger = createLogger({ level: 'silent', format: 'text' });
  const plane = await Plane.start({ config, clock: systemClock, logger, seed: 1 });
  const { port } = await plane.listen('127.0.0.1', 0);
  t.teardown(() => plane.close(0));
  return { plane, baseURL: `http://127.0.0.1:${port}/v1` };
}

async function start(t: Test, httpServer: string, tokenizer: string | null): Promise<Fixture> {
  const engine = await startMockEngine({ speed: 'unlimited' });
  t.teardown(() => engine.close());
  const { plane, baseURL } = await startPlane(t, { httpServer, tokenizer, workers: [engine.url] });
  await until('the worker is ready', () => plane.workers[0]!.state === 'ready');
  t.equal(plane.status.server, httpServer);
  t.same(plane.models, [{ name: model, tokenizer }]);
  return { plane, engine, client: new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 }) };
}

/** The error of a promise; fails the test when there is none, or not of that class. */
async function errorOf<E extends Error>(
  t: Test,
  kind: abstract new (...args: never[]) => E,
  promise: PromiseLike<unknown>,
): Promise<E> {
  const error: unknown = await promise.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  t.ok(error instanceof kind, `${kind.name}: ${error}`);
  return error as E;
}

async function chats(t: Test, client: OpenAI): Promise<string> {
  const whole = await client.chat.completions.create({ model, messages, max_tokens: 24 });
  const [choice] = whole.choices;
  t.match(whole, { object: 'chat.completion', model, id: /^chatcmpl-/ });
  t.match(choice, { index: 0, finish_reason: 'length', message: { role: 'assistant' } });
  const text = choice!.message.content!;
  t.not(text, '');
  t.equal(whole.usage!.completion_tokens, 24);
  t.equal(whole.usage!.total_tokens, whole.usage!.prompt_tokens + 24);

  const asked = { model, messages, max_tokens: 24, stream: true as const };
  const chunks = [];
  for await (const chunk of await client.chat.completions.create(asked)) chunks.push(chunk);
  t.equal(chunks.map(chunk => chunk.choices[0]?.delta.content ?? '').join(''), text, 'streamed as unary');
  t.equal(chunks[0]!.choices[0]!.delta.role, 'assistant');
  t.equal(new Set(chunks.map(chunk => chunk.id)).size, 1);
  t.ok(chunks.every(chunk => chunk.object === 'chat.completion.chunk' && chunk.model === model));
  t.same(chunks.filter(chunk => chunk.choices[0]?.finish_reason != null).length, 1);
  t.equal(chunks.at(-1)!.choices[0]!.finish_reason, 'length');
  t.notOk(
    chunks.some(chunk => chunk.usage != null),
    'no usage that was not asked for',
  );
  t.notMatch(JSON.stringify(chunks), 'token_ids', 'nothing that only the plane asked for');

  const withUsage = [];
  const stream_options = { include_usage: true };
  for await (const chunk of await client.chat.completions.create({ ...asked, stream_options }))
    withUsage.push(chunk);
  const last = withUsage.pop()!;
  t.same(last.choices, []);
  t.match(last.usage, {
    prompt_tokens: whole.usage!.prompt_tokens,
    completion_tokens: 24,
    total_tokens: whole.usage!.total_tokens,
  });
  t.ok(withUsage.every(chunk => chunk.usage == null));
  return text;
}

async function choicesAndStops(t: Test, client: OpenAI, text: string): Promise<void> {
  const two = await client.chat.completions.create({ model, messages, max_tokens: 24, n: 2 });
  t.same(two.choices.map(choice => choice.index).sort(), [0, 1]);
  t.equal(two.usage!.completion_tokens, 48);
  const streamed = ['', ''];
  const asked = { model, messages, max_tokens: 24, n: 2, stream: true as const };
  for await (const { choices } of await client.chat.completions.create(asked))
    for (const choice of choices) streamed[choice.index] += choice.delta.content ?? '';
  for (const choice of two.choices) t.equal(choice.message.content, streamed[choice.index]);

  const stop = text.slice(12, 18);
  const before = text.slice(0, text.indexOf(stop));
  const stopped = await client.chat.completions.create({ model, messages, max_tokens: 24, stop: [stop] });
  t.match(stopped.choices[0], { finish_reason: 'stop', message: { content: before } });
  const helper = client.chat.completions.stream({ model, messages, max_tokens: 24, stop });
  let heard = '';
  helper.on('content', delta => {
    heard += delta;
  });
  const final = await helper.finalChatCompletion();
  t.match(final.choices[0], { finish_reason: 'stop', message: { content: before, role: 'assistant' } });
  t.equal(heard, before, 'the stream helper heard the same');
}

async function completes(t: Test, client: OpenAI): Promise<string> {
  const whole = await client.completions.create({ model, prompt, max_tokens: 12 });
  t.match(whole, { object: 'text_completion', model, id: /^cmpl-/, usage: { completion_tokens: 12 } });
  const { text, finish_reason } = whole.choices[0]!;
  t.equal(finish_reason, 'length');
  let streamed = '';
  const finishes = [];
  const asked = {
    model,
    prompt,
    max_tokens: 12,
    stream: true as const,
    stream_options: { include_usage: true },
  };
  let usage: OpenAI.CompletionUsage | null | undefined;
  for await (const chunk of await client.completions.create(asked)) {
    streamed += chunk.choices[0]?.text ?? '';
    if (chunk.choices[0]?.finish_reason != null) finishes.push(chunk.choices[0].finish_reason);
    usage = chunk.usage;
  }
  t.equal(streamed, text);
  t.same(finishes, ['length']);
  t.match(usage, { prompt_tokens: whole.usage!.prompt_tokens, completion_tokens: 12 });
  return text;
}

async function refusals(t: Test, client: OpenAI, engine: MockEngine): Promise<void> {
  const { completions } = client.chat;
  const hot = await errorOf(t, BadRequestError, completions.create({ model, messages, temperature: 3 }));
  const invalid = { status: 400, code: 'MILLRACE_INVALID_REQUEST', type: 'invalid_request_error' };
  t.match(hot, { ...invalid, param: 'temperature', message: /temperature.* 0 to 2/ });
  const long = { model, messages, max_tokens: 1_000_000 };
  t.match(await errorOf(t, BadRequestError, completions.create(long)), { code: 'context_length_exceeded' });
  const stream = { model, messages, n: 0, stream: true as const };
  t.match(await errorOf(t, BadRequestError, completions.create(stream)), { ...invalid, param: 'n' });
  const other = await errorOf(t, NotFoundError, completions.create({ model: 'gpt-x', messages }));
  t.match(other, { status: 404, code: 'model_not_found', param: 'model' });
  t.match(await errorOf(t, NotFoundError, client.models.retrieve('gpt-x')), { code: 'model_not_found' });
  const route = client.embeddings.create({ model, input: 'x' });
  t.match(await errorOf(t, NotFoundError, route), { code: 'MILLRACE_NOT_FOUND' });

  engine.faults.next('error500');
  const failed = await errorOf(t, InternalServerError, completions.create({ model, messages }));
  t.match(failed, { status: 502, code: 'MILLRACE_WORKER_FAILED', type: 'worker_error' });
  engine.faults.next('dieAfter', 3);
  let chunks = 0;
  const broken = async (): Promise<void> => {
    for await (const chunk of await completions.create({ model, messages, max_tokens: 9, stream: true }))
      chunks += chunk.choices.length;
  };
  const died = await errorOf(t, APIError, broken());
  t.match(died, { code: /^MILLRACE_WORKER_/, type: 'worker_error' });
  t.ok(chunks > 0, 'the tokens before it arrived');
  t.match(engine.faults.fired, { error500: 1, dieAfter: 1 });
}

async function aborts(t: Test, client: OpenAI, { counters, core, faults }: MockEngine): Promise<void> {
  const before = counters.aborted;
  faults.next('stall', 2);
  const controller = new AbortController();
  const stream = await client.chat.completions.create(
    { model, messages, max_tokens: 50, stream: true },
    { signal: controller.signal },
  );
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content) controller.abort();
  t.ok(controller.signal.aborted, 'a token came, then the client left');
  await until('the engine saw it', () => counters.aborted === before + 1 && core.running === 0);

  faults.next('stall', 2);
  const unary = new AbortController();
  const answer = client.chat.completions.create(
    { model, messages, max_tokens: 50 },
    { signal: unary.signal },
  );
  await Promise.all([
    errorOf(t, APIUserAbortError, answer),
    until('the engine runs it', () => counters.running === 1).then(() => unary.abort()),
  ]);
  await until('the engine saw it', () => counters.aborted === before + 2 && core.running === 0);
}

async function lists(t: Test, client: OpenAI): Promise<void> {
  const listed = [];
  for await (const entry of client.models.list()) listed.push(entry);
  t.match(listed, [{ id: model, object: 'model', owned_by: 'millrace' }]);
  t.same(await client.models.retrieve(model), listed[0]);
}

const texts: string[] = [];
for (const server of ['uws', 'node'])
  for (const tokenizer of [null, 'chatml-cl100k'])
    t.test(`${server}, ${tokenizer === null ? 'relay' : 'token'} mode`, async t => {
      const { client, engine, plane } = await start(t, server, tokenizer);
      const text = await chats(t, client);
      texts.push(text + (await completes(t, client)));
      await choicesAndStops(t, client, text);
      await lists(t, client);
      await refusals(t, client, engine);
      await aborts(t, client, engine);
      await until('nothing is left', () => plane.health().requestsInFlight === 0);
      t.equal(engine.counters.running, 0);
    });

t.test('all modes and servers gave the same texts', async t => {
  t.equal(texts.length, 4);
  t.equal(new Set(texts).size, 1);
});

for (const httpServer of ['uws', 'node'])
  t.test(`${httpServer}: no worker is a 503, which the client asks again after retry-after-ms`, async t => {
    const engine = await startMockEngine();
    await engine.close();
    const { plane, baseURL } = await startPlane(t, { httpServer, workers: [engine.url] });
    const sentMs: number[] = [];
    let beforeAttempt = async (_attempt: number): Promise<void> => {};
    const client = new OpenAI({
      baseURL,
      apiKey: 'none',
      maxRetries: 1,
      fetch: async (url, init) => {
        sentMs.push(performance.now());
        await beforeAttempt(sentMs.length);
        return fetch(url, init);
      },
    });
    const asked = { model, messages, max_tokens: 2 };
    const error = await errorOf(t, InternalServerError, client.chat.completions.create(asked));
    t.match(error, { status: 503, code: 'MILLRACE_NO_WORKER', type: 'service_unavailable' });
    t.equal(error.headers?.get('retry-after-ms'), '1000');
    t.equal(sentMs.length, 2, 'the first attempt and one retry');
    // Its own back-off is at most 500 ms; a timer may be early by a fraction of a millisecond.
    t.ok(sentMs[1]! - sentMs[0]! > 990, 'it waited as long as it was told');

    sentMs.length = 0;
    beforeAttempt = async attempt => {
      if (attempt !== 2) return;
      const back = await startMockEngine({ port: engine.port, speed: 'unlimited' });
      t.teardown(() => back.close());
      await until('the worker is ready', () => plane.workers[0]!.state === 'ready');
    };
    const answer = await client.chat.completions.create(asked);
    t.equal(answer.usage!.completion_tokens, 2);
    t.equal(sentMs.length, 2, 'refused, then answered');
  });
