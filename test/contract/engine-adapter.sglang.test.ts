/** Promise: the SGLang adapter passes the suite of all adapters over /generate, in both forms of its streams. */
import t from 'tap';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { createSglangAdapter } from '#millrace/engines/sglang.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { decode, engineAdapterSuite, makeInput, makeRequest } from './engine-adapter.js';

const frame = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
const step = (ids: number[], completion: number, more: object = {}, index?: number): string =>
  frame({
    text: 'é}]"',
    output_ids: ids,
    meta_info: {
      id: 'x',
      finish_reason: null,
      prompt_tokens: 3,
      completion_tokens: completion,
      cached_tokens: 2,
      ...more,
    },
    ...(index === undefined ? {} : { index }),
  });
const stop = { finish_reason: { type: 'stop', matched: 'é' } };
const length = { finish_reason: { type: 'length', length: 4 } };

const answerOf = (cumulative: boolean): Buffer => {
  const upTo = (ids: number[], from: number): number[] => (cumulative ? ids : ids.slice(from));
  return Buffer.from(
    [
      ': comment\n\n',
      step([11], 1, {}, 0),
      step([12, 4294967295], 2, {}, 1),
      step(upTo([11, 5, 6], 1), 3, {}, 0),
      step(upTo([12, 4294967295, 7], 2), 3, stop, 1),
      step(upTo([11, 5, 6, 9], 3), 4, length, 0),
      frame({
        error: { message: "The input (9 tokens) is longer than the model's context length (8 tokens)." },
      }),
      'data: [DONE]\n\n',
    ].join(''),
  );
};

const quiet = { finish: null, usage: null };
const EVENTS = [
  { comment: true },
  { choice: 0, ids: [11], ...quiet },
  { choice: 1, ids: [12, 4294967295], ...quiet },
  { choice: 0, ids: [5, 6], ...quiet },
  { choice: 1, ids: [7], finish: 'stop', usage: null },
  { choice: 0, ids: [9], finish: 'length', usage: null },
  {
    error: {
      code: 'MILLRACE_CONTEXT_LENGTH',
      message: "The input (9 tokens) is longer than the model's context length (8 tokens).",
      httpStatus: 400,
      param: null,
      retryable: false,
    },
  },
  { choice: -1, ids: null, finish: null, usage: { promptTokens: 3, completionTokens: 7, cachedTokens: 2 } },
  { done: true },
];

// Without the addon both run on the same scanner; that the scanners agree has tests of its own.
for (const [form, scanner] of [
  ['cumulative', createFrameScanner(null)],
  ['incremental', createFrameScanner(loadAddon())],
] as const) {
  t.test(`${form} stream`, t => {
    engineAdapterSuite(t, {
      adapter: createSglangAdapter({ scanner }),
      answer: answerOf(form === 'cumulative'),
      events: EVENTS,
      malformed: Buffer.from(`${step([1], 1)}data: oops\n\n${step([1, 2], 2)}`),
      promptIdsOf: body => body.input_ids,
      tokenFields: { sampling_params: { regex: 'ü\n', top_k: 5, max_new_tokens: 7 } },
      relayFields: { rid: 'req-1' },
    });
    t.end();
  });
}

const adapter = createSglangAdapter({ scanner: createFrameScanner(null) });
const bodyOf = (changes: Parameters<typeof makeInput>[0]) =>
  JSON.parse(Buffer.from(adapter.encode(makeInput(changes)).body).toString());

