// Promise: what `serve` says of itself is true: the banner, its curl line, the --json line, and each kind of worker.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import { type MockEngine, startMockEngine } from '#millrace/simulate/mock-engine.js';
import { DEADLINE_MS, postChat, Serve } from './serve-process.js';

const run = promisify(execFile);

const startEngine = async (t: Test, model: string): Promise<MockEngine> => {
  const engine = await startMockEngine({ model, speed: 'unlimited' });
  t.teardown(() => engine.close());
  return engine;
};

t.test('the banner: what runs, which workers, and a curl line that works as it is printed', async t => {
  // A model name that a shell would take apart if it were not quoted.
  const model = "it's $HOME/a model";
  const engine = await startEngine(t, model);
  const args = ['--worker', engine.url, '--http-server', 'node', '--limit', 'canaryAfterMs=0'];
  const serve = await Serve.start(t, args, {}, /^\s+-d /);
  const url = /service at (http:\/\/127\.0\.0\.1:\d+)$/m.exec(serve.said)?.[1];
  t.match(serve.said, /^millrace \d+\.\d+\.\d+: /);
  t.match(serve.said, /^ {2}server +node:http$/m);
  t.match(serve.said, /^ {2}addon +(native|none)/m);
  t.match(serve.said, /^ {2}pool +\d+ threads?, policy ttft$/m);
  t.match(serve.said, /^ {2}events +none: residency is approximated from what is routed$/m);
  t.match(serve.said, /^ {2}index +up to 256 MiB$/m);
  t.match(serve.said, /^ {2}workers +1 vLLM servers\n +http:\/\/127\.0\.0\.1:\d+ {2}ready$/m);
  t.ok(serve.said.includes(`${engine.url}  ready`));
  t.ok(serve.said.includes(`${model}  (relay mode, no tokenizer)`));
  const line = serve.said.slice(serve.said.indexOf('curl '));
  t.match(line, `curl ${url}/v1/chat/completions `);
  const { stdout } = await run('/bin/sh', ['-c', line.replace('curl ', 'curl -sS --fail ')], {
    timeout: DEADLINE_MS,
  });
  const frames = stdout.trim().split('\n\n');
  t.equal(frames.at(-1), 'data: [DONE]');
  t.match(JSON.parse(frames[0]!.slice(6)), { object: 'chat.completion.chunk', model });
  t.equal(frames.length > 32, true, 'a frame for each token');
  t.match(engine.counters, { requests: 1, finished: 1 });
});

t.test('--json: one object with the addresses, the mode and the server', async t => {
  const engine = await startEngine(t, 'm');
  const args = ['--json', '--worker', engine.url, '--tokenizer', 'chatml-cl100k', '--pool-threads', '2'];
  const { listening } = await Serve.start(t, [...args, '--limit', 'canaryAfterMs=0']);
  t.match(listening, {
    event: 'listening',
    url: `http://127.0.0.1:${listening.port}`,
    host: '127.0.0.1',
    server: 'uws',
    serverNotice: null,
    workers: [{ url: engine.url, state: 'ready' }],
    models: [{ name: 'm', tokenizer: 'chatml-cl100k' }],
    mockPids: [],
  });
  t.equal(listening.poolThreads, listening.addon.loaded ? 2 : 1);
  const answer = await postChat(listening.url, { model: 'm', max_tokens: 4 });
  t.equal(answer.status, 200);
  t.match(await answer.json(), { model: 'm', usage: { completion_tokens: 4 } });
  t.match(engine.counters, { requests: 1 });
});

t.test('without the addon: one pool thread, the reason is said, requests are answered', async t => {
  const engine = await startEngine(t, 'm');
  const args = ['--json', '--worker', engine.url, '--tokenizer', 'chatml-cl100k', '--pool-threads', '4'];
  const { listening } = await Serve.start(t, args, { MILLRACE_NO_ADDON: '1' });
  t.same(listening.addon, { loaded: false, reason: 'disabled by MILLRACE_NO_ADDON=1' });
  t.equal(listening.poolThreads, 1);
  const answer = await postChat(listening.url, { model: 'm', max_tokens: 4 });
  t.equal(answer.status, 200);
  t.match(await answer.json(), { usage: { completion_tokens: 4 } });
});

t.test('settings come from a file, the environment over it and flags over both', async t => {
  const engine = await startEngine(t, 'm');
  const dir = t.testdir({
    'millrace.yaml': [
      'httpServer: node',
      'policy: random',
      'limits: { bodyBytesMax: 2048, messagesMax: 3 }',
      'models:',
      `  m: { workers: [${engine.url}], contextLength: 100 }`,
      '',
    ].join('\n'),
  });
  const serve = await Serve.start(
    t,
    ['--json', '--config', `${dir}/millrace.yaml`, '--limit', 'messagesMax=2'],
    { MILLRACE_LIMITS: 'bodyBytesMax=1024,messagesMax=1', MILLRACE_HTTP_SERVER: 'uws' },
  );
  const { url, server } = serve.listening;
  t.equal(server, 'uws', 'the environment over the file');
  const message = { role: 'user', content: 'x' };
  const status = async (more: object): Promise<number> => {
    const answer = await postChat(url, { model: 'm', max_tokens: 1, ...more });
    await answer.text();
    return answer.status;
  };
  t.equal(await status({ messages: [message, message] }), 200, 'the flag over both');
  t.equal(await status({ messages: [message, message, message] }), 400);
  t.equal(await status({ user: 'x'.repeat(1024) }), 413, 'limits are set one by one');
  const listed = (await (await fetch(`${url}/v1/models/m`)).json()) as { max_model_len: number };
  t.equal(listed.max_model_len, 100, 'the file, where nothing else speaks');
});
