// A good body becomes a TokenRequest that keeps every field in its place, and any body at all is read or refused in O(n).
import fc from 'fast-check';
import t from 'tap';
import { InvalidRequestError } from '#millrace/errors.js';
import { DEFAULT_LIMITS } from '#millrace/limits.js';
import type { Api, TokenRequest } from '#millrace/messages/token-request.js';
import { resolveMaxTokens } from '#millrace/preprocess/max-tokens.js';
import { parseRequest } from '#millrace/preprocess/parse-request.js';
import { testRandom } from './random-text.js';

const MESSAGES = [{ role: 'user', content: 'hi' }];

function chat(fields: object): TokenRequest {
  const body = { model: 'm', messages: MESSAGES, ...fields };
  return parseRequest('chat', Buffer.from(JSON.stringify(body)), DEFAULT_LIMITS);
}

function completion(fields: object): TokenRequest {
  const body = { model: 'm', prompt: 'hi', ...fields };
  return parseRequest('completions', Buffer.from(JSON.stringify(body)), DEFAULT_LIMITS);
}

t.test('defaults', async t => {
  const request = chat({});
  t.same(request.prompt, { kind: 'messages', messages: [{ role: 'user', text: 'hi', hasMedia: false }] });
  t.same(request.sampling, { n: 1 });
  t.same(request.stop, {
    maxTokens: null,
    minTokens: 0,
    strings: [],
    tokenIds: [],
    ignoreEos: false,
    includeStopString: false,
  });
  t.same(request.output, {
    stream: false,
    includeUsage: false,
    continuousUsage: false,
    skipSpecialTokens: true,
    logprobs: null,
  });
  t.same(request.engineOnly, []);
  t.same(request.unknown, {});
  t.same(request.raw, { model: 'm', messages: MESSAGES });
});

t.test('every field in its place', async t => {
  const request = chat({
    n: 128,
    temperature: 0,
    top_p: 1,
    seed: -5,
    presence_penalty: -2,
    frequency_penalty: 2,
    max_tokens: 9,
    max_completion_tokens: 8,
    min_tokens: 8,
    stop: ['a', 7, 'b', 'a'],
    stop_token_ids: [7, 0],
    ignore_eos: true,
    include_stop_str_in_output: true,
    skip_special_tokens: false,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true, include_obfuscation: false },
    top_k: -1,
    response_format: { type: 'json_object' },
    logprobs: false,
    user: null,
  });
  t.same(request.sampling, {
    n: 128,
    temperature: 0,
    topP: 1,
    seed: -5,
    presencePenalty: -2,
    frequencyPenalty: 2,
  });
  t.same(request.stop, {
    maxTokens: 8,
    minTokens: 8,
    strings: ['a', 'b'],
    tokenIds: [7, 0],
    ignoreEos: true,
    includeStopString: true,
  });
  t.same(request.output, {
    stream: true,
    includeUsage: true,
    continuousUsage: true,
    skipSpecialTokens: false,
    logprobs: null,
  });
  t.same(request.engineOnly, []);
  t.same(request.unknown, { top_k: -1, response_format: { type: 'json_object' }, user: null });
  t.equal(chat({ stop: 'x' }).stop.strings[0], 'x');
  const unlinked = chat({ stream: true, stream_options: { continuous_usage_stats: true } });
  t.notOk(unlinked.output.continuousUsage, 'only together with include_usage');
  t.same(chat({ temperature: null, stop: null, stream_options: null }).sampling, { n: 1 }, 'null is absent');
});

