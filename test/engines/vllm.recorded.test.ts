/**
 * Promise: against the bytes of a real vLLM 0.32.0 the adapter learns what is true of it, and a plane gives its clients the
 * text, the finish, the log-probabilities and the counts that vLLM itself gave, and its errors under the right code.
 */
import t from 'tap';
import { createAdapters } from '#millrace/engines/adapters.js';
import { engineError } from '#millrace/engines/engine-error.js';
import { createDataPlane, type DataPlane } from '#millrace/index.js';
import { type Exchange, modelFolder, ReplayServer, readScenarios, type Scenario } from './replay-server.js';

const ENGINE = 'vllm-0.32.0';
const routes = readScenarios(ENGINE, 'routes');
const errors = readScenarios(ENGINE, 'errors');
const adapter = createAdapters([]).get('vllm')!;

// biome-ignore lint/suspicious/noExplicitAny: bodies are read as the JSON of another program
type Json = any;

/** What a choice comes to, whoever wrote it. */
interface Outcome {
  text: string;
  finish: string | null;
  /** Of each token, with those beside it in no order. */
  logprobs: number[][];
}

const framesOf = (text: string): Json[] =>
  text
    .split('\n\n')
    .filter(frame => frame.startsWith('data: {'))
    .map(frame => JSON.parse(frame.slice(6)));

/** Of OpenAI's two forms: `content` of chats, lists by column of completions. */
function logprobsOf(given: Json): number[][] {
  const ordered = (values: number[]): number[] => values.sort((a, b) => a - b);
  if (given?.content !== undefined)
    return given.content.map((token: Json) => [
      token.logprob,
      ...ordered(token.top_logprobs.map((top: Json) => top.logprob)),
    ]);
  const tops: Json[] = given?.top_logprobs ?? [];
  return (given?.token_logprobs ?? []).map((logprob: number, at: number) => [
    logprob,
    ...ordered(Object.values(tops[at] ?? {})),
  ]);
}

/** The choices of frames or of a whole body, and the counts. */
function outcomesOf(frames: readonly Json[]): { choices: Outcome[]; usage: Json } {
  const choices: Outcome[] = [];
  for (const choice of frames.flatMap(frame => frame.choices ?? [])) {
    choices[choice.index] ??= { text: '', finish: null, logprobs: [] };
    const outcome = choices[choice.index]!;
    outcome.text += choice.text ?? (choice.delta ?? choice.message).content ?? '';
    outcome.finish = choice.finish_reason ?? outcome.finish;
    outcome.logprobs.push(...logprobsOf(choice.logprobs));
  }
  const { prompt_tokens, completion_tokens, prompt_tokens_details } = frames.at(-1).usage ?? {};
  return {
    choices,
    usage: { prompt_tokens, completion_tokens, cached: prompt_tokens_details?.cached_tokens ?? null },
  };
}

const bytesOf = ({ response }: Exchange): string => response.chunks.join('');
const read = (text: string): Json[] => (text.startsWith('{') ? [JSON.parse(text)] : framesOf(text));

async function startPlane(url: string): Promise<DataPlane> {
  const plane = await createDataPlane({
    workers: [{ url, kvEvents: null }],
    modelPath: modelFolder(ENGINE),
    policy: 'round-robin',
    poolThreads: 1,
    logLevel: 'error',
    limits: { canaryAfterMs: 0 },
  });
  t.teardown(() => plane.close({ drainDeadlineMs: 0 }));
  return plane;
}

/** Asks as the client of the recording did. */
async function ask(plane: DataPlane, { client }: Scenario): Promise<{ status: number; text: string }> {
  const { path, body, leaveAfter = Number.POSITIVE_INFINITY } = client!;
  const headers = { 'content-type': 'application/json' };
  const request = new Request(`http://plane${path}`, { method: 'POST', headers, body: JSON.stringify(body) });
  const answer = await plane.fetchHandler()(request);
  let text = '';
  for await (const chunk of answer.body!) {
    text += Buffer.from(chunk).toString('utf8');
    if (text.split('data: ').length > leaveAfter) break;
  }
  return { status: answer.status, text };
}

t.test('the probe, the load and the canary', async t => {
  const replay = await ReplayServer.start(t, routes);
  const get = async (path: string) => {
    const answer = await fetch(replay.url + path);
    return { status: answer.status, body: await answer.text() };
  };
  t.same(await adapter.probe(get, 'http://10.0.0.7:8100'), {
    engine: 'vllm',
    version: '0.32.0',
    models: [
      { id: 'tiny', contextLength: 2048 },
      { id: 'la', contextLength: 2048, adapter: true, parent: 'tiny', path: './lora' },
    ],
    blockSize: 32,
    handover: { role: null, kvDtype: 'auto', bootstrapPort: null, infoEndpoint: null },
    totalBlocks: 32768,
    dpRanks: 1,
    returnsTokenIds: true,
    answerModes: ['token', 'relayIds', 'relay'],
    events: [{ publish: 'tcp://10.0.0.7:18641', replay: 'tcp://10.0.0.7:18642', topic: '' }],
    notices: [],
  });
  const load = adapter.parseMetrics((await get(adapter.metricsPath)).body);
  t.match(load, {
    running: Number,
    waiting: Number,
    kvUsage: Number,
    prefixCacheQueries: Number,
    prefixCacheHits: Number,
  });
  const { method, path, head, body } = adapter.canary('tiny', null);
  const canary = await fetch(replay.url + path, { method, headers: head.map(pair => [...pair]), body });
  t.equal(canary.status, 200);
  t.match(await canary.json(), { choices: [{ finish_reason: 'length' }], usage: { completion_tokens: 1 } });
  t.same(replay.unknown, []);
});

