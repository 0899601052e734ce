/** Promise: a slot's tenant is named by its generation; late news of a removed worker changes nothing. */
import t from 'tap';
import { type RegistryChange, STATE_WORDS, WorkerRegistry } from '#millrace/discovery/registry.js';
import { SLOT_STATE } from '#millrace/router/load-descriptor.js';

const FACTS = {
  engine: 'vllm',
  models: [{ id: 'm', contextLength: 4096 }],
  blockSize: 16,
  totalBlocks: 100,
  returnsTokenIds: true,
  foreignIds: [],
};

function setUp(workersMax = 2) {
  const words: string[] = [];
  const tenants = new Map<number, number>();
  const changes: RegistryChange[] = [];
  const registry = new WorkerRegistry({
    workersMax,
    table: {
      install(slot, generation, state) {
        tenants.set(slot, generation);
        words.push(`install ${slot}/${generation} ${state}`);
      },
      setState(slot, generation, state) {
        words.push(`state ${slot}/${generation} ${state}`);
        return tenants.get(slot) === generation;
      },
      setScraped(slot, generation, load) {
        words.push(`scraped ${slot}/${generation} ${load.running}`);
        return true;
      },
    },
    onChange: change => changes.push(change),
  });
  const add = (url: string, models?: string[]) => {
    const worker = registry.add({ url, engine: 'vllm', ...(models === undefined ? {} : { models }) });
    if (typeof worker === 'string') throw new Error(worker);
    return worker;
  };
  return { registry, words, changes, add };
}

t.test('the state numbers are those of the load table', t => {
  const { probing, sleeping, ...words } = STATE_WORDS;
  t.same(words, SLOT_STATE);
  t.not(probing, SLOT_STATE.ready);
  t.not(sleeping, SLOT_STATE.ready);
  t.end();
});

t.test('from probing to ready, away and back', t => {
  const { registry, words, changes, add } = setUp();
  const { slot, generation } = add('http://127.0.0.1:8000/');
  t.match(registry.get(slot, generation), { state: 'probing', url: 'http://127.0.0.1:8000', facts: null });
  t.same(registry.views(), [], 'nothing is known of it yet');
  t.ok(registry.setFacts(slot, generation, { ...FACTS, version: 'not kept' } as typeof FACTS));
  t.ok(registry.setHealthy(slot, generation, true));
  t.ok(registry.setHealthy(slot, generation, true));
  t.same(registry.views(), [{ slot, generation, url: 'http://127.0.0.1:8000', rank: null, ...FACTS }]);
  registry.setHealthy(slot, generation, false);
  t.equal(registry.views().length, 1, 'WORLD keeps it: its state is in the load table');
  registry.setFacts(slot, generation, FACTS);
  registry.setHealthy(slot, generation, true);
  registry.setScraped(slot, generation, { running: 3, waiting: null, kvUsage: null }, 9);
  registry.drain(slot, generation);
  registry.setHealthy(slot, generation, false);
  t.equal(registry.get(slot, generation)?.state, 'draining', 'health does not end a drain');
  t.ok(registry.remove(slot, generation));
  t.same(words, [
    'install 0/1 3',
    'state 0/1 1',
    'state 0/1 3',
    'state 0/1 1',
    'scraped 0/1 3',
    'state 0/1 2',
    'state 0/1 0',
  ]);
  t.same(
    changes.map(({ kind, worker }) => `${kind} ${worker.state}`),
    [
      'added probing',
      'facts probing',
      'state ready',
      'state unavailable',
      'state ready',
      'state draining',
      'removed draining',
    ],
  );
  t.end();
});

t.test('slots: new ones first, then the longest free, with a new generation', t => {
  const { registry, words, add } = setUp(3);
  const [a, b] = [add('http://a:1'), add('http://b:1')];
  registry.remove(b.slot, b.generation);
  registry.remove(a.slot, a.generation);
  t.match(add('http://c:1'), { slot: 2, generation: 1 });
  t.match(add('http://d:1'), { slot: 1, generation: 2 });
  t.match(add('http://e:1'), { slot: 0, generation: 2 });
  t.equal(registry.add({ url: 'http://f:1', engine: 'vllm' }), 'full');
  t.equal(registry.add({ url: 'http://e:1/', engine: 'vllm' }), 'duplicate');
  t.same(
    registry.list().map(worker => worker.url),
    ['http://e:1', 'http://d:1', 'http://c:1'],
  );
  t.equal(registry.size, 3);
  t.match(registry.find('http://d:1'), { slot: 1 });
  t.equal(registry.find('http://b:1'), null);
  const before = words.length;
  t.equal(registry.setFacts(0, 1, FACTS), false);
  t.equal(registry.setHealthy(0, 1, true), false);
  t.equal(registry.setScraped(0, 1, { running: 1, waiting: 1, kvUsage: 1 }, 1), false);
  t.equal(registry.drain(0, 1), false);
  t.equal(registry.remove(0, 1), false);
  t.equal(registry.get(0, 1), null);
  t.equal(words.length, before, 'late news of the old tenant wrote nothing');
  t.end();
});