t.test('prompts', async t => {
  t.same(completion({}).prompt, { kind: 'text', text: 'hi' });
  t.same(completion({ prompt: [0, 2_147_483_647] }).prompt, {
    kind: 'ids',
    ids: Uint32Array.of(0, 2_147_483_647),
  });
  const messages = [
    {
      role: 'system',
      name: 'a-1',
      content: [
        { type: 'text', text: 'x' },
        { type: 'text', text: 'y' },
      ],
    },
    { role: 'assistant', content: null, tool_calls: [{ id: '1' }] },
    {
      role: 'user',
      content: [
        { type: 'text', text: 'see' },
        { type: 'image_url', image_url: { url: 'u' } },
      ],
    },
  ];
  const request = chat({ messages });
  t.same(request.prompt, {
    kind: 'messages',
    messages: [
      { role: 'system', text: 'x\ny', textParts: ['x', 'y'], name: 'a-1', hasMedia: false },
      { role: 'assistant', text: '', hasMedia: false },
      { role: 'user', text: 'see', hasMedia: true },
    ],
  });
  t.same(request.engineOnly, ['messages[1].tool_calls', 'messages[2].content']);
});

t.test('log-probabilities: a count of alternatives, which 0 asks for none of', async t => {
  const wanted = (request: { output: { logprobs: number | null } }): number | null => request.output.logprobs;
  t.equal(wanted(chat({ logprobs: true, top_logprobs: 2 })), 2);
  t.equal(wanted(chat({ logprobs: true })), 0);
  t.equal(wanted(chat({ logprobs: false })), null);
  t.equal(wanted(completion({ logprobs: 0 })), 0);
  t.equal(wanted(completion({ logprobs: 20 })), 20);
  t.equal(wanted(completion({})), null);
  t.same(chat({ logprobs: true, top_logprobs: 2 }).engineOnly, []);
  t.same(chat({ logprobs: true, top_logprobs: 2 }).unknown, {});
});

t.test('fields of the engine alone', async t => {
  const tools = [{ type: 'function', function: { name: 'f' } }];
  const cases: [object, string[]][] = [
    [{ tools }, ['tools']],
    [{ tools, tool_choice: 'auto' }, ['tools', 'tool_choice']],
    [{ tools, tool_choice: 'none' }, []],
    [{ echo: true, best_of: 2, use_beam_search: true }, ['echo', 'best_of', 'use_beam_search']],
    [{ echo: false, best_of: 1, tools: [], chat_template_kwargs: {}, add_generation_prompt: true }, []],
    [{ chat_template: 'x', add_generation_prompt: false }, ['chat_template', 'add_generation_prompt']],
    [{ truncate_prompt_tokens: 5, bad_words: ['x'] }, ['truncate_prompt_tokens', 'bad_words']],
    [{ modalities: ['text'] }, []],
    [{ modalities: ['text', 'audio'], audio: {} }, ['modalities', 'audio']],
  ];
  for (const [fields, expected] of cases) {
    const request = chat(fields);
    t.same(request.engineOnly, expected, JSON.stringify(fields));
    t.same(request.unknown, {}, 'they are not unknown');
  }
  t.same(completion({ suffix: 'x' }).engineOnly, ['suffix']);
});

t.test('odd but legal JSON', async t => {
  const parse = (text: string | Buffer) => parseRequest('completions', Buffer.from(text), DEFAULT_LIMITS);
  const text = (source: string) => {
    const { prompt } = parse(`{"model":"m","prompt":${source}}`);
    return prompt.kind === 'text' ? prompt.text : null;
  };
  t.equal(text('"\\ud800x\\udc00"'), '\ufffdx\ufffd', 'lone surrogates');
  t.equal(text('"\\uD83D\\uDC4D"'), '👍', 'a pair');
  t.equal(text('"\\uDC4D\\uD83D"'), '\ufffd\ufffd', 'a pair the wrong way round');
  t.equal(text('"é\u2028👍"'), 'é\u2028👍');
  const deep = parse('{"model":"m","prompt":"x","a":[{"b":"\\udfff"}]}');
  t.same(deep.unknown, { a: [{ b: '\ufffd' }] }, 'at any depth');
  t.equal(parse('{"model":"a","model":"m","prompt":"x"}').model, 'm', 'the last of two equal keys counts');
  t.equal(parse('\ufeff{"model":"é","prompt":"x"}').model, 'é', 'a byte order mark is skipped');
  t.equal(parse(` \r\n\t{"model":"m","prompt":"${'x'.repeat(1e6)}"}\n`).model, 'm');
  const tricky = parse('{"model":"m","prompt":"x","__proto__":{"n":3},"constructor":1,"toString":2}');
  t.equal(tricky.sampling.n, 1, '__proto__ sets nothing');
  t.equal(Object.getPrototypeOf(tricky.unknown), Object.prototype);
  t.same(
    Object.keys(tricky.unknown),
    ['__proto__', 'constructor', 'toString'],
    'and is passed on like any key',
  );
  t.equal(({} as Record<string, unknown>).n, undefined);
});

