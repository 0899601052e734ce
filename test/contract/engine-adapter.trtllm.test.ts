/** Promise: the TensorRT-LLM adapter passes the suite of all adapters, and never sends a field that the server refuses. */
import t from 'tap';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { createTrtllmAdapter } from '#millrace/engines/trtllm.js';
import { engineAdapterSuite, makeInput, makeRequest } from './engine-adapter.js';

const frame = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
const chunk = (index: number, ids: number[], finish: string | null = null): string =>
  frame({
    id: 'cmpl-1',
    object: 'text_completion',
    model: 'm',
    choices: [{ index, text: '', token_ids: ids, logprobs: null, finish_reason: finish, stop_reason: null }],
    usage: null,
  });

const ANSWER = Buffer.from(
  [
    chunk(0, [11, 12]),
    chunk(1, [4294967295]),
    chunk(0, [5], 'length'),
    chunk(1, [], 'cancelled'),
    frame({
      choices: [],
      usage: {
        prompt_tokens: 2,
        total_tokens: 6,
        completion_tokens: 4,
        prompt_tokens_details: { cached_tokens: 1 },
      },
    }),
    'data: [DONE]\n\n',
  ].join(''),
);

const quiet = { finish: null, usage: null };
const EVENTS = [
  { choice: 0, ids: [11, 12], ...quiet },
  { choice: 1, ids: [4294967295], ...quiet },
  { choice: 0, ids: [5], finish: 'length', usage: null },
  { choice: 1, ids: [], finish: 'aborted', usage: null },
  { choice: -1, ids: null, finish: null, usage: { promptTokens: 2, completionTokens: 4, cachedTokens: 1 } },
  { done: true },
];

const adapter = createTrtllmAdapter({ scanner: createFrameScanner(null) });

engineAdapterSuite(t, {
  adapter,
  answer: ANSWER,
  events: EVENTS,
  malformed: Buffer.from(`${chunk(0, [1])}data: {"choices":[{"token_ids":[-1]}]}\n\n${chunk(0, [2])}`),
  promptIdsOf: body => body.prompt,
  tokenFields: {
    response_format: { type: 'regex', regex: 'ü\n' },
    top_k: 5,
    model: 'worker-name',
    max_tokens: 7,
    detokenize: false,
  },
  relayFields: {},
});

const bodyOf = (changes: Parameters<typeof makeInput>[0]) =>
  JSON.parse(Buffer.from(adapter.encode(makeInput(changes)).body).toString());

t.test('TensorRT-LLM: the call of token mode', t => {
  const request = makeRequest({
    api: 'chat',
    sampling: { n: 2, temperature: 0, seed: 3, frequencyPenalty: 1 },
    stop: {
      maxTokens: 7,
      minTokens: 2,
      strings: ['END'],
      tokenIds: [9],
      ignoreEos: true,
      includeStopString: true,
    },
    unknown: { stop: ['x'], prompt: 'y', min_p: 0.1, priority: 0 },
  });
  const call = adapter.encode(
    makeInput({ request, rank: 1, adapter: { parent: 'base', path: '/adapters/a' } }),
  );
  t.same([call.method, call.path], ['POST', '/v1/completions']);
  t.same(JSON.parse(Buffer.from(call.body).toString()), {
    prompt: [1, 22, 333],
    min_p: 0.1,
    model: 'base',
    lora_request: { lora_name: 'worker-name', lora_int_id: 1348157631, lora_path: '/adapters/a' },
    stream: true,
    stream_options: { include_usage: true },
    detokenize: false,
    max_tokens: 7,
    min_tokens: 2,
    n: 2,
    temperature: 0,
    seed: 3,
    frequency_penalty: 1,
    ignore_eos: true,
    stop_token_ids: [9],
    priority: 0.5,
  });
  t.throws(() => bodyOf({ request: makeRequest({ api: 'chat' }), maxTokens: null }), /resolved maxTokens/);
  t.throws(() => bodyOf({ mode: 'relayIds' }), /token or relay/);
  t.throws(() => createTrtllmAdapter().openStream({ firstFrameBytesMax: 1, frameBytesMax: 1 }), /scanner/);
  t.equal(adapter.abortCall('r'), null);
  t.equal(bodyOf({ maxTokens: null }).max_tokens, 16, "OpenAI's default, which is not the server's");
  t.end();
});

t.test('TensorRT-LLM: priorities keep their order and stay within what it takes', t => {
  const sent = [-2000, -1, 0, 1, 2000].map(priority => {
    const request = makeRequest({ raw: { priority, stream: true }, unknown: { priority } });
    const token = bodyOf({ request }).priority;
    t.equal(bodyOf({ mode: 'relay', promptIds: null, request }).priority, token);
    return token;
  });
  t.same(
    sent,
    [...sent].sort((one, other) => other - one),
  );
  t.equal(new Set(sent).size, sent.length);
  t.ok(sent.every(one => one >= 0 && one <= 1));
  t.end();
});

t.test('TensorRT-LLM: constraints and adapters in relay mode', t => {
  const relayed = (fields: object, adapted?: { parent?: string; path?: string }) => {
    const request = makeRequest({ raw: { prompt: 'x', ...fields }, unknown: { ...fields } });
    const input = { mode: 'relay' as const, promptIds: null, request };
    return bodyOf(adapted === undefined ? input : { ...input, adapter: adapted });
  };
  const formats = [
    [{ guided_json: { type: 'object' } }, { type: 'json', schema: { type: 'object' } }],
    [{ guided_choice: ['a.', 'b'] }, { type: 'regex', regex: '(a\\.|b)' }],
    [{ structured_outputs: { grammar: 'root ::= "x"' } }, { type: 'ebnf', ebnf: 'root ::= "x"' }],
  ] as const;
  for (const [fields, format] of formats) {
    const body = relayed(fields);
    t.same(body.response_format, format);
    t.equal(body[Object.keys(fields)[0]!], undefined, 'the server knows no such field');
  }
  const own = { response_format: { type: 'json_object' }, guided_regex: 'x' };
  t.match(relayed(own), own, 'what the client wrote itself is for the server to judge');
  t.match(relayed({ guided_choice: [] }), { guided_choice: [] }, 'and what has no form');
  const one = relayed({}, { parent: 'base', path: '/a' }).lora_request;
  const other = relayed({}, { parent: 'base', path: '/b' }).lora_request;
  t.match(one, { lora_name: 'worker-name', lora_path: '/a' });
  t.not(one.lora_int_id, other.lora_int_id, 'other weights, another number');
  t.same(relayed({}, { path: '/a' }).lora_request, one, 'the same from every sender');
  t.end();
});

t.test('TensorRT-LLM: what rules token mode out', t => {
  const gap = (changes: Parameters<typeof makeRequest>[0]) => adapter.tokenModeGap(makeRequest(changes));
  t.equal(gap({}), null);
  t.equal(gap({ output: { ...makeRequest().output, logprobs: 0 } }), 'logprobs');
  t.equal(gap({ api: 'chat', unknown: { top_k: 1, cache_salt: 's' } }), 'cache_salt');
  t.equal(gap({ api: 'chat', unknown: { top_k: 1, cache_salt: null, response_format: {} } }), null);
  t.equal(gap({ api: 'chat', unknown: { guided_regex: 'x' } }), null);
  t.equal(gap({ unknown: { cache_salt: 's' } }), null, 'no route of completions takes it');
  t.end();
});
