// A model folder serves token mode where the worker makes the same ids, and steps aside, with one line, where it does not.

import t from 'tap';
import { loadConfig } from '#millrace/config.js';
import type { Poster, WorkerCapabilities } from '#millrace/engines/contract.js';
import { createVllmAdapter } from '#millrace/engines/vllm.js';
import { ConfigError } from '#millrace/errors.js';
import { TextModels } from '#millrace/plane/text-models.js';
import { TOKENIZER_NAMES } from '#millrace/preprocess/tokenizers/load.js';
import { POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import {
  CHAT,
  COMPLETIONS,
  errorOf,
  jsonOf,
  MOCK_MODEL,
  type Reply,
  startPlane,
  streamedText,
  until,
} from '../plane-fixture.js';
import {
  byteLevelJson,
  CHATML_TEMPLATE,
  sentencePieceJson,
  writeFolder,
} from '../preprocess/model-folder-files.js';

const root = t.testdir();
/** ChatML that takes no message of a role of its own: a refusal shows that it was our template that rendered. */
const TEMPLATE = `{% if messages[0].role == 'alien' %}{{ raise_exception('no aliens') }}{% endif %}${CHATML_TEMPLATE}`;
const MOCKS_OWN = writeFolder(root, 'mock', {
  'tokenizer.json': await byteLevelJson(),
  'chat_template.jinja': TEMPLATE,
  'config.json': '{"max_position_embeddings": 8192, "x": NaN}',
});
const FOREIGN = writeFolder(root, 'foreign', {
  'tokenizer.json': await byteLevelJson(3000),
  'chat_template.jinja': TEMPLATE,
});
const WORD_PIECE = writeFolder(root, 'pieces', {
  'tokenizer.json': { ...sentencePieceJson('prepend'), decoder: { type: 'WordPiece', prefix: '##' } },
});

const chat = (content: string, more: object = {}) => ({
  model: MOCK_MODEL,
  messages: [{ role: 'user', content }],
  max_tokens: 12,
  temperature: 0,
  ...more,
});
const ALIEN = { ...chat(''), messages: [{ role: 'alien', content: 'hi' }] };
const textOf = (reply: Reply): string => {
  const { message, text } = jsonOf(reply).choices[0];
  return message?.content ?? text;
};
const aboutIds = (log: readonly string[]): string[] => log.filter(line => line.includes('token ids'));

async function direct(url: string, path: string, body: object): Promise<string> {
  const response = await fetch(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  const { choices } = (await response.json()) as {
    choices: { text?: string; message?: { content: string } }[];
  };
  return choices[0]!.message?.content ?? choices[0]!.text!;
}

t.test('the folder of the worker’s own model: token mode', async t => {
  const plane = await startPlane(t, { mocks: [{}], modelPath: MOCKS_OWN });
  const { url } = plane.mocks[0]!;
  t.same(aboutIds(plane.log), []);
  t.equal(plane.log.filter(line => line.includes('model folder is loaded')).length, 1);
  t.same(plane.plane.models, [{ name: MOCK_MODEL, tokenizer: MOCKS_OWN }]);

  await plane.step(t, 'many at once, each with the answer that the worker gives it', async t => {
    const contents = Array.from(
      { length: 40 },
      (_, at) => `Question ${at}: ${'日本 naïve 12345 '.repeat(at)}?`,
    );
    const replies = await Promise.all(
      contents.map((content, at) => plane.post(CHAT, chat(content, { stream: at % 2 === 1 }))),
    );
    const expected = await Promise.all(contents.map(content => direct(url, CHAT, chat(content))));
    t.same(
      replies.map((reply, at) => (at % 2 === 1 ? streamedText(reply) : textOf(reply))),
      expected,
    );
  });
  await plane.step(t, 'a completion by text and by ids', async t => {
    const body = { model: MOCK_MODEL, prompt: 'Once upon a time', max_tokens: 9 };
    const byText = await plane.post(COMPLETIONS, body);
    t.equal(textOf(byText), await direct(url, COMPLETIONS, body));
    const outside = await plane.post(COMPLETIONS, { ...body, prompt: [1, 100_300] });
    t.match(errorOf(outside), { status: 400, param: 'prompt', message: /token id 100300/ });
  });
  await plane.step(t, 'a template that raises: 400 with its reason', async t => {
    for (const stream of [false, true]) {
      const refused = errorOf(await plane.post(CHAT, { ...ALIEN, stream }));
      t.match(refused, { status: 400, code: 'MILLRACE_INVALID_REQUEST', param: 'messages' });
      t.equal(refused.message, "the model's chat template refuses these messages: no aliens");
    }
  });
});

t.test('a plane that closes while ids are being made', async t => {
  const plane = await startPlane(t, { mocks: [{}], modelPath: MOCKS_OWN });
  const content = 'naïve 日本 12345 '.repeat(300);
  const replies = Array.from({ length: 60 }, () => plane.post(CHAT, chat(content)));
  await until(() => plane.plane.socket.requestsInFlight > 0, 'the plane has requests');
  await plane.plane.close(0);
  const statuses = (await Promise.allSettled(replies)).map(reply =>
    reply.status === 'fulfilled' ? reply.value.status : 'refused',
  );
  t.ok(statuses.includes(503), 'some were cut');
  t.same(
    statuses.filter(status => status !== 503 && status !== 200 && status !== 'refused'),
    [],
  );
  t.same(plane.plane.socket.requestsInFlight, 0);
});

t.test('the folder of another model: relay mode, and one line for each worker', async t => {
  const plane = await startPlane(t, { mocks: [{}, {}], modelPath: FOREIGN });
  const lines = aboutIds(plane.log);
  t.equal(lines.length, 2);
  for (const mock of plane.mocks) {
    t.equal(lines.filter(line => line.includes(mock.url) && line.includes('other token ids')).length, 1);
  }
  const reply = await plane.post(CHAT, chat('Hello'));
  t.equal(textOf(reply), await direct(plane.mocks[0]!.url, CHAT, chat('Hello')));
  t.equal((await plane.post(CHAT, ALIEN)).status, 200, 'the template of the folder has no say');
  await plane.expectIdle(t);
});

t.test('a decoder that cannot be applied token by token: relay mode, and one line', async t => {
  const plane = await startPlane(t, { mocks: [{}], modelPath: WORD_PIECE });
  t.equal(plane.log.filter(line => line.includes('has a decoder of type WordPiece')).length, 1);
  t.same(plane.plane.models, [{ name: MOCK_MODEL, tokenizer: null }]);
  t.equal(
    textOf(await plane.post(CHAT, chat('Hello'))),
    await direct(plane.mocks[0]!.url, CHAT, chat('Hello')),
  );
});

async function openModels(options: Record<string, unknown>) {
  const config = loadConfig({ policies: POLICY_NAMES, tokenizers: TOKENIZER_NAMES }, { options });
  const log: string[] = [];
  const logger = createLogger({ level: 'info', format: 'text', write: line => log.push(line) });
  return { models: await TextModels.open(config, systemClock, logger), log };
}

t.test('settings', async t => {
  const wrong: [options: Record<string, unknown>, message: RegExp][] = [
    [{ modelPath: FOREIGN, tokenizer: 'chatml-cl100k' }, /tokenizer and modelPath are both set/],
    [
      { models: { m: { path: FOREIGN, tokenizer: 'chatml-cl100k' } } },
      /models\.m has both tokenizer and path/,
    ],
    [{ models: { m: { path: '' } } }, /models\.m\.path is ""/],
    [{ modelPath: `${root}/none` }, /modelPath \S+none: there is no such folder/],
    [{ models: { m: { path: root } } }, /models\.m\.path \S+: tokenizer\.json: is missing/],
  ];
  for (const [options, message] of wrong) {
    await t.rejects(openModels(options), ConfigError, String(message));
    await t.rejects(openModels(options), { message });
  }
  const { models } = await openModels({
    modelPath: FOREIGN,
    models: {
      own: { path: MOCKS_OWN },
      built: { tokenizer: 'chatml-cl100k' },
      none: {},
      pieces: { path: WORD_PIECE },
    },
  });
  t.same(
    ['own', 'built', 'none', 'other', 'pieces', 'constructor'].map(name => models.keyOf(name)),
    [MOCKS_OWN, 'chatml-cl100k', FOREIGN, FOREIGN, null, FOREIGN],
  );
  t.equal(models.contextLength('own'), 8192);
  t.equal(models.contextLength('built'), null);
  t.equal(models.folders.length, 2);
});

t.test('what is said of a worker’s ids is said once', async t => {
  const { models, log } = await openModels({ models: { m: { tokenizer: 'chatml-cl100k' } } });
  const facts = { models: ['m', 'free'].map(id => ({ id, contextLength: 9 })), returnsTokenIds: true };
  const asked: object[] = [];
  const find = (status: number, body: object, changes: object = {}) => {
    const post: Poster = async (_path, json) => {
      asked.push(JSON.parse(json));
      return { status, body: JSON.stringify(body) };
    };
    const all = { ...facts, ...changes } as unknown as WorkerCapabilities;
    return models.findForeignIds('http://w:1', all, createVllmAdapter(), post);
  };
  for (let again = 0; again < 2; again++) t.same(await find(200, { tokens: [1, 2] }), ['m']);
  t.equal(log.splice(0).length, 1);
  t.match(asked[0], { model: 'm', prompt: /naïve/ });
  for (let again = 0; again < 2; again++) t.same(await find(404, {}), [], 'nothing to compare');
  t.match(asked.at(-1), {
    model: 'm',
    messages: [{ role: 'user' }, { role: 'assistant' }, { role: 'user' }],
  });
  t.match(log.splice(0), [/unchecked/]);
  await t.rejects(find(200, { tokens: 'x' }), { code: 'MILLRACE_WORKER_PROTOCOL' });
  await t.rejects(find(200, { tokens: [-1] }), { code: 'MILLRACE_WORKER_PROTOCOL' });
  const before = asked.length;
  t.same(await find(200, { tokens: [] }, { returnsTokenIds: false }), [], 'no token mode, nothing to ask');
  t.equal(asked.length, before);
});