t.test('an adapter that came while it served is listed as one', async t => {
  const control = readScenarios(ENGINE, 'control');
  const listed = control.find(({ name }) => name === 'it is listed')!;
  const replay = await ReplayServer.start(t, [listed, ...routes]);
  const get = async (path: string) => {
    const answer = await fetch(replay.url + path);
    return { status: answer.status, body: await answer.text() };
  };
  const { models } = await adapter.probe(get, replay.url);
  t.match(models, [
    { id: 'tiny' },
    { id: 'la', adapter: true },
    { id: 'lb', adapter: true, contextLength: 2048, parent: 'tiny' },
  ]);
  const refused = control
    .flatMap(({ exchanges }) => exchanges)
    .filter(({ response }) => response.status >= 400);
  t.equal(refused.length, 3);
  for (const exchange of refused) {
    const { message } = engineError(exchange.response.status, bytesOf(exchange));
    t.match(message, /has already been loaded|No adapter found|cannot be found/);
  }
});

for (const file of ['completions', 'chat']) {
  t.test(file, async t => {
    const scenarios = readScenarios(ENGINE, file);
    const replay = await ReplayServer.start(t, [...routes, ...scenarios]);
    const plane = await startPlane(replay.url);
    for (const scenario of scenarios.filter(({ client }) => client!.leaveAfter === undefined)) {
      const { stop, logprobs, stream } = scenario.client!.body;
      const [exchange] = scenario.exchanges as [Exchange];
      const theirs = outcomesOf(read(bytesOf(exchange)));
      const { status, text } = await ask(plane, scenario);
      const ours = outcomesOf(read(text));
      t.equal(status, 200, scenario.name);
      if (Array.isArray(stop)) {
        // The plane sees it in its own text, and ends the answer.
        const [whole] = theirs.choices as [Outcome];
        theirs.choices = [
          { ...whole, text: whole.text.slice(0, whole.text.indexOf(stop[0])), finish: 'stop' },
        ];
        t.ok(exchange.isAborted);
      } else {
        t.same(ours.usage, theirs.usage, `${scenario.name}: counts`);
      }
      t.same(ours.choices, theirs.choices, `${scenario.name}: choices`);
      t.ok(theirs.choices.every(choice => choice.text !== ''));
      if (logprobs !== undefined) t.ok(ours.choices[0]!.logprobs.length > 8);
      if (stream === true) t.match(text, /data: \[DONE\]\n\n$/);
      t.notMatch(text, /token_ids":\[|token_id:/, 'the ids that only we asked for stay here');
    }
    const left = scenarios.filter(({ client }) => client!.leaveAfter !== undefined);
    for (const scenario of left) await ask(plane, scenario);
    await replay.aborts(
      scenarios.filter(({ exchanges }) => exchanges.some(({ isAborted }) => isAborted)).length,
    );
    t.same(replay.unknown, [], 'it was asked what the real engine was asked');
  });
}

t.test('errors that come as the first frame of a stream', async t => {
  const scenarios = errors.filter(({ client }) => client !== undefined);
  const replay = await ReplayServer.start(t, [...routes, ...scenarios]);
  const plane = await startPlane(replay.url);
  const expected = [
    { param: 'logit_bias', message: /^token_id\(s\) \[99999\] in logit_bias contain out-of-vocab token ids/ },
    { param: null, message: /^Grammar error: / },
  ];
  for (const [at, scenario] of scenarios.entries()) {
    const { status, text } = await ask(plane, scenario);
    t.equal(status, 400, scenario.name);
    t.match(JSON.parse(text), { error: { ...expected[at], code: 'MILLRACE_INVALID_REQUEST' } });
  }
  t.same(replay.unknown, []);
});

t.test('errors that come as a status', async t => {
  const direct = errors.filter(({ client }) => client === undefined);
  const known: Readonly<Record<string, object>> = {
    'too long': { code: 'MILLRACE_CONTEXT_LENGTH', httpStatus: 400, param: 'input_tokens' },
    'too long with its answer': { code: 'MILLRACE_CONTEXT_LENGTH', httpStatus: 400, param: 'max_tokens' },
    'unknown model': { code: 'MILLRACE_UNKNOWN_MODEL', httpStatus: 404, param: 'model', retryable: true },
    'a field of a wrong type': { code: 'MILLRACE_INVALID_REQUEST', httpStatus: 400, param: 'max_tokens' },
    'a temperature out of range': { code: 'MILLRACE_INVALID_REQUEST', httpStatus: 400, param: 'temperature' },
    'no JSON': { code: 'MILLRACE_INVALID_REQUEST', httpStatus: 400, param: null },
    'no such route': { code: 'MILLRACE_UNKNOWN_MODEL', httpStatus: 404, param: null },
  };
  t.same(direct.map(({ name }) => name).sort(), Object.keys(known).sort());
  for (const { name, exchanges } of direct) {
    const [exchange] = exchanges as [Exchange];
    t.match(engineError(exchange.response.status, bytesOf(exchange)), known[name]!, name);
  }
});
