// Every bad body is refused with a code, the field's name and what is allowed; nothing of the body is in the message.
import t from 'tap';
import { InvalidRequestError } from '#millrace/errors.js';
import { DEFAULT_LIMITS } from '#millrace/limits.js';
import type { Api } from '#millrace/messages/token-request.js';
import { parseRequest } from '#millrace/preprocess/parse-request.js';

const SECRET = 'canary-7f3a';
const LIMITS = { ...DEFAULT_LIMITS, messagesMax: 3, stopTokenIdsMax: 4 };

function refusalOf(api: Api, body: string | Uint8Array): InvalidRequestError {
  try {
    parseRequest(api, typeof body === 'string' ? Buffer.from(body) : body, LIMITS);
  } catch (error) {
    if (error instanceof InvalidRequestError) return error;
    throw error;
  }
  throw new Error(`accepted: ${Buffer.from(body).toString('latin1').slice(0, 200)}`);
}

t.test('bytes that are not a JSON object', async t => {
  const nested = (open: string, close: string, depth: number) => open.repeat(depth) + close.repeat(depth);
  const wide = (keys: number) => `{${Array.from({ length: keys }, (_, key) => `"k${key}":0`).join()}}`;
  const cases: [string | Uint8Array, RegExp][] = [
    ['', /body is empty/],
    [' ', /not valid JSON/],
    ['{', /not valid JSON/],
    ['{"a":1,}', /not valid JSON at position 7/],
    ["{'a':1}", /not valid JSON/],
    ['{"a":01}', /not valid JSON/],
    ['{"a":NaN}', /not valid JSON/],
    ['{"a":"tab\there"}', /not valid JSON/],
    [`{"model":"${SECRET}`, /not valid JSON/],
    ['{"a":1}{}', /not valid JSON/],
    ['[]', /must be a JSON object/],
    ['null', /must be a JSON object/],
    ['"text"', /must be a JSON object/],
    ['3', /must be a JSON object/],
    ['\ufeff', /not valid JSON/],
    [Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]), /not valid UTF-8/],
    [Buffer.from([0x7b, 0x22, 0xed, 0xa0, 0x80, 0x22, 0x7d]), /not valid UTF-8/],
    [Buffer.from([0x7b, 0x22, 0xc0, 0xaf, 0x22, 0x7d]), /not valid UTF-8/],
    [Buffer.from('{"a":1}', 'utf16le'), /not valid JSON/],
    [nested('[', ']', 65), /deeper than 64 levels/],
    [nested('[', ']', 100_000), /deeper than 64 levels/],
    ['{"a":'.repeat(100_000), /deeper than 64 levels/],
    [wide(1001), /more than 1000 keys/],
    [`{"a":[${wide(1001)}]}`, /more than 1000 keys/],
    [nested('[', ']', 64), /must be a JSON object/],
    [wide(1000), /model is required/],
    [`{"a":[${wide(600)},${wide(600)}]}`, /model is required/],
    [`{"a":"${'x'.repeat(50)}\\\\","b":${nested('[', ']', 70)}}`, /deeper than 64 levels/],
  ];
  for (const [body, message] of cases) {
    const refusal = refusalOf('chat', body);
    t.match(refusal.message, message);
    t.notMatch(refusal.message, SECRET);
    if (!/model/.test(message.source)) t.equal(refusal.code, 'MILLRACE_INVALID_JSON');
  }
  const quoted = `{"a\\"[[${'['.repeat(100)}":"${'{:'.repeat(2000)}\\\\\\"${'x'.repeat(50)}"}`;
  t.match(refusalOf('chat', quoted).message, /model is required/, 'brackets in strings are text');
});

/** Fields set on a good chat (or completion) → the parameter and the words of the refusal. */
type FieldCase = [fields: string, param: string, message: RegExp];

