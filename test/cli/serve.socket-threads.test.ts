// Promise: several socket threads share the connections of one port, answer for the whole process, drain and end cleanly.
import { once } from 'node:events';
import { Agent, request } from 'node:http';
import t, { type Test } from 'tap';
import { addonStatus } from '#millrace/runtime/addon.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import { chatBody, postChat, runMillrace, Serve, until } from './serve-process.js';

const THREADS = 2;
const skip = addonStatus().loaded ? false : 'several socket threads need the addon';

const start = (t: Test, args: readonly string[]): Promise<Serve> =>
  Serve.start(t, ['--json', '--socket-threads', String(THREADS), ...args]);

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
  const engine = await startMockEngine({ speed: 1 });
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
