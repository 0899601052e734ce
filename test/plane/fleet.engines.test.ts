/** Promise: workers of every engine serve without being configured, with the KV events that they tell of, and their health is in the metrics. */
import t from 'tap';
import { DONE, textFrame, usageFrame } from '../fake-engine.js';
import {
  CHAT,
  COMPLETIONS,
  FAKE_MODEL,
  jsonOf,
  MOCK_MODEL,
  startPlane,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const BLOCK_SIZE = 16;
const ENGINES = ['vllm', 'sglang', 'trtllm'] as const;
const ids = Array.from({ length: 8 * BLOCK_SIZE }, (_, at) => 1000 + at);

t.test('three engines in one fleet, all modes, by nothing but their URLs', async t => {
  for (const tokenizer of [TOKENIZER, null]) {
    const mocks = ENGINES.map(engine => ({ engine, blockSize: BLOCK_SIZE }));
    const fixture = await startPlane(t, { mocks, tokenizer, clock: 'real' });
    t.same(
      fixture.plane.workerReports.map(({ engine }) => engine),
      ENGINES,
    );
    for (const { url } of fixture.mocks) {
      const pin = { 'x-millrace-worker': url };
      const chat = { model: MOCK_MODEL, messages: [{ role: 'user', content: 'Hi' }], max_tokens: 4 };
      for (const stream of [true, false]) {
        const reply = await fixture.post(CHAT, { ...chat, stream }, pin);
        t.equal(reply.status, 200, `${url} ${tokenizer} ${stream}`);
        t.equal(reply.done, stream);
        if (!stream)
          t.match(jsonOf(reply), { choices: [{ finish_reason: 'length' }], usage: { completion_tokens: 4 } });
      }
    }
    t.same(
      fixture.mocks.map(({ counters }) => counters.finished),
      [2, 2, 2],
    );
    await fixture.expectIdle(t);
  }
});

t.test('events that an engine tells of are taken, unless they are switched off', async t => {
  const mocks = [{ engine: 'sglang' as const, events: {}, blockSize: BLOCK_SIZE }];
  const fixture = await startPlane(t, {
    mocks,
    tokenizer: TOKENIZER,
    policy: 'ttft',
    clock: 'real',
    asked: true,
  });
  const [mock] = fixture.mocks;
  t.match(fixture.plane.workerReports, [{ events: { publish: mock!.events!.publish } }]);
  t.same(fixture.plane.status.kvEvents, { publishing: 1, workers: 1 });
  await fixture.post(COMPLETIONS, { model: MOCK_MODEL, prompt: ids, max_tokens: 2 });
  let batches = 0;
  while (batches === 0) batches = await fixture.metric('millrace_kv_events_total{kind="batches"}');
  await fixture.expectIdle(t);
  const workers = [{ url: mock!.url, kvEvents: null }];
  const off = await startPlane(t, { workers, tokenizer: TOKENIZER, policy: 'ttft', clock: 'real' });
  await off.plane.workersAnswered(10_000);
  t.match(off.plane.workerReports, [{ state: 'ready', events: null }]);
});

t.test('vLLM names the endpoints of its ranks', async t => {
  const source = (rank: number) => ({
    data_parallel_rank: rank,
    publisher: 'zmq',
    endpoint: `tcp://*:${6000 + rank}`,
    replay_endpoint: null,
    topic: 'kv',
  });
  const pages = (ranks: number) => ({
    '/kv_event_sources': JSON.stringify(Array.from({ length: ranks }, (_, rank) => source(rank))),
  });
  const fixture = await startPlane(t, {
    fakes: [1, 2].map(ranks => ({ version: '0.32.0', pages: pages(ranks) })),
  });
  const [one, two] = fixture.plane.workerReports;
  t.same(one!.events, { publish: 'tcp://127.0.0.1:6000', replay: null, topic: 'kv' });
  t.equal(two!.events, null, 'two ranks behind one worker cannot be told apart');
  fixture.plane.removeWorker(two!.url);
  fixture.plane.addWorker({ url: two!.url, dpRanks: 2 });
  await until(() => fixture.plane.workers.every(({ state }) => state === 'ready'), 'both ranks are ready');
  t.same(
    fixture.plane.workerReports
      .slice(1)
      .map(({ rank, events }) => [rank, events !== 'link' && events?.publish]),
    [
      [0, 'tcp://127.0.0.1:6000'],
      [1, 'tcp://127.0.0.1:6001'],
    ],
  );
});

t.test(
  'an engine that is well by its health route alone leaves the rotation, and the metrics say why',
  async t => {
    const good = usageFrame(1, 1) + DONE;
    const fixture = await startPlane(t, { fakes: [{}, {}], limits: { canaryAfterMs: 2500 } });
    const [wedged, well] = fixture.fakes;
    wedged!.script = () => {};
    well!.script = call => {
      if (call.json.stream === false) call.respond(200, 'application/json', '{}');
      else
        call
          .stream()
          .send(textFrame('Hello', [9906], 'length') + good)
          .end();
    };
    let passedMs = 0;
    const stateOf = (url: string) => fixture.plane.workers.find(worker => worker.url === url)!.state;
    await until(() => {
      fixture.tick(50);
      passedMs += 50;
      return stateOf(wedged!.url) === 'unavailable';
    }, 'it is out');
    t.comment(`out after ${passedMs} ms of its clock`);
    t.equal(stateOf(well!.url), 'ready');
    t.ok(
      wedged!.calls.length >= 3 && wedged!.calls.every(call => call.json.max_tokens === 1),
      'by canaries alone',
    );
    for (let request = 0; request < 3; request++) {
      const reply = await fixture.post(COMPLETIONS, { model: FAKE_MODEL, prompt: 'x', stream: true });
      t.equal(reply.headers.get('x-millrace-worker'), well!.url);
    }
    const value = (name: string, labels: string) =>
      fixture.metric(`millrace_${name}{worker="${wedged!.url}",${labels}}`);
    t.equal(await value('worker_state', 'state="unavailable"'), 1);
    t.equal(await value('worker_state', 'state="ready"'), 0);
    t.equal(await value('worker_failures_total', 'cause="canary"'), 3);
    t.ok((await value('canaries_total', 'outcome="late"')) >= 3);
    t.equal(
      await fixture.metric('dynamo_frontend_requests_total{model="fake-model"}'),
      0,
      'canaries are no requests',
    );
    t.same(fixture.leftovers(), [], 'and reserve nothing');
    fixture.plane.removeWorker(wedged!.url);
    t.notOk((await fixture.get('/metrics')).text.includes(wedged!.url), 'its series end with it');
  },
);
