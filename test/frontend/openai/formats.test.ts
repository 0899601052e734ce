// Promise: what we format by hand is what JSON.stringify would make, the openai package reads it as it reads OpenAI's,
// and errors arrive there with status, code and param.
import OpenAI from 'openai';
import t from 'tap';
import { RejectedError } from '#millrace/errors.js';
import type { HttpExchange } from '#millrace/frontend/http/http-exchange.js';
import { errorFrames, errorResponse } from '#millrace/frontend/openai/error-response.js';
import { quoteJson } from '#millrace/frontend/openai/json-text.js';
import { modelBody, modelsBody } from '#millrace/frontend/openai/models-response.js';
import {
  createStreamFormat,
  EVENT_STREAM_HEADERS,
  KEEP_ALIVE_FRAME,
} from '#millrace/frontend/openai/stream-format.js';
import { createUnaryFormat } from '#millrace/frontend/openai/unary-format.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { serve } from '../http/raw-client.js';

const SEED = Number(process.env.SEED ?? Date.now() % 1e9);
const USAGE = { promptTokens: 7, completionTokens: 3, cachedTokens: 4 };
const USAGE_JSON = {
  prompt_tokens: 7,
  completion_tokens: 3,
  total_tokens: 10,
  prompt_tokens_details: { cached_tokens: 4 },
};
const JSON_HEADERS = [['content-type', 'application/json']] as const;
const common = { id: 'x-1', created: 1700, model: 'a "model"' };

/** The objects of a run of SSE frames; a frame that is not one line of data fails. */
function objects(frames: string): unknown[] {
  return frames
    .split('\n\n')
    .slice(0, -1)
    .map(frame => {
      if (!/^data: [^\n]+$/.test(frame)) throw new Error(`not a data frame: ${frame}`);
      return frame === 'data: [DONE]' ? '[DONE]' : JSON.parse(frame.slice(6));
    });
}

t.test('quoteJson equals JSON.stringify', async t => {
  t.comment(`SEED=${SEED}`);
  const random = seededRandom(SEED);
  const units = [
    'a',
    'é',
    '漢',
    '😀',
    '"',
    '\\',
    '\n',
    '\0',
    '\x1f',
    '\x7f',
    '\u2028',
    '\ud800',
    '\udfff',
    '\uffff',
    ' ',
  ];
  let wrong = 0;
  for (let i = 0; i < 20_000; i++) {
    let text = '';
    for (let n = randomInteger(random, 8); n > 0; n--) text += units[randomInteger(random, units.length)];
    if (quoteJson(text) !== JSON.stringify(text)) wrong++;
  }
  t.equal(wrong, 0);
});

t.test('chat chunks', async t => {
  const format = createStreamFormat({ ...common, api: 'chat', includeUsage: true, continuousUsage: false });
  const chunk = (choices: unknown[], usage: unknown) => ({
    id: 'x-1',
    object: 'chat.completion.chunk',
    created: 1700,
    model: 'a "model"',
    choices,
    usage,
  });
  const choice = (index: number, delta: object, finish: string | null, more: object = {}) => [
    { index, delta, logprobs: null, finish_reason: finish, ...more },
  ];
  const frames = [
    format.begin(0),
    format.text(0, 'a"\n'),
    format.text(11, 'b', USAGE),
    format.finish(0, 'length'),
    format.finish(11, 'stop', 'END'),
    format.usage(USAGE),
    format.done,
  ];
  t.same(objects(frames.join('')), [
    chunk(choice(0, { role: 'assistant', content: '' }, null), null),
    chunk(choice(0, { content: 'a"\n' }, null), null),
    chunk(choice(11, { content: 'b' }, null), null),
    chunk(choice(0, {}, 'length'), null),
    chunk(choice(11, {}, 'stop', { stop_reason: 'END' }), null),
    chunk([], USAGE_JSON),
    '[DONE]',
  ]);
});

t.test('completion chunks, no usage or continuous usage', async t => {
  const quiet = createStreamFormat({
    ...common,
    api: 'completions',
    includeUsage: false,
    continuousUsage: false,
  });
  const object = { ...common, object: 'text_completion' };
  const choice = { index: 0, text: 'hi', logprobs: null, finish_reason: null };
  t.equal(quiet.begin(0), '');
  t.same(objects(quiet.text(0, 'hi')), [{ ...object, choices: [choice] }]);
  const loud = createStreamFormat({
    ...common,
    api: 'completions',
    includeUsage: true,
    continuousUsage: true,
  });
  t.same(objects(loud.text(0, 'hi', USAGE)), [{ ...object, choices: [choice], usage: USAGE_JSON }]);
  const last = { ...choice, text: '', finish_reason: 'stop', stop_reason: 42 };
  const bare = { prompt_tokens: 7, completion_tokens: 3, total_tokens: 10 };
  t.same(objects(loud.finish(0, 'stop', 42, { ...USAGE, cachedTokens: null })), [
    { ...object, choices: [last], usage: bare },
  ]);
});

