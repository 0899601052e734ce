// Promise: a mock engine tells in KV events what its cache holds, under hashes of its own, on sockets that end with it.
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { Unpackr } from 'msgpackr';
import t, { type Test } from 'tap';
import { Publisher } from 'zeromq';
import { ConfigError } from '#millrace/errors.js';
import {
  loadMockTokenizer,
  type MockEngine,
  type MockEngineOptions,
  startMockEngine,
} from '#millrace/simulate/mock-engine.js';
import { loadZeromq } from '#millrace/simulate/vllm/kv-event-publisher.js';
import { type Json, postJson } from './http-probe.js';
import { replayFrom } from './kv-event-reader.js';

const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: 'bigint' });

const tokenizer = await loadMockTokenizer();
const PROMPT = Array.from({ length: 100 }, (_, at) => 500 + at);

async function startMock(t: Test, more: MockEngineOptions = {}): Promise<MockEngine> {
  const mock = await startMockEngine({ tokenizer, blockSize: 16, speed: 'unlimited', events: {}, ...more });
  t.teardown(() => mock.close());
  return mock;
}

const complete = async (mock: MockEngine, more: object = {}): Promise<Json> =>
  (
    await postJson(mock.url, '/v1/completions', {
      prompt: PROMPT,
      max_tokens: 40,
      return_token_ids: true,
      ...more,
    })
  ).json;

/** The events of all batches so far. */
async function eventsOf(t: Test, mock: MockEngine): Promise<Json[]> {
  const messages = await replayFrom(t, mock.events!.replay, 0);
  return messages.slice(0, -1).flatMap(frames => unpackr.unpack(frames.at(-1)!)[1]);
}

t.test('two engines with one prompt: other hashes, the same tokens, those of the answer too', async t => {
  const mocks = [await startMock(t), await startMock(t)];
  const stored: Json[][] = [];
  for (const mock of mocks) {
    const answer = await complete(mock);
    const whole = [...PROMPT, ...answer.choices[0].token_ids];
    const events = await eventsOf(t, mock);
    t.same(new Set(events.map(([tag]) => tag)), new Set(['BlockStored']));
    t.same(
      events.flatMap(([, , , ids]) => ids),
      whole.slice(0, 16 * Math.floor((whole.length - 1) / 16)),
      'full blocks only; the newest token has no KV yet',
    );
    let parent: bigint | null = null;
    for (const [, hashes, parentHash] of events) {
      t.equal(parentHash, parent);
      parent = hashes.at(-1);
    }
    stored.push(events.flatMap(([, hashes]) => hashes));
  }
  t.equal(new Set(stored.flat()).size, stored[0]!.length * 2);
  const before = (await eventsOf(t, mocks[0]!)).length;
  await complete(mocks[0]!, { prompt: [...PROMPT.slice(0, 48), ...PROMPT], max_tokens: 1 });
  const [, , parent, ids] = (await eventsOf(t, mocks[0]!))[before];
  t.same(
    [parent, ids.length],
    [stored[0]![2], 96],
    'the first three blocks were there: the parent is the third',
  );
});

t.test('a reset forgets an idle cache and is told with the next pass; a busy one stays', async t => {
  const mock = await startMock(t, { events: { form: 'map' } });
  const reset = async (): Promise<number> =>
    (await fetch(`${mock.url}/reset_prefix_cache`, { method: 'POST' })).status;
  await complete(mock);
  t.ok(mock.core.pool.snapshot().copies.size > 0);
  t.equal(await reset(), 200);
  t.equal(mock.core.pool.snapshot().copies.size, 0);
  const before = (await eventsOf(t, mock)).length;
  const hits = mock.core.totals.prefixHits;
  await complete(mock);
  t.equal(mock.core.totals.prefixHits, hits, 'nothing was found');
  const after = (await eventsOf(t, mock)).slice(before);
  t.same(after[0], { type: 'AllBlocksCleared' });
  t.match(after[1], {
    type: 'BlockStored',
    group_idx: 0,
    kv_cache_spec_kind: 'full_attention',
    medium: 'GPU',
  });
  const answer = await fetch(`${mock.url}/v1/completions`, {
    method: 'POST',
    body: JSON.stringify({ prompt: PROMPT, max_tokens: 20_000, stream: true }),
  });
  t.equal(await reset(), 200);
  t.ok(mock.core.pool.active > 0 && mock.core.pool.snapshot().copies.size > 0, 'a request holds blocks');
  await answer.body!.cancel();
});

/** Resolves when nobody listens on the endpoint: ZeroMQ lets go of a port soon after its socket is closed. */
async function untilFree(endpoint: string): Promise<void> {
  for (;;) {
    const socket = new Publisher({ linger: 0 });
    const isFree = await socket.bind(endpoint).then(
      () => true,
      () => false,
    );
    socket.close();
    if (isFree) return;
    await new Promise(setImmediate);
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

t.test('the sockets end with the mock, also with one that cannot start', async t => {
  const mock = await startMock(t);
  const { publish, replay } = mock.events!;
  const taken = Number(publish.split(':')[2]);
  await t.rejects(startMock(t, { events: { port: taken } }), /cannot be published at tcp/);
  await t.rejects(startMock(t, { events: { replayPort: taken } }), /cannot be published at tcp/);
  const port = await freePort();
  const failure = await startMock(t, { port: mock.port, events: { port } }).catch(error => error);
  t.match(failure.message, new RegExp(`${mock.port}`), 'the HTTP port is taken');
  await untilFree(`tcp://127.0.0.1:${port}`);
  await mock.close();
  for (const endpoint of [publish, replay]) await untilFree(endpoint);
  const named = await startMock(t, { host: 'localhost' });
  t.match(named.events!.publish, /^tcp:\/\/(127\.0\.0\.1|\[::1\]):\d+$/, 'a name is looked up');
});

t.test('wrong settings and a binary that does not load are explained', async t => {
  const cases: [object, RegExp][] = [
    [{ port: 70_000 }, /events.port must be an integer from 0 to 65535; got 70000/],
    [{ replayPort: -1 }, /events.replayPort must be/],
    [{ bufferBatches: 0 }, /events.bufferBatches must be an integer from 1 to 1000000/],
    [{ form: 'json' }, /events.form must be one of array, map, sglang; got json/],
    [{ hashes: 'hex' }, /events.hashes must be one of int, signed, bytes/],
    [{ loss: 2 }, /events.loss must be a number from 0 to 1/],
    [{ topic: 'x'.repeat(257) }, /events.topic must be at most 256 characters/],
  ];
  for (const [events, message] of cases) await t.rejects(startMock(t, { events }), { message });
  const failed = await loadZeromq(() => Promise.reject(new Error('no build\nlong story'))).catch(
    error => error,
  );
  t.ok(failed instanceof ConfigError);
  t.match(failed.message, /zeromq, and its binary does not load here: no build$/);
});
