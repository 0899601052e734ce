// Promise: the live replay sends exactly the tokens of its trace, loses no request, puts live figures beside the replay's,
// and refuses a speed that the machine cannot keep up with.
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { renderReport } from '#millrace/simulate/replay/report-html.js';
import type { Workload } from '#millrace/simulate/replay/workload.js';

const bench = new URL('../../../bench/', import.meta.url);
const { idsOf, textOf } = await import(new URL('lib/ttft-prompts.js', bench).href);
const { StreamConnection } = await import(new URL('lib/ttft-connection.js', bench).href);
const { checkLags, defaultSpeed, runLive, spreadTies } = await import(new URL('lib/ttft-run.js', bench).href);
const { resultOf, tableOf, verdictOf } = await import(new URL('lib/ttft-result.js', bench).href);

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`SEED=${SEED}`);
// Two fleets are started: on a busy machine that is most of tap's half minute.
t.setTimeout(120_000);

const bytes = (ids: Uint32Array): Uint8Array => new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength);

/** Turns of a few sessions: each request has one block more than the one before of its session. */
function turns(requests: number): Workload {
  const made = Array.from({ length: requests }, (_, at) => {
    const [session, turn] = [at % 2, Math.floor(at / 2)];
    const hashIds = Array.from({ length: turn + 1 }, (_, block) => 100 * session + block);
    return { arrivalMs: 40 * at, promptTokens: 512 * turn + 300, outputTokens: 1 + (at % 5), hashIds };
  });
  return { name: 'turns', traceBlockTokens: 512, requests: made, joinsAtShare: null };
}

const live = (workload: Workload, more: object) =>
  runLive(workload, {
    workers: 2,
    policies: ['round-robin'],
    load: 0.5,
    seed: 1,
    speed: 10,
    lagShareMax: Number.POSITIVE_INFINITY,
    onStep: () => {},
    ...more,
  });

t.test('a prompt is tokenized to the ids it was made of, and equal hash ids are equal tokens', async t => {
  const random = seededRandom(SEED);
  const tokenizer = await loadTokenizer('chatml-cl100k');
  for (let turn = 0; turn < 40; turn += 1) {
    const promptTokens = 1 + randomInteger(random, 2000);
    const idAt = (): number => randomInteger(random, 2 ** 32) * (turn % 2 === 0 ? 1 : 2 ** 20);
    const hashIds = Array.from({ length: Math.ceil(promptTokens / 512) }, idAt);
    const ids: Uint32Array = idsOf({ promptTokens, hashIds }, 512);
    const same = (one: Uint32Array, other: Uint32Array): boolean =>
      Buffer.compare(bytes(one), bytes(other)) === 0;
    const wholeBlocks: Uint32Array = idsOf({ promptTokens: 512 * hashIds.length, hashIds }, 512);
    const changed: Uint32Array = idsOf({ promptTokens, hashIds: hashIds.map(id => id + 1) }, 512);
    const encoded = tokenizer.encode(textOf({ promptTokens, hashIds }, 512));
    const right = ids.length === promptTokens && same(encoded, ids);
    if (!right) t.fail(`${promptTokens} tokens of ${hashIds}`);
    if (!same(wholeBlocks.subarray(0, promptTokens), ids))
      t.fail(`a longer prompt of ${hashIds} begins otherwise`);
    if (promptTokens > 64 && same(changed, ids))
      t.fail(`other hash ids than ${hashIds} give the same tokens`);
  }
});

t.test('a run has every request whole, and figures beside those of the replay', async t => {
  const workload = turns(16);
  const done = await live(workload, {});
  const sum = (values: ArrayLike<number>): number => Array.from(values).reduce((a, b) => a + b, 0);
  for (const [policy, { record, errorExamples }] of done.live) {
    t.same([record.errors, errorExamples], [0, []], policy);
    t.equal(record.outputTokens, sum(workload.requests.map(({ outputTokens }) => outputTokens)));
    t.equal(record.promptTokens, sum(workload.requests.map(({ promptTokens }) => promptTokens)));
    t.equal(sum(record.computedTokens), record.promptTokens - record.cachedTokens, 'engines and usage agree');
    t.ok(record.cachedTokens > 0, 'turns of a session meet');
    t.ok(record.ttftMs.every((ms: number, at: number) => ms > 0 && record.e2eMs[at] >= ms));
    t.ok(sum(record.ttftMs) / 16 > 16, 'a pass of the modelled engine takes 16.5 ms at least');
  }
  const facts = { commit: 'c', machine: {}, settings: { speed: 10 } };
  const result = resultOf(done, facts);
  t.same(Object.keys(result), ['bench', 'commit', 'machine', 'settings', 'policies', 'ratios', 'best']);
  const distribution = { mean: Number, p50: Number, p90: Number, p99: Number };
  const figures = { requests: 16, errors: 0, ttftMs: distribution, itlMs: distribution, e2eMs: distribution };
  const all = { ...figures, hitRate: Number, outputTokensPerSecond: Number, workImbalance: Number };
  const parsed = JSON.parse(JSON.stringify(result));
  t.match(parsed.policies['round-robin'], { ...all, replay: all, liveOverReplay: Number, agrees: Boolean });
  t.match(parsed.policies['round-robin'].lagP99Ms, { load: Number, plane: Number, mocks: Number });
  t.type(parsed.ratios.ttftMeanRoundRobinOverBest, 'number');
  t.equal(tableOf(result).length, 2);
  t.match(
    verdictOf(result),
    /round-robin: live mean TTFT is [\d.]+ × that of the replay, (not )?within 20 %/,
  );
  const records = new Map([...done.live].map(([policy, { record }]) => [policy, record]));
  const html = renderReport([{ ...done, live: records }], facts.settings);
  for (const title of ['Live over HTTP', 'round-robin, live', 'round-robin, replay'])
    t.ok(html.includes(title), title);
});