const COMMON: FieldCase[] = [
  ['"model":null', 'model', /1 to 256 characters/],
  ['"model":""', 'model', /1 to 256/],
  ['"model":5', 'model', /string/],
  [`"model":"${'m'.repeat(257)}"`, 'model', /256/],
  ...['-1', '0', '129', '1.5', '"2"', '1e400', '9007199254740993', '[]', 'true'].map(
    (value): FieldCase => [`"n":${value}`, 'n', /integer from 1 to 128/],
  ),
  ...['-1', '0', '0.5', '2147483648', '1e400', '"16"', '{}'].map(
    (value): FieldCase => [`"max_tokens":${value}`, 'max_tokens', /integer from 1 to 2147483647/],
  ),
  ['"min_tokens":-1', 'min_tokens', /integer from 0/],
  ['"min_tokens":9,"max_tokens":8', 'min_tokens', /from 0 to 8, got 9/],
  ['"temperature":-0.1', 'temperature', /number from 0 to 2, got -0.1/],
  ['"temperature":2.1', 'temperature', /from 0 to 2/],
  ['"temperature":"1"', 'temperature', /got a string/],
  ['"temperature":1e400', 'temperature', /got Infinity/],
  ['"top_p":0', 'top_p', /above 0 and at most 1/],
  ['"top_p":1.01', 'top_p', /above 0 and at most 1/],
  ['"presence_penalty":-2.5', 'presence_penalty', /from -2 to 2/],
  ['"frequency_penalty":3', 'frequency_penalty', /from -2 to 2/],
  ['"seed":1.5', 'seed', /integer/],
  ['"seed":9007199254740993', 'seed', /integer from -9007199254740991 to 9007199254740991/],
  ['"stop":5', 'stop', /string or an array/],
  ['"stop":""', 'stop', /1 to 256 bytes/],
  ['"stop":["a",""]', 'stop[1]', /1 to 256 bytes/],
  [`"stop":"${'é'.repeat(129)}"`, 'stop', /256 bytes/],
  ['"stop":[null]', 'stop[0]', /string/],
  ['"stop":[-1]', 'stop[0]', /integer from 0/],
  [`"stop":[${Array(17).fill('"x"').join()}]`, 'stop', /at most 16 strings, got 17/],
  [`"stop":[${Array(500).fill('1').join()}]`, 'stop', /at most/],
  ['"stop_token_ids":5', 'stop_token_ids', /array of at most 4 token ids/],
  ['"stop_token_ids":[1,2,3,4,5]', 'stop_token_ids', /at most 4 token ids, got 5/],
  ['"stop_token_ids":[1,2,3],"stop":[4,5]', 'stop_token_ids', /at most 4 ids together/],
  ['"stop_token_ids":["1"]', 'stop_token_ids[0]', /integer from 0/],
  ['"ignore_eos":"yes"', 'ignore_eos', /true or false/],
  ['"include_stop_str_in_output":1', 'include_stop_str_in_output', /true or false/],
  ['"skip_special_tokens":0', 'skip_special_tokens', /true or false/],
  ['"stream":"true"', 'stream', /true or false, got a string/],
  ['"stream_options":{}', 'stream_options', /only allowed when stream is true/],
  ['"stream":true,"stream_options":[]', 'stream_options', /must be an object/],
  ['"stream":true,"stream_options":{"include_usage":1}', 'stream_options.include_usage', /true or false/],
  ['"best_of":0', 'best_of', /from 1 to 128/],
  ['"n":3,"best_of":2', 'best_of', /from 3 to 128/],
  ['"echo":1', 'echo', /true or false/],
  ['"top_k":-2', 'top_k', /from -1/],
  ['"top_k":1e400', 'top_k', /integer/],
  ['"min_p":1.5', 'min_p', /from 0 to 1/],
  ['"repetition_penalty":0', 'repetition_penalty', /above 0 and at most 2/],
  ['"logit_bias":[]', 'logit_bias', /object/],
  ['"logit_bias":{"x":1}', 'logit_bias', /token ids/],
  ['"logit_bias":{"5":101}', 'logit_bias.5', /from -100 to 100/],
  [`"cache_salt":"${'s'.repeat(129)}"`, 'cache_salt', /1 to 128 visible ASCII/],
  ['"cache_salt":"a\\u0000"', 'cache_salt', /visible ASCII/],
  ['"my_own":1e400', 'my_own', /too large/],
];

