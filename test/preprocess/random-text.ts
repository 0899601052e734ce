/** Random texts that provoke tokenizers and decoders, and the seed that makes them; used by the tests beside it. */
import { randomBytes } from 'node:crypto';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';

/** A generator seeded by `SEED=` or anew; the test prints `seed` so that a failure can be repeated. */
export function testRandom(): { seed: number; random: Random } {
  const seed = process.env.SEED === undefined ? randomBytes(4).readUInt32LE() : Number(process.env.SEED);
  return { seed, random: seededRandom(seed) };
}

export function pickOne<T>(random: Random, from: readonly T[]): T {
  return from[randomInteger(random, from.length)]!;
}

const WORDS = (
  "the of and don't I'LL we'Ve it'ſ function return const x1 12345 3.14159 foo_bar camelCase https://example.test/a?b=c " +
  'naïve café Straße 日本語のテキスト 你好 안녕하세요 Привет мир שלום مرحبا हिन्दी ไทย 👍 👩‍👩‍👧‍👦 🇩🇪 e\u0301 n\u0303 ½ ٣٤٥ Ⅻ ' +
  '<|im_start|> <|endoftext|> <|im_end|> {"a":[1,2]} // ==> <div> ``` \u0085 \ufeff \u200b \u3000 \ud83d \udc4d \u0000 \x1b[0m'
).split(' ');
const GAPS = [
  '',
  ' ',
  ' ',
  ' ',
  '  ',
  '    ',
  '\n',
  '\n\n',
  '\r\n',
  '\t',
  ' \n ',
  '\u00a0',
  '\u3000\u3000',
  "'",
];

const codeUnit = (random: Random): string => String.fromCharCode(randomInteger(random, 0x10000));
const codePoint = (random: Random): string => String.fromCodePoint(randomInteger(random, 0x110000));
const ascii = (random: Random): string => String.fromCharCode(randomInteger(random, 128));

/** A text of one of several kinds: words, ASCII noise, any UTF-16 (lone surrogates too), long runs. */
export function randomText(random: Random): string {
  const kind = randomInteger(random, 10);
  const length = randomInteger(random, 60);
  let text = '';
  if (kind < 5) for (let i = 0; i < length; i++) text += pickOne(random, WORDS) + pickOne(random, GAPS);
  else if (kind === 5) for (let i = 0; i < length; i++) text += ascii(random);
  else if (kind === 6) for (let i = 0; i < length; i++) text += codeUnit(random);
  else if (kind === 7) for (let i = 0; i < length; i++) text += codePoint(random);
  else if (kind === 8) {
    for (let i = 0; i < 4; i++)
      text += pickOne(random, [...WORDS, ...GAPS]).repeat(randomInteger(random, 50));
  } else {
    // One long word of few letters: many equal ranks and merges that cross.
    for (let i = 0; i < length * 4; i++) text += pickOne(random, ['a', 'b', 'e', 't', 'he', 'ing']);
  }
  return text;
}
