/**
 * The vocabulary of the bench engine and of the bench prompts: plain words that are one cl100k token each when a space
 * precedes them. Every token brings exactly one space to the wire, so the load generator counts tokens by counting
 * spaces, however a server splits or merges its frames.
 */

/** Words; with the space before it each is one token. */
export const WORDS =
  'the of and to in is that for on with as was at by from this which are be have not or an but his they one all their were has more will other new some could time these two may then first any like now over such'.split(
    ' ',
  );

/** The cl100k id of `' ' + WORDS[i]`. */
export const TOKEN_IDS = [
  279, 315, 323, 311, 304, 374, 430, 369, 389, 449, 439, 574, 520, 555, 505, 420, 902, 527, 387, 617, 539,
  477, 459, 719, 813, 814, 832, 682, 872, 1051, 706, 810, 690, 1023, 502, 1063, 1436, 892, 1521, 1403, 1253,
  1243, 1176, 904, 1093, 1457, 927, 1778,
];

/**
 * Text of exactly `tokens` cl100k tokens that is the same for the same serial and differs within its first six tokens
 * for another, so that no prefix cache on the way can serve it.
 * @param {number} tokens  At least 6.
 * @param {number} serial  A counter, below 48^6.
 * @returns {string} ASCII without quotes or control characters.
 */
export function promptText(tokens, serial) {
  let head = '';
  for (let digit = 0, rest = serial; digit < 6; digit += 1) {
    head += ` ${WORDS[rest % WORDS.length]}`;
    rest = Math.floor(rest / WORDS.length);
  }
  return head + body(tokens - 6);
}

/** @type {Map<number, string>} */
const bodies = new Map(); // one entry per prompt length that a bench uses: two or three

/** @param {number} tokens */
function body(tokens) {
  let text = bodies.get(tokens);
  if (text === undefined) {
    text = Array.from({ length: tokens }, (_, i) => ` ${WORDS[(i * 7) % WORDS.length]}`).join('');
    bodies.set(tokens, text);
  }
  return text;
}
