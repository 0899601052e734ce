/**
 * The suite that every EngineAdapter must pass: calls are valid JSON that carry what was asked, and the stream decoder
 * gives the same events however its bytes are cut. An adapter's own test file runs it with that engine's samples.
 */
import type { Test } from 'tap';
import type { EncodeInput, EngineAdapter, FrameBatch, StreamFault } from '#millrace/engines/contract.js';
import type { ControlAsk, EngineControl } from '#millrace/engines/control-contract.js';
import { errorOf, explodeFrame, finishReasonOf, rowStart, usageOf } from '#millrace/engines/event-rows.js';
import { FRAME, FRAME_FLAG } from '#millrace/engines/frame-descriptor.js';
import { WorkerError } from '#millrace/errors.js';
import type { TokenRequest } from '#millrace/messages/token-request.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

export interface AdapterSamples {
  readonly adapter: EngineAdapter;
  /** A whole streamed answer, with its end marker. */
  readonly answer: Uint8Array;
  /** The events in it, as `readEvents` names them. */
  readonly events: readonly object[];
  /** A stream that breaks the protocol after one good frame. */
  readonly malformed: Uint8Array;
  /** Prompt ids, and the further fields of a token-mode call, in the JSON of its body. */
  readonly promptIdsOf: (body: Record<string, unknown>) => unknown;
  /** What the body of a token-mode call holds for `guided_regex` "ü\n", `top_k` 5 and 7 tokens at most. */
  readonly tokenFields: object;
  /** What a relayed body holds beside the client's own. */
  readonly relayFields: object;
}

const WIDE = { firstFrameBytesMax: 1 << 20, frameBytesMax: 1 << 20 };

/** A request with every default; `changes` replace whole parts. */
export function makeRequest(changes: Partial<TokenRequest> = {}): TokenRequest {
  return {
    api: 'completions',
    model: 'public-name',
    prompt: { kind: 'text', text: 'hi' },
    sampling: { n: 1 },
    stop: {
      maxTokens: null,
      minTokens: 0,
      strings: [],
      tokenIds: [],
      ignoreEos: false,
      includeStopString: false,
    },
    output: {
      stream: true,
      includeUsage: false,
      continuousUsage: false,
      skipSpecialTokens: true,
      logprobs: null,
    },
    engineOnly: [],
    unknown: {},
    raw: { model: 'public-name', prompt: 'hi', stream: true },
    ...changes,
  };
}

export function makeInput(changes: Partial<EncodeInput> = {}): EncodeInput {
  return {
    request: makeRequest(),
    mode: 'token',
    workerModel: 'worker-name',
    promptIds: Uint32Array.of(1, 22, 333),
    maxTokens: 7,
    eosIds: Uint32Array.of(2),
    requestId: 'req-1',
    rank: null,
    ...changes,
  };
}

/** Every event of a batch in plain words, copied out of it. */
export function readEvents(batch: FrameBatch): object[] {
  const events: object[] = [];
  for (let row = 0; row < batch.count; row++) {
    const at = rowStart(row);
    const word = (name: keyof typeof FRAME): number => batch.table[at + FRAME[name]]!;
    const flags = word('flags');
    if ((flags & FRAME_FLAG.done) !== 0) events.push({ done: true });
    else if ((flags & FRAME_FLAG.comment) !== 0) events.push({ comment: true });
    else if ((flags & FRAME_FLAG.error) !== 0) events.push({ error: errorOf(batch, row) });
    else if ((flags & (FRAME_FLAG.severalChoices | FRAME_FLAG.idsOverflow)) !== 0) {
      events.push({ choices: explodeFrame(batch, row) });
    } else {
      const first = word('idsFirst');
      events.push({
        choice: word('choice'),
        ids: first < 0 ? null : [...batch.ids.subarray(first, first + word('idsCount'))],
        finish: finishReasonOf(batch, row),
        usage: usageOf(batch, row),
      });
    }
  }
  return events;
}

/** Decodes an answer that arrives in the given pieces. */
export function decode(
  adapter: Pick<EngineAdapter, 'openStream'>,
  pieces: readonly Uint8Array[],
  limits = WIDE,
): { events: object[]; fault: StreamFault | null; end: StreamFault | null } {
  const stream = adapter.openStream(limits, 'token');
  const events: object[] = [];
  for (const piece of pieces) {
    // A socket's memory belongs to the socket: what the decoder keeps must be its own copy.
    const lent = Uint8Array.from(piece);
    const fault = stream.push(lent, batch => events.push(...readEvents(batch)));
    lent.fill(0);
    if (fault !== null) return { events, fault, end: null };
  }
  return { events, fault: null, end: stream.end() };
}

const pieces = (bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] =>
  [0, ...cuts].map((from, index) => bytes.subarray(from, cuts[index] ?? bytes.length));

/** What an engine answers to control calls, in order, and what was asked of it. */
export function scripted(answers: readonly (readonly [status: number, body: string])[]) {
  const asked: (readonly [string, string, unknown?])[] = [];
  let at = 0;
  const ask: ControlAsk = async (method, path, body) => {
    asked.push(body === undefined ? [method, path] : [method, path, body]);
    const [status, text] = answers[at++] ?? [500, 'nothing more was expected'];
    return { status, body: text };
  };
  return { ask, asked };
}

