/**
 * tokenizer.json → the bytes that each id stands for (R6, at start, on the thread that makes the detokenizer's table). The
 * decoder of the file is read once and applied to every token by itself, which is exact for the decoders listed in
 * `readDecoder`; a model with another one has no table and is served in relay mode. Format: the JSON of Hugging Face's
 * `tokenizers`, fields `model.vocab`, `added_tokens`, `decoder`. Pure.
 */
import type { LeadingBlanks, TokenTable } from '../tokenizers/tokenizer.js';

/** A JSON object of unknown fields. */
export type JsonFields = Readonly<Record<string, unknown>>;

const UTF8 = new TextEncoder();
const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;

/** True for a JSON object. */
export function isFields(value: unknown): value is JsonFields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** What a decoder does with one token. */
interface Decoding {
  byteLevel: boolean;
  byteFallback: boolean;
  replacements: [pattern: string, content: string][];
  leadingBlanks: LeadingBlanks;
}

/** The byte-level alphabet: printable characters stand for themselves, the other bytes for U+0100 and on. */
function byteLevelAlphabet(): Map<string, number> {
  const bytes = new Map<string, number>();
  let spare = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
    bytes.set(String.fromCharCode(printable ? byte : spare++), byte);
  }
  return bytes;
}

/** Adds one decoder to `decoding`, or returns why it cannot be applied to tokens one by one. */
function addDecoder(decoder: unknown, decoding: Decoding): string | null {
  if (!isFields(decoder)) return 'has no decoder';
  switch (decoder.type) {
    case 'ByteLevel':
      decoding.byteLevel = true;
      return null;
    case 'ByteFallback':
      decoding.byteFallback = true;
      return null;
    case 'Fuse':
      return null;
    case 'Metaspace': {
      const mark = typeof decoder.replacement === 'string' ? decoder.replacement : '\u2581';
      decoding.replacements.push([mark, ' ']);
      const never = decoder.prepend_scheme === 'never' || decoder.add_prefix_space === false;
      if (!never) decoding.leadingBlanks = 'dropAll';
      return null;
    }
    case 'Replace': {
      const pattern = isFields(decoder.pattern) ? decoder.pattern.String : undefined;
      if (typeof pattern !== 'string' || typeof decoder.content !== 'string') {
        return 'has a Replace decoder with a regular expression';
      }
      decoding.replacements.push([pattern, decoder.content]);
      return null;
    }
    case 'Strip':
      if (decoder.content !== ' ' || decoder.stop !== 0 || (decoder.start !== 0 && decoder.start !== 1)) {
        return 'has a Strip decoder other than of one leading blank';
      }
      if (decoder.start === 1) decoding.leadingBlanks = 'dropOne';
      return null;
    default:
      return `has a decoder of type ${String(decoder.type)}`;
  }
}

function readDecoder(decoder: unknown): Decoding | string {
  const decoding: Decoding = {
    byteLevel: false,
    byteFallback: false,
    replacements: [],
    leadingBlanks: 'kept',
  };
  const inSequence = isFields(decoder) && decoder.type === 'Sequence' ? decoder.decoders : [decoder];
  for (const one of Array.isArray(inSequence) ? inSequence : [null]) {
    const problem = addDecoder(one, decoding);
    if (problem !== null) return problem;
  }
  return decoding;
}

/** Bytes of one token's text under `decoding`. */
function decodeToken(token: string, decoding: Decoding, alphabet: ReadonlyMap<string, number>): Uint8Array {
  if (decoding.byteLevel) {
    const bytes = new Uint8Array(token.length);
    for (let at = 0; at < token.length; at++) {
      const byte = alphabet.get(token[at]!);
      // An added token need not be written in the alphabet; it stands for its own characters.
      if (byte === undefined) return UTF8.encode(token);
      bytes[at] = byte;
    }
    return bytes;
  }
  let text = token;
  for (const [pattern, content] of decoding.replacements) text = text.replaceAll(pattern, content);
  const byte = decoding.byteFallback ? BYTE_TOKEN.exec(text) : null;
  return byte === null ? UTF8.encode(text) : Uint8Array.of(Number.parseInt(byte[1]!, 16));
}

/** An entry of `added_tokens`. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
}

const isId = (value: unknown): value is number =>
  Number.isInteger(value) && (value as number) >= 0 && (value as number) < 1 << 24;

/** The `added_tokens` of a tokenizer.json. Throws Error naming the entry that is wrong. */
export function readAddedTokens(json: JsonFields): AddedToken[] {
  const list = json.added_tokens ?? [];
  if (!Array.isArray(list)) throw new Error('added_tokens is not a list');
  return list.map((entry: unknown, index) => {
    if (!isFields(entry) || !isId(entry.id) || typeof entry.content !== 'string') {
      throw new Error(`added_tokens[${index}] is not {id, content, …}`);
    }
    return { id: entry.id, content: entry.content, special: entry.special === true };
  });
}

/** Texts by id, of the model's vocabulary alone. */
function readVocabulary(json: JsonFields): [string, number][] {
  const vocab = isFields(json.model) ? json.model.vocab : undefined;
  if (Array.isArray(vocab)) {
    return vocab.map((entry: unknown, id) => {
      if (!Array.isArray(entry) || typeof entry[0] !== 'string')
        throw new Error(`model.vocab[${id}] is not [text, score]`);
      return [entry[0], id];
    });
  }
  if (!isFields(vocab)) throw new Error('model.vocab is missing');
  return Object.entries(vocab).map(([text, id]) => {
    if (!isId(id)) throw new Error(`model.vocab gives ${JSON.stringify(text)} an id that is not one`);
    return [text, id];
  });
}

/**
 * The table of a parsed tokenizer.json, or the reason why there cannot be one, as the end of a sentence about the file.
 * Throws Error naming the field that is wrong.
 */
export function readTokenTable(
  name: string,
  json: JsonFields,
): TokenTable | { readonly unsupported: string } {
  const added = readAddedTokens(json);
  const vocabulary = readVocabulary(json);
  const decoding = readDecoder(json.decoder);
  if (typeof decoding === 'string') return { unsupported: decoding };
  const alphabet = byteLevelAlphabet();
  const bytes: (Uint8Array | undefined)[] = [];
  for (const [text, id] of vocabulary) bytes[id] = decodeToken(text, decoding, alphabet);
  for (const { id, content } of added) bytes[id] = decodeToken(content, decoding, alphabet);
  const specials = new Set(added.filter(token => token.special).map(token => token.id));
  return {
    name,
    vocabularySize: bytes.length,
    leadingBlanks: decoding.leadingBlanks,
    isSpecial: id => specials.has(id),
    bytesOf: id => bytes[id],
  };
}
