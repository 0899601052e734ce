// Promise: the chunks of a stream fold into the body that the engine would have sent unary, wherever they were cut.
import t from 'tap';
import { ChunkFold } from '#millrace/frontend/openai/chunk-fold.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';

const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const head = { id: 'chatcmpl-1', object: 'chat.completion.chunk', created: 5, model: 'm' };

function fold(chunks: readonly object[], keepsIds = false, api: 'chat' | 'completions' = 'chat') {
  const folded = new ChunkFold({ api, keepsIds });
  for (const chunk of chunks) t.ok(folded.add(chunk as Record<string, unknown>));
  return JSON.parse(folded.body());
}

/** A text in pieces of random length. */
function pieces(random: Random, text: string): string[] {
  const cuts: string[] = [];
  for (let at = 0; at < text.length; ) {
    const to = at + 1 + randomInteger(random, 9);
    cuts.push(text.slice(at, to));
    at = to;
  }
  return cuts;
}

t.test('tool calls, reasoning and log-probabilities of interleaved choices', async t => {
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  for (let round = 0; round < 200; round++) {
    const calls = Array.from({ length: 1 + randomInteger(random, 3) }, (_, index) => ({
      index,
      id: `call-${index}`,
      type: 'function',
      name: `f${index}`,
      json: JSON.stringify({ city: 'Zürich "x"', n: randomInteger(random, 1e6) }),
    }));
    const reasoning = 'because of this and that';
    const streams = [0, 1].map(index => {
      const choice = (delta: object, more: object = {}): object => ({
        ...head,
        choices: [{ index, delta, logprobs: null, finish_reason: null, token_ids: [7], ...more }],
      });
      return [
        choice({ role: 'assistant', content: '' }, { token_ids: undefined }),
        ...pieces(random, reasoning).map(text =>
          choice({ reasoning: text }, { logprobs: { content: [{ token: text }] } }),
        ),
        ...calls.flatMap(({ index: at, id, type, name, json }) => [
          choice({ tool_calls: [{ index: at, id, type, function: { name, arguments: '' } }] }),
          ...pieces(random, json).map(text =>
            choice({ tool_calls: [{ index: at, function: { arguments: text } }] }),
          ),
        ]),
        choice({}, { finish_reason: 'tool_calls', stop_reason: null }),
      ];
    });
    const order: object[] = [];
    const left = streams.map(stream => [...stream]);
    while (left.some(stream => stream.length > 0)) {
      const next = left[randomInteger(random, 2)]!.shift();
      if (next !== undefined) order.push(next);
    }
    const usage = { prompt_tokens: 3, completion_tokens: 9, total_tokens: 12 };
    const first = { ...order[0], prompt_token_ids: [1, 2], kv_transfer_params: { a: 1 } };
    const body = fold([first, ...order.slice(1), { ...head, choices: [], usage, system_fingerprint: 'fp' }]);
    const choices = [0, 1].map(index => ({
      index,
      message: {
        role: 'assistant',
        content: null,
        reasoning,
        tool_calls: calls.map(({ id, type, name, json }) => ({
          id,
          type,
          function: { name, arguments: json },
        })),
      },
      finish_reason: 'tool_calls',
      stop_reason: null,
    }));
    const joined = body.choices.map((one: { logprobs: { content: { token: string }[] } }) =>
      one.logprobs.content.map(entry => entry.token).join(''),
    );
    for (const choice of body.choices) delete choice.logprobs;
    t.same(joined, [reasoning, reasoning]);
    t.same(body, {
      ...head,
      object: 'chat.completion',
      kv_transfer_params: { a: 1 },
      system_fingerprint: 'fp',
      choices,
      usage,
    });
    if (!t.passing()) return;
  }
});

t.test('completions: parallel lists, ids where the client asked for them', async t => {
  const chunk = (index: number, text: string, ids: number[], more: object = {}): object => ({
    id: 'cmpl-1',
    object: 'text_completion',
    choices: [
      {
        index,
        text,
        logprobs: {
          tokens: [text],
          token_logprobs: [-1],
          top_logprobs: [{ [text]: -1 }],
          text_offset: [ids[0]],
        },
        finish_reason: null,
        token_ids: ids,
        ...more,
      },
    ],
  });
  const chunks = [
    chunk(1, 'x', [0], { prompt_token_ids: [4] }),
    chunk(0, 'a', [0], { prompt_token_ids: [4] }),
    chunk(0, 'b', [1], { finish_reason: 'stop', stop_reason: 'END' }),
    chunk(1, 'y', [1], { finish_reason: 'length' }),
  ];
  const text = (choice: object) => (choice as { text: string }).text;
  t.same(fold(chunks, true, 'completions').choices.map(text), ['ab', 'xy'], 'in order');
  t.match(fold(chunks, true, 'completions').choices[0], {
    logprobs: {
      tokens: ['a', 'b'],
      token_logprobs: [-1, -1],
      top_logprobs: [{ a: -1 }, { b: -1 }],
      text_offset: [0, 1],
    },
    finish_reason: 'stop',
    stop_reason: 'END',
    prompt_token_ids: [4],
    token_ids: [0, 1],
  });
  t.notMatch(JSON.stringify(fold(chunks, false, 'completions')), /token_ids/);
});

t.test('what is no chunk is refused', async t => {
  for (const choices of [{}, [1], [{ index: 'x' }], [{ index: 0, delta: 'x' }]]) {
    t.notOk(new ChunkFold({ api: 'chat', keepsIds: false }).add({ choices }), JSON.stringify(choices));
  }
  t.ok(new ChunkFold({ api: 'chat', keepsIds: false }).add({ choices: null }));
});
