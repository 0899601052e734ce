// A model folder that is wrong is named at start, with its file; one that says something is read as its makers meant it.

import { mkdirSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { ConfigError } from '#millrace/errors.js';
import { loadFolderModel } from '#millrace/preprocess/model-folder/folder-model.js';
import { type ModelFolder, openModelFolder } from '#millrace/preprocess/model-folder/model-folder.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { CHATML_TEMPLATE, sentencePieceJson, writeFolder } from './model-folder-files.js';

const root = t.testdir();
const TOKENIZER = sentencePieceJson('prepend') as Record<string, unknown>;
let folders = 0;

const write = (files: Readonly<Record<string, unknown>>): string =>
  writeFolder(root, `folder${folders++}`, { 'tokenizer.json': TOKENIZER, ...files });

function open(files: Readonly<Record<string, unknown>>): ModelFolder {
  const opened = openModelFolder(write(files), 'modelPath');
  if ('unsupported' in opened) throw new Error(opened.unsupported);
  return opened.folder;
}

t.test('files that are wrong or missing', async t => {
  const half = write({});
  const size = JSON.stringify(TOKENIZER).length;
  truncateSync(join(half, 'tokenizer.json'), size / 2);
  const none = join(root, 'none');
  const empty = join(root, 'empty');
  mkdirSync(empty);
  const folderInstead = join(root, 'odd');
  mkdirSync(join(folderInstead, 'tokenizer.json'), { recursive: true });
  const cases: [path: string, message: RegExp][] = [
    [half, /^models\.m\.path \S+: tokenizer\.json: is not valid JSON/],
    [none, /^models\.m\.path \S+none: there is no such folder/],
    [join(half, 'tokenizer.json'), /there is no such folder/],
    [empty, /empty: tokenizer\.json: is missing/],
    [folderInstead, /odd: tokenizer\.json: EISDIR/],
    [write({ 'tokenizer.json': '[]' }), /tokenizer\.json: must hold a JSON object/],
    [write({ 'tokenizer.json': {} }), /tokenizer\.json: model\.vocab is missing/],
    [write({ 'tokenizer.json': { ...TOKENIZER, added_tokens: [{}] } }), /added_tokens\[0\] is not/],
    [write({ 'tokenizer.json': { model: { vocab: { a: -1 } } } }), /gives "a" an id/],
    [write({ 'config.json': '{' }), /config\.json: is not valid JSON/],
    [write({ 'generation_config.json': '[1]' }), /generation_config\.json: must hold a JSON object/],
    [
      write({ 'tokenizer_config.json': { chat_template: [{ name: 'rag', template: '' }] } }),
      /named "default"/,
    ],
    [
      write({ 'chat_template.jinja': 'x'.repeat(1_048_577) }),
      /chat_template\.jinja: has 1048577 bytes; allowed: up to/,
    ],
  ];
  for (const [path, message] of cases) {
    t.throws(() => openModelFolder(path, 'models.m.path'), ConfigError, String(message));
    t.throws(() => openModelFolder(path, 'models.m.path'), { message });
  }
});

t.test('what only the libraries find', async t => {
  const { model } = TOKENIZER as { model: Record<string, unknown> };
  const cases: [files: Record<string, unknown>, message: RegExp][] = [
    [{ 'tokenizer.json': { ...TOKENIZER, model: { ...model, type: 'Nope' } } }, /tokenizer\.json: /],
    [
      { 'chat_template.jinja': '{{ messages | shout }}' },
      /modelPath \S+: chat template: it uses the unknown filter "shout"/,
    ],
    [
      {
        'tokenizer.json': {
          ...TOKENIZER,
          added_tokens: [
            {
              id: 9999,
              content: '<far>',
              special: true,
              single_word: false,
              lstrip: false,
              rstrip: false,
              normalized: false,
            },
          ],
        },
      },
      /added token "<far>" has the id 9999/,
    ],
  ];
  for (const [files, message] of cases) {
    const folder = open(files);
    await t.rejects(loadFolderModel(folder, systemClock, 'native'), ConfigError, String(message));
    await t.rejects(loadFolderModel(folder, systemClock, 'native'), { message });
  }
});

t.test('decoders that cannot be applied token by token are told', async t => {
  const cases: [decoder: unknown, reason: string][] = [
    [{ type: 'WordPiece', prefix: '##', cleanup: true }, 'has a decoder of type WordPiece'],
    [null, 'has no decoder'],
    [{ type: 'Sequence', decoders: [{ type: 'CTC' }] }, 'has a decoder of type CTC'],
    [
      { type: 'Replace', pattern: { Regex: 'a' }, content: '' },
      'has a Replace decoder with a regular expression',
    ],
    [
      { type: 'Strip', content: ' ', start: 1, stop: 2 },
      'has a Strip decoder other than of one leading blank',
    ],
  ];
  for (const [decoder, unsupported] of cases) {
    const path = write({ 'tokenizer.json': { ...TOKENIZER, decoder } });
    t.same(openModelFolder(path, 'modelPath'), { unsupported });
  }
});

t.test('the chat template: a file of its own wins over the one in the tokenizer’s', async t => {
  const inConfig = { 'tokenizer_config.json': { chat_template: 'in config' } };
  t.equal(open({}).templates, null);
  t.same(open(inConfig).templates, { default: 'in config', toolUse: null });
  const json = { ...inConfig, 'chat_template.json': { chat_template: 'in json' } };
  t.same(open(json).templates, { default: 'in json', toolUse: null });
  t.same(open({ ...json, 'chat_template.jinja': 'own' }).templates, { default: 'own', toolUse: null });
  const named = [
    { name: 'tool_use', template: 'with tools' },
    { name: 'default', template: 'plain' },
  ];
  t.same(open({ 'tokenizer_config.json': { chat_template: named } }).templates, {
    default: 'plain',
    toolUse: 'with tools',
  });
});

t.test('context length and end-of-sequence ids', async t => {
  t.equal(open({}).contextLength, null);
  const long = { 'tokenizer_config.json': { model_max_length: 1e30 } };
  t.equal(open(long).contextLength, null, 'Python’s way to say that there is none');
  t.equal(open({ 'tokenizer_config.json': { model_max_length: 512 } }).contextLength, 512);
  const text = { text_config: { max_position_embeddings: 1024, eos_token_id: 7 } };
  t.equal(open({ ...long, 'config.json': text }).contextLength, 1024);
  const nan = '{"max_position_embeddings": 2048, "rope_factor": NaN, "eos_token_id": [2, 9]}';
  const said = open({ 'config.json': nan, 'tokenizer_config.json': { eos_token: { content: '[/INST]' } } });
  t.equal(said.contextLength, 2048);
  t.same([...said.eosIds], [4, 2, 9]);
  t.same([...open({ 'generation_config.json': { eos_token_id: 3 }, 'config.json': text }).eosIds], [3, 7]);

  const ending = { 'chat_template.jinja': '{% for m in messages %}{{ m.content }}</s>{% endfor %}' };
  const learned = await loadFolderModel(open(ending), systemClock);
  t.same([...learned.eosIds], [2], 'what the template ends a turn with');
  t.equal(learned.rendersChat, true);
  const told = open({ ...ending, 'generation_config.json': { eos_token_id: [1] } });
  t.same([...(await loadFolderModel(told, systemClock)).eosIds], [1], 'unless generation_config.json says');
});

t.test('a completion has the model’s frame, a chat that of its template', async t => {
  const variables = { bos_token: '<s>', eos_token: { content: '</s>' } };
  const folder = open({
    'tokenizer_config.json': { ...variables, chat_template: `{{ bos_token }}${CHATML_TEMPLATE}` },
  });
  for (const kind of ['native', 'javascript'] as const) {
    const model = await loadFolderModel(folder, systemClock, kind);
    const text = await model.encodePrompt('Hello');
    t.equal(text[0], 1);
    const chat = await model.encodeChat([{ role: 'user', text: 'Hello', hasMedia: false }]);
    t.same([...chat].filter(id => id === 1).length, 1, 'one begin of sequence');
  }
});