t.test('a run at which event loops are late is refused, with a lower speed', async t => {
  // Timers are never this exact, so this run must be refused on any machine.
  await t.rejects(
    live(turns(4), { workers: 1, load: 0.05, lagShareMax: 1e-9 }),
    /round-robin: this machine cannot keep up/,
  );
  const lags = { load: 1, plane: 12, mocks: 2 };
  t.throws(
    () => checkLags('kv', lags, 400, 4, 0.05),
    /kv: .*--speed 4: the event loop of the plane was late by 12\.0 ms at p99, 12\.0 % .*Try --speed 1$/,
  );
  t.doesNotThrow(() => checkLags('kv', lags, 400, 1, 0.05));
  t.doesNotThrow(() => checkLags('kv', lags, null, 4, 0.05), 'nothing answered: the errors say why');
});

t.test('the default speed leaves room for the lateness of a small machine, short TTFTs the most', async t => {
  const speedAt = (...means: (number | null)[]): number => {
    const policies = Object.fromEntries(means.map((mean, at) => [`p${at}`, { ttftMs: { mean } }]));
    return defaultSpeed({ policies }, 0.05);
  };
  t.same([speedAt(5000), speedAt(400, 1200), speedAt(88, 220), speedAt(1)], [1, 1, 0.4, 0.1]);
});

t.test('requests of one moment come in their order, before those of the next', async t => {
  const times = [0, 0, 0, 3000, 3000, 6000, 6000];
  const requests = times.map(arrivalMs => ({ arrivalMs, promptTokens: 1, outputTokens: 1, hashIds: [0] }));
  const spread = spreadTies({ name: 'ties', traceBlockTokens: 512, requests, joinsAtShare: null });
  const arrivals = spread.requests.map(({ arrivalMs }: { arrivalMs: number }) => arrivalMs);
  t.same(arrivals, [0, 100, 200, 3000, 3150, 6000, 6000]);
});

t.test('without its trace the bench says so and is no failure', async t => {
  const script = fileURLToPath(new URL('ttft.js', bench));
  const run = spawnSync(process.execPath, [script, '--trace', 'no-such-trace.jsonl', '--json'], {
    encoding: 'utf8',
    timeout: 30_000,
  });
  t.same([run.status, run.stdout], [0, '']);
  t.match(run.stderr, /skipped: there is no trace no-such-trace\.jsonl/);
});

t.test('an answer counts only when it is whole', async t => {
  const head = 'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n';
  const frame = (json: object): string => `data: ${JSON.stringify(json)}\n\n`;
  const usage = { prompt_tokens: 9, completion_tokens: 2, prompt_tokens_details: { cached_tokens: 4 } };
  const text = frame({ choices: [{ text: 'a' }], usage: null });
  const end = `${frame({ choices: [], usage })}data: [DONE]\n\n\r\n0\r\n\r\n`;
  const ask = async (bytes: string, cut: number) => {
    const server = net.createServer({ noDelay: true }, socket => {
      socket.on('error', () => {});
      socket.once('data', async () => {
        for (let at = 0; at < bytes.length; at += cut)
          await new Promise(resolve => socket.write(bytes.slice(at, at + cut), resolve));
        socket.end();
      });
    });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const connection = new StreamConnection('127.0.0.1', (server.address() as net.AddressInfo).port);
    const answer = await new Promise<{ error: string | null }>(resolve => {
      connection.send(Buffer.from('{}'), resolve);
    });
    connection.close('the test is over');
    server.close();
    return answer;
  };
  for (const cut of [1e6, 1, 7])
    t.match(await ask(head + text + end, cut), {
      error: null,
      promptTokens: 9,
      completionTokens: 2,
      cachedTokens: 4,
    });
  t.match((await ask(head + text, 1e6)).error, /closed the connection/);
  t.match((await ask(`${head}${text}data: [DONE]\n\n\r\n0\r\n\r\n`, 1e6)).error, /not whole/);
  t.match((await ask(head + end, 1e6)).error, /not whole/, 'no text came');
  t.match((await ask('HTTP/1.1 529 Overloaded\r\n\r\nbusy', 1e6)).error, /529 Overloaded/);
});
