// Promise: every record survives its bytes unchanged, and any other bytes give RecordError or a valid record, nothing else.
import { createHash } from 'node:crypto';
import fc from 'fast-check';
import t from 'tap';
import { ERROR_CODES, type ErrorCode } from '#millrace/errors.js';
import { DISAGG_POLICIES, DISAGG_PROTOCOLS, SPLIT_REASONS, WORKER_ROLES } from '#millrace/messages/disagg.js';
import * as codec from '#millrace/messages/record-codec.js';
import { RecordError } from '#millrace/messages/record-codec.js';
import {
  ANSWER_MODES,
  ASK_REASONS,
  END_CAUSES,
  IDS_SOURCES,
  type Plan,
  type PlanStep,
  RECORD_VERSION,
  STEP_ANSWERS,
  STEP_STAGES,
} from '#millrace/messages/records.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 31);
const RUNS = process.env.MILLRACE_TEST_LONG === '1' ? 20_000 : 200;
t.comment(`seed ${SEED}`);

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const whole = fc.maxSafeNat();
const text = fc.string({ unit: 'binary', maxLength: 60 });
const bytes = fc.uint8Array({ maxLength: 90 });
const words = fc.uint32Array({ maxLength: 20 });
const pairs = fc.array(fc.tuple(text, text), { maxLength: 4 });
const api = fc.constantFrom('chat' as const, 'completions' as const);

const ask = fc.record({
  request: whole,
  attempt: u32,
  api,
  reason: fc.constantFrom(...ASK_REASONS),
  deadlineWallMs: fc.double({ noNaN: true, noDefaultInfinity: true }),
  excludedSlots: fc.array(u32, { maxLength: 5 }),
  avoidedSlots: fc.array(u32, { maxLength: 5 }),
  computesLocally: fc.boolean(),
  headers: pairs,
  hints: fc.record({ worker: text, session: text, explains: fc.boolean() }),
  continuation: fc.option(
    fc.record({
      mode: fc.constantFrom('token' as const, 'relayIds' as const),
      promptIds: words,
      choices: fc.array(fc.record({ choice: u32, ids: words }), { maxLength: 4 }),
    }),
  ),
  body: bytes,
});
const finite = fc.double({ noNaN: true, noDefaultInfinity: true });
const placement = fc.record({
  policy: text,
  reason: text,
  rank: fc.option(fc.integer({ min: 0, max: 0xffff_fffe })),
  ids: fc.constantFrom(...IDS_SOURCES),
  cachedTokens: whole,
  candidates: fc.option(
    fc.array(
      fc.record({
        worker: text,
        cost: fc.option(finite),
        cachedTokens: whole,
        queuedTokens: finite,
        requests: whole,
      }),
      { maxLength: 4 },
    ),
  ),
});
const stop = fc.record({
  maxTokens: fc.option(whole),
  minTokens: whole,
  strings: fc.array(text, { maxLength: 4 }),
  tokenIds: fc.array(u32, { maxLength: 4 }),
  ignoreEos: fc.boolean(),
  includeStopString: fc.boolean(),
});
const step = fc.record({
  stage: fc.constantFrom(...STEP_STAGES),
  after: fc.constant(null),
  answer: fc.constantFrom(...STEP_ANSWERS),
  slot: u32,
  generation: u32,
  reservation: u32,
  method: text,
  path: text,
  head: pairs,
  body: bytes,
  spliceAt: fc.constant(null),
});
const call = fc.record({
  choiceBase: u32,
  choices: u32,
  promptIds: words,
  protocol: fc.option(fc.constantFrom(...DISAGG_PROTOCOLS)),
  split: fc.option(fc.constantFrom(...SPLIT_REASONS)),
  steps: fc
    .array(fc.tuple(step, fc.option(fc.nat({ max: 3 })), fc.option(fc.nat({ max: 90 }))), { maxLength: 4 })
    .map(list =>
      list.map(([one, after, spliceAt], at) => ({
        ...one,
        after: after !== null && after < at ? after : null,
        spliceAt: spliceAt !== null && spliceAt <= one.body.length ? spliceAt : null,
      })),
    ),
});
const plan = fc.record({
  request: whole,
  attempt: u32,
  decision: whole,
  mode: fc.constantFrom('token' as const, 'relayIds' as const, 'relay' as const),
  api,
  stream: fc.boolean(),
  model: text,
  choices: u32,
  promptTokens: whole,
  includeUsage: fc.boolean(),
  continuousUsage: fc.boolean(),
  usageInjected: fc.boolean(),
  idsInjected: fc.boolean(),
  logprobs: fc.option(fc.nat({ max: 20 })),
  skipSpecialTokens: fc.boolean(),
  stop,
  maxTokens: fc.option(whole),
  cannotMigrate: text,
  eosIds: words,
  tokenizer: text,
  placement,
  calls: fc.array(call, { maxLength: 3 }),
});
const reject = fc.record({
  request: whole,
  attempt: u32,
  code: fc.constantFrom(...(Object.keys(ERROR_CODES) as ErrorCode[])),
  message: text,
  param: fc.option(text),
  retryAfterMs: fc.double({ min: 0, noNaN: true, noDefaultInfinity: true }),
  split: fc.option(fc.constantFrom(...SPLIT_REASONS)),
});
const done = fc.record({
  request: whole,
  model: text,
  promptTokens: whole,
  completionTokens: whole,
  cachedTokens: fc.oneof(fc.constant(-1), whole),
  cause: fc.constantFrom(...END_CAUSES),
});
const amount = fc.option(fc.integer({ min: 1 }));
const modelOfWorker = fc.record(
  { id: text, contextLength: amount, adapter: fc.constant(true as const) },
  { requiredKeys: ['id', 'contextLength'] },
);
const share = fc.constantFrom(0, 0.25, 1);
const split = fc.record({
  role: fc.constantFrom(...WORKER_ROLES),
  bootstrapHost: text,
  bootstrapPort: fc.nat({ max: 65_535 }),
  engineId: fc.option(text),
  infoEndpoint: fc.option(text),
});
const disaggregation = fc.record({
  protocol: fc.option(fc.constantFrom(...DISAGG_PROTOCOLS)),
  policy: fc.constantFrom(...DISAGG_POLICIES),
  effIslMax: whole,
  effIslRatioMax: share,
  prefillBusyTokens: whole,
  decodeKvBusy: share,
  prefillQueueTokensMax: whole,
  whenPrefillFull: fc.constantFrom('local' as const, 'shed' as const),
  whenNoPrefill: fc.constantFrom('local' as const, 'refuse' as const),
  handoverMs: share,
  handoverMsPerToken: share,
  decodeWeight: share,
});
const world = fc.record({
  version: whole,
  workers: fc.array(
    fc.record(
      {
        slot: u32,
        generation: u32,
        url: text,
        rank: fc.option(u32),
        engine: text,
        models: fc.array(modelOfWorker, { maxLength: 3 }),
        blockSize: amount,
        totalBlocks: amount,
        returnsTokenIds: fc.boolean(),
        answerModes: fc.array(fc.constantFrom(...ANSWER_MODES), { maxLength: 3 }),
        foreignIds: fc.array(fc.string(), { maxLength: 3 }),
        split,
      },
      {
        requiredKeys: [
          'slot',
          'generation',
          'url',
          'rank',
          'engine',
          'models',
          'blockSize',
          'totalBlocks',
          'returnsTokenIds',
          'foreignIds',
        ],
      },
    ),
    { maxLength: 4 },
  ),
  models: fc.array(
    fc.record({
      name: text,
      policy: text,
      tokenizer: fc.option(text),
      contextLength: amount,
      disaggregation: fc.option(disaggregation, { nil: undefined }),
    }),
    { maxLength: 3 },
  ),
});