t.test('declared models narrow what a worker is used for', t => {
  const { registry, add } = setUp();
  const { slot, generation } = add('http://a:1', ['m', 'absent']);
  registry.setFacts(slot, generation, {
    ...FACTS,
    models: [...FACTS.models, { id: 'other', contextLength: null }],
  });
  t.same(registry.views()[0]?.models, FACTS.models);
  t.end();
});

t.test('bad URLs are configuration errors', t => {
  const { registry } = setUp();
  for (const url of ['nonsense', 'ftp://a:1', 'http://a:1/v1', 'http://a:1/?x=1', 'http://u:secret@a:1']) {
    t.throws(
      () => registry.add({ url, engine: 'vllm' }),
      { code: 'MILLRACE_CONFIG', message: /^worker url/ },
      url,
    );
  }
  t.throws(() => registry.add({ url: 'http://u:secret@a:1', engine: 'vllm' }), {
    message: /^((?!secret).)*$/,
  });
  t.equal(registry.size, 0);
  t.end();
});

t.test('ranks of one server are workers of their own', t => {
  const { registry } = setUp(3);
  const add = (rank: number | null) => registry.add({ url: 'http://a:1', engine: 'vllm', rank });
  t.match(
    [add(0), add(1)],
    [
      { slot: 0, rank: 0 },
      { slot: 1, rank: 1 },
    ],
  );
  t.equal(add(1), 'duplicate');
  t.match(add(null), { slot: 2, rank: null });
  t.match(registry.find('http://a:1', 1), { slot: 1 });
  t.match(registry.find('http://a:1'), { slot: 2 });
  t.ok(registry.setFacts(1, 1, FACTS));
  t.match(registry.views(), [{ slot: 1, rank: 1 }]);
  t.end();
});

t.test('another model or block size at the same address is another worker', t => {
  const { registry, words, changes, add } = setUp();
  const { slot } = add('http://a:1');
  registry.setFacts(slot, 1, FACTS);
  registry.setHealthy(slot, 1, true);
  const told = (): string[] =>
    changes.map(({ kind, worker }) => `${kind} ${worker.generation} ${worker.state}`);
  changes.length = 0;
  const more = { ...FACTS, models: [...FACTS.models, { id: 'lora', contextLength: null }], totalBlocks: 50 };
  t.ok(registry.setFacts(slot, 1, more), 'more models and another size of the cache: still the same');
  t.same(told(), ['facts 1 ready']);
  t.equal(registry.setFacts(slot, 1, { ...FACTS, blockSize: 32 }), false, 'the generation is gone');
  t.same(told().slice(1), ['removed 1 ready', 'added 2 probing']);
  t.match(registry.get(slot, 2), { state: 'probing', facts: null, url: 'http://a:1' });
  t.ok(registry.setFacts(slot, 2, { ...FACTS, blockSize: 32 }));
  t.equal(registry.setFacts(slot, 2, { ...FACTS, models: [{ id: 'other', contextLength: 1 }] }), false);
  t.equal(registry.get(slot, 2), null);
  t.same(words.slice(-2), [`state ${slot}/2 0`, `install ${slot}/3 3`]);
  t.end();
});

t.test('a block size that events have shown fills in what the probe does not say', t => {
  const { registry, changes, add } = setUp();
  const { slot } = add('http://a:1');
  t.ok(registry.learnBlockSize(slot, 1, 64), 'before the first probe');
  registry.setFacts(slot, 1, { ...FACTS, blockSize: null });
  t.equal(registry.views()[0]?.blockSize, 64);
  registry.setFacts(slot, 1, { ...FACTS, blockSize: null });
  t.equal(changes.length, 2, 'the same facts are no change');
  t.ok(registry.setFacts(slot, 1, { ...FACTS, blockSize: 64 }));
  t.ok(registry.learnBlockSize(slot, 1, 16));
  t.equal(registry.views()[0]?.blockSize, 64, 'what the probe says counts');
  t.equal(registry.learnBlockSize(slot, 2, 16), false);
  t.end();
});
