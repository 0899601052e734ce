/**
 * Cuts UTF-8 text into the words within which byte-pair merges happen (R3, pool thread). It is the split pattern of
 * cl100k_base as a hand-written scanner: one pass, no backtracking, no substring. Owns one table of character classes,
 * filled as characters are met; it never changes an answer. The pattern, in the order in which alternatives win:
 *
 *     (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N}{1,3} | ␣?[^\s\p{L}\p{N}]+[\r\n]* |
 *     \s*[\r\n]+ | \s+(?!\S) | \s+
 */

const LETTER = 1;
const NUMBER = 2;
const SPACE = 3;
const NEWLINE = 4;
const OTHER = 5;

/** Low bits of a character's entry: its class. The bits above: its length in bytes. */
const CLASS_MASK = 7;
const LENGTH_SHIFT = 3;
const CODE_POINTS = 0x110000;

const APOSTROPHE = 0x27;
const BLANK = 0x20;

// `\s` of the pattern is Unicode's White_Space, which is not the `\s` of JavaScript (U+0085 and U+FEFF differ).
const WHITE_SPACE = /^\p{White_Space}$/u;
const LETTERS = /^\p{L}$/u;
const NUMBERS = /^\p{N}$/u;

function classify(codePoint: number): number {
  if (codePoint === 0x0a || codePoint === 0x0d) return NEWLINE;
  const character = String.fromCodePoint(codePoint);
  if (LETTERS.test(character)) return LETTER;
  if (NUMBERS.test(character)) return NUMBER;
  return WHITE_SPACE.test(character) ? SPACE : OTHER;
}

/** Class and length of each code point met so far; 0: not met yet. Untouched pages cost no memory. */
const ENTRIES = new Uint8Array(CODE_POINTS);
for (let code = 0; code < 128; code++) ENTRIES[code] = classify(code) | (1 << LENGTH_SHIFT);

/** Entry of the character at `at`; the text is whole UTF-8 because it was encoded from a string. */
function wideEntryAt(bytes: Uint8Array, at: number): number {
  const first = bytes[at]!;
  let length = 2;
  let codePoint = ((first & 0x1f) << 6) | (bytes[at + 1]! & 0x3f);
  if (first >= 0xf0) {
    length = 4;
    codePoint =
      ((first & 0x07) << 18) |
      ((bytes[at + 1]! & 0x3f) << 12) |
      ((bytes[at + 2]! & 0x3f) << 6) |
      (bytes[at + 3]! & 0x3f);
  } else if (first >= 0xe0) {
    length = 3;
    codePoint = ((first & 0x0f) << 12) | ((bytes[at + 1]! & 0x3f) << 6) | (bytes[at + 2]! & 0x3f);
  }
  let entry = ENTRIES[codePoint]!;
  if (entry === 0) {
    entry = classify(codePoint) | (length << LENGTH_SHIFT);
    ENTRIES[codePoint] = entry;
  }
  return entry;
}

/** Entry of the character at `at`, 0 at the end of the text. */
function entryAt(bytes: Uint8Array, at: number, end: number): number {
  if (at >= end) return 0;
  const byte = bytes[at]!;
  return byte < 128 ? ENTRIES[byte]! : wideEntryAt(bytes, at);
}

function runEnd(bytes: Uint8Array, start: number, end: number, wanted: number): number {
  let at = start;
  for (;;) {
    const entry = entryAt(bytes, at, end);
    if ((entry & CLASS_MASK) !== wanted) return at;
    at += entry >> LENGTH_SHIFT;
  }
}

/** End of an English contraction that starts at the apostrophe at `at`, or `at` when there is none. */
function contractionEnd(bytes: Uint8Array, at: number, end: number): number {
  if (at + 1 >= end) return at;
  const first = bytes[at + 1]!;
  const lower = first | 0x20;
  if (lower === 0x73 || lower === 0x74 || lower === 0x6d || lower === 0x64) return at + 2; // s t m d
  if (at + 2 >= end) return at;
  // U+017F, the long s, equals `s` without regard to case.
  if (first === 0xc5 && bytes[at + 2] === 0xbf) return at + 3;
  const second = bytes[at + 2]! | 0x20;
  if ((lower === 0x72 || lower === 0x76) && second === 0x65) return at + 3; // re ve
  return lower === 0x6c && second === 0x6c ? at + 3 : at; // ll
}

/** End of the whitespace word that starts at `start`: the last three alternatives of the pattern. */
function whitespaceEnd(bytes: Uint8Array, start: number, end: number): number {
  let at = start;
  let last = start;
  let afterNewline = -1;
  for (;;) {
    const entry = entryAt(bytes, at, end);
    const kind = entry & CLASS_MASK;
    if (kind !== SPACE && kind !== NEWLINE) break;
    last = at;
    at += entry >> LENGTH_SHIFT;
    if (kind === NEWLINE) afterNewline = at;
  }
  if (afterNewline !== -1) return afterNewline;
  // The last blank before a word goes with the word, unless it is the only one.
  return at === end || last === start ? at : last;
}

/** End (exclusive) of the word that starts at `start`; `start < end`. */
export function wordEnd(bytes: Uint8Array, start: number, end: number): number {
  const entry = entryAt(bytes, start, end);
  const next = start + (entry >> LENGTH_SHIFT);
  const kind = entry & CLASS_MASK;
  if (kind === LETTER) return runEnd(bytes, next, end, LETTER);
  if (kind === NUMBER) {
    const second = entryAt(bytes, next, end);
    if ((second & CLASS_MASK) !== NUMBER) return next;
    const afterSecond = next + (second >> LENGTH_SHIFT);
    const third = entryAt(bytes, afterSecond, end);
    return (third & CLASS_MASK) === NUMBER ? afterSecond + (third >> LENGTH_SHIFT) : afterSecond;
  }
  if (kind === NEWLINE) return whitespaceEnd(bytes, start, end);
  if (bytes[start] === APOSTROPHE) {
    const contraction = contractionEnd(bytes, start, end);
    if (contraction !== start) return contraction;
  }
  const following = entryAt(bytes, next, end) & CLASS_MASK;
  if (following === LETTER) return runEnd(bytes, next, end, LETTER);
  if (kind === SPACE && (bytes[start] !== BLANK || following !== OTHER)) {
    return whitespaceEnd(bytes, start, end);
  }
  return runEnd(bytes, runEnd(bytes, next, end, OTHER), end, NEWLINE);
}