/** fast-check's objects have no prototype and its byte arrays subclasses: compare by value. */
const plain = (value: unknown): string =>
  JSON.stringify(value, (_, item) =>
    ArrayBuffer.isView(item)
      ? [item.constructor.name, ...(item as Uint8Array)]
      : Object.is(item, -0)
        ? '-0'
        : typeof item === 'object' && item !== null && !Array.isArray(item)
          ? Object.fromEntries(Object.entries(item).sort(([a], [b]) => (a < b ? -1 : 1)))
          : item,
  );

/** Joins the parts into shared memory at an odd offset, as a record may lie for a reader. */
function joined(parts: readonly Uint8Array[], offset: number): Uint8Array {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const all = new Uint8Array(new SharedArrayBuffer(length + offset), offset, length);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function suite<Value>(
  name: string,
  values: fc.Arbitrary<Value>,
  encode: (value: Value) => Uint8Array[],
  decode: (bytes: Uint8Array) => Value,
): void {
  const survives = (bytes: Uint8Array, mustFail: boolean): void => {
    try {
      const value = decode(bytes);
      if (mustFail) throw new Error(`accepted ${plain(value)}`);
      decode(joined(encode(value), 0));
    } catch (error) {
      if (!(error instanceof RecordError) || error.record !== name) throw error;
    }
  };
  t.test(name, async t => {
    t.doesNotThrow(
      () =>
        fc.assert(
          fc.property(values, fc.nat({ max: 9 }), (value, offset) => {
            const got = plain(decode(joined(encode(value), offset)));
            if (got !== plain(value)) throw new Error(`${got} is not ${plain(value)}`);
          }),
          { seed: SEED, numRuns: RUNS },
        ),
      'round trip',
    );
    t.doesNotThrow(
      () =>
        fc.assert(
          fc.property(values, fc.nat(), (value, seed) => {
            const good = joined(encode(value), 0);
            for (let length = 0; length < good.length; length += 1) survives(good.subarray(0, length), true);
            survives(joined([good, Uint8Array.of(0x7d)], 0), true);
            const random = seededRandom(seed);
            for (let round = 0; round < 20; round += 1) {
              const bad = good.slice();
              for (let flips = 1 + randomInteger(random, 3); flips > 0; flips -= 1) {
                const edge = [0, 1, 0x7f, 0x80, 0xff][randomInteger(random, 8)];
                bad[randomInteger(random, bad.length)] = edge ?? randomInteger(random, 256);
              }
              survives(bad, false);
            }
          }),
          { seed: SEED, numRuns: Math.ceil(RUNS / 10) },
        ),
      'truncated, too long, mutated',
    );
    const [sample] = fc.sample(values, { seed: SEED, numRuns: 1 }) as [Value];
    const other = joined(encode(sample), 0);
    other[0] = RECORD_VERSION + 1;
    t.throws(() => decode(other), { name: 'RecordError', record: name, field: 'version' });
  });
}

suite(
  'ASK',
  ask,
  ({ body, ...head }) => codec.encodeAsk(head, [body.subarray(0, 7), body.subarray(7)]),
  codec.decodeAsk,
);
suite('PLAN', plan, codec.encodePlan, codec.decodePlan as never);
suite('REJECT', reject, codec.encodeReject, codec.decodeReject);
suite('DONE', done, codec.encodeDone, codec.decodeDone);
suite('WORLD', world, codec.encodeWorld as never, codec.decodeWorld as never);

t.test('bodies and ids are given by reference, and a PLAN is copied out of shared memory', async t => {
  const body = new Uint8Array(100_000).fill(7);
  const promptIds = new Uint32Array(30_000).fill(9);
  const sample: Plan = fc.sample(plan, { seed: SEED, numRuns: 1 })[0]!;
  const one: PlanStep = fc.sample(step, { seed: SEED, numRuns: 1 })[0]!;
  const parts = codec.encodePlan({
    ...sample,
    calls: [
      {
        choiceBase: 0,
        choices: 1,
        promptIds,
        protocol: null,
        split: null,
        steps: [{ ...one, after: null, body }],
      },
    ],
  });
  t.ok(parts.includes(body), 'the body is a part itself');
  t.ok(
    parts.some(part => part.buffer === promptIds.buffer),
    'the ids are a part themselves',
  );
  const record = joined(parts, 0);
  const got = codec.decodePlan(record).calls[0]!;
  record.fill(0);
  t.ok(got.promptIds.buffer instanceof ArrayBuffer && got.steps[0]!.body.buffer instanceof ArrayBuffer);
  t.equal(digest(got.steps[0]!.body), digest(body));
  t.ok(got.promptIds.length === 30_000 && got.promptIds.every(id => id === 9));
});

t.test('a WORLD of the wrong shape names the field', async t => {
  const worker = {
    slot: 0,
    generation: 1,
    url: 'u',
    rank: null,
    engine: 'vllm',
    models: [{ id: 'm', contextLength: null }],
    blockSize: 16,
    totalBlocks: null,
    returnsTokenIds: true,
    foreignIds: ['m'],
  };
  const cases: [object | null, string][] = [
    [null, 'world'],
    [{ version: 1, workers: {}, models: [] }, 'workers'],
    [{ version: 1, workers: [{ ...worker, slot: -1 }], models: [] }, 'workers[0].slot'],
    [{ version: 1, workers: [{ ...worker, rank: -1 }], models: [] }, 'workers[0].rank'],
    [{ version: 1, workers: [{ ...worker, blockSize: 0 }], models: [] }, 'workers[0].blockSize'],
    [{ version: 1, workers: [worker, { ...worker, models: [{}] }], models: [] }, 'workers[1].models[0].id'],
    [
      {
        version: 1,
        workers: [{ ...worker, models: [{ id: 'm', contextLength: 1, adapter: 1 }] }],
        models: [],
      },
      'workers[0].models[0].adapter',
    ],
  ];
  for (const [value, field] of cases) {
    const record = joined([Uint8Array.of(RECORD_VERSION), Buffer.from(JSON.stringify(value))], 0);
    t.throws(() => codec.decodeWorld(record), { name: 'RecordError', record: 'WORLD', field });
  }
});

const digest = (data: Uint8Array): string => createHash('sha256').update(data).digest('hex');
