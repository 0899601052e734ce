/** Promise: the vLLM adapter passes the suite of all adapters, and does what only vLLM asks for. */
import t from 'tap';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { createVllmAdapter } from '#millrace/engines/vllm.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { decode, engineAdapterSuite, makeInput, makeRequest } from './engine-adapter.js';

const frame = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
const chunk = (choice: object): string =>
  frame({ id: 'cmpl-1', object: 'text_completion', created: 1, model: 'm', choices: [choice] });

const ANSWER = Buffer.from(
  [
    ': comment\n\n',
    chunk({
      index: 0,
      text: 'a}]"',
      logprobs: null,
      finish_reason: null,
      stop_reason: null,
      prompt_token_ids: [1, 2],
      token_ids: [11],
    }),
    chunk({ index: 1, text: 'é', finish_reason: null, token_ids: [12, 4294967295] }),
    frame({
      choices: [
        { index: 0, text: 'x', token_ids: [5] },
        { index: 1, text: '', token_ids: [6], finish_reason: 'stop', stop_reason: '\n\n' },
      ],
    }),
    chunk({ index: 0, text: '', finish_reason: 'length', token_ids: [] }),
    frame({
      choices: [],
      usage: {
        prompt_tokens: 2,
        total_tokens: 7,
        completion_tokens: 5,
        prompt_tokens_details: { cached_tokens: 1 },
      },
    }),
    frame({
      error: { message: 'CUDA at /usr/lib/x.py', type: 'InternalServerError', param: null, code: 500 },
    }),
    'data: [DONE]\n\n',
  ].join(''),
);

const quiet = { finish: null, usage: null };
const EVENTS = [
  { comment: true },
  { choice: 0, ids: [11], ...quiet },
  { choice: 1, ids: [12, 4294967295], ...quiet },
  {
    choices: [
      { choice: 0, text: 'x', ids: [5], finish: null, stopReason: null, logprobs: null },
      { choice: 1, text: '', ids: [6], finish: 'stop', stopReason: '\n\n', logprobs: null },
    ],
  },
  { choice: 0, ids: [], finish: 'length', usage: null },
  { choice: -1, ids: null, finish: null, usage: { promptTokens: 2, completionTokens: 5, cachedTokens: 1 } },
  {
    error: {
      code: 'MILLRACE_WORKER_FAILED',
      message: 'the worker failed with status 500',
      httpStatus: 502,
      param: null,
      retryable: true,
    },
  },
  { done: true },
];

const addon = loadAddon();
const scanners: [string, ReturnType<typeof createFrameScanner>][] = [['script', createFrameScanner(null)]];
if (addon !== null) scanners.push(['addon', createFrameScanner(addon)]);

for (const [name, scanner] of scanners) {
  t.test(`${name} scanner`, t => {
    engineAdapterSuite(t, {
      adapter: createVllmAdapter({ scanner }),
      answer: ANSWER,
      events: EVENTS,
      malformed: Buffer.from(
        `${chunk({ index: 0, text: 'a' })}data: oops\n\n${chunk({ index: 0, text: 'b' })}`,
      ),
      promptIdsOf: body => body.prompt,
      tokenFields: {
        guided_regex: 'ü\n',
        structured_outputs: { regex: 'ü\n' },
        top_k: 5,
        model: 'worker-name',
        max_tokens: 7,
      },
      relayFields: {},
    });
    t.end();
  });
}

t.test('what follows the end marker is ignored, CRLF streams decode alike', t => {
  const adapter = createVllmAdapter({ scanner: createFrameScanner(null) });
  const after = Buffer.concat([ANSWER, Buffer.from('data: oops\n\n')]);
  t.same(decode(adapter, [after, after]), { events: EVENTS, fault: null, end: null });
  const crlf = Buffer.from(ANSWER.toString('utf8').replaceAll('\n', '\r\n'));
  for (let cut = 0; cut <= crlf.length; cut++) {
    const { events } = decode(adapter, [crlf.subarray(0, cut), crlf.subarray(cut)]);
    if (JSON.stringify(events) !== JSON.stringify(EVENTS)) t.same(events, EVENTS, `cut at ${cut}`);
  }
  t.end();
});

t.test('more frames and ids than one scan can report', t => {
  const adapter = createVllmAdapter({ scanner: createFrameScanner(null) });
  const frames = Array.from({ length: 1200 }, (_, index) =>
    chunk({ index: 0, text: 'a', token_ids: [index, index, index] }),
  );
  const long = Array.from({ length: 9000 }, (_, index) => index);
  const bytes = Buffer.from(
    `${frames.join('')}${chunk({ index: 0, text: 'b', token_ids: long })}data: [DONE]\n\n`,
  );
  const { events, fault, end } = decode(adapter, [bytes.subarray(0, 100_001), bytes.subarray(100_001)]);
  t.same([events.length, fault, end], [1202, null, null]);
  t.match(events[1199], { ids: [1199, 1199, 1199] });
  t.same(events[1200], {
    choices: [{ choice: 0, text: 'b', ids: long, finish: null, stopReason: null, logprobs: null }],
  });
  t.end();
});

