/** Promise: an adapter is loaded and unloaded while the plane serves, and its requests go only where it is. */
import t, { type Test } from 'tap';
import { COMPLETIONS, jsonOf, type PlaneFixture, startPlane, TOKENIZER, until } from '../plane-fixture.js';

const TOKEN = 'not-to-be-guessed-0123';
const MODEL = 'mock-model';
const ADAPTERS = '/admin/adapters';
const auth = { authorization: `Bearer ${TOKEN}` };
const PROMPT = Array.from({ length: 96 }, (_, at) => at + 7);
const askFor = (model: string, more: object = {}) => ({ model, prompt: PROMPT, max_tokens: 6, ...more });

const start = (t: Test, engine: 'vllm' | 'sglang' | 'trtllm', more: object = {}): Promise<PlaneFixture> =>
  startPlane(t, {
    mocks: [
      { engine, blockSize: 16 },
      { engine, blockSize: 16 },
    ],
    adminToken: TOKEN,
    tokenizer: TOKENIZER,
    ...more,
  });
const admin = (fixture: PlaneFixture, method: string, query: string, body?: unknown) =>
  fixture.get(ADAPTERS + query, method, {
    headers: auth,
    ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  });
const workerOf = (reply: { headers: Headers }): string | null => reply.headers.get('x-millrace-worker');
const textOf = (reply: Awaited<ReturnType<PlaneFixture['post']>>): string => jsonOf(reply).choices[0].text;

for (const engine of ['vllm', 'sglang', 'trtllm'] as const) {
  t.test(`${engine}: loaded on one of two`, async t => {
    const fixture = await start(t, engine);
    const [first, second] = fixture.mocks.map(({ url }) => url) as [string, string];
    t.equal((await fixture.post(COMPLETIONS, askFor('sql'))).status, 404, 'nobody has it');
    const wanted = { name: 'sql', path: '/loras/sql', workers: [second] };
    const loaded = await admin(fixture, 'POST', '', wanted);
    t.same(
      [loaded.status, jsonOf(loaded)],
      [200, { name: 'sql', failed: 0, workers: [{ url: second, outcome: 'loaded' }] }],
    );
    t.match(jsonOf(await admin(fixture, 'POST', '', wanted)).workers, [{ outcome: 'already' }]);
    const moved = await admin(fixture, 'POST', '', { ...wanted, path: '/loras/other' });
    t.equal(moved.status, 502);
    t.match(jsonOf(moved).workers, [{ outcome: 'failed', message: /already, from \/loras\/sql/ }]);
    const listed = jsonOf(await fixture.get('/v1/models')).data;
    t.match(
      listed.find(({ id }: { id: string }) => id === 'sql'),
      { parent: MODEL },
    );
    t.notOk('parent' in listed.find(({ id }: { id: string }) => id === MODEL));
    const reports = fixture.plane.workerReports;
    t.same(
      reports.map(({ adapters }) => adapters),
      [[], [{ name: 'sql', parent: MODEL, path: '/loras/sql' }]],
    );
    const base = textOf(await fixture.post(COMPLETIONS, askFor(MODEL)));
    for (let request = 0; request < 3; request++) {
      const reply = await fixture.post(COMPLETIONS, askFor('sql'));
      t.equal(workerOf(reply), second);
      t.equal(jsonOf(reply).model, 'sql');
      t.not(textOf(reply), base, 'its weights make another text');
    }
    t.equal((await fixture.post(COMPLETIONS, askFor('sqlx'))).status, 404);
    await admin(fixture, 'POST', '', { ...wanted, workers: [first] });
    const both = new Set<string | null>();
    for (let request = 0; request < 4; request++)
      both.add(workerOf(await fixture.post(COMPLETIONS, askFor('sql'))));
    t.equal(both.size, 2);
    const gone = await admin(fixture, 'DELETE', `?name=sql&worker=${first}&worker=${second}`);
    t.match(jsonOf(gone), { failed: 0, workers: [{ outcome: 'unloaded' }, { outcome: 'unloaded' }] });
    t.equal((await fixture.post(COMPLETIONS, askFor('sql'))).status, 404);
    t.equal((await admin(fixture, 'DELETE', '?name=sql')).status, 404, 'nobody has it any more');
    await fixture.expectIdle(t);
  });
}

