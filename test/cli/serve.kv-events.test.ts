// Promise: `serve` routes by KV events out of the box and with threads of every kind, with and without the addon, and ends
// with nothing left that would hold or abort its process.
import t from 'tap';
import { addonStatus } from '#millrace/runtime/addon.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import { Serve, until } from './serve-process.js';

const BLOCK_SIZE = 16;
const IDS = 320;
const MANY = ['--socket-threads', '2', '--pool-threads', '2'];
const KINDS: readonly (readonly [string, readonly string[], Readonly<Record<string, string>>])[] = [
  ['two threads of each kind', addonStatus().loaded ? MANY : [], {}],
  ['without the addon', [], { MILLRACE_NO_ADDON: '1' }],
];

async function complete(url: string, body: object): Promise<Response> {
  const headers = { 'content-type': 'application/json', connection: 'close' };
  return fetch(`${url}/v1/completions`, { method: 'POST', headers, body: JSON.stringify(body) });
}

for (const [name, args, env] of KINDS) {
  t.test(name, async t => {
    const engines = await Promise.all(
      [1, 2].map(() => startMockEngine({ speed: 'unlimited', blockSize: BLOCK_SIZE, events: {} })),
    );
    t.teardown(() => Promise.all(engines.map(engine => engine.close())));
    const workers = engines.map(({ url, events }) => ({
      url,
      kvEvents: events!.publish,
      kvEventsReplay: events!.replay,
    }));
    // JSON is YAML.
    const dir = t.testdir({ 'millrace.yaml': JSON.stringify({ workers, tokenizer: 'chatml-cl100k' }) });
    const serve = await Serve.start(t, ['--json', '--config', `${dir}/millrace.yaml`, ...args], env);
    const { url } = serve.listening;
    t.match(serve.listening, { kvEvents: { publishing: 2, workers: 2 } });
    const body = (from: number) => {
      const prompt = Array.from({ length: IDS }, (_, at) => from * IDS + at + 100);
      return { model: 'mock-model', prompt, max_tokens: 1 };
    };
    for (const [at, engine] of engines.entries()) await (await complete(engine.url, body(at))).text();
    const stored = `millrace_index_blocks ${(engines.length * IDS) / BLOCK_SIZE}`;
    await until('the index has both prompts', async () =>
      (await (await fetch(`${url}/metrics`)).text()).includes(`${stored}\n`),
    );
    for (let request = 0; request < 16; request++) {
      const answer = await complete(url, body(request % 2));
      t.equal(answer.headers.get('x-millrace-worker'), engines[request % 2]!.url);
      const { usage } = (await answer.json()) as {
        usage: { prompt_tokens_details: { cached_tokens: number } };
      };
      t.ok(usage.prompt_tokens_details.cached_tokens >= IDS - BLOCK_SIZE);
    }
    serve.child.kill('SIGTERM');
    t.same(await serve.exited(), [0, null]);
  });
}

t.test('mock engines of its own publish', async t => {
  const args = ['--mock-workers', '2', '--mock-speed', 'unlimited'];
  const serve = await Serve.start(t, args, {}, /^\s+-d /);
  t.match(serve.said, /^ {2}pool .*policy ttft$/m);
  t.match(serve.said, /^ {2}events +2 of 2 workers publish$/m);
  t.match(serve.said, /^ {2}index +up to 256 MiB$/m);
  serve.child.kill('SIGTERM');
  t.same(await serve.exited(), [0, null]);
});

t.test('a second signal ends it at once, and not by an abort', async t => {
  const serve = await Serve.start(t, ['--json', '--mock-workers', '1', '--mock-speed', '1']);
  const answer = await complete(serve.listening.url, {
    model: 'mock-model',
    prompt: 'a',
    max_tokens: 4000,
    stream: true,
  });
  t.equal(answer.status, 200);
  serve.child.kill('SIGTERM');
  await serve.logged('draining');
  serve.child.kill('SIGTERM');
  t.same(await serve.exited(), [1, null]);
  await answer.body?.cancel().catch(() => {});
});