function answer(exchange: HttpExchange): void {
  const api = exchange.path.startsWith('/v1/chat') ? 'chat' : 'completions';
  exchange.readBody(
    10_000,
    5000,
    chunks => {
      const request = chunks.length === 0 ? {} : JSON.parse(Buffer.concat(chunks).toString());
      if (exchange.path === '/v1/models/m') {
        exchange.respond(200, JSON_HEADERS, modelBody({ id: 'm', created: 5, contextLength: null }));
      } else if (exchange.path === '/v1/models') {
        const listed = [{ id: 'm', created: 5, contextLength: 8192 }];
        exchange.respond(200, JSON_HEADERS, modelsBody(listed));
      } else if (request.model === 'busy') {
        const error = new RejectedError('MILLRACE_OVERLOADED', 'busy', {
          retryAfterMs: 1500,
          param: 'model',
        });
        const { status, headers, body } = errorResponse(error.code, error.message, error);
        exchange.respond(status, headers, body);
      } else if (request.stream) {
        exchange.start(200, EVENT_STREAM_HEADERS);
        const format = createStreamFormat({ ...common, api, includeUsage: true, continuousUsage: false });
        exchange.write(format.begin(0) + KEEP_ALIVE_FRAME + format.text(0, 'hé"') + format.text(0, '😀'));
        if (request.model === 'dies') exchange.write(errorFrames('MILLRACE_WORKER_DIED', 'it died'));
        else exchange.write(format.finish(0, 'stop') + format.usage(USAGE) + format.done);
        exchange.end();
      } else {
        const format = createUnaryFormat({ ...common, api, choices: 2, logprobs: false });
        format.text(0, 'hé"');
        format.text(1, 'b');
        format.text(0, '😀');
        format.finish(0, 'stop', null);
        format.finish(1, 'length');
        exchange.respond(200, JSON_HEADERS, format.body(USAGE));
      }
    },
    fault => exchange.respond(400, [], fault),
  );
}

for (const kind of ['uws', 'node'] as const) {
  t.test(`${kind}: judged by the openai package`, { timeout: 20_000 }, async t => {
    const { port } = await serve(t, kind, answer);
    const client = new OpenAI({ apiKey: 'k', baseURL: `http://127.0.0.1:${port}/v1`, maxRetries: 0 });
    const messages = [{ role: 'user' as const, content: 'hi' }];

    const chat = await client.chat.completions.create({ model: 'm', messages });
    t.same(
      chat.choices.map(({ index, message, finish_reason }) => [index, message.content, finish_reason]),
      [
        [0, 'hé"😀', 'stop'],
        [1, 'b', 'length'],
      ],
    );
    t.same(chat.usage, USAGE_JSON);
    const completion = await client.completions.create({ model: 'm', prompt: 'hi' });
    t.equal(completion.choices[0]?.text, 'hé"😀');

    const runner = client.chat.completions.stream({
      model: 'm',
      messages,
      stream_options: { include_usage: true },
    });
    const folded = await runner.finalChatCompletion();
    t.equal(folded.choices[0]?.message.content, 'hé"😀');
    t.equal(folded.choices[0]?.message.role, 'assistant');
    t.same(folded.usage, USAGE_JSON);
    let text = '';
    for await (const part of await client.completions.create({ model: 'm', prompt: 'hi', stream: true })) {
      text += part.choices[0]?.text ?? '';
    }
    t.equal(text, 'hé"😀');

    const died = client.chat.completions.create({ model: 'dies', messages, stream: true });
    await t.rejects(
      (async () => {
        for await (const part of await died) t.ok(part.id);
      })(),
      { code: 'MILLRACE_WORKER_DIED', message: /it died/ },
    );
    const busy = await client.chat.completions.create({ model: 'busy', messages }).catch(error => error);
    t.ok(busy instanceof OpenAI.APIError);
    t.match(busy, { status: 529, code: 'MILLRACE_OVERLOADED', param: 'model', type: 'overloaded_error' });
    t.equal(busy.headers.get('retry-after'), '2');
    t.equal(busy.headers.get('retry-after-ms'), '1500');

    const { data } = await client.models.list();
    t.same(data, [
      {
        id: 'm',
        object: 'model',
        created: 5,
        owned_by: 'millrace',
        max_model_len: 8192,
        context_window: 8192,
      },
    ]);
    t.same(await client.models.retrieve('m'), { id: 'm', object: 'model', created: 5, owned_by: 'millrace' });
  });
}
