// Promise: streams go over the links of `millrace worker` processes with the same text, KV events come with them, and
// neither the end of a link process nor that of an engine fails a request.
import { strict as assert } from 'node:assert';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import t, { type Test } from 'tap';
import { LinkedClient } from '#millrace/engines/link/linked-client.js';
import { MAIN } from '../cli/serve-process.js';
import {
  COMPLETIONS,
  MOCK_MODEL,
  type OpenReply,
  type PlaneFixture,
  startPlane,
  streamedText,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const STREAMS = 6;
const TOKENS = 160;
const PROMPT = 64;
const BLOCK_SIZE = 16;
/** That an answer fills; its last token is not computed. */
const BLOCKS = Math.floor((PROMPT + TOKENS - 1) / BLOCK_SIZE);

interface Engine {
  readonly child: ChildProcess;
  readonly url: string;
  readonly kvEvents: string;
  readonly kvEventsReplay: string;
}

function launch(t: Test, args: readonly string[]): ChildProcess {
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

async function startEngine(t: Test, kind = 'vllm'): Promise<Engine> {
  const child = launch(t, [
    ...['mock', '--engine', kind, '--events', '--eos-rate', '0', '--speed', '2'],
    ...['--block-size', `${BLOCK_SIZE}`, '--json'],
  ]);
  const [line] = (await once(createInterface({ input: child.stdout! }), 'line')) as [string];
  return { child, ...(JSON.parse(line) as Omit<Engine, 'child'>) };
}

const link = (t: Test, engine: Engine, address: string): ChildProcess =>
  launch(t, [
    ...['worker', '--engine', engine.url, '--plane', address, '--log-level', 'error'],
    ...['--kv-events', engine.kvEvents, '--kv-events-replay', engine.kvEventsReplay],
  ]);

async function kill(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  const gone = once(child, 'exit');
  child.kill(signal);
  await gone;
}

const bodyOf = (name: number) => ({
  model: MOCK_MODEL,
  prompt: Array.from({ length: PROMPT }, (_, at) => name * PROMPT + at + 100),
  max_tokens: TOKENS,
  stream: true,
});

/** Resolves when the index has as many blocks; fails with the test's own time. */
async function blocksReach(fixture: PlaneFixture, blocks: number): Promise<void> {
  let found = 0;
  do found = await fixture.metric('millrace_index_blocks');
  while (found < blocks);
}

/** Starts all streams; resolves when each has shown text. */
const begin = (fixture: PlaneFixture): Promise<OpenReply[]> =>
  Promise.all(
    Array.from({ length: STREAMS }, async (_, name) => {
      const reply = await fixture.open(COMPLETIONS, bodyOf(name));
      return reply.readUntil(text => text.includes('data: '));
    }),
  );

async function textsOf(t: Test, replies: readonly OpenReply[]): Promise<string[]> {
  const whole = await Promise.all(replies.map(reply => reply.rest()));
  for (const { status, done, broken, text } of whole)
    t.ok(status === 200 && done && !broken && !text.includes('"error"'), 'the stream is whole');
  return whole.map(reply => streamedText(reply));
}

t.test('two engines: one is configured, one joins by its link', async t => {
  const [kept, joined] = await Promise.all([startEngine(t), startEngine(t)]);
  const fixture = await startPlane(t, {
    workers: [kept.url],
    linkListen: '127.0.0.1:0',
    tokenizer: TOKENIZER,
    policy: 'ttft',
    clock: 'real',
    limits: { linkGoneDeadlineMs: 0 },
  });
  const { plane } = fixture;
  const { client } = plane.socket;
  assert(client instanceof LinkedClient, 'the plane takes links');
  const { counts } = client;
  const address = plane.status.linkAddress!;
  const isReady = (count: number) => (): boolean =>
    plane.workers.length === count && plane.workers.every(({ state }) => state === 'ready');
  const linkOfKept = link(t, kept, address);
  const linkOfJoined = link(t, joined, address);
  await until(isReady(2), 'both workers are ready');
  const logged = (message: string): number => fixture.log.filter(line => line.includes(message)).length;
  await until(() => logged('a worker is linked') === 2, 'both are linked');

  const expected = await textsOf(t, await begin(fixture));
  t.ok(
    expected.every(text => text.length > TOKENS),
    'the answers have text',
  );
  t.same(counts, { overLink: STREAMS, overHttp: 0 }, 'all went over links');
  const eventsOf = (): unknown[] => plane.workerReports.map(({ events }) => events);
  await until(() => eventsOf().every(events => events === 'link'), 'both publish by their links');
  t.equal(plane.status.kvEvents.publishing, 2);
  t.equal(await fixture.metric('millrace_index_holders'), 2);
  await blocksReach(fixture, STREAMS * BLOCKS);

  await t.test('a link process dies in the middle', async t => {
    const running = await begin(fixture);
    await kill(linkOfKept, 'SIGKILL');
    t.same(await textsOf(t, running), expected);
    t.ok((await fixture.metric('millrace_migrations_total{cause="reset",outcome="continued"}')) > 0);
    const { overHttp } = counts;
    await until(isReady(2), 'its worker is still there');
    t.same(await textsOf(t, await begin(fixture)), expected);
    t.ok(counts.overHttp > overHttp, 'its engine is asked by HTTP');
    t.equal(plane.status.kvEvents.publishing, 1, 'its events have ended with its link');
  });

  link(t, kept, address);
  await t.test('its link comes again, and with it all events', async t => {
    await until(() => eventsOf().every(events => events === 'link'), 'its events come again');
    const { overHttp } = counts;
    t.same(await textsOf(t, await begin(fixture)), expected);
    t.equal(counts.overHttp, overHttp);
  });

  await t.test('an engine dies while its link process lives; then that one leaves', async t => {
    const running = await begin(fixture);
    await kill(joined.child, 'SIGKILL');
    t.same(await textsOf(t, running), expected);
    t.equal(plane.workers.length, 2, 'linked workers stay');
    await kill(linkOfJoined, 'SIGTERM');
    await until(isReady(1), 'the worker that joined has left');
    t.same(await textsOf(t, await begin(fixture)), expected);
  });
  await fixture.expectIdle(t);
});

t.test('an engine with frames of its own tells where it publishes', async t => {
  const engine = await startEngine(t, 'sglang');
  const { url, kvEvents: publish, kvEventsReplay: replay } = engine;
  const fixture = await startPlane(t, {
    workers: [url],
    linkListen: '127.0.0.1:0',
    tokenizer: TOKENIZER,
    policy: 'ttft',
    clock: 'real',
  });
  const { plane } = fixture;
  const { client } = plane.socket;
  assert(client instanceof LinkedClient, 'the plane takes links');
  const eventsOf = (): unknown => plane.workerReports[0]!.events;
  await until(() => plane.workers[0]!.state === 'ready', 'the worker is ready');
  const expected = await textsOf(t, await begin(fixture));
  t.match(eventsOf(), { publish, replay }, 'its events are taken from there');
  const process = link(t, engine, plane.status.linkAddress!);
  await until(() => eventsOf() === 'link', 'its link is preferred');
  t.same(await textsOf(t, await begin(fixture)), expected);
  t.same(client.counts, { overLink: STREAMS, overHttp: STREAMS }, 'its frames are relayed');
  await kill(process, 'SIGKILL');
  await until(() => eventsOf() !== 'link', 'the link is gone');
  t.match(eventsOf(), { publish, replay }, 'they are taken from there again');
  await blocksReach(fixture, STREAMS * BLOCKS);
  await fixture.expectIdle(t);
});

t.test('an address that other hosts reach needs a secret, and wrong ones are told', async t => {
  const wrong: [linkListen: string, message: RegExp][] = [
    ['0.0.0.0:0', /leaves this host: give both sides one secret/],
    ['somewhere', /linkListen is 'somewhere'; allowed: HOST:PORT/],
  ];
  for (const [linkListen, message] of wrong)
    await t.rejects(startPlane(t, { workers: [], linkListen }), { code: 'MILLRACE_CONFIG', message });
});
