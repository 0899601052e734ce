/**
 * Prompts of the live replay: text made from a trace's hash ids, so that equal prefixes of ids are equal prefixes of text
 * and of tokens. Every word is one cl100k token (bench/lib/words.js), so a prompt has exactly the length that its trace
 * line says, and what a server tokenizes is known beforehand. Pure; runs in the load generator and in tests.
 */
import { mix32 } from '#millrace/simulate/token-source.js';
import { TOKEN_IDS, WORDS } from './words.js';

const SPACED = WORDS.map(word => ` ${word}`);
const GOLDEN = 0x9e3779b1;

/**
 * @typedef {object} PromptShape  A line of a trace, without its times.
 * @property {number} promptTokens
 * @property {readonly number[]} hashIds  One for each `traceBlockTokens` tokens, the last perhaps for fewer.
 */

/** Calls `each` with the index of every word of a prompt, in order. @param {PromptShape} shape @param {number} traceBlockTokens @param {(word: number) => void} each */
function forEachWord({ promptTokens, hashIds }, traceBlockTokens, each) {
  for (let at = 0; at < promptTokens; at += 1) {
    const offset = at % traceBlockTokens;
    const hashId = hashIds[(at - offset) / traceBlockTokens];
    const seed = mix32(hashId >>> 0) + Math.floor(hashId / 4294967296);
    each(mix32(seed + Math.imul(offset + 1, GOLDEN)) % WORDS.length);
  }
}

/** The text of a prompt: ASCII without quotes or control characters. @param {PromptShape} shape @param {number} traceBlockTokens */
export function textOf(shape, traceBlockTokens) {
  /** @type {string[]} */
  const words = [];
  forEachWord(shape, traceBlockTokens, word => words.push(SPACED[word]));
  return words.join('');
}

/** The cl100k ids of that text. @param {PromptShape} shape @param {number} traceBlockTokens */
export function idsOf(shape, traceBlockTokens) {
  const ids = new Uint32Array(shape.promptTokens);
  let at = 0;
  forEachWord(shape, traceBlockTokens, word => {
    ids[at++] = TOKEN_IDS[word];
  });
  return ids;
}
