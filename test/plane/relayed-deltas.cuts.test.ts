// Promise: a relayed stream gives the same Deltas however its bytes are cut.
import t from 'tap';
import { RelayedDeltas } from '#millrace/plane/relayed-deltas.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const frame = (value: unknown, end = '\n\n'): string => `data: ${JSON.stringify(value)}${end}`;
const choice = (fields: object): object => ({ choices: [{ index: 0, finish_reason: null, ...fields }] });
const STREAM =
  frame(choice({ delta: { role: 'assistant', content: '' } })) +
  frame(choice({ delta: { content: 'Zoë 🙂' } }), '\r\n\r\n') +
  ': comment\n\n' +
  frame(choice({ index: 1, text: ' text\n\nnot an end', logprobs: { tokens: ['a'] } })) +
  frame(choice({ delta: { reasoning_content: 'hm' } })) +
  frame(choice({ delta: { tool_calls: [{ index: 0, id: 'c' }] } })) +
  frame({
    ...choice({ delta: {}, finish_reason: 'stop', stop_reason: 'END' }),
    usage: { prompt_tokens: 1 },
  }) +
  frame(choice({ delta: {}, finish_reason: 'repetition' })) +
  frame({
    choices: [],
    usage: { prompt_tokens: 5, completion_tokens: 3, prompt_tokens_details: { cached_tokens: 2 } },
  }) +
  'data: [DONE]\n\n';
const DELTAS = [
  { index: 0, text: 'Zoë 🙂' },
  { index: 1, text: ' text\n\nnot an end', engineLogprobs: { tokens: ['a'] } },
  { index: 0, reasoning: 'hm' },
  { index: 0, toolCalls: [{ index: 0, id: 'c' }] },
  { index: 0, finish: 'stop', stopReason: 'END' },
  { index: 0, finish: 'stop' },
];

const seed = Number(process.env.SEED ?? 7);
t.comment(`SEED=${seed}`);

t.test('at every cut, and at many', async t => {
  const bytes = Buffer.from(STREAM);
  const random = seededRandom(seed);
  const read = (cuts: readonly number[]) => {
    const reader = new RelayedDeltas();
    return [0, ...cuts].flatMap((from, i) => reader.push(bytes.subarray(from, cuts[i] ?? bytes.length)));
  };
  for (let at = 0; at <= bytes.length; at++) {
    const got = read([at]);
    if (JSON.stringify(got) !== JSON.stringify(DELTAS)) t.same(got, DELTAS, `cut at ${at}`);
  }
  for (let round = 0; round < 200; round++) {
    const cuts = Array.from({ length: 20 }, () => randomInteger(random, bytes.length + 1)).sort(
      (a, b) => a - b,
    );
    const got = read(cuts);
    if (JSON.stringify(got) !== JSON.stringify(DELTAS)) t.same(got, DELTAS, `cuts at ${cuts}`);
  }
  t.same(read([]), DELTAS);
});

t.test('a frame that is no JSON is an error', async t => {
  t.throws(() => new RelayedDeltas().push(Buffer.from('data: {"choices":\n\n')), SyntaxError);
});
