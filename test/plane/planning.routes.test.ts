// Promise: planning asks for a placement with the hashes of exactly the prompt that the engine will compute, its adapter and
// its salt, with the pin and the session of the request, and tells in the PLAN how it was decided.
import t from 'tap';
import type { TokenizeSample } from '#millrace/engines/contract.js';
import { createVllmAdapter } from '#millrace/engines/vllm.js';
import { DEFAULT_LIMITS } from '#millrace/limits.js';
import {
  type Ask,
  NO_HINTS,
  type Plan,
  type Reject,
  type RoutingHints,
  type WorkerView,
} from '#millrace/messages/records.js';
import type { Api } from '#millrace/messages/token-request.js';
import { Planning } from '#millrace/plane/planning.js';
import { loadTextModel } from '#millrace/preprocess/text-model.js';
import type { DecideAnswer, DecideRequest } from '#millrace/router/decide.js';
import { HandoverBacklog } from '#millrace/router/handover-backlog.js';
import { systemClock } from '#millrace/runtime/clock.js';

const TOKENIZER = 'chatml-cl100k';
const IDS = Array.from({ length: 40 }, (_, at) => 100 + at);
const REMOTE_IDS = Uint32Array.from({ length: 33 }, (_, at) => at);

const worker = (slot: number, more: Partial<WorkerView> = {}): WorkerView => ({
  slot,
  generation: 7,
  url: `http://127.0.0.1:${8000 + slot}`,
  rank: null,
  engine: 'vllm',
  models: [
    { id: 'base', contextLength: 4096 },
    { id: 'lora', contextLength: null, adapter: true },
  ],
  blockSize: 16,
  totalBlocks: 1000,
  returnsTokenIds: true,
  foreignIds: [],
  ...more,
});

interface Hashed {
  readonly ids: number[];
  readonly blockSize: number;
  readonly adapter: string;
  readonly salt: string;
}

interface SetUp {
  readonly workers?: readonly WorkerView[];
  readonly tokenizer?: string | null;
  readonly usesBlocks?: boolean;
  /** What the workers answer. */
  readonly remote?: Uint32Array | null | Promise<Uint32Array | null>;
  readonly answer?: DecideAnswer;
}

async function setUp(options: SetUp = {}) {
  const {
    workers = [worker(0), worker(1)],
    tokenizer = null,
    usesBlocks = true,
    remote = REMOTE_IDS,
  } = options;
  const asked: DecideRequest[] = [];
  const seen: (readonly number[])[] = [];
  const hashed: Hashed[] = [];
  const samples: TokenizeSample[] = [];
  const planning = new Planning({
    limits: DEFAULT_LIMITS,
    decider: {
      handovers: new HandoverBacklog(1, () => 0),
      usesBlocks: () => usesBlocks,
      look: () => null,
      reserve: () => 0,
      decide(request, _policy, among) {
        asked.push(request);
        seen.push(among.map(({ slot }) => slot));
        const slot = among[0]!.slot;
        const candidates =
          request.explains === true
            ? [{ slot: 1, generation: 7, cost: 2.5, cachedTokens: 16, queuedTokens: 3, requests: 1 }]
            : null;
        const placed = {
          slot,
          generation: 7,
          reservation: 5,
          cachedTokens: 32,
          reason: 'kv: because',
          candidates,
        };
        return options.answer ?? placed;
      },
    },
    adapters: new Map([['vllm', createVllmAdapter()]]),
    discard: () => {},
    hashers: {
      of: (adapter, salt) => ({
        hash(ids, blockSize) {
          hashed.push({ ids: [...ids], blockSize, adapter, salt });
          return Math.floor(ids.length / blockSize);
        },
        hashAfter: () => t.fail('a prompt is hashed from its beginning'),
      }),
    },
    remoteIds: {
      setWorld: () => {},
      idsOf(_model, sample) {
        samples.push(sample);
        return remote;
      },
    },
  });
  const textModels = new Map(
    tokenizer === null ? [] : [[tokenizer, await loadTextModel(tokenizer, [], systemClock)] as const],
  );
  const models = ['base', 'lora'].map(name => ({ name, policy: 'kv', tokenizer, contextLength: null }));
  planning.setWorld({ version: 1, workers, models }, textModels);
  const plan = async (
    body: Record<string, unknown>,
    hints: Partial<RoutingHints> = {},
    api: Api = 'completions',
  ): Promise<Plan & Reject> => {
    const ask: Ask = {
      request: 1,
      attempt: 1,
      api,
      reason: 'first',
      deadlineWallMs: 0,
      excludedSlots: [],
      avoidedSlots: [],
      computesLocally: false,
      continuation: null,
      headers: [],
      hints: { ...NO_HINTS, ...hints },
      body: Buffer.from(JSON.stringify({ model: 'base', max_tokens: 4, ...body })),
    };
    return (await planning.plan(ask)) as Plan & Reject;
  };
  return { plan, asked, seen, hashed, samples };
}