t.test('tokens that fit the context', async t => {
  t.equal(resolveMaxTokens(chat({}), 10, 100), 90);
  t.equal(resolveMaxTokens(chat({}), 10, null), null);
  t.equal(resolveMaxTokens(chat({ max_tokens: 90 }), 10, 100), 90);
  t.equal(resolveMaxTokens(chat({ max_tokens: 5 }), 1e6, null), 5);
  t.equal(resolveMaxTokens(completion({}), 10, 100), 16);
  t.equal(resolveMaxTokens(completion({}), 90, 100), 10);
  t.equal(resolveMaxTokens(completion({}), 90, null), 16);
  const refused = (request: TokenRequest, promptTokens: number, param: string, words: RegExp) =>
    t.throws(() => resolveMaxTokens(request, promptTokens, 100), { param, message: words });
  refused(chat({}), 100, 'messages', /100 tokens; the prompt has 100/);
  refused(completion({}), 101, 'prompt', /the prompt has 101/);
  refused(chat({ max_tokens: 91 }), 10, 'max_tokens', /prompt has 10 and max_tokens is 91/);
  refused(chat({ max_completion_tokens: 91 }), 10, 'max_completion_tokens', /is 91/);
  refused(completion({ min_tokens: 17 }), 10, 'min_tokens', /17.*at most 16/);
  t.match(
    t.throws(() => resolveMaxTokens(chat({}), 100, 100)),
    { code: 'MILLRACE_CONTEXT_LENGTH', httpStatus: 400 },
  );
});

t.test('random bodies are read or refused', async t => {
  const { seed } = testRandom();
  t.comment(`SEED=${seed}`);
  const outcomes = { read: 0, refused: 0 };
  const attempt = (api: Api, body: Uint8Array) => {
    try {
      parseRequest(api, body, DEFAULT_LIMITS);
      outcomes.read++;
    } catch (error) {
      if (!(error instanceof InvalidRequestError)) throw error;
      outcomes.refused++;
    }
  };
  const names =
    'n max_tokens min_tokens temperature top_p seed stop stop_token_ids stream stream_options logprobs tools';
  const odd = fc.constantFrom(-1, 0, 1, 2 ** 31, 2 ** 53, 1e308, '', '1', null, true, [], {}, [null], ['a']);
  const fields = fc.dictionary(fc.constantFrom(...names.split(' ')), fc.oneof(odd, fc.jsonValue()));
  const prompt = fc.oneof(fc.string({ unit: 'binary' }), fc.array(fc.nat()), fc.jsonValue());
  const run = { seed, numRuns: 1500 };
  fc.assert(
    fc.property(fields, prompt, fc.constantFrom<Api>('chat', 'completions'), (given, text, api) => {
      const messages = [{ role: 'user', content: text }];
      attempt(api, Buffer.from(JSON.stringify({ model: 'm', messages, prompt: text, ...given })));
    }),
    run,
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), bytes => attempt('chat', bytes)),
    run,
  );
  fc.assert(
    fc.property(fc.json({ maxDepth: 6 }), fc.nat(), (text, cut) => {
      attempt('chat', Buffer.from(text));
      attempt('chat', Buffer.from(text).subarray(0, cut % (text.length + 1)));
    }),
    run,
  );
  t.ok(outcomes.read > 50 && outcomes.refused > 1000, JSON.stringify(outcomes));
});
