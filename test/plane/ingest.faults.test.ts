// Promise: an ingest thread that fails takes nothing with it: the core is told once, the index finds nothing any more, its
// end is orderly, it may be terminated, and a process that exits without closing its plane is not harmed by its sockets.
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import { until } from '../plane-fixture.js';
import { BLOCK_SIZE, compute, hashedPrompt, INDEX_KINDS, IngestFixture } from './ingest-fixture.js';

const words = Array.from({ length: 100 }, (_, word) => `w${word}`);

for (const kind of INDEX_KINDS) {
  t.test(`${kind} index: an exception in the thread`, async t => {
    const engine = await startMockEngine({ speed: 'unlimited', blockSize: BLOCK_SIZE, events: {} });
    t.teardown(() => engine.close());
    const fixture = await IngestFixture.start(t, kind);
    const prompt = await hashedPrompt(words);
    fixture.addWorker(0, 1, engine);
    await compute(engine, prompt);
    await until(() => fixture.depth(0, prompt) === prompt.blocks, 'the prompt is in the index');
    const exited = once(fixture.ingest.thread, 'exit');
    for (const name of ['noSuchCall', 'norThis'])
      fixture.ingest.thread.postMessage({ kind: 'tell', name, args: [] });
    await until(() => fixture.faults.length > 0, 'the core is told');
    fixture.board.setIndex('failed');
    t.equal(fixture.depth(0, prompt), 0, 'an index that nobody updates is not asked');
    const { index } = await fixture.ingest.counts();
    t.equal(index, null);
    fixture.ingest.addWorker(
      1,
      { generation: 1, blockSize: 16, totalBlocks: null, hasEvents: false, name: '' },
      null,
    );
    fixture.ingest.poolLost(0);
    await fixture.ingest.stop();
    t.match(fixture.faults, [/there is no call "noSuchCall"/], 'once');
    t.equal(fixture.faults.length, 1);
    t.same(await exited, [0], 'the thread ends by itself');
  });
}

t.test('a thread that is terminated while its sockets are open', async t => {
  const engine = await startMockEngine({ speed: 'unlimited', blockSize: BLOCK_SIZE, events: {} });
  t.teardown(() => engine.close());
  const fixture = await IngestFixture.start(t, 'posted');
  const prompt = await hashedPrompt(words);
  fixture.addWorker(0, 1, engine);
  await compute(engine, prompt);
  await until(() => fixture.depth(0, prompt) === prompt.blocks, 'its socket is open');
  await fixture.ingest.thread.terminate();
  await until(() => fixture.faults.length > 0, 'the core is told');
  t.match(fixture.faults, [/the ingest thread has ended/]);
});

t.test(
  'a ring without room drops predictions and counts them',
  { skip: INDEX_KINDS.length === 1 },
  async t => {
    const fixture = await IngestFixture.start(t, 'shared');
    await fixture.ingest.stop();
    const { hashes, blocks } = await hashedPrompt(words);
    const prompt = { slot: 0, generation: 1, hashes, blocks, cachedBlocks: 0, expiresMs: 1 };
    for (let sent = 0; sent < 2000; sent++) fixture.pool.routed(prompt);
    t.ok(fixture.board.predictionsDropped > 0 && fixture.board.predictionsDropped < 2000);
  },
);

t.test('a process that exits at once', async t => {
  for (const how of ['exit', 'throw']) {
    const argv = [fileURLToPath(new URL('./ingest-exit-process.js', import.meta.url)), how];
    const code = await new Promise(resolve => {
      execFile(process.execPath, argv, { timeout: 20_000 }, error => resolve(error?.code ?? 0));
    });
    t.equal(code, how === 'exit' ? 7 : 1, how);
  }
});
