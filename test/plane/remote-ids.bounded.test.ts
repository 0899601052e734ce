// Promise: ids from workers are asked for once per prompt and kept within a bound, and a worker that fails, is late or is busy
// costs one wait, is left alone for a while, and is told of once per model.
import t from 'tap';
import type { EngineAdapter } from '#millrace/engines/contract.js';
import { createVllmAdapter } from '#millrace/engines/vllm.js';
import { WorkerError } from '#millrace/errors.js';
import { DEFAULT_LIMITS } from '#millrace/limits.js';
import type { WorkerView } from '#millrace/messages/records.js';
import { type MissingIds, RemoteIds, type WorkerPost } from '#millrace/plane/remote-ids.js';
import { ManualClock } from '#millrace/runtime/clock.js';

const adapters: ReadonlyMap<string, EngineAdapter> = new Map([['vllm', createVllmAdapter()]]);
const MODEL = 'm';
const DEADLINE_MS = 70;

const worker = (url: string, slot = 0): WorkerView => ({
  slot,
  generation: 1,
  url,
  engine: 'vllm',
  models: [{ id: MODEL, contextLength: null }],
  blockSize: 16,
  totalBlocks: null,
  returnsTokenIds: true,
  foreignIds: [],
});
const [A, B] = [worker('http://a'), worker('http://b', 1)];

const good = { status: 200, body: '{"tokens":[5,6,7]}' };
const late = (): never => {
  throw new WorkerError('MILLRACE_WORKER_STALLED', 'POST /tokenize took longer than 70 ms');
};

function setUp(answer: (origin: string) => Promise<{ status: number; body: string }>, cacheBytes = 1 << 20) {
  const clock = new ManualClock();
  const asked: { origin: string; json: string; deadlineMs: number }[] = [];
  const missing: MissingIds[] = [];
  const post: WorkerPost = async (origin, _path, json, deadlineMs) => {
    asked.push({ origin, json, deadlineMs });
    return answer(origin);
  };
  const limits = {
    ...DEFAULT_LIMITS,
    tokenizeDeadlineMs: DEADLINE_MS,
    tokenizeCacheBytesMax: cacheBytes,
  };
  const onMissing = (one: MissingIds): void => void missing.push(one);
  const remote = new RemoteIds({ limits, clock, adapters, post, onMissing });
  return { remote, clock, asked, missing };
}

t.test('kept ids are there at once, and equal prompts are asked for once', async t => {
  const { remote, asked } = setUp(async () => good);
  const first = remote.idsOf(MODEL, { prompt: 'x' }, [A]);
  const second = remote.idsOf(MODEL, { prompt: 'x' }, [A]);
  t.equal(first, second, 'one flight');
  t.equal(remote.asking, 1);
  t.same([...(await first)!], [5, 6, 7]);
  t.equal(remote.asking, 0);
  t.same(remote.idsOf(MODEL, { prompt: 'x' }, [A]), Uint32Array.of(5, 6, 7), 'no promise any more');
  t.same(asked, [{ origin: A.url, json: '{"model":"m","prompt":"x"}', deadlineMs: DEADLINE_MS }]);
  await remote.idsOf('other', { prompt: 'x' }, [A]);
  await remote.idsOf(MODEL, { prompt: 'x', shaping: { add_special_tokens: false } }, [A]);
  await remote.idsOf(MODEL, { messages: ['x'] }, [A]);
  t.equal(asked.length, 4, 'the model and everything that shapes the prompt are part of the key');
});

t.test('the cache is bounded, and what was used last stays', async t => {
  const { remote, asked } = setUp(async () => good, 3 * 300);
  for (const prompt of ['a', 'b', 'c']) await remote.idsOf(MODEL, { prompt }, [A]);
  await remote.idsOf(MODEL, { prompt: 'a' }, [A]);
  t.equal(asked.length, 3);
  await remote.idsOf(MODEL, { prompt: 'd' }, [A]);
  t.ok(remote.keptBytes <= 900 && remote.keptBytes > 600, `${remote.keptBytes} bytes`);
  await remote.idsOf(MODEL, { prompt: 'a' }, [A]);
  t.equal(asked.length, 4, 'a was used and is kept');
  await remote.idsOf(MODEL, { prompt: 'b' }, [A]);
  t.equal(asked.length, 5, 'b is gone');
});

t.test('a late worker is left alone, longer each time, and told of once', async t => {
  const { remote, clock, asked, missing } = setUp(async origin => (origin === A.url ? late() : good));
  let prompt = 0;
  const ask = async (workers: readonly WorkerView[]) =>
    remote.idsOf(MODEL, { prompt: `${prompt++}` }, workers);
  t.same(await Promise.all([ask([A]), ask([A])]), [null, null], 'together: one failure');
  t.equal(asked.length, 2);
  t.equal(await ask([A]), null);
  t.equal(asked.length, 2, 'not asked again so soon');
  t.ok((await ask([A, B])) !== null, 'another worker takes its place');
  clock.advance(1000);
  t.equal(await ask([A]), null);
  t.equal(asked.at(-1)?.origin, A.url, 'tried after a second');
  clock.advance(1999);
  const before = asked.length;
  await ask([A]);
  t.equal(asked.length, before, 'two seconds the second time');
  clock.advance(1);
  await ask([A]);
  t.equal(asked.length, before + 1);
  t.same(missing, [{ model: MODEL, worker: A.url, reason: 'POST /tokenize took longer than 70 ms' }]);
  remote.setWorld([]);
  t.equal(await ask([A]), null);
  t.equal(missing.length, 2, 'what has left is forgotten');
});

t.test('what a worker says of a prompt is no failure of the worker', async t => {
  let status = 400;
  const { remote, asked, missing } = setUp(async () => ({ status, body: '{}' }));
  t.equal(await remote.idsOf(MODEL, { prompt: 'x' }, [A]), null);
  t.equal(await remote.idsOf(MODEL, { prompt: 'y' }, [A]), null);
  t.equal(asked.length, 2, 'asked again');
  t.same(missing, []);
  status = 404;
  t.equal(await remote.idsOf(MODEL, { prompt: 'y' }, [A]), null);
  t.equal(await remote.idsOf(MODEL, { prompt: 'y' }, [A]), null);
  t.equal(asked.length, 3, 'no such route');
  t.match(missing, [{ reason: 'status 404' }]);
});

t.test('nonsense is a failure', async t => {
  for (const body of ['', '{}', '{"tokens":[-1]}', '{"tokens":[4294967296]}', '{"tokens":["1"]}', 'null']) {
    const { remote, missing } = setUp(async () => ({ status: 200, body }));
    t.equal(await remote.idsOf(MODEL, { prompt: 'x' }, [A]), null, body);
    t.match(missing, [{ reason: /tokenize did not answer/ }]);
  }
});

t.test('only so many at a time', async t => {
  const releases: (() => void)[] = [];
  const { remote, asked, missing } = setUp(() => new Promise(resolve => releases.push(() => resolve(good))));
  const all = Array.from({ length: 40 }, (_, at) => remote.idsOf(MODEL, { prompt: `${at}` }, [A, B]));
  t.equal(all.filter(one => one === null).length, 8, 'the rest is routed by load at once');
  t.equal(asked.filter(({ origin }) => origin === A.url).length, 16, 'the workers take turns');
  for (const release of releases) release();
  await Promise.all(all);
  t.equal(remote.asking, 0);
  t.same(missing, []);
});
