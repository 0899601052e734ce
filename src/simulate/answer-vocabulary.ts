/**
 * The ids that mock answers are made of, with their text: plain words for the most part, and some ids whose text has
 * several bytes per character or must be escaped in JSON, so that detokenizers and frame writers are put to work. Each
 * id decodes to whole characters, so the text of an answer is the sum of the texts of its ids. Built once, read only.
 */
import type { Tokenizer } from '../preprocess/tokenizers/tokenizer.js';

const WORDS_MAX = 1500;
const MULTIBYTE_MAX = 60;
const WORD = / [a-z]{2,9}$/y;
const MULTIBYTE = /^ ?[\u00c0-\u024f\u0370-\u04ff\u3040-\u30ff\u4e00-\u9fff]+$/u;
/** Text that JSON must escape, or that is easy to get wrong in a frame. */
const AWKWARD = ['"', '\\', '\n', '\t', '\n\n', '{', '}', ' ['] as const;

/** See the head of the file. */
export interface AnswerVocabulary {
  readonly ids: Uint32Array;
  readonly eosId: number;
  /** Text of any id of the tokenizer; '' for special ids. */
  textOf(id: number): string;
  /** The same as the inside of a JSON string. */
  escapedTextOf(id: number): string;
}

/** Chooses the ids. Throws when the tokenizer has no end-of-sequence id or too few words to make text of. */
export function createAnswerVocabulary(tokenizer: Tokenizer): AnswerVocabulary {
  const eosId = tokenizer.eosIds[0];
  if (eosId === undefined) throw new Error(`tokenizer ${tokenizer.name} has no end-of-sequence id`);
  const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  const words: number[] = [];
  const multibyte: number[] = [];
  for (let id = 0; id < tokenizer.vocabularySize; id++) {
    if (words.length === WORDS_MAX && multibyte.length === MULTIBYTE_MAX) break;
    if (tokenizer.isSpecial(id)) continue;
    const text = wholeText(strict, tokenizer.bytesOf(id));
    WORD.lastIndex = 0;
    if (text === null) continue;
    if (words.length < WORDS_MAX && WORD.test(text)) words.push(id);
    else if (multibyte.length < MULTIBYTE_MAX && MULTIBYTE.test(text)) multibyte.push(id);
  }
  const awkward = AWKWARD.map(text => tokenizer.encode(text)).filter(ids => ids.length === 1);
  const ids = Uint32Array.from([...words, ...multibyte, ...awkward.map(one => one[0]!)]);
  if (words.length < 16)
    throw new Error(`tokenizer ${tokenizer.name} has too few plain words for a mock engine`);
  const texts = new Map<number, string>();
  const escaped = new Map<number, string>();
  const lenient = new TextDecoder();
  const textOf = (id: number): string => {
    const known = texts.get(id);
    if (known !== undefined) return known;
    const bytes = tokenizer.isSpecial(id) ? undefined : tokenizer.bytesOf(id);
    return bytes === undefined ? '' : lenient.decode(bytes);
  };
  for (const id of [...ids, eosId]) {
    texts.set(id, textOf(id));
    escaped.set(id, JSON.stringify(textOf(id)).slice(1, -1));
  }
  const escapedTextOf = (id: number): string => escaped.get(id) ?? JSON.stringify(textOf(id)).slice(1, -1);
  return { ids, eosId, textOf, escapedTextOf };
}

function wholeText(decoder: InstanceType<typeof TextDecoder>, bytes: Uint8Array | undefined): string | null {
  if (bytes === undefined || bytes.length > 32) return null;
  try {
    return decoder.decode(bytes);
  } catch {
    return null;
  }
}
