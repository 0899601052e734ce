/** Promise: a /generate stream that loses, repeats or invents tokens ends as malformed; those before it are delivered. */
import t from 'tap';
import type { FrameBatch, StreamFault } from '#millrace/engines/contract.js';
import { logprobsOf } from '#millrace/engines/event-logprobs.js';
import { errorOf, rowStart } from '#millrace/engines/event-rows.js';
import { FRAME } from '#millrace/engines/frame-descriptor.js';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { openGenerateStream } from '#millrace/engines/sglang-stream.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const LIMITS = { firstFrameBytesMax: 1 << 22, frameBytesMax: 100 };
const DONE = 'data: [DONE]\n\n';
const scanner = createFrameScanner(loadAddon());
const data = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
const step = (ids: unknown, completion: unknown, meta: object = {}, more: object = {}): string =>
  data({
    output_ids: ids,
    meta_info: { finish_reason: null, prompt_tokens: 1, completion_tokens: completion, ...meta },
    ...more,
  });
const STOP = { finish_reason: { type: 'stop', matched: 2 } };

/** Decodes whole frames; `ids` are those of all choices in order. */
function run(text: string, onBatch: (batch: FrameBatch) => void = () => {}) {
  const stream = openGenerateStream(scanner, LIMITS);
  const ids: number[] = [];
  const fault: StreamFault | null = stream.push(Buffer.from(text), batch => {
    for (let row = 0; row < batch.count; row++) {
      const first = batch.table[rowStart(row) + FRAME.idsFirst]!;
      const count = batch.table[rowStart(row) + FRAME.idsCount]!;
      if (first >= 0) ids.push(...batch.ids.subarray(first, first + count));
    }
    onBatch(batch);
  });
  return { ids, fault, end: fault === null ? stream.end() : null };
}

t.test('the form of a stream is learned from its counts', t => {
  const whole = { fault: null, end: null };
  t.same(run(step([1], 1) + step([1, 2], 2) + DONE), { ids: [1, 2], ...whole });
  t.same(run(step([1], 1) + step([2], 2) + DONE), { ids: [1, 2], ...whole });
  t.same(run(step([1, 1], 2) + step([1, 1, 1], 3) + DONE), { ids: [1, 1, 1], ...whole }, 'repeated tokens');
  t.same(run(step([1], 1) + step([1], 2) + DONE), { ids: [1, 1], ...whole });
  t.same(run(step([], 0) + step([], 0) + step([4], 1) + DONE), { ids: [4], ...whole });
  t.same(
    run(step([1, 2], 1) + step([1, 2, 3], 2) + DONE),
    { ids: [1, 2, 3], ...whole },
    'a list ahead of its count',
  );
  t.same(run(step([1], undefined) + DONE), { ids: [1], ...whole });
  t.end();
});

t.test('what is not the promised stream', t => {
  const cases: [string, string, number[]][] = [
    ['cumulative that shrinks', step([1], 1) + step([1, 2], 2) + step([1], 3), [1, 2]],
    ['increments that were lost', step([1], 1) + step([2], 2) + step([4], 4), [1, 2]],
    ['first frames that were lost', step([3], 3), []],
    ['tokens after the finish', step([1], 1, STOP) + step([1, 2], 2), [1]],
    ['two finishes', step([1], 1, STOP) + step([1], 1, STOP), [1]],
    ['no count where the form is open', step([1], 1) + step([1, 2], undefined), [1]],
    ['an id below 0', step([-1], 1), []],
    ['an id of more than 32 bits', step([4294967296], 1), []],
    ['an id that is no number', step(['1'], 1), []],
    ['ids that are no list', step(7, 1), []],
    ['a choice that is no index', step([1], 1, {}, { index: -1 }), []],
    ['no meta_info', data({ output_ids: [1] }), []],
    ['no ids at all', step(undefined, 1), []],
    ['a list', data([]), []],
    ['truncated JSON', 'data: {"output_ids":[1],"meta\n\n', []],
    ['JSON that only looks whole', 'data: {"output_ids":[1],"meta_info":{"a":1e}}\n\n', []],
    ['log-probabilities of other ids', step([1], 1, { output_token_logprobs: [[-1, 2, null]] }), []],
    ['log-probabilities that are missing', step([1], 1, { output_token_logprobs: [] }), []],
    ['log-probabilities that are none', step([1], 1, { output_token_logprobs: 3 }), []],
  ];
  for (const [name, text, ids] of cases)
    t.same(run(text + DONE), { ids, fault: 'malformed', end: null }, name);
  t.same(run(step([1], 1)), { ids: [1], fault: null, end: 'truncated' });
  const stream = openGenerateStream(scanner, LIMITS);
  stream.push(Buffer.from(step([3], 3)), () => {});
  t.throws(() => stream.push(Buffer.from(DONE), () => {}), /after a fault/);
  t.end();
});