t.test('a stream goes on while its adapter is unloaded, and the other worker serves it', async t => {
  const fixture = await start(t, 'vllm', {
    mocks: [{ speed: 20, adapters: { sql: '/a' } }, { adapters: { sql: '/a' } }],
  });
  const [slow, fast] = fixture.mocks.map(({ url }) => url) as [string, string];
  const ask = askFor('sql', { max_tokens: 60 });
  const whole = textOf(await fixture.post(COMPLETIONS, ask, { 'x-millrace-worker': fast }));
  const open = await fixture.open(COMPLETIONS, { ...ask, stream: true }, { 'x-millrace-worker': slow });
  await open.readUntil(text => text.includes('data:'));
  t.match(jsonOf(await admin(fixture, 'DELETE', `?name=sql&worker=${slow}`)).workers, [
    { url: slow, outcome: 'unloaded' },
  ]);
  for (let request = 0; request < 3; request++)
    t.equal(workerOf(await fixture.post(COMPLETIONS, askFor('sql'))), fast);
  const reply = await open.rest();
  t.ok(reply.done);
  const text = reply.frames.flatMap(frame => frame.choices?.[0]?.text ?? []).join('');
  t.equal(text, whole);
  await fixture.expectIdle(t);
});

t.test('what others load is noticed, and what fails is told by worker', async t => {
  const fixture = await start(t, 'vllm');
  const [first, second] = fixture.mocks;
  first!.changes.adapters.set('theirs', '/t');
  await until(() => {
    fixture.tick(500);
    return fixture.plane.workerReports[0]!.adapters.length === 1;
  }, 'the monitor has looked');
  t.equal(workerOf(await fixture.post(COMPLETIONS, askFor('theirs'))), first!.url);
  const partly = await admin(fixture, 'POST', '', { name: 'theirs', path: '/other' });
  t.equal(partly.status, 207);
  t.match(jsonOf(partly), {
    failed: 1,
    workers: [
      { url: first!.url, outcome: 'failed' },
      { url: second!.url, outcome: 'loaded' },
    ],
  });
  const missing = await admin(fixture, 'POST', '', { name: 'm', path: '/missing/x' });
  t.equal(missing.status, 502);
  t.match(jsonOf(missing).workers[1], { outcome: 'failed', message: /No adapter found for \/missing\/x/ });
  for (const [body, message] of [
    ['[]', /must be an object with the name/],
    [{ name: 'x' }, /^path must be a text of 1 to 4096/],
    [{ name: 'a\nb', path: '/x' }, /^name must be a text of 1 to 256/],
    [{ name: 'x', path: '/x', workers: [] }, /^workers must be a list of 1 to 2/],
    [{ name: 'x', path: '/x', worker: 'u' }, /unknown field "worker"; allowed: name, path, workers/],
    [{ name: MODEL, path: '/x' }, /^name is "mock-model", which is a model of its own/],
    [{ name: 'x', path: '/x', workers: ['http://nobody:1'] }, /there is no worker at http:\/\/nobody:1/],
  ] as const)
    t.match(jsonOf(await admin(fixture, 'POST', '', body)).error.message, message);
  for (const query of ['', '?name=', '?name=a&name=b', '?name=a&url=b', '?name=a&worker='])
    t.equal((await admin(fixture, 'DELETE', query)).status, 400, query);
  t.equal((await admin(fixture, 'GET', '')).status, 405);
  t.equal((await fixture.get(ADAPTERS, 'POST', { body: '{}' })).status, 404, 'without the token');
  second!.changes.adapters.clear();
  await second!.close();
  const dead = await admin(fixture, 'DELETE', `?name=theirs&worker=${second!.url}`);
  t.match(jsonOf(dead), { failed: 1, workers: [{ outcome: 'failed', message: /could not be reached/ }] });
});

t.test('an adapter has blocks of its own, and its model’s settings', async t => {
  const fixture = await start(t, 'vllm', {
    mocks: [
      { events: {}, blockSize: 16, adapters: { sql: '/a' } },
      { events: {}, blockSize: 16, adapters: { sql: '/a' } },
    ],
    tokenizer: null,
    models: { [MODEL]: { policy: 'kv', tokenizer: TOKENIZER } },
  });
  t.match(
    fixture.plane.models.filter(({ name }) => name === 'sql'),
    [{ tokenizer: TOKENIZER }],
  );
  const [first] = fixture.mocks.map(({ url }) => url) as [string, string];
  await fixture.post(COMPLETIONS, askFor('sql'), { 'x-millrace-worker': first });
  let asked = 0;
  const expected = async (model: string): Promise<number> => {
    // Each one fills a block of its own, so that an event that was lost is noticed.
    const prompt = [...PROMPT, ...Array(16).fill(1000 + asked++)];
    await fixture.post(COMPLETIONS, askFor(model, { prompt }));
    const { decisions } = jsonOf(await fixture.get('/debug/decisions?limit=1'));
    return decisions[0].expectedCachedTokens;
  };
  t.equal(await expected(MODEL), 0, 'the model has nothing of it');
  for (let tries = 0; tries < 200 && (await expected('sql')) < 80; tries++);
  t.ok((await expected('sql')) >= 80, 'the adapter’s own blocks are found');
  t.equal(fixture.mocks[0]!.core.totals.prefixHits + fixture.mocks[1]!.core.totals.prefixHits > 0, true);
  await fixture.expectIdle(t);
});
