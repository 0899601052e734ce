// Promise: an answer of a prefill and a decode worker is, byte for byte, that of one worker; the tokens of these engines come
// out of KV pages that were carried over. Usage tells what the prefill worker had cached, and nothing is left behind.
import t, { type Test } from 'tap';
import { LocalEngines } from '#millrace/simulate/disagg/local-carrier.js';
import type { MockEngineOptions } from '#millrace/simulate/mock-engine.js';
import {
  CHAT,
  COMPLETIONS,
  errorOf,
  type FixtureOptions,
  jsonOf,
  MOCK_MODEL,
  type PlaneFixture,
  type Reply,
  startPlane,
  streamedText,
  TOKENIZER,
} from '../plane-fixture.js';
import { leakOf } from '../simulate/disagg-probe.js';

const TINY = { tiny: true, numGpuBlocks: 128, blockSize: 16, maxModelLen: 2048 } as const;
const ROLES = ['prefill', 'prefill', 'decode', 'decode'] as const;
const ALWAYS = { policy: 'always' };

/** Engines and the protocols between them. */
const PROTOCOLS = {
  nixl: 'vllm',
  mooncake: 'vllm',
  'sglang-rooms': 'sglang',
  'trtllm-context-first': 'trtllm',
  'trtllm-generation-first': 'trtllm',
} as const;
type Protocol = keyof typeof PROTOCOLS;

/** Two prefill and two decode workers, whose prompts can be compared with those of one worker. */
function startSplit(
  t: Test,
  protocol: Protocol,
  options: FixtureOptions = {},
  more: MockEngineOptions = {},
): Promise<PlaneFixture> {
  const engine = PROTOCOLS[protocol];
  // Other protocols name each other's side channels, which need sockets.
  const local = protocol === 'nixl' ? { engines: new LocalEngines() } : {};
  const own = protocol === 'mooncake' ? { connector: protocol } : {};
  return startPlane(t, {
    mocks: ROLES.map(role => {
      const disagg = { ...own, ...local, ...(engine === 'sglang' ? { role } : {}) };
      return { ...TINY, ...more, engine, disagg };
    }),
    roles: ROLES,
    models: { [MOCK_MODEL]: { disaggregation: { protocol, ...ALWAYS } } },
    policy: 'ttft',
    clock: 'real',
    ...options,
  });
}

const prompt = (round: number): string =>
  `${round}: ${Array.from({ length: 40 + 17 * round }, (_, word) => `word${(word * 7 + round) % 31}`).join(' ')}`;

const chat = (round: number, more: object = {}): object => ({
  model: MOCK_MODEL,
  messages: [{ role: 'user', content: prompt(round) }],
  max_tokens: 24,
  ...more,
});

const shown = (reply: Reply): string =>
  reply.frames.length > 0
    ? streamedText(reply)
    : (jsonOf(reply).choices[0].message?.content ?? jsonOf(reply).choices[0].text);

function handedOver(plane: PlaneFixture): number {
  return plane.mocks.reduce((sum, { connector }) => sum + connector!.pulls.pulled, 0);
}

async function expectNothingLeft(t: Test, plane: PlaneFixture): Promise<void> {
  await plane.expectIdle(t);
  t.strictSame(plane.mocks.map(leakOf), [null, null, null, null]);
}

for (const protocol of Object.keys(PROTOCOLS) as Protocol[]) {
  for (const tokenizer of [TOKENIZER, null]) {
    t.test(`${protocol}, ${tokenizer === null ? 'relayed' : 'by tokens'}`, async t => {
      const split = await startSplit(t, protocol, { tokenizer });
      const engine = PROTOCOLS[protocol];
      const whole = await startPlane(t, { mocks: [{ ...TINY, engine }], tokenizer, clock: 'real' });
      for (let round = 0; round < 4; round += 1) {
        const stream = round % 2 === 0;
        const body = chat(round, stream ? { stream, stream_options: { include_usage: true } } : {});
        const [got, wanted] = [await split.post(CHAT, body), await whole.post(CHAT, body)];
        t.equal(got.status, 200, got.text);
        t.equal(shown(got), shown(wanted), `round ${round}`);
        const usage = stream ? got.frames.at(-1).usage : jsonOf(got).usage;
        t.match(usage, { completion_tokens: 24 });
        // NIXL tells what was cached where the prompt was computed, the first time nothing.
        if (protocol === 'nixl') t.equal(usage.prompt_tokens_details?.cached_tokens ?? 0, 0);
      }
      t.equal(handedOver(split), 4, 'every prompt was carried over');
      t.equal(
        split.mocks.slice(2).reduce((sum, { counters }) => sum + counters.requests, 0),
        4,
      );
      await expectNothingLeft(t, split);
    });
  }
}

t.test('the second time, the prefill worker has the prompt', async t => {
  const split = await startSplit(t, 'nixl', { tokenizer: TOKENIZER, poolThreads: 1 });
  const body = chat(5, { stream: true, stream_options: { include_usage: true } });
  const first = await split.post(CHAT, body);
  await split.post(CHAT, body);
  const third = await split.post(CHAT, body);
  t.equal(streamedText(third), streamedText(first));
  const { prompt_tokens: tokens, prompt_tokens_details: details } = third.frames.at(-1).usage;
  t.ok(details.cached_tokens > 0 && details.cached_tokens < tokens, `${details.cached_tokens} of ${tokens}`);
  await expectNothingLeft(t, split);
});

t.test('what cannot be split is answered by a decode worker alone', async t => {
  const split = await startSplit(t, 'nixl');
  for (const more of [{ n: 2 }, { echo: true }]) {
    const reply = await split.post(COMPLETIONS, {
      model: MOCK_MODEL,
      prompt: 'a b c',
      max_tokens: 4,
      ...more,
    });
    t.equal(reply.status, 200, reply.text);
  }
  t.equal(handedOver(split), 0);
  t.equal(split.mocks[0]!.counters.requests + split.mocks[1]!.counters.requests, 0);
  await expectNothingLeft(t, split);
});

t.test('fields that name memory of the fleet are refused', async t => {
  const split = await startSplit(t, 'nixl');
  for (const field of ['kv_transfer_params', 'bootstrap_host', 'bootstrap_room', 'disaggregated_params']) {
    const reply = await split.post(CHAT, chat(0, { [field]: { do_remote_prefill: true } }));
    t.match(errorOf(reply), { status: 400, param: field, code: 'MILLRACE_INVALID_REQUEST' });
  }
  t.equal((await split.post(CHAT, chat(0, { kv_transfer_params: null }))).status, 200, 'null says nothing');
});

t.test('by cost, a short prompt stays where it is answered and a long one does not', async t => {
  const models = {
    [MOCK_MODEL]: { disaggregation: { policy: 'isl-bounding', effIslMax: 100, effIslRatioMax: 1 } },
  };
  const split = await startSplit(t, 'nixl', { models, tokenizer: TOKENIZER });
  await split.post(CHAT, chat(0, { messages: [{ role: 'user', content: 'short' }] }));
  t.equal(handedOver(split), 0);
  const reply = await split.post(CHAT, chat(9));
  t.equal(handedOver(split), 1);
  t.ok(
    split.mocks.slice(2).some(({ url }) => url === reply.headers.get('x-millrace-worker')),
    'told: who answers',
  );
  await expectNothingLeft(t, split);
});