t.test('whose ids they are', async t => {
  await t.test('the client’s, relayed or in token mode', async t => {
    for (const tokenizer of [null, TOKENIZER]) {
      const { plan, hashed, asked, samples } = await setUp({ tokenizer });
      const { placement, mode } = await plan({ prompt: IDS });
      t.equal(mode, tokenizer === null ? 'relayIds' : 'token');
      t.match(placement, {
        policy: 'kv',
        reason: 'kv: because',
        ids: 'client',
        cachedTokens: 32,
        candidates: null,
      });
      t.same(hashed, [{ ids: IDS, blockSize: 16, adapter: '', salt: '' }]);
      t.match(asked, [{ blocks: [{ count: 2, blockSize: 16 }], promptTokens: 40 }]);
      t.same(samples, []);
    }
  });
  await t.test('ours', async t => {
    const { plan, hashed, samples } = await setUp({ tokenizer: TOKENIZER });
    const { placement, calls } = await plan({ prompt: 'one two three' });
    t.equal(placement.ids, 'tokenizer');
    t.same(hashed[0]?.ids, [...calls[0]!.promptIds]);
    t.same(samples, []);
  });
  await t.test('a worker’s: they route and are not sent', async t => {
    const { plan, hashed, asked } = await setUp({ remote: Promise.resolve(REMOTE_IDS) });
    const { placement, mode, calls } = await plan({ prompt: 'text' });
    t.equal(placement.ids, 'worker');
    t.equal(mode, 'relayIds');
    t.equal(calls[0]!.promptIds.length, 0);
    t.match(JSON.parse(Buffer.from(calls[0]!.steps[0]!.body).toString()), { prompt: 'text' });
    t.same(hashed[0]?.ids, [...REMOTE_IDS]);
    t.equal(asked[0]!.promptTokens, 33, 'counted, not estimated');
  });
  await t.test('nobody’s: the request is routed by load', async t => {
    for (const remote of [null, Promise.resolve(null)]) {
      const { plan, hashed, asked } = await setUp({ remote });
      t.equal((await plan({ prompt: 'text' })).placement.ids, 'missing');
      t.same(hashed, []);
      t.same(asked[0]!.blocks, []);
    }
  });
  await t.test('no work without an index or a policy that asks it', async t => {
    for (const tokenizer of [null, TOKENIZER]) {
      const { plan, hashed, samples } = await setUp({ usesBlocks: false, tokenizer });
      t.equal((await plan({ prompt: 'text' })).placement.ids, 'unused');
      t.equal((await plan({ prompt: IDS })).placement.ids, 'unused');
      t.same([hashed, samples], [[], []]);
    }
  });
  await t.test('a worker is asked only where it can change the choice', async t => {
    const { plan, samples } = await setUp();
    const image = [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:,' } }] }];
    t.equal((await plan({ messages: image }, {}, 'chat')).placement.ids, 'unused', 'media');
    t.equal((await plan({ prompt: 'x' }, { session: 's' })).placement.ids, 'unused', 'a session');
    t.equal((await plan({ prompt: 'x' }, { worker: worker(1).url })).placement.ids, 'unused', 'a pin');
    t.equal((await plan({ prompt: 'x'.repeat(300_000) })).placement.ids, 'unused', 'a long body');
    t.equal(
      (await plan({ prompt: IDS, truncate_prompt_tokens: 3 })).placement.ids,
      'unused',
      'cut by the engine',
    );
    const one = await setUp({ workers: [worker(0)] });
    t.equal((await one.plan({ prompt: 'x' })).placement.ids, 'unused', 'one worker');
    t.same([samples, one.samples], [[], []]);
  });
});

t.test('a worker is asked with everything that shapes a chat', async t => {
  const { plan, samples } = await setUp();
  const messages = [{ role: 'user', content: 'hi', extra: { kept: true } }];
  const shaping = {
    tools: [{ type: 'function', function: { name: 'f' } }],
    chat_template: '{{ messages }}',
    add_generation_prompt: false,
    continue_final_message: true,
    add_special_tokens: true,
  };
  const more = { chat_template_kwargs: { a: 1 }, reasoning_effort: 'low', temperature: 1 };
  await plan({ messages, ...shaping, ...more }, {}, 'chat');
  const variables = { chat_template_kwargs: { a: 1, reasoning_effort: 'low' } };
  t.same(samples, [{ messages, shaping: { ...shaping, ...variables } }]);
  await plan({ prompt: 'p', add_special_tokens: false });
  t.same(samples[1], { prompt: 'p', shaping: { add_special_tokens: false } });
});

t.test('what makes equal ids mean other KV', async t => {
  const { plan, hashed } = await setUp({ tokenizer: TOKENIZER });
  const salted = await plan({ prompt: IDS, cache_salt: 'tenant-1' });
  await plan({ prompt: IDS, model: 'lora', cache_salt: null });
  await plan({ prompt: IDS, model: 'lora', cache_salt: 'x' });
  t.same(
    hashed.map(({ adapter, salt }) => [adapter, salt]),
    [
      ['', 'tenant-1'],
      ['lora', ''],
      ['lora', 'x'],
    ],
  );
  const sent = (plan: Plan): unknown => JSON.parse(Buffer.from(plan.calls[0]!.steps[0]!.body).toString());
  t.match(sent(salted), { cache_salt: 'tenant-1' }, 'token mode');
  const relayed = await setUp();
  t.match(
    sent(await relayed.plan({ prompt: 'x', cache_salt: 'tenant-1' })),
    { cache_salt: 'tenant-1' },
    'relay',
  );
  for (const cache_salt of ['', 5, 'a b', 'ü', 'x'.repeat(129)]) {
    t.match(await plan({ prompt: IDS, cache_salt }), {
      code: 'MILLRACE_INVALID_REQUEST',
      param: 'cache_salt',
    });
  }
});

t.test('one list of blocks for each block size', async t => {
  const workers = [worker(0), worker(1, { blockSize: 32 }), worker(2), worker(3, { blockSize: null })];
  const { plan, asked, hashed } = await setUp({ workers });
  await plan({ prompt: IDS });
  t.match(asked[0]!.blocks, [
    { blockSize: 16, count: 2 },
    { blockSize: 32, count: 1 },
  ]);
  t.equal(hashed.length, 2);
  t.not(asked[0]!.blocks![0]!.hashes, asked[0]!.blocks![1]!.hashes);
});

t.test('pins and sessions', async t => {
  const { plan, asked, seen } = await setUp();
  t.match((await plan({ prompt: IDS }, { worker: worker(1).url })).calls, [{ steps: [{ slot: 1 }] }]);
  t.match(asked[0], { session: null });
  t.same(seen[0], [1]);
  await plan({ prompt: IDS }, { session: 'abc' });
  t.match(asked[1], { session: 'abc' });
  t.match(await plan({ prompt: IDS }, { worker: 'http://127.0.0.1:1' }), {
    code: 'MILLRACE_NO_WORKER',
    message: 'x-millrace-worker names no worker that serves the model "base"',
  });
  const down = await setUp({ answer: 'noWorker' });
  t.match(await down.plan({ prompt: IDS }, { worker: worker(1).url }), {
    code: 'MILLRACE_NO_WORKER',
    message: 'the worker that x-millrace-worker names is not ready',
  });
});

t.test('ranks: a pin names one or all', async t => {
  const url = 'http://127.0.0.1:8000';
  const workers = [worker(0, { rank: 0 }), worker(1, { rank: 1, url }), worker(2)];
  const { plan, seen } = await setUp({ workers });
  const { placement } = await plan({ prompt: IDS }, { worker: `${url}#1`, explains: true });
  t.match(placement, { rank: 1, candidates: [{ worker: `${url}#1` }] });
  await plan({ prompt: IDS }, { worker: url });
  t.same(seen, [[1], [0, 1]]);
  t.match(await plan({ prompt: IDS }, { worker: `${url}#2` }), { code: 'MILLRACE_NO_WORKER' });
});

t.test('a pinned worker decides about token mode', async t => {
  const workers = [worker(0), worker(1, { foreignIds: ['base'] })];
  const { plan } = await setUp({ workers, tokenizer: TOKENIZER });
  t.equal((await plan({ prompt: 'x' }, { worker: worker(0).url })).mode, 'token');
  t.equal((await plan({ prompt: 'x' }, { worker: worker(1).url })).mode, 'relayIds');
});

t.test('candidates by address, when asked', async t => {
  const { plan } = await setUp();
  const { placement } = await plan({ prompt: IDS }, { explains: true });
  t.same(placement.candidates, [
    { worker: worker(1).url, cost: 2.5, cachedTokens: 16, queuedTokens: 3, requests: 1 },
  ]);
});
