// Promise: the fault bench proves its faults, compares texts byte for byte, and finds what did not happen, what differs and what leaks.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import t from 'tap';

const bench = new URL('../../../bench/', import.meta.url);
const { FAULT_CASES } = await import(new URL('lib/fault-cases.js', bench).href);
const { askOf, leaksOf, referenceTexts, startFleet } = await import(
  new URL('lib/fault-fleet.js', bench).href
);
const { isKept, runCase } = await import(new URL('lib/fault-run.js', bench).href);
const { FaultStream } = await import(new URL('lib/fault-stream.js', bench).href);

// Fleets of processes are started: on a busy machine that is most of tap's half minute.
t.setTimeout(120_000);

const SMALL = ['--workers', '2', '--streams', '4', '--tokens', '48', '--modes', 'token', '--speed', '0.5'];
const sigkill = FAULT_CASES.find(({ name }: { name: string }) => name === 'sigkill');

async function runBench(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const script = fileURLToPath(new URL('faults.js', bench));
  const child = spawn(process.execPath, [script, ...SMALL, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', chunk => {
    stdout += chunk;
  });
  child.stderr.on('data', chunk => {
    stderr += chunk;
  });
  const [code] = await once(child, 'close');
  return { code, stdout, stderr };
}

t.test(
  'a killed worker, hand-overs and a killed link: shape, proof, and an exit code that says the same',
  async t => {
    const { code, stdout, stderr } = await runBench('--cases', 'sigkill,split-none,link-sigkill', '--json');
    const result = JSON.parse(stdout);
    t.match(result, {
      bench: 'faults',
      commit: String,
      machine: { cores: Number },
      settings: { streams: 4 },
    });
    const [sigkilled, split, link] = result.cases;
    t.equal(result.cases.length, 3);
    const moved = { mode: 'token', happened: true, requests: 8, touched: 2, gapTargetMs: 2000 };
    const gaps = { gapMs: { p50: Number, p99: Number } };
    t.match(sigkilled, { name: 'sigkill', proof: /^engine \d+ ended with SIGKILL$/, ...moved, ...gaps });
    t.match(link, {
      name: 'link-sigkill',
      proof: /^link process \d+ ended with SIGKILL, which cut 2 of the 2 streams/,
      ...moved,
    });
    t.match(split, {
      name: 'split-none',
      happened: true,
      proof: /handed over 4, 4 prompts, decode .* took 4, 4$/,
    });
    for (const { failed, textMismatches, leaked, errors } of result.cases)
      t.same([failed, textMismatches, leaked, errors], [0, 0, 0, []], stderr);
    t.same([sigkilled.migrations, link.migrations], [2, 2], 'each touched stream has moved once');
    t.equal(code, result.cases.every(isKept) ? 0 : 1);
  },
);

t.test('a fault that did not happen, other texts and other outcomes are found', async t => {
  const asks = [0, 1, 2, 3].map(index => askOf(index, 32));
  const laterAsks = [askOf(4, 4)];
  const texts: string[] = await referenceTexts([...asks, ...laterAsks]);
  t.equal(new Set(texts).size, texts.length, 'every request has a text of its own');
  const all = new Map<string, string>([...asks, ...laterAsks].map(({ id }, at) => [id, texts[at]!]));
  all.set('fault-1', `${texts[1]}!`);
  const options = { mode: 'token', workers: 2, speed: 1, injectAfter: 8, asks, laterAsks, texts: all };
  const idle = await runCase({ ...sigkill, strike: undefined }, options);
  t.match(idle, { happened: false, touched: 0, requests: 5, failed: 0, textMismatches: 1, leaked: 0 });
  t.match(idle.errors, [/^fault-1: differs at character \d+ of \d+: "", undisturbed "!"$/]);
  t.notOk(isKept(idle));
  t.notOk(isKept({ ...idle, textMismatches: 0 }), 'the missing fault alone is enough');
  t.ok(isKept({ ...idle, textMismatches: 0, happened: true }));
});

t.test('what is still open is a leak', async t => {
  const fleet = await startFleet({ workers: 2, speed: 0.1, mode: 'relayIds' });
  t.teardown(() => fleet.stop());
  const stream = new FaultStream(fleet, askOf(0, 2000));
  await stream.reached(2);
  const leaks = await leaksOf(fleet, fleet.mocks, 0);
  t.match(leaks, { requestsInFlight: 1, activeRequests: 1, reservations: 1, engineRequests: 1 });
  t.ok(leaks.retainedBytes > 0);
  stream.fail('the client leaves');
  t.same(await leaksOf(fleet, fleet.mocks, 20_000), {}, 'and none once all has ended');
});

t.test('a stream that is not whole is an error', async t => {
  const frame = (json: object): string => `data: ${JSON.stringify(json)}\n\n`;
  const text = frame({ choices: [{ text: 'a' }] });
  const finish = frame({ choices: [{ delta: { content: 'b' }, finish_reason: 'length' }] });
  const ask = async (parts: readonly string[], status = 200) => {
    const server = http.createServer((_request, response) => {
      response.writeHead(status, { 'x-millrace-worker': 'http://w' });
      for (const part of parts.slice(0, -1)) response.write(part);
      response.end(parts.at(-1));
    });
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const target = { host: '127.0.0.1', port: (server.address() as AddressInfo).port };
    const stream = new FaultStream(target, { id: 'x', path: '/v1/completions', body: {} });
    await stream.done;
    server.close();
    return stream;
  };
  const done = 'data: [DONE]\n\n';
  t.match(await ask([': alive\n\n', text, finish.slice(0, 9), finish.slice(9), done]), {
    error: null,
    text: 'ab',
    chunks: 2,
    worker: 'http://w',
  });
  t.match((await ask([text, finish])).error, /without \[DONE\] after 2 chunks/);
  t.match((await ask([text, done])).error, /without a finish reason/);
  t.match((await ask([text, 'data: {"id\n\n', finish, done])).error, /after 1 chunks: no JSON/);
  t.match((await ask([text, frame({ error: { code: 'GONE', message: 'm' } }), done])).error, /GONE: m/);
  t.match((await ask(['busy'], 529)).error, /529: busy/);
});
