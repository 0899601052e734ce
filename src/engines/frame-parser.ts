/**
 * Reads the JSON object of one SSE frame and writes the ranges of the values that an adapter needs into its row
 * (R5, socket thread). The TypeScript twin of native/core/frame_parser.cc: same functions, same order, same words.
 * The rules are written down in frame-scanner.ts. Values that nobody asks for are skipped by bracket depth and
 * strings, not validated.
 */
import { FRAME, FRAME_FLAG, FRAME_IDS_MAX } from './frame-descriptor.js';

const DEPTH_MAX = 64;
const CHOICE_FLAGS = FRAME_FLAG.severalChoices | FRAME_FLAG.noChoices;
const U32_MAX = 0xffff_ffff;
const I32_MAX = 0x7fff_ffff;
const DIGITS_MAX = 10;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
const COMMA = 0x2c;
const COLON = 0x3a;
const SPACE = 0x20;
const TAB = 0x09;
const LETTER_N = 0x6e;
const LETTER_T = 0x74;
const LETTER_F = 0x66;

// The objects whose members are read one by one; the number is their nesting depth.
const TOP = 1;
const CHOICE = 3;
const DELTA = 4;

const ascii = (text: string): Uint8Array => Uint8Array.from(text, char => char.charCodeAt(0));
const NULL = ascii('null');
const TRUE = ascii('true');
const FALSE = ascii('false');
const CHOICES = ascii('choices');
const USAGE = ascii('usage');
const ERROR = ascii('error');
const INDEX = ascii('index');
const DELTA_KEY = ascii('delta');
const TEXT = ascii('text');
const TOKEN_IDS = ascii('token_ids');
const FINISH_REASON = ascii('finish_reason');
const CONTENT = ascii('content');
const LOGPROBS = ascii('logprobs');
const PROMPT_TOKEN_IDS = ascii('prompt_token_ids');

const isDigit = (byte: number): boolean => byte >= 0x30 && byte <= 0x39;

const isNumberPart = (byte: number): boolean =>
  isDigit(byte) || byte === 0x2d || byte === 0x2b || byte === 0x2e || byte === 0x65 || byte === 0x45;

/** Parser of one frame after the other, over the table and ids of one scanner. Belongs to one thread. */
export class FrameParser {
  /** Ids written since `begin`. */
  idsUsed = 0;
  /** The last frame had more ids than room; its row is complete but for them. */
  overflowed = false;

  readonly #table: Int32Array;
  readonly #ids: Uint32Array;
  readonly #open = new Uint8Array(DEPTH_MAX);
  #bytes: Uint8Array = new Uint8Array(0);
  #row = 0;
  #at = 0;
  #end = 0;
  #idsBase = 0;

  /** `table` and `ids` as in frame-descriptor.ts. */
  constructor(table: Int32Array, ids: Uint32Array) {
    this.#table = table;
    this.#ids = ids;
  }

  /** Starts a scan of `bytes`. */
  begin(bytes: Uint8Array): void {
    this.#bytes = bytes;
    this.idsUsed = 0;
    this.overflowed = false;
  }

  /**
   * Parses bytes [from, to) into words 2 to 23 of the row that starts at word `row`. False: they are not one complete
   * object, or a value of interest has a wrong type; the row then holds nothing but the flag `malformed`.
   */
  parse(from: number, to: number, row: number): boolean {
    const table = this.#table;
    this.#row = row;
    this.#at = from;
    this.#end = to;
    this.#idsBase = this.idsUsed;
    this.#clearFrame(0);
    this.#skipSpace();
    let whole = this.#object(TOP);
    if (whole) {
      this.#skipSpace();
      whole = this.#at === this.#end;
    }
    if (!whole) {
      this.#clearFrame(FRAME_FLAG.malformed);
      return false;
    }
    let flags = table[row + FRAME.flags]!;
    if (table[row + FRAME.usageStart]! >= 0) flags |= FRAME_FLAG.usage;
    if (table[row + FRAME.errorStart]! >= 0) flags |= FRAME_FLAG.error;
    if (table[row + FRAME.finishStart]! >= 0) flags |= FRAME_FLAG.finish;
    table[row + FRAME.flags] = flags;
    return true;
  }

  /** Forgets the ids of the last frame. */
  dropIds(): void {
    this.idsUsed = this.#idsBase;
  }