const CHAT: FieldCase[] = [
  ['"messages":null', 'messages', /1 to 3 messages, got nothing/],
  ['"messages":[]', 'messages', /got an empty array/],
  [`"messages":"${SECRET}"`, 'messages', /got a string/],
  [`"messages":[${Array(4).fill('{"role":"user","content":""}').join()}]`, 'messages', /got 4 messages/],
  ['"messages":["hi"]', 'messages[0]', /must be an object/],
  ['"messages":[{"content":"x"}]', 'messages[0].role', /required/],
  ['"messages":[{"role":"","content":"x"}]', 'messages[0].role', /1 to 64 letters/],
  ['"messages":[{"role":"us\\ner","content":"x"}]', 'messages[0].role', /letters/],
  ['"messages":[{"role":"user","name":"a b","content":"x"}]', 'messages[0].name', /letters/],
  ['"messages":[{"role":"user"}]', 'messages[0].content', /got nothing/],
  ['"messages":[{"role":"user","content":null,"tool_calls":[]}]', 'messages[0].content', /tool_calls/],
  ['"messages":[{"role":"user","content":7}]', 'messages[0].content', /string or an array of parts, got 7/],
  ['"messages":[{"role":"user","content":["x"]}]', 'messages[0].content[0]', /object/],
  ['"messages":[{"role":"user","content":[{"text":"x"}]}]', 'messages[0].content[0].type', /string/],
  ['"messages":[{"role":"user","content":[{"type":"text"}]}]', 'messages[0].content[0].text', /string/],
  ['"max_completion_tokens":0', 'max_completion_tokens', /integer from 1/],
  ['"logprobs":5', 'logprobs', /true or false/],
  ['"top_logprobs":5', 'top_logprobs', /when logprobs is true/],
  ['"logprobs":true,"top_logprobs":21', 'top_logprobs', /from 0 to 20/],
  ['"tools":{}', 'tools', /array/],
];

const COMPLETIONS: FieldCase[] = [
  ['"prompt":null', 'prompt', /not empty, got nothing/],
  ['"prompt":""', 'prompt', /not empty, got an empty string/],
  ['"prompt":[]', 'prompt', /not empty, got an empty array/],
  ['"prompt":{}', 'prompt', /got an object/],
  [`"prompt":["${SECRET}","b"]`, 'prompt', /one request per prompt/],
  ['"prompt":[[1],[2]]', 'prompt', /one request per prompt/],
  ['"prompt":[1,-1]', 'prompt[1]', /integer from 0/],
  ['"prompt":[1,"2"]', 'prompt[1]', /integer/],
  ['"prompt":[1.5]', 'prompt[0]', /integer/],
  ['"prompt":[4294967296]', 'prompt[0]', /integer from 0 to 2147483647/],
  ['"logprobs":-1', 'logprobs', /from 0 to 20/],
  ['"logprobs":true', 'logprobs', /integer/],
];

t.test('fields', async t => {
  const chat = '"model":"m","messages":[{"role":"user","content":"hi"}]';
  const completion = '"model":"m","prompt":"hi"';
  const run = (api: Api, good: string, cases: readonly FieldCase[]) => {
    for (const [fields, param, message] of cases) {
      // The later of two equal keys counts, so a case may override a good field.
      const refusal = refusalOf(api, `{${good},${fields}}`);
      const shown = fields.slice(0, 60);
      t.equal(refusal.param, param, `${api} ${shown}`);
      t.match(refusal.message, message, `${api} ${shown}`);
      t.ok(refusal.message.startsWith(param), 'the message names the field');
      t.equal(refusal.code, 'MILLRACE_INVALID_REQUEST');
      t.notMatch(refusal.message, SECRET);
    }
  };
  run('chat', chat, [...COMMON, ...CHAT]);
  run('completions', completion, [...COMMON, ...COMPLETIONS]);
});
