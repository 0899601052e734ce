/** Promise: a worker whose engine nobody named gets the adapter of the engine that answers there. */
import t from 'tap';
import { createAdapters } from '#millrace/engines/adapters.js';
import { detectEngine } from '#millrace/engines/engine-detection.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';

const adapters = new Map<string, { modelOwner?: string }>([
  ...createAdapters([]),
  ['other', { modelOwner: 'them' }],
]);

const pages = (known: Record<string, string>) => {
  const asked: string[] = [];
  const get = async (path: string) => {
    asked.push(path);
    return { status: path in known ? 200 : 404, body: known[path] ?? '' };
  };
  return { asked, get };
};
const owned = (by: string) => JSON.stringify({ data: [{ id: 'm', owned_by: by }] });

t.test('by who owns the models, then by a route', async t => {
  for (const [owner, engine] of [
    ['vllm', 'vllm'],
    ['sglang', 'sglang'],
    ['tensorrt_llm', 'trtllm'],
    ['them', 'other'],
  ] as const) {
    const { get, asked } = pages({ '/v1/models': owned(owner) });
    t.equal(await detectEngine(get, adapters), engine);
    t.same(asked, ['/v1/models'], 'one GET');
  }
  for (const path of ['/get_server_info', '/server_info'])
    t.equal(await detectEngine(pages({ '/v1/models': owned('us'), [path]: '{}' }).get, adapters), 'sglang');
  t.equal(
    await detectEngine(pages({ '/v1/models': owned('us') }).get, adapters),
    'vllm',
    'one that hides itself',
  );
  await t.rejects(detectEngine(pages({}).get, adapters), { code: 'MILLRACE_WORKER_PROTOCOL' });
});

t.test('each mock engine is taken for what it plays', async t => {
  for (const engine of ['vllm', 'sglang', 'trtllm'] as const) {
    const mock = await startMockEngine({ engine, speed: 'unlimited' });
    t.teardown(() => mock.close());
    const get = async (path: string) => {
      const answer = await fetch(mock.url + path);
      return { status: answer.status, body: await answer.text() };
    };
    t.equal(await detectEngine(get, adapters), engine);
    const adapter = createAdapters([]).get(engine)!;
    const { method, path, head, body } = adapter.canary('mock-model', null);
    const canary = await fetch(mock.url + path, { method, headers: head.map(pair => [...pair]), body });
    t.equal(canary.status, 200, 'and takes its canary');
    t.equal(mock.counters.finished, 1);
    await canary.text();
  }
});
