// Promise: `serve` drains on the first signal and exits on the second, survives a worker's death, and leaves no child.
import { once } from 'node:events';
import { platform } from 'node:process';
import t from 'tap';
import { ManualClock } from '#millrace/runtime/clock.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import { DEADLINE_MS, isGone, postChat, Serve, until } from './serve-process.js';

const linux = platform === 'linux' ? false : 'reads /proc';

/** The text of a stream so far, and its end. */
function collect(answer: Response): { text: () => string; ended: Promise<void> } {
  let text = '';
  const decoder = new TextDecoder();
  const read = async (): Promise<void> => {
    for await (const bytes of answer.body!) text += decoder.decode(bytes, { stream: true });
  };
  return { text: () => text, ended: read() };
}

t.test('SIGTERM: not ready at once, no new requests, the open stream finishes, exit 0', async t => {
  // The engine computes only when its clock moves, so the stream is open for as long as the test wants.
  const clock = new ManualClock();
  const engine = await startMockEngine({ clock });
  t.teardown(() => engine.close());
  const serve = await Serve.start(t, ['--json', '--worker', engine.url, '--tokenizer', 'chatml-cl100k']);
  const { url } = serve.listening;
  t.match(await serve.health(), { status: 200, body: { status: 'ok', workers: { ready: 1 } } });

  const request = postChat(url, { max_tokens: 20, stream: true });
  await until('a first token', () => {
    clock.advance(5);
    return engine.core.running > 0;
  });
  let answer: Response | null = null;
  void request.then(response => {
    answer = response;
  });
  await until('the head of the answer', () => {
    if (answer === null) clock.advance(1);
    return answer !== null;
  });
  const stream = collect(await request);
  await until('some text', () => stream.text().includes('"content":"'));
  t.notMatch(stream.text(), '[DONE]');

  serve.child.kill('SIGTERM');
  await serve.logged('draining');
  t.match(await serve.health(), { status: 503, body: { status: 'draining' } });
  const refused = await postChat(url);
  t.equal(refused.status, 503);
  t.equal(refused.headers.get('retry-after'), '1');
  t.match(await refused.json(), { error: { code: 'MILLRACE_DRAINING', type: 'service_unavailable' } });
  t.equal(serve.child.exitCode, null, 'it waits for the stream');

  await until('the end of the stream', () => {
    clock.advance(50);
    return stream.text().endsWith('data: [DONE]\n\n');
  });
  await stream.ended;
  t.same(await serve.exited(), [0, null]);
  t.match(engine.counters, { finished: 1, aborted: 0 });
});

t.test('a second SIGTERM exits at once with code 1', async t => {
  const engine = await startMockEngine({ speed: 'unlimited' });
  t.teardown(() => engine.close());
  const serve = await Serve.start(t, ['--json', '--worker', engine.url, '--http-server', 'node']);
  t.equal(serve.listening.server, 'node');
  engine.faults.next('stall', 2);
  const stream = collect(await postChat(serve.listening.url, { max_tokens: 20, stream: true }));
  stream.ended.catch(() => {});
  await until('some text', () => stream.text().includes('"content":"'));
  serve.child.kill('SIGTERM');
  await serve.logged('draining');
  serve.child.kill('SIGTERM');
  t.same(await serve.exited(), [1, null]);
  t.match(serve.stderr, /second signal/);
  await t.rejects(stream.ended, 'the stream was cut');
  t.equal(engine.faults.fired.stall, 1, 'the stream was open, and would not have ended');
});

t.test('a stream that never ends is cut at the drain deadline, with an error', async t => {
  const engine = await startMockEngine({ speed: 'unlimited' });
  t.teardown(() => engine.close());
  const args = ['--json', '--worker', engine.url, '--limit', 'drainDeadlineMs=200'];
  const serve = await Serve.start(t, args);
  engine.faults.next('stall', 2);
  const stream = collect(await postChat(serve.listening.url, { max_tokens: 20, stream: true }));
  await until('some text', () => stream.text().includes('"content":"'));
  serve.child.kill('SIGTERM');
  await stream.ended;
  t.match(stream.text(), /"code":"MILLRACE_DRAINING"}}\n\ndata: \[DONE\]\n\n$/);
  t.same(await serve.exited(), [0, null]);
  await until('the engine saw the end', () => engine.counters.running === 0);
});

t.test('four mock engines: one dies, the others serve on; kill -9 leaves none', { skip: linux }, async t => {
  const serve = await Serve.start(t, ['--json', '--mock-speed', 'unlimited']);
  const { url, workers, models, mockPids } = serve.listening;
  t.equal(workers.length, 4);
  t.ok(workers.every(worker => worker.state === 'ready'));
  t.same(models, [{ name: 'mock-model', tokenizer: 'chatml-cl100k' }]);
  t.equal(mockPids.filter(pid => !isGone(pid)).length, 4);

  process.kill(mockPids[0]!, 'SIGKILL');
  for (let request = 0; request < 12; request++) {
    const answer = await postChat(url, { max_tokens: 3 });
    t.match(await answer.json(), { usage: { completion_tokens: 3 } }, 'answered by one that lives');
  }
  await until('three workers', async () => (await serve.health()).body.workers.ready === 3);
  t.match(await serve.health(), { status: 200, body: { status: 'degraded', workers: { total: 4 } } });

  serve.child.kill('SIGKILL');
  t.same(await serve.exited(), [null, 'SIGKILL']);
  await until('the mock engines are gone', () => mockPids.every(isGone));
});

t.test(
  'Ctrl-C reaches the whole process group: mock engines finish the open stream',
  { skip: linux },
  async t => {
    const serve = await Serve.start(t, ['--json', '--mock-workers', '1']);
    const { url, pid, mockPids } = serve.listening;
    const stream = collect(await postChat(url, { max_tokens: 60, stream: true }));
    await until('some text', () => stream.text().includes('"content":"'));
    const closed = once(serve.child, 'close', { signal: AbortSignal.timeout(DEADLINE_MS) });
    process.kill(-pid, 'SIGINT');
    await stream.ended;
    t.match(stream.text(), /"finish_reason":"length"/);
    t.match(stream.text(), /data: \[DONE\]\n\n$/);
    t.same(await closed, [0, null]);
    t.ok(mockPids.every(isGone));
  },
);
