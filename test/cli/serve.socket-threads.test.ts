// Promise: several socket threads share the connections of one port, answer for the whole process, drain and end cleanly;
// a worker links to each of them.
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import { addonStatus } from '#millrace/runtime/addon.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import { TestCa } from '../engines/link/test-certificates.js';
import { chatBody, launch, postChat, runMillrace, Serve, until } from './serve-process.js';

const THREADS = 2;
const skip = addonStatus().loaded ? false : 'several socket threads need the addon';

const start = (t: Test, args: readonly string[], env = {}): Promise<Serve> =>
  Serve.start(t, ['--json', '--socket-threads', String(THREADS), ...args], env);

/** Sends a request on a connection of its own and gives the whole answer. */
async function chatAlone(url: string, more: object): Promise<string> {
  const agent = new Agent({ keepAlive: false });
  const headers = { 'content-type': 'application/json', connection: 'close' };
  const sent = request(`${url}/v1/chat/completions`, { method: 'POST', agent, headers });
  sent.end(chatBody(more));
  const [answer] = await once(sent, 'response');
  let text = '';
  for await (const bytes of answer) text += String(bytes);
  return text;
}

/** Values of a metric by its labels. */
async function metric(url: string, name: string): Promise<Map<string, number>> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const lines = text.split('\n').filter(line => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
  return new Map(
    lines.map(line => {
      const space = line.lastIndexOf(' ');
      return [line.slice(name.length, space), Number(line.slice(space + 1))];
    }),
  );
}

t.test('200 connections: each thread gets a share, and every thread answers for all', { skip }, async t => {
  const serve = await start(t, ['--mock-workers', '1', '--mock-speed', 'unlimited']);
  const { url, server, models } = serve.listening;
  t.equal(server, 'uws');
  t.match(JSON.parse(serve.said), { socketThreads: THREADS });
  const connections = 200;
  const answers = await Promise.all(
    Array.from({ length: connections }, () => chatAlone(url, { max_tokens: 2, stream: true })),
  );
  t.ok(answers.every(text => text.endsWith('data: [DONE]\n\n')));

  const accepted = await metric(url, 'millrace_requests_accepted_total');
  const shares = Array.from({ length: THREADS }, (_, at) => accepted.get(`{thread="socket-${at}"}`)!);
  t.comment(`connections by thread: ${shares.join(', ')}`);
  t.equal(
    shares.reduce((sum, share) => sum + share, 0),
    connections,
  );
  t.ok(shares.every(share => share >= connections / 10));
  // Each fetch below may come to either thread.
  for (let round = 0; round < 4; round++) {
    const tokens = await metric(url, 'dynamo_frontend_output_tokens_total');
    t.equal(tokens.get(`{model="${models[0]!.name}"}`), connections * 2);
    const buckets = await metric(url, 'dynamo_frontend_request_duration_seconds_count');
    t.equal(buckets.get(`{model="${models[0]!.name}"}`), connections);
    t.match(await serve.health(), {
      status: 200,
      body: { workers: { ready: 1, total: 1 }, requestsInFlight: 0 },
    });
    const listed = await (await fetch(`${url}/v1/models`, { headers: { connection: 'close' } })).json();
    t.match(listed, { data: [{ id: models[0]!.name }] });
  }
  const delays = await metric(url, 'millrace_event_loop_delay_seconds');
  for (const thread of ['main', 'socket-0', 'socket-1'])
    t.ok(delays.get(`{thread="${thread}",quantile="1"}`)! >= 0, thread);
  t.equal((await metric(url, 'millrace_worker_load')).size, 3, 'each load once, not once per thread');

  serve.child.kill('SIGTERM');
  t.same(await serve.exited(), [0, null]);
  t.match(serve.stderr, /closed code=0/);
});

t.test('SIGTERM: streams of all threads end whole, exit 0', { skip }, async t => {
  // Slow enough that the streams last until all was looked at, on a busy machine too.
  const engine = await startMockEngine({ speed: 0.1 });
  t.teardown(() => engine.close());
  const quiet = ['--limit', 'canaryAfterMs=0'];
  const serve = await start(t, ['--worker', engine.url, '--tokenizer', 'chatml-cl100k', ...quiet]);
  const { url } = serve.listening;
  const streams = Array.from({ length: 12 }, () => chatAlone(url, { max_tokens: 40, stream: true }));
  await until('all streams run', () => engine.counters.running === streams.length);
  const inFlight = await metric(url, 'millrace_requests_accepted_total');
  t.ok([...inFlight.values()].filter(count => count > 0).length === THREADS, 'on both threads');
  t.match(await serve.health(), { body: { requestsInFlight: streams.length } });
  serve.child.kill('SIGTERM');
  await serve.logged('draining');
  t.equal((await serve.health()).status, 503);
  t.equal((await postChat(url)).status, 503);
  for (const text of await Promise.all(streams)) {
    t.match(text, /"finish_reason":"length"/);
    t.ok(text.endsWith('data: [DONE]\n\n'));
  }
  t.same(await serve.exited(), [0, null]);
  t.match(engine.counters, { finished: streams.length, aborted: 0 });
});