  #object(scope: number): boolean {
    if (!this.#eat(OPEN_BRACE)) return false;
    this.#skipSpace();
    if (this.#eat(CLOSE_BRACE)) return true;
    for (;;) {
      const key = this.#at + 1;
      if (!this.#sees(QUOTE) || !this.#skipString()) return false;
      const keyEnd = this.#at - 1;
      this.#skipSpace();
      if (!this.#eat(COLON)) return false;
      this.#skipSpace();
      if (!this.#member(scope, key, keyEnd)) return false;
      this.#skipSpace();
      if (!this.#eat(COMMA)) return this.#eat(CLOSE_BRACE);
      this.#skipSpace();
    }
  }

  #member(scope: number, key: number, keyEnd: number): boolean {
    if (scope === TOP) {
      if (this.#keyIs(key, keyEnd, CHOICES)) return this.#choices();
      if (this.#keyIs(key, keyEnd, USAGE)) return this.#usage(key - 1);
      if (this.#keyIs(key, keyEnd, ERROR)) return this.#rangeMember(FRAME.errorStart, 2);
      if (this.#keyIs(key, keyEnd, PROMPT_TOKEN_IDS)) {
        return this.#wholeMember(key - 1, FRAME.promptIdsStart, 2);
      }
    } else if (scope === CHOICE) {
      if (this.#keyIs(key, keyEnd, INDEX)) return this.#choiceIndex();
      if (this.#keyIs(key, keyEnd, DELTA_KEY)) return this.#delta();
      if (this.#keyIs(key, keyEnd, TEXT)) return this.#rangeMember(FRAME.textStart, 4);
      if (this.#keyIs(key, keyEnd, TOKEN_IDS)) return this.#tokenIds(key - 1);
      if (this.#keyIs(key, keyEnd, FINISH_REASON)) return this.#rangeMember(FRAME.finishStart, 4);
      if (this.#keyIs(key, keyEnd, LOGPROBS)) return this.#rangeMember(FRAME.logprobsStart, 4);
      if (this.#keyIs(key, keyEnd, PROMPT_TOKEN_IDS)) {
        return this.#wholeMember(key - 1, FRAME.choicePromptIdsStart, 4);
      }
    } else if (this.#keyIs(key, keyEnd, CONTENT)) {
      return this.#rangeMember(FRAME.textStart, 5);
    }
    return this.#skipValue(scope + 1);
  }

  #choices(): boolean {
    this.#clearChoice();
    if (this.#sees(LETTER_N)) return this.#skipLiteral(NULL);
    if (!this.#eat(OPEN_BRACKET)) return false;
    this.#skipSpace();
    if (this.#eat(CLOSE_BRACKET)) {
      this.#table[this.#row + FRAME.flags]! |= FRAME_FLAG.noChoices;
      return true;
    }
    if (!this.#object(CHOICE)) return false;
    this.#skipSpace();
    while (this.#eat(COMMA)) {
      this.#table[this.#row + FRAME.flags]! |= FRAME_FLAG.severalChoices;
      this.#skipSpace();
      if (!this.#skipValue(3)) return false;
      this.#skipSpace();
    }
    return this.#eat(CLOSE_BRACKET);
  }

  #choiceIndex(): boolean {
    this.#table[this.#row + FRAME.choice] = -1;
    if (this.#sees(LETTER_N)) return this.#skipLiteral(NULL);
    const index = this.#number(I32_MAX);
    if (index < 0) return false;
    this.#table[this.#row + FRAME.choice] = index;
    return true;
  }

  #usage(key: number): boolean {
    if (!this.#rangeMember(FRAME.usageStart, 2)) return false;
    this.#table[this.#row + FRAME.usageKey] = this.#table[this.#row + FRAME.usageStart]! < 0 ? -1 : key;
    return true;
  }

  #tokenIds(key: number): boolean {
    this.#clearIds();
    if (this.#sees(LETTER_N)) return this.#skipLiteral(NULL);
    const start = this.#at;
    if (!this.#eat(OPEN_BRACKET)) return false;
    this.#skipSpace();
    if (!this.#eat(CLOSE_BRACKET)) {
      for (;;) {
        const id = this.#number(U32_MAX);
        if (id < 0) return false;
        if (this.idsUsed < FRAME_IDS_MAX) this.#ids[this.idsUsed++] = id;
        else this.overflowed = true;
        this.#skipSpace();
        if (this.#eat(CLOSE_BRACKET)) break;
        if (!this.#eat(COMMA)) return false;
        this.#skipSpace();
      }
    }
    const table = this.#table;
    table[this.#row + FRAME.tokenIdsKey] = key;
    table[this.#row + FRAME.tokenIdsStart] = start;
    table[this.#row + FRAME.tokenIdsEnd] = this.#at;
    table[this.#row + FRAME.idsFirst] = this.#idsBase;
    table[this.#row + FRAME.idsCount] = this.idsUsed - this.#idsBase;
    return true;
  }

  #delta(): boolean {
    this.#clearRange(FRAME.textStart);
    return this.#sees(OPEN_BRACE) ? this.#object(DELTA) : this.#skipValue(4);
  }

  /** Reads a value into the range at `word`; null is absent. */
  #rangeMember(word: number, depth: number): boolean {
    const start = this.#at;
    if (!this.#skipValue(depth)) return false;
    if (this.#bytes[start] === LETTER_N) {
      this.#clearRange(word);
    } else {
      this.#table[this.#row + word] = start;
      this.#table[this.#row + word + 1] = this.#at;
    }
    return true;
  }

  /** Reads a value into the range at `word`, which begins with the key; null is absent. */
  #wholeMember(key: number, word: number, depth: number): boolean {
    if (!this.#rangeMember(word, depth)) return false;
    if (this.#table[this.#row + word]! >= 0) this.#table[this.#row + word] = key;
    return true;
  }

  /** Skips a value that would be nested `depth` deep if it is an object or an array. */
  #skipValue(depth: number): boolean {
    if (this.#sees(QUOTE)) return this.#skipString();
    if (this.#sees(OPEN_BRACE) || this.#sees(OPEN_BRACKET)) return this.#skipComposite(depth);
    return this.#skipScalar();
  }

  #skipComposite(depth: number): boolean {
    const open = this.#open;
    let level = depth - 1;
    while (this.#at < this.#end) {
      const byte = this.#bytes[this.#at]!;
      if (byte === QUOTE) {
        if (!this.#skipString()) return false;
        continue;
      }
      this.#at++;
      if (byte === OPEN_BRACE || byte === OPEN_BRACKET) {
        if (level === DEPTH_MAX) return false;
        open[level++] = byte;
      } else if (byte === CLOSE_BRACE || byte === CLOSE_BRACKET) {
        // In ASCII a closing bracket is its opening one plus 2.
        if (open[--level] !== byte - 2) return false;
        if (level < depth) return true;
      }
    }
    return false;
  }

  #skipString(): boolean {
    const bytes = this.#bytes;
    const end = this.#end;
    let at = this.#at + 1;
    while (at < end) {
      const byte = bytes[at];
      if (byte === QUOTE) {
        this.#at = at + 1;
        return true;
      }
      at += byte === BACKSLASH ? 2 : 1;
    }
    return false;
  }

  #skipScalar(): boolean {
    if (this.#sees(LETTER_N)) return this.#skipLiteral(NULL);
    if (this.#sees(LETTER_T)) return this.#skipLiteral(TRUE);
    if (this.#sees(LETTER_F)) return this.#skipLiteral(FALSE);
    const start = this.#at;
    while (this.#at < this.#end && isNumberPart(this.#bytes[this.#at]!)) this.#at++;
    return this.#at > start;
  }

  #skipLiteral(literal: Uint8Array): boolean {
    if (this.#end - this.#at < literal.length || !this.#matches(this.#at, literal)) return false;
    this.#at += literal.length;
    return true;
  }

  /** An unsigned integer of at most 10 digits; -1 when there is none or it is greater than `max`. */
  #number(max: number): number {
    const start = this.#at;
    let value = 0;
    while (this.#at < this.#end && isDigit(this.#bytes[this.#at]!)) {
      if (this.#at - start === DIGITS_MAX) return -1;
      value = value * 10 + (this.#bytes[this.#at++]! - 0x30);
    }
    return this.#at > start && value <= max ? value : -1;
  }

  #keyIs(key: number, keyEnd: number, name: Uint8Array): boolean {
    return keyEnd - key === name.length && this.#matches(key, name);
  }

  #matches(at: number, expected: Uint8Array): boolean {
    for (let i = 0; i < expected.length; i++) {
      if (this.#bytes[at + i] !== expected[i]) return false;
    }
    return true;
  }

  #sees(byte: number): boolean {
    return this.#at < this.#end && this.#bytes[this.#at] === byte;
  }

  #eat(byte: number): boolean {
    if (!this.#sees(byte)) return false;
    this.#at++;
    return true;
  }

  /** A frame's data is one line, so of JSON's white space only these two can be in it. */
  #skipSpace(): void {
    while (this.#sees(SPACE) || this.#sees(TAB)) this.#at++;
  }

  #clearFrame(flags: number): void {
    this.#clearChoice();
    this.#clearRange(FRAME.usageStart);
    this.#clearRange(FRAME.errorStart);
    this.#clearRange(FRAME.promptIdsStart);
    this.#table[this.#row + FRAME.usageKey] = -1;
    this.#table[this.#row + FRAME.flags] = flags;
  }

  #clearChoice(): void {
    this.#table[this.#row + FRAME.flags]! &= ~CHOICE_FLAGS;
    this.#table[this.#row + FRAME.choice] = -1;
    this.#clearRange(FRAME.finishStart);
    this.#clearRange(FRAME.textStart);
    this.#clearRange(FRAME.logprobsStart);
    this.#clearRange(FRAME.choicePromptIdsStart);
    this.#clearIds();
  }

  #clearIds(): void {
    this.#table[this.#row + FRAME.idsFirst] = -1;
    this.#table[this.#row + FRAME.idsCount] = 0;
    this.#table[this.#row + FRAME.tokenIdsKey] = -1;
    this.#clearRange(FRAME.tokenIdsStart);
    this.dropIds();
    this.overflowed = false;
  }

  #clearRange(word: number): void {
    this.#table[this.#row + word] = -1;
    this.#table[this.#row + word + 1] = -1;
  }
}
