// Promise: an engine that Millrace does not know is served through the module that `extensions` names, in serve, in
// `millrace worker` and embedded; a module that a thread cannot load stops the start with an error that names it.
import { strict as assert } from 'node:assert';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { LinkedClient } from '#millrace/engines/link/linked-client.js';
import { createDataPlane, type DataPlaneOptions } from '#millrace/index.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { plainWorker } from '#millrace/worker-config.js';
import { MAIN, runMillrace, Serve } from '../cli/serve-process.js';
import { ANSWER, MODEL, startLmdeployDouble } from '../engines/lmdeploy-double.js';
import { CHAT, COMPLETIONS, startPlane, streamedText, TOKENIZER, until } from '../plane-fixture.js';

const MODULE = new URL('../../../examples/lmdeploy-adapter.js', import.meta.url);
const SOURCE = readFileSync(MODULE, 'utf8');
const body = { model: MODEL, prompt: 'Where?', max_tokens: 100, stream: true };

const post = async (url: string, path: string, more: object): Promise<string> => {
  const headers = { 'content-type': 'application/json' };
  const answer = await fetch(url + path, { method: 'POST', headers, body: JSON.stringify(more) });
  return answer.text();
};

t.test('serve: the module is found from the configuration file, by every thread', async t => {
  const double = await startLmdeployDouble(t);
  const folder = t.testdir({
    'millrace.yaml': [
      'extensions: [./adapters/lmdeploy.mjs, one-more]',
      `workers: ["${double.url}"]`,
      `tokenizer: ${TOKENIZER}`,
      'httpServer: auto',
      'poolThreads: 2',
      `socketThreads: ${loadAddon() === null ? 1 : 2}`,
    ].join('\n'),
    adapters: { 'lmdeploy.mjs': SOURCE },
    // A package beside the file, for an engine that no worker is.
    node_modules: {
      'one-more': {
        'package.json': '{"name": "one-more", "type": "module", "exports": "./index.js"}',
        'index.js': SOURCE.replace("engine: 'lmdeploy',", "engine: 'other',").replace(
          "modelOwner: 'lmdeploy',",
          '',
        ),
      },
    },
  });
  const serve = await Serve.start(t, ['--config', join(folder, 'millrace.yaml'), '--json']);
  const { url, models } = serve.listening;
  t.match(models, [{ name: MODEL, tokenizer: TOKENIZER }]);
  for (let round = 0; round < 4; round++) {
    const { choices, usage } = JSON.parse(await post(url, COMPLETIONS, { ...body, stream: false }));
    t.match(
      choices,
      [{ text: ANSWER, finish_reason: 'stop' }],
      'token mode, with characters of several tokens',
    );
    t.equal(usage.prompt_tokens, 2);
  }
  const messages = [{ role: 'user', content: 'Where?' }];
  const relayed = await post(url, CHAT, { model: MODEL, messages, seed: 1, stream: true });
  t.match(
    relayed,
    /"content":"relayed "[\s\S]+"content":"text"[\s\S]+\[DONE\]/,
    'a gap of token mode is relayed',
  );
  t.notMatch(relayed, /"usage":\{/, 'without the usage that only we asked for');
  t.same(double.taken, ['/generate', '/generate', '/generate', '/generate', CHAT]);
  serve.child.kill('SIGTERM');
  t.same(await serve.exited(), [0, null]);
});

t.test('millrace worker: the module is given by a flag, and the answers go over the link', async t => {
  const double = await startLmdeployDouble(t);
  const extensions = [fileURLToPath(MODULE)];
  const linkListen = '127.0.0.1:0';
  const fixture = await startPlane(t, { extensions, linkListen, tokenizer: TOKENIZER, clock: 'real' });
  const address = fixture.plane.status.linkAddress!;
  const args = ['worker', '--engine', double.url, '--plane', address, '--engine-name', 'lmdeploy'];
  const child = spawn(
    process.execPath,
    [MAIN, ...args, '--extension', extensions[0]!, '--log-level', 'error'],
    {
      stdio: ['ignore', 'ignore', 'inherit'],
    },
  );
  t.teardown(() => child.kill('SIGKILL'));
  await until(
    () => fixture.plane.workers.some(({ state }) => state === 'ready'),
    'it has joined and is ready',
  );
  t.equal(streamedText(await fixture.post(COMPLETIONS, body)), ANSWER);
  const { client } = fixture.plane.socket;
  assert(client instanceof LinkedClient, 'the plane takes links');
  t.same(client.counts, { overLink: 1, overHttp: 0 });
  child.kill('SIGTERM');
  t.same(await once(child, 'exit'), [0, null]);
  const unknown = {
    code: 'MILLRACE_CONFIG',
    message: /engine of worker http:\/\/a:1 is "tgi"; allowed: .+, lmdeploy; an/,
  };
  const worker = plainWorker({ url: 'http://a:1', engine: 'tgi' });
  t.throws(() => fixture.plane.addWorker(worker), unknown);
  t.throws(() => fixture.plane.setWorkers([worker]), unknown);
  const wrong = await runMillrace(t, args);
  t.equal(wrong.code, 2);
  t.match(
    wrong.stderr,
    /engine of worker \S+ is "lmdeploy"; allowed: auto, vllm, sglang, trtllm; an extension can/,
  );
});

t.test('embedded: by a URL; what cannot be loaded rejects, by name', async t => {
  const { url } = await startLmdeployDouble(t);
  const open = (options: Partial<DataPlaneOptions>) =>
    createDataPlane({
      workers: [{ url, engine: 'lmdeploy' }],
      tokenizer: TOKENIZER,
      logLevel: 'error',
      ...options,
    });
  const plane = await open({ extensions: [MODULE.href] });
  let text = '';
  for await (const delta of plane.generate({ model: MODEL, prompt: 'Where?', maxTokens: 100 }))
    text += delta.text ?? '';
  t.equal(text, ANSWER);
  await plane.close();

  const folder = t.testdir({
    'main-only.mjs': `import { isMainThread } from 'node:worker_threads';
if (!isMainThread) throw new Error('not here');
${SOURCE}`,
    'leaves.mjs': `import { isMainThread } from 'node:worker_threads';
if (!isMainThread) process.exit(0);
${SOURCE}`,
    'waits.mjs': `await new Promise(() => {});\n${SOURCE}`,
  });
  const config = { code: 'MILLRACE_CONFIG' };
  const refused = (options: Partial<DataPlaneOptions>, message: RegExp) =>
    t.rejects(open(options), { ...config, message }, String(message));
  await refused({ extensions: [join(folder, 'main-only.mjs')] }, /main-only\.mjs cannot be loaded: not here/);
  await refused({ extensions: [join(folder, 'leaves.mjs')] }, /leaves\.mjs ends before it has loaded them/);
  await refused({ extensions: [join(folder, 'waits.mjs')] }, /waits\.mjs ends before it has loaded them/);
  await refused(
    { extensions: [] },
    /engine of worker \S+ is "lmdeploy"; allowed: auto, vllm, sglang, trtllm;/,
  );
  await refused(
    { extensions: ['no-such-package'] },
    /extensions .*"no-such-package", and there is no such package/,
  );
  const added = await createDataPlane({ workers: [url], extensions: [MODULE.href], logLevel: 'error' });
  t.teardown(() => added.close());
});