/** Writes the certificates of both sides; gives the flags that name them. */
function tlsFiles(folder: string, ca: TestCa): { plane: string[]; worker: string[] } {
  const write = (name: string, text: string): string => {
    writeFileSync(`${folder}/${name}`, text);
    return `${folder}/${name}`;
  };
  const flags = (prefix: string, host: string): string[] => {
    const { cert, key } = ca.issue(host);
    return [
      ...[`--${prefix}tls-cert`, write(`${host}.pem`, cert), `--${prefix}tls-key`, write(`${host}.key`, key)],
      ...[`--${prefix}tls-ca`, write('ca.pem', ca.cert)],
    ];
  };
  return { plane: flags('link-', '127.0.0.1'), worker: flags('', 'worker') };
}

t.test('a worker links to every thread, over TLS; its events and its health come once', { skip }, async t => {
  const folder = mkdtempSync(`${tmpdir()}/lanes-`);
  t.teardown(() => rmSync(folder, { recursive: true }));
  const ca = new TestCa('millrace test');
  const files = tlsFiles(folder, ca);
  const engine = await startMockEngine({ speed: 'unlimited', blockSize: 16, eosRate: 0, events: {} });
  t.teardown(() => engine.close());
  const token = 'not-to-be-guessed-0123';
  const serve = await start(
    t,
    [
      ...['--link-listen', 'tls://127.0.0.1:0', ...files.plane, '--policy', 'ttft'],
      ...['--tokenizer', 'chatml-cl100k'],
    ],
    { MILLRACE_ADMIN_TOKEN: token },
  );
  const { url, linkAddress } = serve.listening;
  const { publish, replay } = engine.events!;
  const link = () =>
    launch(t, [
      ...['worker', '--engine', engine.url, '--plane', linkAddress!, ...files.worker],
      ...['--kv-events', publish, '--kv-events-replay', replay],
    ]);
  const report = async () => {
    const headers = { authorization: `Bearer ${token}` };
    const { workers } = (await (await fetch(`${url}/admin/workers`, { headers })).json()) as {
      workers: { state: string; events: unknown; link: { state: string; reconnects: number } }[];
    };
    return workers[0];
  };
  const count = async (name: string, labels: string): Promise<number> =>
    (await metric(url, name)).get(labels)!;
  const opened = (connections: number) => async () =>
    (await count('millrace_link_connections_total', '{event="opened"}')) === connections;
  const calls = 40;
  const askAll = async (): Promise<void> => {
    const answers = await Promise.all(
      Array.from({ length: calls }, () => chatAlone(url, { max_tokens: 20, stream: true })),
    );
    t.ok(answers.every(text => text.endsWith('data: [DONE]\n\n')));
  };

  const first = link();
  await until('it has joined', async () => (await report())?.state === 'ready');
  await until('all lanes are open', opened(1 + THREADS));
  await askAll();
  t.equal(await count('millrace_link_calls_total', '{way="link"}'), calls);
  t.equal(await count('millrace_link_calls_total', '{way="http"}'), 0);
  const shares = [...(await metric(url, 'millrace_requests_accepted_total')).values()];
  t.equal(shares.filter(share => share > 0).length, THREADS, 'on both threads');
  await until('its events come', async () => (await report())?.events === 'link');
  t.match(await report(), { link: { state: 'up', reconnects: 0, canary: { failures: 0 } } });
  const worker = `{worker="${engine.url}"}`;
  t.equal(await count('millrace_worker_link_up', worker), 1, 'said once, not once per thread');

  const gone = once(first, 'exit');
  first.kill('SIGKILL');
  await gone;
  await until('the plane has seen it', async () => (await report())?.link.state === 'gone');
  await askAll();
  t.equal(await count('millrace_link_calls_total', '{way="http"}'), calls, 'over HTTP');

  tlsFiles(folder, ca);
  serve.child.kill('SIGHUP');
  await serve.logged('the TLS files of worker links were read again');
  link();
  await until('all links are back', opened(2 * (1 + THREADS)));
  await askAll();
  t.equal(await count('millrace_link_calls_total', '{way="link"}'), 2 * calls);
  t.equal(await count('millrace_worker_link_reconnects_total', worker), 1);
  serve.child.kill('SIGTERM');
  t.same(await serve.exited(), [0, null]);
});

t.test('what cannot be shared is refused, by name', { skip }, async t => {
  const engine = await startMockEngine({ speed: 'unlimited' });
  t.teardown(() => engine.close());
  const args = ['serve', '--worker', engine.url, '--socket-threads', '2'];
  const serve = await start(t, args.slice(1));
  const [node, slow, taken] = await Promise.all([
    runMillrace(t, [...args, '--http-server', 'node']),
    runMillrace(t, args, { MILLRACE_NO_ADDON: '1' }),
    runMillrace(t, [...args, '--port', String(serve.listening.port)]),
  ]);
  t.match(node, { code: 2, stderr: /socketThreads is 2; above 1 it needs uWebSockets\.js/ });
  t.match(slow, { code: 2, stderr: /socketThreads is 2; above 1 it needs the addon.*MILLRACE_NO_ADDON=1/ });
  t.match(taken, { code: 2, stderr: /EADDRINUSE/ }, 'a second process does not join the port');
  serve.child.kill('SIGTERM');
  t.same(await serve.exited(), [0, null]);
});
