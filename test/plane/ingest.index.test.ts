// Promise: what engines publish is in the index that pool threads read, a replaced worker has nothing, a new pool thread
// finds the workers, and what was lost is found again.
import t, { type Test } from 'tap';
import { type MockEngineOptions, startMockEngine } from '#millrace/simulate/mock-engine.js';
import { until } from '../plane-fixture.js';
import {
  BLOCK_SIZE,
  compute,
  type HashedPrompt,
  hashedPrompt,
  INDEX_KINDS,
  IngestFixture,
} from './ingest-fixture.js';

const startEngine = async (t: Test, options: MockEngineOptions = { events: {} }) => {
  const engine = await startMockEngine({ speed: 'unlimited', blockSize: BLOCK_SIZE, ...options });
  t.teardown(() => engine.close());
  return engine;
};
const words = (first: number): string[] => Array.from({ length: 200 }, (_, word) => `w${first + word}`);
const whole = (fixture: IngestFixture, slot: number, prompt: HashedPrompt): Promise<void> =>
  until(
    () => fixture.depth(slot, prompt) === prompt.blocks,
    `all ${prompt.blocks} blocks are in slot ${slot}`,
  );

for (const kind of INDEX_KINDS) {
  t.test(`${kind} index: events, removal, reuse of a slot, restart`, async t => {
    const [engine, fixture, one, two] = await Promise.all([
      startEngine(t),
      IngestFixture.start(t, kind),
      hashedPrompt(words(0)),
      hashedPrompt(words(1000)),
    ]);
    await compute(engine, one);
    fixture.addWorker(3, 1, engine);
    await whole(fixture, 3, one);
    t.equal(fixture.depth(3, two), 0);
    await compute(engine, two);
    await whole(fixture, 3, two);
    fixture.ingest.removeWorker(3);
    await until(() => fixture.depth(3, one) === 0, 'a removed worker has nothing');

    const other = await startEngine(t);
    fixture.addWorker(3, 2, other);
    await compute(other, two);
    await whole(fixture, 3, two);
    t.equal(fixture.depth(3, one), 0, 'the slot has nothing of its last tenant');
    other.events!.restart();
    await compute(other, await hashedPrompt(words(2000)));
    await until(() => fixture.depth(3, two) === 0, 'a publisher that begins anew has an empty cache');
    t.same(fixture.faults, []);
  });

  t.test(
    `${kind} index: a new pool thread learns the workers, and what they publish from then on`,
    async t => {
      const [engine, fixture, prompt] = await Promise.all([
        startEngine(t),
        IngestFixture.start(t, kind),
        hashedPrompt(words(0)),
      ]);
      fixture.addWorker(0, 1, engine);
      await compute(engine, prompt);
      await whole(fixture, 0, prompt);
      await fixture.renewPool();
      if (kind === 'shared')
        t.equal(fixture.depth(0, prompt), prompt.blocks, 'the index outlives its readers');
      const later = await hashedPrompt(words(5000));
      await compute(engine, later);
      await whole(fixture, 0, later);
    },
  );

  t.test(`${kind} index: residency of a worker without events is what was routed there`, async t => {
    const [engine, fixture, prompt] = await Promise.all([
      startEngine(t, {}),
      IngestFixture.start(t, kind),
      hashedPrompt(words(0)),
    ]);
    fixture.addWorker(1, 4, engine);
    const { hashes, blocks } = prompt;
    const expiresMs = Math.ceil(performance.now()) + 60_000;
    const routed = { slot: 1, hashes, blocks, cachedBlocks: 0, expiresMs };
    await until(() => {
      fixture.pool.routed({ ...routed, generation: 3 });
      fixture.pool.routed({ ...routed, generation: 4, blocks: 5 });
      return fixture.depth(1, prompt) === 5;
    }, 'what is routed to this generation counts, to another one not');
  });

  t.test(`${kind} index: lost batches are replayed, and the block size is learned`, async t => {
    const [engine, fixture] = await Promise.all([
      startEngine(t, { events: { loss: 0.5 }, seed: 7 }),
      IngestFixture.start(t, kind),
    ]);
    fixture.addWorker(2, 9, engine, null);
    const prompts = await Promise.all([1, 2, 3, 4, 5, 6, 7, 8].map(at => hashedPrompt(words(at * 1000))));
    for (const prompt of prompts) await compute(engine, prompt);
    await until(() => engine.events!.counters.dropped > 0, 'batches were lost');
    // A loss shows with the next batch that arrives.
    for (let more = 100; more < 120; more++) await compute(engine, await hashedPrompt(words(1000 * more)));
    for (const prompt of prompts) await whole(fixture, 2, prompt);
    await until(() => fixture.learned.length > 0, 'the block size is told');
    t.same(fixture.learned, [[2, 9, 16]]);
    let counts = await fixture.ingest.counts();
    // An index elsewhere tells its numbers a few times a second.
    while (counts.index === null) counts = await fixture.ingest.counts();
    t.ok(counts.events.replays! > 0 && counts.events.replayedBatches! > 0, 'replays are counted');
    t.equal(counts.events.malformed, 0);
    t.match(counts.index, { holders: 1 });
  });
}