/** Adapters and sleep of an engine: what it is asked, and what its answers mean. */
export interface ControlSample {
  readonly name: string;
  readonly run: (control: EngineControl, ask: ControlAsk) => Promise<unknown>;
  readonly answers: readonly (readonly [status: number, body: string])[];
  readonly asked: readonly (readonly [string, string, unknown?])[];
  readonly result: unknown;
}

/** Runs the samples of an adapter's control. */
export function engineControlSuite(
  t: Test,
  { control }: Pick<EngineAdapter, 'control'>,
  samples: readonly ControlSample[],
): void {
  for (const { name, run, answers, asked, result } of samples) {
    t.test(name, async t => {
      const engine = scripted(answers);
      t.match(await run(control, engine.ask), result);
      t.same(engine.asked, asked);
    });
  }
  t.test('an engine that does not answer is the caller’s to judge', async t => {
    const gone = new WorkerError('MILLRACE_WORKER_UNREACHABLE', 'gone');
    const ask: ControlAsk = () => Promise.reject(gone);
    await t.rejects(control.isSleeping(ask), gone);
    if (!control.holdsAdapters) return;
    await t.rejects(control.loadAdapter(ask, { name: 'a', path: '/a' }), gone);
    await t.rejects(control.unloadAdapter(ask, 'a'), gone);
    await t.rejects(control.sleep(ask, 1), gone);
    await t.rejects(control.wake(ask, 2), gone);
  });
}

/** Runs the suite. */
export function engineAdapterSuite(t: Test, samples: AdapterSamples): void {
  const { adapter, answer, events, malformed } = samples;
  const jsonOf = (input: EncodeInput): Record<string, unknown> =>
    JSON.parse(Buffer.from(adapter.encode(input).body).toString('utf8'));

  t.test('token mode: the prompt goes as ids, unknown fields pass, ours win', t => {
    const seed = Number(process.env.SEED ?? Date.now() % 1e9);
    t.comment(`SEED=${seed}`);
    const random = seededRandom(seed);
    const edges = [0, 9, 10, 99, 100, 999_999_999, 1_000_000_000, 4_294_967_295];
    const many = Array.from({ length: 3000 }, () => randomInteger(random, 2 ** randomInteger(random, 33)));
    for (const ids of [[7], edges, many]) {
      t.same(samples.promptIdsOf(jsonOf(makeInput({ promptIds: Uint32Array.from(ids) }))), ids);
    }
    const unknown = JSON.parse(
      '{"guided_regex":"ü\\n","top_k":5,"model":"x","stream":false,"__proto__":{"a":1}}',
    );
    const body = jsonOf(makeInput({ request: makeRequest({ unknown }) }));
    t.match(body, { stream: true, ...samples.tokenFields });
    t.not(body.model, 'x');
    t.same(Object.getOwnPropertyDescriptor(body, '__proto__')?.value, { a: 1 });
    t.throws(() => adapter.encode(makeInput({ promptIds: null })), /prompt ids/);
    t.end();
  });

  t.test('relay mode: the body is the client’s, with the worker’s model', t => {
    const raw = {
      model: 'public-name',
      messages: [{ role: 'user', content: 'ü' }],
      stream: false,
      x: [1, null],
    };
    const output = {
      stream: false,
      includeUsage: false,
      continuousUsage: false,
      skipSpecialTokens: true,
      logprobs: null,
    };
    const request = makeRequest({ api: 'chat', raw, output });
    const input = makeInput({ mode: 'relay', promptIds: null, maxTokens: null, request });
    t.same(jsonOf(input), { ...raw, model: 'worker-name', ...samples.relayFields });
    t.equal(adapter.encode(input).usageInjected, false);
    t.end();
  });

  t.test('a stream gives the same events wherever it is cut', t => {
    const whole = decode(adapter, [answer]);
    t.same(whole, { events, fault: null, end: null });
    for (let cut = 0; cut <= answer.length; cut++) {
      const result = decode(adapter, pieces(answer, [cut]));
      if (JSON.stringify(result) !== JSON.stringify(whole)) t.same(result, whole, `cut at ${cut}`);
    }
    const bytewise = pieces(
      answer,
      Array.from({ length: answer.length - 1 }, (_, index) => index + 1),
    );
    t.same(decode(adapter, bytewise), whole, 'byte by byte');
    t.end();
  });

  t.test('a stream that ends early is truncated, at whatever byte', t => {
    const lengths = Array.from({ length: answer.length - 1 }, (_, length) => length);
    const ends = new Set(lengths.map(length => decode(adapter, [answer.subarray(0, length)]).end));
    t.same([...ends], ['truncated']);
    t.end();
  });

  t.test('faults: the frames before one are delivered, the broken one is not', t => {
    t.match(decode(adapter, [malformed]), { events: [{}], fault: 'malformed' });
    t.equal(decode(adapter, [malformed]).events.length, 1);
    for (let limit = 1; limit < 400; limit++) {
      const limits = { firstFrameBytesMax: 1 << 20, frameBytesMax: limit };
      const once = decode(adapter, [answer], limits);
      const cut = decode(adapter, pieces(answer, [limit, 2 * limit]), limits);
      if (JSON.stringify(once) !== JSON.stringify(cut)) t.same(cut, once, `limit ${limit}`);
    }
    t.match(decode(adapter, [answer], { ...WIDE, firstFrameBytesMax: 8 }), {
      events: [],
      fault: 'frameTooLong',
    });
    const stream = adapter.openStream(WIDE, 'token');
    stream.push(malformed, () => {});
    t.throws(() => stream.push(malformed, () => {}), /after a fault/);
    t.end();
  });
}