t.test('vLLM: the call of token mode', t => {
  const adapter = createVllmAdapter();
  const call = adapter.encode(
    makeInput({
      request: makeRequest({
        api: 'chat',
        sampling: { n: 2, temperature: 0, seed: 3 },
        stop: {
          maxTokens: 7,
          minTokens: 2,
          strings: ['END'],
          tokenIds: [9],
          ignoreEos: true,
          includeStopString: true,
        },
        unknown: { stop: ['x'], prompt: 'y', top_k: 4 },
      }),
    }),
  );
  t.same([call.method, call.path], ['POST', '/v1/completions']);
  t.same(call.head, [
    ['content-type', 'application/json'],
    ['x-request-id', 'req-1'],
  ]);
  t.same(JSON.parse(Buffer.from(call.body).toString()), {
    prompt: [1, 22, 333],
    top_k: 4,
    model: 'worker-name',
    stream: true,
    stream_options: { include_usage: true },
    return_token_ids: true,
    max_tokens: 7,
    min_tokens: 2,
    n: 2,
    temperature: 0,
    seed: 3,
    ignore_eos: true,
    stop_token_ids: [9],
    skip_special_tokens: true,
  });
  t.throws(
    () => adapter.encode(makeInput({ request: makeRequest({ api: 'chat' }), maxTokens: null })),
    /resolved maxTokens/,
    'vLLM would cut a chat at its default of 16 tokens',
  );
  t.throws(() => adapter.openStream({ firstFrameBytesMax: 1, frameBytesMax: 1 }), /scanner/);
  t.end();
});

t.test('vLLM: relayed streams ask for usage when the client did not', t => {
  const adapter = createVllmAdapter();
  const relay = (raw: Record<string, unknown>, includeUsage: boolean, api: 'chat' | 'completions') => {
    const output = {
      stream: true,
      includeUsage,
      continuousUsage: false,
      skipSpecialTokens: true,
      logprobs: null,
    };
    const call = adapter.encode(
      makeInput({ mode: 'relay', promptIds: null, request: makeRequest({ api, raw, output }) }),
    );
    return {
      path: call.path,
      injected: call.usageInjected,
      body: JSON.parse(Buffer.from(call.body).toString()),
    };
  };
  const options = { include_usage: false, continuous_usage_stats: true, other: 1 };
  t.same(relay({ stream: true, stream_options: options }, false, 'chat'), {
    path: '/v1/chat/completions',
    injected: true,
    body: { stream: true, model: 'worker-name', stream_options: { include_usage: true, other: 1 } },
  });
  const asked = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  t.same(relay(asked, true, 'completions'), {
    path: '/v1/completions',
    injected: false,
    body: { ...asked, model: 'worker-name' },
  });
  t.match(relay({ stream: true, stream_options: null }, false, 'chat').body, {
    stream_options: { include_usage: true },
  });
  t.end();
});

t.test('vLLM: with ids every answer is a stream, and what the client did not ask for is told apart', t => {
  const adapter = createVllmAdapter();
  const encode = (raw: Record<string, unknown>, stream: boolean, includeUsage = false) => {
    const output = { stream, includeUsage, continuousUsage: false, skipSpecialTokens: true, logprobs: null };
    const request = makeRequest({ api: 'chat', raw, output });
    const call = adapter.encode(makeInput({ mode: 'relayIds', promptIds: null, request }));
    const { usageInjected, idsInjected } = call;
    return { usageInjected, idsInjected, ...JSON.parse(Buffer.from(call.body).toString()) };
  };
  const asked = { stream: true, stream_options: { include_usage: true }, return_token_ids: true };
  const own = { model: 'worker-name', tools: [1] };
  t.same(encode({ tools: [1], return_token_ids: false }, false), {
    ...own,
    ...asked,
    usageInjected: true,
    idsInjected: true,
  });
  t.same(encode({ tools: [1], ...asked }, true, true), {
    ...own,
    ...asked,
    usageInjected: false,
    idsInjected: false,
  });
  t.end();
});

t.test('vLLM: log-probabilities in token mode are asked for by id', t => {
  const adapter = createVllmAdapter();
  const output = { ...makeRequest().output, logprobs: 3 };
  const call = adapter.encode(makeInput({ request: makeRequest({ api: 'chat', output }) }));
  t.match(JSON.parse(Buffer.from(call.body).toString()), { logprobs: 3, return_tokens_as_token_ids: true });
  t.end();
});
