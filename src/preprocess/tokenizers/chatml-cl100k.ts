/**
 * The tokenizer `chatml-cl100k` (R3): the ranks of cl100k_base, taken from the npm package `tiktoken` (data only, its
 * WebAssembly is not loaded), with the ChatML tokens beside cl100k's own special tokens. Mock engines and tests speak it.
 */
import assert from 'node:assert';
import { createRequire } from 'node:module';
import { ByteLevelBpe } from './byte-level-bpe.js';
import type { Tokenizer } from './tokenizer.js';
import { Vocabulary } from './vocabulary.js';

/** As the package stores it: lines of `! <first id> <base64> <base64> …`. */
interface RankFile {
  readonly bpe_ranks: string;
  readonly special_tokens: Readonly<Record<string, number>>;
}

const CHATML_SPECIALS = [
  ['<|im_start|>', 100_264],
  ['<|im_end|>', 100_265],
] as const;

const BLANK = 0x20;
const NEWLINE = 0x0a;
const PADDING = 0x3d;

const BASE64_DIGITS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const VALUE_OF_DIGIT = new Int8Array(128).fill(-1);
for (let value = 0; value < 64; value++) VALUE_OF_DIGIT[BASE64_DIGITS.charCodeAt(value)] = value;

/** Decodes all strings of a rank file in one pass; a call of the base64 decoder per token would cost more than all else. */
function parseRanks(ranks: string): Vocabulary {
  const bytes = new Uint8Array(Math.ceil((ranks.length * 3) / 4));
  const offsets: number[] = [];
  let written = 0;
  for (let at = 0; at < ranks.length; ) {
    const lineHead = /^! (\d+) /.exec(ranks.slice(at, at + 16));
    assert(lineHead !== null && Number(lineHead[1]) === offsets.length, 'ranks are lines of ascending ids');
    at += lineHead[0].length;
    let bits = 0;
    let held = 0;
    offsets.push(written);
    for (; at < ranks.length; at++) {
      const code = ranks.charCodeAt(at);
      if (code === NEWLINE) break;
      if (code === BLANK) {
        offsets.push(written);
        held = 0;
        bits = 0;
      } else if (code !== PADDING) {
        const value = VALUE_OF_DIGIT[code]!;
        assert(value >= 0, 'ranks are base64');
        held = ((held << 6) | value) & 0xffff;
        bits += 6;
        if (bits >= 8) {
          bits -= 8;
          bytes[written++] = held >> bits;
        }
      }
    }
    at++;
  }
  offsets.push(written);
  return new Vocabulary(bytes.slice(0, written), Uint32Array.from(offsets));
}

/** Reads the ranks and builds the tokenizer; about 50 ms. Throws when the package is not installed. */
export function createChatmlCl100k(): Tokenizer {
  const file = createRequire(import.meta.url)('tiktoken/encoders/cl100k_base.json') as RankFile;
  const specials = new Map<string, number>([...Object.entries(file.special_tokens), ...CHATML_SPECIALS]);
  const eosIds = Uint32Array.of(specials.get('<|im_end|>')!, specials.get('<|endoftext|>')!);
  return new ByteLevelBpe({
    name: 'chatml-cl100k',
    vocabulary: parseRanks(file.bpe_ranks),
    specials,
    eosIds,
  });
}
