// Promise: every file in examples/ runs as it stands, answers, and ends when it is told to.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { createInterface } from 'node:readline';
import OpenAI from 'openai';
import t from 'tap';
import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';

const FOLDER = new URL('../../../examples/', import.meta.url);
const SERVERS = ['express.js', 'fastify.js', 'fetch.js'];

function start(file: string, ...args: string[]) {
  const child = spawn(process.execPath, [new URL(file, FOLDER).pathname, ...args], {
    env: { ...process.env, PORT: '0' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

/** Run by extensions.serve.test.ts and the contract suite. */
const EXTENSION = 'lmdeploy-adapter.js';
/** Run by kv-transfer.processes.test.ts, on other ports. */
const KV_TRANSFER = 'kv-transfer.yaml';

t.test('all of them are run', async t => {
  t.same(
    readdirSync(FOLDER).sort(),
    [...SERVERS, 'no-http.js', 'transfer.js', 'disagg.yaml', KV_TRANSFER, EXTENSION].sort(),
  );
});

for (const file of SERVERS) {
  t.test(file, async t => {
    const child = start(file);
    const [baseURL] = (await once(createInterface({ input: child.stdout! }), 'line')) as [string];
    const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
    const stream = await client.chat.completions.create({
      model: 'mock-model',
      messages: [{ role: 'user', content: 'Hello' }],
      max_tokens: 8,
      stream: true,
    });
    let text = '';
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? '';
    t.ok(text.length > 8, 'the official client reads an answer');
    child.kill('SIGTERM');
    t.same(await once(child, 'exit'), [0, null], 'it ends by itself');
  });
}

t.test('no-http.js', async t => {
  const child = start('no-http.js');
  let said = '';
  child.stdout!.on('data', chunk => {
    said += chunk;
  });
  t.same(await once(child, 'exit'), [0, null]);
  t.match(
    said,
    /\w+\n\[length\]\n\[32 tokens\]\na request sent by hand should go to http:\/\/127\.0\.0\.1:\d+\n$/,
  );
});

const withoutAddon = loadAddon() === null ? { skip: `no addon: ${addonStatus().reason}` } : {};
for (const transport of ['shm', 'tcp']) {
  t.test(`transfer.js over ${transport}`, withoutAddon, async t => {
    const child = start('transfer.js', transport);
    let said = '';
    child.stdout!.on('data', chunk => {
      said += chunk;
    });
    t.same(await once(child, 'exit'), [0, null]);
    t.match(said, new RegExp(`decode: 262144 bytes over ${transport} in `));
    t.match(said, /block 2, token 5, head 7 says 2, 5, 7$/m);
    t.match(said, /the lease ended \(the reader is done\)/);
  });
}

t.test('disagg.yaml: the end of a prefill worker disturbs no answer', async t => {
  const main = new URL('../../../dist/cli/main.js', import.meta.url).pathname;
  const config = new URL('disagg.yaml', FOLDER).pathname;
  const argv = [main, 'serve', '--config', config, '--port', '0', '--mock-speed', 'unlimited', '--json'];
  const child = spawn(process.execPath, argv, { stdio: ['ignore', 'pipe', 'ignore'] });
  t.teardown(() => child.kill('SIGKILL'));
  const [line] = (await once(createInterface({ input: child.stdout! }), 'line')) as [string];
  const { url, mockPids } = JSON.parse(line);
  t.equal(mockPids.length, 4);
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
  const answer = async (): Promise<string> => {
    const messages = [{ role: 'user' as const, content: 'Hello' }];
    const body = { model: 'mock-model', messages, max_tokens: 16, stream: true as const };
    let text = '';
    for await (const chunk of await client.chat.completions.create(body))
      text += chunk.choices[0]?.delta.content ?? '';
    return text;
  };
  const first = await answer();
  t.ok(first.length > 16);
  const told = (await (await fetch(`${url}/debug/decisions`)).json()) as { decisions: { reason: string }[] };
  t.match(told.decisions[0]!.reason, /prefill elsewhere \(always\)/);
  process.kill(mockPids[0], 'SIGKILL');
  for (let round = 0; round < 6; round += 1) t.equal(await answer(), first);
  child.kill('SIGTERM');
  t.same(await once(child, 'exit'), [0, null]);
});