t.test('SGLang: the call of token mode', t => {
  const request = makeRequest({
    api: 'chat',
    sampling: { n: 1, temperature: 0, seed: 3, presencePenalty: 1 },
    stop: {
      maxTokens: 7,
      minTokens: 2,
      strings: ['END'],
      tokenIds: [9],
      ignoreEos: true,
      includeStopString: true,
    },
    output: { ...makeRequest().output, logprobs: 3 },
    unknown: { stop: ['x'], text: 'y', top_k: 0, cache_salt: 's', priority: 4, rid: 'theirs', no_such: 1 },
  });
  const call = adapter.encode(
    makeInput({ request, rank: 2, adapter: { parent: 'base', path: '/adapters/a' } }),
  );
  t.same([call.method, call.path, call.usageInjected, call.idsInjected], ['POST', '/generate', true, true]);
  t.same(JSON.parse(Buffer.from(call.body).toString()), {
    input_ids: [1, 22, 333],
    cache_salt: 's',
    no_such: 1,
    sampling_params: {
      top_k: -1,
      max_new_tokens: 7,
      min_new_tokens: 2,
      temperature: 0,
      sampling_seed: 3,
      presence_penalty: 1,
      ignore_eos: true,
      stop_token_ids: [9],
    },
    stream: true,
    return_logprob: true,
    top_logprobs_num: 3,
    rid: 'req-1',
    lora_path: 'worker-name',
    routed_dp_rank: 2,
    data_parallel_rank: 2,
    priority: -4,
  });
  t.throws(() => bodyOf({ request: makeRequest({ api: 'chat' }), maxTokens: null }), /resolved maxTokens/);
  t.throws(() => bodyOf({ mode: 'relayIds' }), /token or relay/);
  const several = bodyOf({ request: makeRequest({ sampling: { n: 2 } }), maxTokens: null });
  t.match(several, { sampling_params: { n: 2, max_new_tokens: 16 } });
  t.notOk('rid' in several, 'choices of one request have ids of their own');
  t.end();
});

t.test('SGLang: what clients write for constrained decoding, under its names', t => {
  const params = (unknown: Record<string, unknown>) =>
    bodyOf({ request: makeRequest({ unknown }) }).sampling_params;
  const cases: [Record<string, unknown>, object][] = [
    [{ response_format: { type: 'json_object' } }, { json_schema: '{"type":"object"}' }],
    [
      { response_format: { type: 'json_schema', json_schema: { name: 'n', schema: { type: 'array' } } } },
      { json_schema: '{"type":"array"}' },
    ],
    [{ guided_json: { a: 1 } }, { json_schema: '{"a":1}' }],
    [{ guided_choice: ['a.b', 'c'] }, { regex: '(a\\.b|c)' }],
    [{ structured_outputs: { grammar: 'root ::= "a"', json: null } }, { ebnf: 'root ::= "a"' }],
    [{ ebnf: 'root ::= "b"' }, { ebnf: 'root ::= "b"' }],
    [{ response_format: { type: 'text' } }, {}],
  ];
  for (const [unknown, expected] of cases) {
    t.same(params(unknown), { ...expected, max_new_tokens: 7 }, JSON.stringify(unknown));
    t.equal(adapter.tokenModeGap(makeRequest({ unknown })), null);
  }
  const gaps: Record<string, unknown>[] = [
    { response_format: { type: 'regex' } },
    { structured_outputs: { disable_any_whitespace: true } },
    { guided_choice: [] },
    { stop_regex: 'a+' },
  ];
  for (const unknown of gaps) {
    t.equal(adapter.tokenModeGap(makeRequest({ unknown })), Object.keys(unknown)[0]);
  }
  t.end();
});

t.test('SGLang: relayed bodies, their frames, and the abort route', t => {
  const raw = { model: 'public-name', messages: [], stream: true, priority: 1 };
  const request = makeRequest({ api: 'chat', raw, unknown: { priority: 1 } });
  const call = adapter.encode(makeInput({ mode: 'relay', promptIds: null, request }));
  t.equal(call.path, '/v1/chat/completions');
  t.same(JSON.parse(Buffer.from(call.body).toString()), {
    ...raw,
    model: 'worker-name',
    stream_options: { include_usage: true },
    rid: 'req-1',
    priority: -1,
  });
  const abort = adapter.abortCall('req-1');
  t.same(
    [abort?.method, abort?.path, Buffer.from(abort!.body).toString()],
    ['POST', '/abort_request', '{"rid":"req-1"}'],
  );
  const relay = {
    openStream: (limits: Parameters<typeof adapter.openStream>[0]) => adapter.openStream(limits, 'relay'),
  };
  const chunk = frame({ choices: [{ index: 0, delta: { content: 'a' }, finish_reason: 'stop' }] });
  t.match(decode(relay, [Buffer.from(`${chunk}data: [DONE]\n\n`)]), {
    events: [{ choice: 0, ids: null, finish: 'stop' }, { done: true }],
    fault: null,
    end: null,
  });
  t.throws(() => adapter.openStream({ firstFrameBytesMax: 1, frameBytesMax: 1 }), /OpenAI routes/);
  t.throws(
    () => createSglangAdapter().openStream({ firstFrameBytesMax: 1, frameBytesMax: 1 }, 'relay'),
    /scanner/,
  );
  t.end();
});
