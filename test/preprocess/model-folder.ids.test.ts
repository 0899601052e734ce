// Both libraries make the same ids of a tokenizer.json, and the detokenizer gives the text that the library decodes.

import t from 'tap';
import { createDetokenizerTable, StreamDetokenizer, startsText } from '#millrace/preprocess/detokenizer.js';
import { loadFolderModel } from '#millrace/preprocess/model-folder/folder-model.js';
import { openModelFolder } from '#millrace/preprocess/model-folder/model-folder.js';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { randomInteger } from '#millrace/runtime/random.js';
import { byteLevelJson, CHATML_TEMPLATE, sentencePieceJson, writeFolder } from './model-folder-files.js';
import { randomText, testRandom } from './random-text.js';

const CASES = 400;

interface Library {
  encode(text: string, pair: null, options: { addSpecialTokens: boolean }): Promise<{ getIds(): number[] }>;
  decode(ids: readonly number[], skipSpecialTokens: boolean): Promise<string>;
}
const { Tokenizer: Native } = (await import('tokenizers')).default as unknown as {
  Tokenizer: { fromString(json: string): Library };
};

const root = t.testdir();
const FAMILIES: Readonly<Record<string, object>> = {
  'byte-level, a part of cl100k': await byteLevelJson(3000),
  'prepend and byte fallback': sentencePieceJson('prepend'),
  'metaspace and byte fallback': sentencePieceJson('metaspace'),
};
const SPECIALS = ['<s>', '</s>', '[INST]', '<|im_start|>', '<|im_end|>', ' ', '  Hello', 'the cat'];

async function open(name: string, json: object) {
  const opened = openModelFolder(
    writeFolder(root, name.replaceAll(/\W/g, ''), { 'tokenizer.json': json }),
    'here',
  );
  if ('unsupported' in opened) throw new Error(opened.unsupported);
  const native = await loadFolderModel(opened.folder, systemClock, 'native');
  const script = await loadFolderModel(opened.folder, systemClock, 'javascript');
  return { ...opened, native, script, library: Native.fromString(JSON.stringify(json)) };
}

for (const [name, json] of Object.entries(FAMILIES)) {
  t.test(name, async t => {
    const { tokens, native, script, library } = await open(name, json);
    t.equal(native.encoder, 'native');
    t.equal(script.encoder, 'javascript');
    const table = createDetokenizerTable(tokens);
    const { seed, random } = testRandom();
    const visible = Array.from({ length: tokens.vocabularySize }, (_, id) => id).filter(
      id => tokens.bytesOf(id) !== undefined,
    );
    let decoded = 0;
    for (let run = 0; run < CASES; run++) {
      const pick = SPECIALS[randomInteger(random, SPECIALS.length)]!;
      const text = wellFormed(randomText(random).slice(0, 200)) + pick;
      const ids = await native.encodePrompt(text);
      if (!same(ids, await script.encodePrompt(text))) {
        t.same([...ids], [...(await script.encodePrompt(text))], `SEED=${seed} ${JSON.stringify(text)}`);
        return;
      }
      const random_ = Array.from({ length: 12 }, () => visible[randomInteger(random, visible.length)]!);
      for (const list of [[...ids], random_]) {
        for (const skip of [true, false]) {
          const theirs = await library.decode(list, skip);
          // Of broken UTF-8 each decoder makes marks of its own number; an answer ends with such text only when it is cut.
          if (theirs.includes('\ufffd')) continue;
          decoded++;
          const stream = new StreamDetokenizer(table, skip, true);
          const mine = stream.push(Uint32Array.from(list), 0, list.length) + stream.end();
          if (mine !== theirs) {
            t.equal(mine, theirs, `SEED=${seed} skip ${skip} ${list}`);
            return;
          }
        }
      }
    }
    t.ok(decoded > CASES, `${CASES} texts, ${decoded} decoded`);
  });
}

/** Lone surrogates have no UTF-8; JSON bodies cannot carry them either. */
const wellFormed = (text: string): string => Buffer.from(text).toString();

const same = (left: Uint32Array, right: Uint32Array): boolean =>
  left.length === right.length && left.every((id, at) => id === right[at]);

t.test('an answer keeps the blank that begins it, unless nothing visible is before it', async t => {
  const { tokens, native, library } = await open('prepend', FAMILIES['prepend and byte fallback']!);
  const table = createDetokenizerTable(tokens);
  const prompt = await native.encodePrompt('the cat');
  const answer = Uint32Array.from((await native.encodePrompt('sat on')).slice(1));
  const whole = await library.decode([...prompt, ...answer], true);
  for (const [before, expected] of [
    [prompt, whole.slice('the cat'.length)],
    [Uint32Array.of(1), 'sat on'],
  ] as const) {
    const stream = new StreamDetokenizer(table, true, startsText(table, before));
    t.equal(stream.push(answer, 0, answer.length), expected);
  }
  t.equal(whole, 'the cat sat on');
});

t.test('the whole of cl100k as a folder has the ids of the built-in tokenizer', async t => {
  const path = writeFolder(root, 'cl100k', {
    'tokenizer.json': await byteLevelJson(),
    'chat_template.jinja': CHATML_TEMPLATE,
  });
  const opened = openModelFolder(path, 'here');
  if ('unsupported' in opened) throw new Error(opened.unsupported);
  const builtIn = await loadTokenizer('chatml-cl100k');
  const { seed, random } = testRandom();
  for (const kind of ['native', 'javascript'] as const) {
    const model = await loadFolderModel(opened.folder, systemClock, kind);
    let wrong: string | null = null;
    for (let run = 0; run < CASES && wrong === null; run++) {
      const text = wellFormed(randomText(random));
      // What spells a special token is one to the engine of a folder, and plain text to the built-in.
      if (!same(await model.encodePrompt(text), builtIn.encode(text)) && !/<\|\w+\|>/.test(text))
        wrong = text;
    }
    t.equal(wrong, null, `${kind} SEED=${seed}`);
    const injected = await model.encodePrompt('a<|im_end|>');
    t.equal(
      injected.at(-1),
      builtIn.specialId('<|im_end|>'),
      'specials in a text are parsed, as the engine does',
    );
    t.same(
      [...model.eosIds],
      [builtIn.specialId('<|im_end|>')],
      'the end of a turn, learned from the template',
    );
  }
});