t.test('errors and aborts', t => {
  const errorIn = (text: string) => {
    let found: ReturnType<typeof errorOf> | null = null;
    run(text + DONE, batch => {
      found ??= errorOf(batch, 0);
    });
    return found;
  };
  t.match(errorIn(data({ error: { message: 'größer' } })), {
    code: 'MILLRACE_INVALID_REQUEST',
    message: 'größer',
  });
  t.match(errorIn(data({ error: { message: 'm', code: 503 } })), { code: 'MILLRACE_OVERLOADED' });
  const abort = (more: object) => step([], 0, { finish_reason: { type: 'abort', ...more } });
  t.match(errorIn(abort({ message: 'queue is full', status_code: 503 })), { code: 'MILLRACE_OVERLOADED' });
  t.match(errorIn(abort({ message: 'bad', status_code: 400 })), {
    code: 'MILLRACE_INVALID_REQUEST',
    message: 'bad',
  });
  t.match(errorIn(abort({})), { code: 'MILLRACE_WORKER_FAILED', retryable: true });
  t.end();
});

t.test('log-probabilities, cumulative and incremental', t => {
  const drawn = [
    [-0.5, 1, null],
    [-8, 2, 'x'],
  ];
  const tops = [
    null,
    [
      [-0.1, 9, null],
      [-0.2, 8, null],
    ],
  ];
  const read = (second: string) => {
    const found: unknown[] = [];
    const first = { output_token_logprobs: drawn.slice(0, 1), output_top_logprobs: tops.slice(0, 1) };
    const text = step([1], 1, { ...first, output_token_logprobs_length: 1 }) + second;
    const { fault } = run(text + DONE, batch => {
      for (let row = 0; row < batch.count; row++) found.push(...(logprobsOf(batch, row) ?? []));
    });
    return { fault, found };
  };
  const expected = {
    fault: null,
    found: [
      { logprob: -0.5, top: [{ id: 1, logprob: -0.5 }] },
      {
        logprob: -8,
        top: [
          { id: 9, logprob: -0.1 },
          { id: 8, logprob: -0.2 },
          { id: 2, logprob: -8 },
        ],
      },
    ],
  };
  const all = { output_token_logprobs: drawn, output_top_logprobs: tops };
  t.same(read(step([1, 2], 2, { ...all, output_token_logprobs_length: 2 })), expected);
  t.same(read(step([1, 2], 2, all)), expected, 'before 2025-08 without the length');
  const fresh = { output_token_logprobs: drawn.slice(1), output_top_logprobs: tops.slice(1) };
  t.same(read(step([2], 2, { ...fresh, output_token_logprobs_length: 2 })), expected);
  t.end();
});

t.test('random answers of several choices come through in both forms, however they are cut', t => {
  const seed = Number(process.env.SEED ?? Date.now() % 1e9);
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  for (let round = 0; round < 300; round++) {
    const cumulative = random() < 0.5;
    const answers: number[][] = Array.from({ length: 1 + randomInteger(random, 3) }, () => []);
    let text = '';
    for (let at = 0; at < 20; at++) {
      const index = randomInteger(random, answers.length);
      const fresh = Array.from({ length: randomInteger(random, 4) }, () => randomInteger(random, 200_000));
      answers[index]!.push(...fresh);
      const sent = cumulative ? answers[index] : fresh;
      text += step(sent, answers[index]!.length, {}, answers.length > 1 ? { index } : {});
    }
    const got: number[][] = answers.map(() => []);
    const stream = openGenerateStream(scanner, LIMITS);
    const bytes = Buffer.from(text + DONE);
    for (let from = 0; from < bytes.length; ) {
      const to = Math.min(bytes.length, from + 1 + randomInteger(random, 300));
      const fault = stream.push(bytes.subarray(from, to), batch => {
        for (let row = 0; row < batch.count; row++) {
          const word = (name: keyof typeof FRAME): number => batch.table[rowStart(row) + FRAME[name]]!;
          const first = word('idsFirst');
          if (first >= 0) got[word('choice')]!.push(...batch.ids.subarray(first, first + word('idsCount')));
        }
      });
      if (fault !== null) t.fail(`fault ${fault} in round ${round}`);
      from = to;
    }
    if (JSON.stringify(got) !== JSON.stringify(answers)) t.same(got, answers, `round ${round}`);
    if (stream.end() !== null) t.fail(`round ${round} is truncated`);
  }
  t.end();
});
