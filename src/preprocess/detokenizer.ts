/**
 * Ids → text as they stream in (R6, socket thread). A table made once per tokenizer gives most ids their string directly;
 * only ids whose bytes are not whole characters go through a UTF-8 decoder, whose state lives in the stream's own
 * detokenizer. The text is what a streaming WHATWG TextDecoder (with `ignoreBOM`) makes of the same bytes:
 * https://encoding.spec.whatwg.org/#utf-8-decoder.
 */
import { isUtf8 } from 'node:buffer';
import type { LeadingBlanks, TokenTable } from './tokenizers/tokenizer.js';

/** What each id of a tokenizer stands for. Read only after it was made; one per thread serves all streams. */
export interface DetokenizerTable {
  /** The text of ids whose bytes are whole UTF-8; undefined for the others. */
  readonly texts: readonly (string | undefined)[];
  /** The bytes of the other ids; an id that is in neither does not exist and adds no text. */
  readonly fragments: ReadonlyMap<number, Uint8Array>;
  /** 1 for special tokens, by id. */
  readonly special: Uint8Array;
  /** What is taken away where a text begins. */
  readonly leadingBlanks: LeadingBlanks;
}

/** Builds the table; about 40 ms for 100,000 ids. */
export function createDetokenizerTable(tokens: TokenTable): DetokenizerTable {
  const size = tokens.vocabularySize;
  const texts = new Array<string | undefined>(size).fill(undefined);
  const fragments = new Map<number, Uint8Array>();
  const special = new Uint8Array(size);
  for (let id = 0; id < size; id++) {
    const bytes = tokens.bytesOf(id);
    if (bytes === undefined) continue;
    if (isUtf8(bytes)) texts[id] = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('utf8');
    else fragments.set(id, bytes);
    if (tokens.isSpecial(id)) special[id] = 1;
  }
  return { texts, fragments, special, leadingBlanks: tokens.leadingBlanks };
}

/** True when a text that goes on after `ids` begins with its first visible token: nothing before it can be seen. */
export function startsText(table: DetokenizerTable, ids: Uint32Array): boolean {
  return table.leadingBlanks !== 'kept' && ids.every(id => table.special[id] === 1);
}

const REPLACEMENT = '\ufffd';

/** The detokenizer of one choice of one stream. */
export class StreamDetokenizer {
  readonly #table: DetokenizerTable;
  readonly #skipSpecialTokens: boolean;
  // State of the UTF-8 decoder: an unfinished character, and the range that its next byte must lie in.
  #needed = 0;
  #codePoint = 0;
  #lower = 0x80;
  #upper = 0xbf;
  /** The next visible token is the first of its text, and the table says that such a one loses blanks. */
  #dropsBlanks: boolean;

  /**
   * With `skipSpecialTokens` the ids of special tokens add no text and do not break a character in two.
   * @param isStart the text begins here, so that the table's `leadingBlanks` go
   */
  constructor(table: DetokenizerTable, skipSpecialTokens: boolean, isStart = false) {
    this.#table = table;
    this.#skipSpecialTokens = skipSpecialTokens;
    this.#dropsBlanks = isStart && table.leadingBlanks !== 'kept';
  }

  /** The text that `ids[from, from + count)` completes; bytes of an unfinished character wait for the next push. */
  push(ids: Uint32Array, from: number, count: number): string {
    const { texts, fragments, special } = this.#table;
    const end = from + count;
    let text = '';
    for (let at = from; at < end; at++) {
      const id = ids[at]!;
      if (this.#skipSpecialTokens && special[id] === 1) continue;
      const whole = texts[id];
      if (whole !== undefined) {
        // Whole text begins with a first byte, which ends an unfinished character as a broken one.
        if (this.#needed !== 0) text += this.end();
        text += this.#dropsBlanks ? this.#withoutBlanks(whole) : whole;
      } else {
        const fragment = fragments.get(id);
        if (fragment === undefined) continue;
        this.#dropsBlanks = false;
        text += this.#decode(fragment);
      }
    }
    return text;
  }

  /** Ends the stream: an unfinished character becomes U+FFFD. The detokenizer may be used again. */
  end(): string {
    if (this.#needed === 0) return '';
    this.#needed = 0;
    this.#lower = 0x80;
    this.#upper = 0xbf;
    return REPLACEMENT;
  }

  #withoutBlanks(text: string): string {
    this.#dropsBlanks = false;
    return text.replace(this.#table.leadingBlanks === 'dropOne' ? /^ / : /^ +/, '');
  }

  #decode(bytes: Uint8Array): string {
    let text = '';
    for (let at = 0; at < bytes.length; at++) {
      const byte = bytes[at]!;
      if (this.#needed === 0) {
        text += this.#begin(byte);
      } else if (byte < this.#lower || byte > this.#upper) {
        text += this.end();
        at--; // The byte that broke the character is looked at afresh.
      } else {
        this.#lower = 0x80;
        this.#upper = 0xbf;
        this.#codePoint = (this.#codePoint << 6) | (byte & 0x3f);
        if (--this.#needed === 0) text += String.fromCodePoint(this.#codePoint);
      }
    }
    return text;
  }

  /** Takes the first byte of a character; returns text when the character is complete or impossible. */
  #begin(byte: number): string {
    if (byte < 0x80) return String.fromCharCode(byte);
    if (byte < 0xc2 || byte > 0xf4) return REPLACEMENT;
    if (byte < 0xe0) {
      this.#needed = 1;
      this.#codePoint = byte & 0x1f;
    } else if (byte < 0xf0) {
      if (byte === 0xe0) this.#lower = 0xa0;
      if (byte === 0xed) this.#upper = 0x9f;
      this.#needed = 2;
      this.#codePoint = byte & 0x0f;
    } else {
      if (byte === 0xf0) this.#lower = 0x90;
      if (byte === 0xf4) this.#upper = 0x8f;
      this.#needed = 3;
      this.#codePoint = byte & 0x07;
    }
    return '';
  }
}
