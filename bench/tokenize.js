// Cost of R3 and R6: the tokenizer beside tiktoken's WebAssembly on the same texts in the same process, the detokenizer,
// and the reading of a chat body.
// `--json` prints one object on stdout. Micro-bench: imports the modules that it measures.
import { cpus } from 'node:os';
import { get_encoding } from 'tiktoken';
import { DEFAULT_LIMITS } from '#millrace/limits.js';
import { createDetokenizerTable, StreamDetokenizer } from '#millrace/preprocess/detokenizer.js';
import { parseRequest } from '#millrace/preprocess/parse-request.js';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = 1;
const ROUND_MS = 400;
const ROUNDS = 5;

/** Median over rounds of the nanoseconds of one call; the first round warms up. */
function nanosecondsPerCall(call) {
  const samples = [];
  for (let round = 0; round <= ROUNDS; round++) {
    let calls = 0;
    const start = performance.now();
    while (performance.now() - start < ROUND_MS) {
      call(calls);
      calls++;
    }
    if (round > 0) samples.push(((performance.now() - start) * 1e6) / calls);
  }
  return samples.sort((a, b) => a - b)[ROUNDS >> 1];
}

/** Prose with a long tail of invented words, so that the word cache meets words that it has not seen. */
function prose(bytes, random) {
  const syllables = 'ar en ing tion er st al com pre con the re un able ment ly qu or ic us'.split(' ');
  const common =
    'the of and to in is that for it with as was on be at by this have from or had not are but'.split(' ');
  let text = '';
  while (text.length < bytes) {
    if (randomInteger(random, 3) > 0) text += common[randomInteger(random, common.length)];
    else {
      for (let part = randomInteger(random, 4); part >= 0; part--) {
        text += syllables[randomInteger(random, syllables.length)];
      }
    }
    text += randomInteger(random, 12) === 0 ? (randomInteger(random, 4) === 0 ? '.\n\n' : ', ') : ' ';
  }
  return text.slice(0, bytes);
}

const startMs = performance.now();
const tokenizer = await loadTokenizer('chatml-cl100k');
const loadMs = performance.now() - startMs;
const tableStartMs = performance.now();
const table = createDetokenizerTable(tokenizer);
const tableMs = performance.now() - tableStartMs;
const oracle = get_encoding('cl100k_base');
const random = seededRandom(SEED);

const cjk = '推論データプレーンは、要求を最適な作業者へ送ります。今天天气很好，我们去公园散步吧。';
const texts = {
  'prose 1 KB': Array.from({ length: 64 }, () => prose(1024, random)),
  'prose 240 KB': [prose(240 * 1024, random)],
  'CJK 24 KB': [cjk.repeat(200)],
};
const encode = {};
for (const [name, samples] of Object.entries(texts)) {
  const tokens = samples.reduce((sum, text) => sum + tokenizer.encode(text).length, 0) / samples.length;
  const ours = nanosecondsPerCall(turn => tokenizer.encode(samples[turn % samples.length]));
  const theirs = nanosecondsPerCall(turn => oracle.encode_ordinary(samples[turn % samples.length]));
  encode[name] = {
    tokens,
    microseconds: ours / 1e3,
    tokensPerSecond: (tokens / ours) * 1e9,
    tiktokenTokensPerSecond: (tokens / theirs) * 1e9,
    ratio: theirs / ours,
  };
}
oracle.free();

const detokenize = {};
for (const [name, samples] of Object.entries(texts)) {
  const ids = tokenizer.encode(samples[0]);
  const stream = new StreamDetokenizer(table, true);
  let units = 0;
  const one = nanosecondsPerCall(() => {
    for (let at = 0; at < ids.length; at++) units += stream.push(ids, at, 1).length;
  });
  const eight = nanosecondsPerCall(() => {
    for (let at = 0; at + 8 <= ids.length; at += 8) units += stream.push(ids, at, 8).length;
  });
  if (units === 0) throw new Error('no text came out');
  detokenize[name] = { nanosecondsPerToken: one / ids.length, inBatchesOf8: eight / (ids.length & ~7) };
}

/** A chat of `turns` messages of `bytes` each; the mark makes it more than ASCII. */
function chatBody(turns, bytes, mark) {
  const messages = Array.from({ length: turns }, (_, turn) => ({
    role: turn % 2 === 0 ? 'user' : 'assistant',
    content: prose(bytes, random) + mark,
  }));
  return Buffer.from(JSON.stringify({ model: 'm', messages, stream: true, max_tokens: 64 }));
}
const parse = {};
for (const [name, body] of [
  ['chat 1 KB', chatBody(2, 450, '')],
  ['chat 240 KB', chatBody(20, 12_288, '')],
  ['chat 240 KB, not ASCII', chatBody(20, 12_288, '…')],
]) {
  const ours = nanosecondsPerCall(() => parseRequest('chat', body, DEFAULT_LIMITS));
  const plain = nanosecondsPerCall(() => JSON.parse(body.toString()));
  parse[name] = { bytes: body.length, microseconds: ours / 1e3, jsonParseMicroseconds: plain / 1e3 };
}

const result = {
  machine: { cpu: cpus()[0]?.model, cores: cpus().length, node: process.version },
  settings: { seed: SEED, rounds: ROUNDS, roundMs: ROUND_MS },
  loadMs,
  tableMs,
  encode,
  detokenize,
  parse,
};
if (process.argv.includes('--json')) console.log(JSON.stringify(result));
else {
  console.log(`load ${loadMs.toFixed(0)} ms, detokenizer table ${tableMs.toFixed(0)} ms`);
  console.table(encode);
  console.table(detokenize);
  console.table(parse);
}
