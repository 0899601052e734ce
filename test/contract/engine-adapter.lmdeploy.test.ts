/** Promise: the example adapter, loaded as an extension is, passes the suite of all adapters over /generate. */
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { createAdapters } from '#millrace/engines/adapters.js';
import { loadExtensions } from '#millrace/engines/extensions.js';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { generateFrames, startLmdeployDouble } from '../engines/lmdeploy-double.js';
import { decode, engineAdapterSuite, makeInput, makeRequest } from './engine-adapter.js';

const MODULE = fileURLToPath(new URL('../../../examples/lmdeploy-adapter.js', import.meta.url));
const extensions = await loadExtensions([MODULE], systemClock);
const adapterWith = (addon: Parameters<typeof createFrameScanner>[0]) =>
  createAdapters(extensions, createFrameScanner(addon)).get('lmdeploy')!;

const frame = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
const step = (ids: number[], tokens: number, type: string | null): string =>
  frame({
    text: 'é}]"',
    output_ids: ids,
    meta_info: {
      prompt_tokens: 3,
      completion_tokens: tokens,
      finish_reason: type === null ? null : { type },
    },
  });
const quiet = { finish: null, usage: null };

// Without the addon both run on the same scanner; that the scanners agree has tests of its own.
for (const [name, addon] of [
  ['script', null],
  ['addon', loadAddon()],
] as const) {
  t.test(`${name} scanner`, t => {
    engineAdapterSuite(t, {
      adapter: adapterWith(addon),
      answer: Buffer.from(
        [
          ': comment\n\n',
          step([11], 1, null),
          step([12, 4294967295], 3, null),
          step([], 3, 'length'),
          frame({ error: { message: 'the engine is asleep', type: 'server_error', code: 503 } }),
          'data: [DONE]\n\n',
        ].join(''),
      ),
      events: [
        { comment: true },
        { choice: 0, ids: [11], ...quiet },
        { choice: 0, ids: [12, 4294967295], ...quiet },
        { choice: 0, ids: [], finish: 'length', usage: null },
        {
          error: {
            code: 'MILLRACE_OVERLOADED',
            message: 'the worker takes no more requests now',
            httpStatus: 529,
            param: null,
            retryable: true,
          },
        },
        {
          choice: -1,
          ids: null,
          finish: null,
          usage: { promptTokens: 3, completionTokens: 3, cachedTokens: null },
        },
        { done: true },
      ],
      malformed: Buffer.from(`${step([1], 1, null)}data: oops\n\n${step([2], 2, null)}`),
      promptIdsOf: body => body.input_ids,
      tokenFields: { guided_regex: 'ü\n', top_k: 5, max_tokens: 7 },
      relayFields: {},
    });
    t.end();
  });
}

t.test('what its server says, and the frames that it sends', async t => {
  const adapter = adapterWith(null);
  const { url } = await startLmdeployDouble(t);
  const get = async (path: string) => {
    const answer = await fetch(url + path);
    return { status: answer.status, body: await answer.text() };
  };
  const post = async (path: string, body: string) => {
    const answer = await fetch(url + path, { method: 'POST', body });
    return { status: answer.status, body: await answer.text() };
  };
  t.match(await adapter.probe(get, url), {
    engine: 'lmdeploy',
    models: [{ id: 'internlm', contextLength: null }],
    blockSize: 64,
    totalBlocks: 1000,
    answerModes: ['token', 'relay'],
  });
  t.match(adapter.parseMetrics((await get('/metrics')).body), { running: 2, waiting: null, kvUsage: null });
  const tokenizer = await loadTokenizer('chatml-cl100k');
  t.same(await adapter.tokenize(post, 'm', { prompt: 'abc é' }), tokenizer.encode('abc é'));
  t.equal(await adapter.tokenize(post, 'm', { messages: [] }), null);
  const whole = decode(adapter, [Buffer.from(generateFrames(tokenizer, 5, 100).join(''))]);
  t.match(whole, { fault: null, end: null });
  t.match(whole.events.at(-3), { ids: [], finish: 'stop' });
});

t.test('what only its OpenAI routes honour is relayed', t => {
  const adapter = adapterWith(null);
  const gap = (changes: Parameters<typeof makeRequest>[0]) => adapter.tokenModeGap(makeRequest(changes));
  t.equal(gap({ unknown: { top_k: 3, min_p: null } }), null);
  t.equal(gap({ unknown: { response_format: { type: 'json_object' } } }), 'response_format');
  t.equal(gap({ sampling: { n: 2 } }), 'n');
  t.equal(gap({ sampling: { n: 1, seed: 7 } }), 'seed');
  t.equal(gap({ output: { ...makeRequest().output, logprobs: 0 } }), 'logprobs');
  const call = adapter.encode(makeInput({ mode: 'relay', promptIds: null }));
  t.equal(call.path, '/v1/completions');
  t.match(JSON.parse(Buffer.from(call.body).toString()), { stream_options: { include_usage: true } });
  t.equal(call.usageInjected, true);
  t.end();
});
