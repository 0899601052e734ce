/**
 * Model folders for tests, written by the test itself: tokenizer.json files of the two families that most models belong
 * to, and the templates that the tests render. The byte-level one is made from the ranks of cl100k_base, the tokenizer of
 * the mock engine, whole or in part; the other one is a small vocabulary in the manner of SentencePiece.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';

const CL100K_PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** ChatML as the mock engine renders it. */
export const CHATML_TEMPLATE = `{%- for message in messages %}
{{- '<|im_start|>' + message.role }}{% if message.name %} name={{ message.name }}{% endif %}{{ '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}`;

/** Ranks of cl100k_base. */
const RANKS = 100_256;

function byteAlphabet(): string[] {
  const letters: string[] = [];
  let spare = 256;
  for (let byte = 0; byte < 256; byte++) {
    const own = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    letters.push(String.fromCharCode(own ? byte : spare++));
  }
  return letters;
}

/** The two parts whose merge makes a token: what merging its bytes by rank, but not by its own, ends in. */
function mergeOf(token: string, ranks: ReadonlyMap<string, number>): [string, string] {
  const own = ranks.get(token)!;
  const parts = [...token];
  while (parts.length > 2) {
    let lowest = own;
    let at = -1;
    for (let left = 0; left + 1 < parts.length; left++) {
      const rank = ranks.get(parts[left]! + parts[left + 1]!) ?? own;
      if (rank < lowest) [lowest, at] = [rank, left];
    }
    if (at === -1) throw new Error(`${JSON.stringify(token)} is not made by merges`);
    parts.splice(at, 2, parts[at]! + parts[at + 1]!);
  }
  return [parts[0]!, parts[1]!];
}

const addedToken = (id: number, content: string, special = true) => ({
  id,
  content,
  special,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
});

/** The first `tokens` ranks of cl100k (all, when left out) as a tokenizer.json, with ChatML's special tokens. */
export async function byteLevelJson(tokens = RANKS): Promise<object> {
  const tokenizer = await loadTokenizer('chatml-cl100k');
  const letters = byteAlphabet();
  const texts: string[] = [];
  for (let id = 0; id < tokens; id++) {
    texts.push(Array.from(tokenizer.bytesOf(id)!, byte => letters[byte]!).join(''));
  }
  const ranks = new Map(texts.map((text, id) => [text, id]));
  const merges = texts.filter(text => text.length > 1).map(text => mergeOf(text, ranks));
  // The native library numbers added tokens one after the other, so a gap has to be filled.
  const ends = ['<|endoftext|>', '<|im_start|>', '<|im_end|>'];
  const idOf = (name: string): number => tokenizer.specialId(name)! - RANKS + tokens;
  const names = new Map(ends.map(name => [idOf(name), name]));
  const added = Array.from({ length: idOf('<|im_end|>') - tokens + 1 }, (_, at) =>
    addedToken(tokens + at, names.get(tokens + at) ?? `<|gap_${at}|>`),
  );
  return {
    version: '1.0',
    truncation: { max_length: 8, strategy: 'LongestFirst', stride: 0, direction: 'Right' },
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: CL100K_PATTERN }, behavior: 'Isolated', invert: false },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(ranks),
      merges: merges.map(pair => pair.join(' ')),
    },
  };
}

/** How blanks are written in a SentencePiece-like vocabulary: by a normalizer (Llama 2), or by Metaspace (later ones). */
export type BlankStyle = 'prepend' | 'metaspace';

const SPACE = '\u2581';
const SPLIT_WORDS = ['Hello', 'world', 'token', 'the', 'cat', 'sat', 'on', 'mat', 'naïve', 'été'];

/** A small vocabulary with byte fallback, `▁` for blanks and a begin-of-sequence token, as a tokenizer.json. */
export function sentencePieceJson(style: BlankStyle): object {
  const vocab: Record<string, number> = {};
  const merges: string[] = [];
  const add = (text: string): void => {
    if (!Object.hasOwn(vocab, text)) vocab[text] = Object.keys(vocab).length;
  };
  for (const text of ['<unk>', '<s>', '</s>', '[INST]', '[/INST]']) add(text);
  for (let byte = 0; byte < 256; byte++) add(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
  const merge = (left: string, right: string): string => {
    const pair = `${left} ${right}`;
    if (!merges.includes(pair)) merges.push(pair);
    add(left + right);
    return left + right;
  };
  add(SPACE);
  merge(merge(SPACE, SPACE), merge(SPACE, SPACE));
  for (const word of SPLIT_WORDS) {
    for (const letter of word) add(letter);
    merge(SPACE, [...word].reduce(merge));
  }
  for (const letter of 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?') add(letter);
  const replace = { type: 'Replace', pattern: { String: ' ' }, content: SPACE };
  const back = { type: 'Replace', pattern: { String: SPACE }, content: ' ' };
  const metaspace = { type: 'Metaspace', replacement: SPACE, prepend_scheme: 'first', split: false };
  const isMetaspace = style === 'metaspace';
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: ['<unk>', '<s>', '</s>', '[INST]', '[/INST]'].map((text, id) => addedToken(id, text)),
    normalizer: isMetaspace
      ? null
      : { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: SPACE }, replace] },
    pre_tokenizer: isMetaspace ? metaspace : null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
    },
    decoder: isMetaspace
      ? { type: 'Sequence', decoders: [{ type: 'ByteFallback' }, metaspace] }
      : {
          type: 'Sequence',
          decoders: [
            back,
            { type: 'ByteFallback' },
            { type: 'Fuse' },
            { type: 'Strip', content: ' ', start: 1, stop: 0 },
          ],
        },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<unk>',
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab,
      merges,
    },
  };
}

/** Writes a folder: texts as they are, everything else as JSON. */
export function writeFolder(parent: string, name: string, files: Readonly<Record<string, unknown>>): string {
  const path = join(parent, name);
  mkdirSync(path, { recursive: true });
  for (const [file, content] of Object.entries(files)) {
    writeFileSync(join(path, file), typeof content === 'string' ? content : JSON.stringify(content));
  }
  return path;
}
