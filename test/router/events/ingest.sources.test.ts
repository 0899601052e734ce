// Promise: over real sockets an Ingest brings each rank's batches to the sink in order, once, fills gaps by replay, clears
// a rank whose gap stays, survives engines that restart, keep silent or send rubbish, and closes under load.
import assert from 'node:assert';
import { once } from 'node:events';
import { createServer } from 'node:net';
import t, { type Test } from 'tap';
import type {
  EventEndpoints,
  HolderFacts,
  IndexSink,
  PolledProtocol,
} from '#millrace/router/events/contract.js';
import { Ingest, type IngestOptions } from '#millrace/router/events/ingest.js';
import { ManualClock, systemClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { freeEndpoint, LoopbackPublisher, nameOf, sequenceBytes } from './ingest-publisher.js';

const facts = (generation = 1): HolderFacts => ({
  generation,
  blockSize: 16,
  totalBlocks: null,
  hasEvents: true,
  name: 'http://worker',
});

/** A sink that notes each call, `7<1/0` for a batch of holder 7, and lets a test wait for one. */
class NotingSink implements IndexSink {
  readonly log: string[] = [];
  #wanted: string | null = null;
  #found: () => void = () => {};

  addHolder = (holder: number, given: HolderFacts): void =>
    this.#note(`${holder} add ${given.generation} ${given.hasEvents}`);
  removeHolder = (holder: number): void => this.#note(`${holder} remove`);
  clear = (holder: number): void => this.#note(`${holder} clear`);
  apply = (holder: number, payload: Uint8Array): void => this.#note(`${holder}<${nameOf(payload)}`);
  route = (): void => this.#note('route');
  tend = (): void => this.#note('tend');

  async saw(entry: string): Promise<void> {
    if (this.log.includes(entry)) return;
    this.#wanted = entry;
    await new Promise<void>(resolve => {
      this.#found = resolve;
    });
  }

  has(prefix: string): boolean {
    return this.log.some(entry => entry.startsWith(prefix));
  }

  #note(entry: string): void {
    this.log.push(entry);
    if (entry === this.#wanted) this.#found();
  }
}

/** No worker here is polled. */
const polling: PolledProtocol = {
  connect: url => assert.fail(url),
  read: body => assert.fail(body),
  createTranslator: () => assert.fail(),
};

async function startIngest(options: Partial<IngestOptions> = {}) {
  const sink = new NotingSink();
  const lines: string[] = [];
  const ingest = new Ingest({
    sink,
    polling,
    limits: {
      eventPollPeriodMs: 100,
      eventPollDeadlineMs: 5000,
      eventPollBytesMax: 1_000_000,
      replayDeadlineMs: 5000,
      eventBytesMax: 1_000_000,
      waitingBatchesMax: 100_000,
      waitingBytesMax: 100_000_000,
      replayBatchesMax: 100_000,
      replayBytesMax: 10_000_000,
    },
    clock: systemClock,
    random: seededRandom(1),
    logger: createLogger({ level: 'info', format: 'json', write: line => lines.push(line) }),
    ...options,
  });
  return { sink, ingest, lines };
}

const endpointsOf = ({ publish, replay }: LoopbackPublisher, hasReplay = true): EventEndpoints => ({
  publish,
  replay: hasReplay ? replay : null,
  topic: '',
});

/** A subscriber that has just connected misses messages: publishes until one arrives. */
async function publishUntilHeard(publisher: LoopbackPublisher, hasHeard: () => boolean): Promise<void> {
  while (!hasHeard()) {
    await publisher.send();
    await new Promise(setImmediate);
  }
}

const names = (epoch: number, from: number, to: number): string[] =>
  Array.from({ length: to - from + 1 }, (_, n) => `7<${epoch}/${from + n}`);

async function replays(t: Test, replaysTopic: boolean): Promise<void> {
  const publisher = await LoopbackPublisher.start(1);
  publisher.replaysTopic = replaysTopic;
  await publisher.send(50, true);
  const { sink, ingest } = await startIngest();
  ingest.addWorker(7, facts(), endpointsOf(publisher));
  await sink.saw('7<1/49');
  await publishUntilHeard(publisher, () => ingest.counts().messages > 0);
  await publisher.send(2, true);
  await publisher.send(1);
  await sink.saw(`7<1/${publisher.next - 1}`);
  t.same(
    sink.log.filter(entry => entry.startsWith('7')),
    ['7 add 1 true', ...names(1, 0, publisher.next - 1)],
  );
  t.equal(publisher.asked[0], 0);
  t.match(ingest.counts(), { lostBatches: 0, clearedRanks: 0, replayFailures: 0, badFrames: 0 });
  t.ok(ingest.lag()!.max >= ingest.lag()!.p50);
  await ingest.close();
  await publisher.kill();
}

t.test('a warm engine is replayed from 0, a lost batch is replayed, and nothing is cleared', async t => {
  await replays(t, false);
  await replays(t, true);
});

t.test('a ring that has moved on clears the rank; an engine that restarts does too', async t => {
  const first = await LoopbackPublisher.start(1, 4);
  const { sink, ingest } = await startIngest();
  ingest.addWorker(7, facts(), endpointsOf(first));
  await publishUntilHeard(first, () => sink.has('7<'));
  await first.send(10, true);
  await first.send(1);
  const end = first.next - 1;
  await sink.saw(`7<1/${end}`);
  t.same(sink.log.slice(-5), ['7 clear', ...names(1, end - 3, end)]);
  await first.kill();
  const second = await LoopbackPublisher.start(2, 100_000, first);
  sink.log.length = 0;
  await second.connected();
  await publishUntilHeard(second, () => ingest.counts().restarts > 0);
  await sink.saw(`7<2/${second.next - 1}`);
  t.same(
    sink.log.filter(entry => entry !== 'tend'),
    ['7 clear', ...names(2, 0, second.next - 1)],
  );
  await ingest.close();
  await second.kill();
});

t.test('rubbish is counted and dropped, and other topics are not heard', async t => {
  const publisher = await LoopbackPublisher.start(1);
  const { sink, ingest } = await startIngest();
  ingest.addWorker(7, facts(), { ...endpointsOf(publisher, false), topic: 'kv' });
  await publishUntilHeard(publisher, () => sink.has('7<'));
  const first = Number(sink.log.find(entry => entry.startsWith('7<'))!.slice(4));
  await publisher.sendFrames(['other', sequenceBytes(0), Buffer.alloc(1)]);
  await publisher.sendFrames(['kv', sequenceBytes(0)]);
  await publisher.sendFrames(['kv', Buffer.alloc(7), Buffer.alloc(1)]);
  await publisher.sendFrames(['kv', Buffer.alloc(8, 0xff), Buffer.alloc(1)]);
  await publisher.sendFrames(['kv', sequenceBytes(0), Buffer.alloc(1), Buffer.alloc(1)]);
  await publisher.send();
  const end = publisher.next - 1;
  await sink.saw(`7<1/${end}`);
  t.match(ingest.counts(), { badFrames: 4, messages: end - first + 1 + 4, duplicates: 0, clearedRanks: 0 });
  await ingest.close();
  await publisher.kill();
});

t.test('a replay socket that never answers holds nothing up beyond its deadline', async t => {
  const publisher = await LoopbackPublisher.start(1);
  const clock = new ManualClock();
  const { sink, ingest, lines } = await startIngest({ clock });
  ingest.addWorker(7, facts(), { ...endpointsOf(publisher), replay: await freeEndpoint() });
  await publishUntilHeard(publisher, () => ingest.counts().messages > 3);
  t.notOk(sink.has('7<'), 'live batches wait for the replay');
  clock.advance(5000);
  const waited = sink.log.filter(entry => entry.startsWith('7<'));
  const first = Number(waited[0]!.slice('7<1/'.length));
  t.ok(waited.length > 3);
  t.same(
    waited,
    names(1, first, first + waited.length - 1),
    'each as it came, though others were read after it',
  );
  t.match(ingest.counts(), { replays: 1, replayFailures: 1 });
  t.match(lines.join(''), /a replay of KV events failed.*no end within 5000 ms/);
  await publisher.send(3, true);
  await publisher.send(1);
  await sink.saw(`7<1/${publisher.next - 1}`);
  t.match(ingest.counts(), { replays: 1, clearedRanks: 1 }, 'not asked again so soon');
  clock.advance(1000);
  await publisher.send(3, true);
  await publishUntilHeard(publisher, () => ingest.counts().replays > 1);
  t.equal(sink.log.filter(entry => entry === 'tend').length, 24);
  await ingest.close();
  t.equal(clock.nextInMs(), null, 'no timer is left');
  await publisher.kill();
});

t.test('a replay socket of another protocol fails the replay, and the log says why', async t => {
  const publisher = await LoopbackPublisher.start(1);
  const server = createServer(socket => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')).listen(
    0,
    '127.0.0.1',
  );
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  const clock = new ManualClock();
  const { sink, ingest, lines } = await startIngest({ clock });
  const asked = once(server, 'connection');
  ingest.addWorker(7, facts(), { ...endpointsOf(publisher), replay: `tcp://127.0.0.1:${port}` });
  clock.advance(50);
  const [socket] = await asked;
  await once(socket.resume(), 'close');
  await publishUntilHeard(publisher, () => ingest.counts().messages > 0);
  t.notOk(sink.has('7<'), 'it may still come');
  clock.advance(5000);
  t.ok(sink.has('7<'));
  t.match(ingest.counts(), { replays: 1, replayFailures: 1 });
  t.match(lines.join(''), /a replay of KV events failed.*does not speak ZMTP 3/);
  await ingest.close();
  await publisher.kill();
  server.close();
});

t.test('a replay whose terminator is lost ends when it falls silent', async t => {
  const publisher = await LoopbackPublisher.start(1);
  publisher.losesEnd = true;
  await publisher.send(100, true);
  const clock = new ManualClock();
  const { sink, ingest } = await startIngest({ clock });
  ingest.addWorker(7, facts(), endpointsOf(publisher));
  clock.advance(50);
  await sink.saw('7<1/99');
  await publishUntilHeard(publisher, () => ingest.counts().messages > 0);
  const first = publisher.next - 1;
  t.notOk(sink.log.includes(`7<1/${first}`), 'live batches wait');
  publisher.losesEnd = false;
  for (let n = 0; n < 3; n += 1) clock.advance(500);
  await sink.saw(`7<1/${first}`);
  t.match(ingest.counts(), { replayFailures: 0, clearedRanks: 0, lostBatches: 0 });
  await ingest.close();
  t.equal(clock.nextInMs(), null, 'no timer is left');
  await publisher.kill();
});

t.test('a worker that is replaced or removed under load is heard no more', async t => {
  const [old, young] = [await LoopbackPublisher.start(1), await LoopbackPublisher.start(2)];
  const { sink, ingest } = await startIngest();
  ingest.addWorker(7, facts(1), endpointsOf(old));
  await publishUntilHeard(old, () => sink.has('7<1'));
  await old.send(200);
  ingest.addWorker(7, facts(2), endpointsOf(young));
  await old.send(200);
  await publishUntilHeard(young, () => sink.has('7<2'));
  const replaced = sink.log.indexOf('7 add 2 true');
  t.notOk(sink.log.slice(replaced).some(entry => entry.startsWith('7<1')));
  await young.send(200);
  ingest.removeWorker(7);
  await young.send(200);
  t.equal(sink.log.at(-1), '7 remove');
  await ingest.close();
  ingest.addWorker(8, facts(), endpointsOf(young));
  ingest.removeWorker(7);
  await Promise.all([old.kill(), young.kill()]);
  t.equal(sink.log.at(-1), '7 remove', 'nothing comes after the close');
});

t.test('without endpoints and with wrong ones, workers are known as workers without events', async t => {
  const endpoints = { publish: 'tcp://127.0.0.1:1', replay: null, topic: '' };
  const { sink, ingest, lines } = await startIngest();
  ingest.addWorker(1, facts(), null);
  ingest.addWorker(2, { ...facts(), hasEvents: false }, endpoints);
  for (const wrong of ['https://127.0.0.1:1', 'tcp://*', 'bind:', 'tcp://127.0.0.1:99999', '']) {
    ingest.addWorker(3, facts(), { ...endpoints, publish: wrong });
    ingest.addWorker(4, facts(), { ...endpoints, replay: wrong });
  }
  t.same(sink.log.slice(0, 2), ['1 add 1 false', '2 add 1 false']);
  t.equal(lines.length, 10);
  t.notOk(sink.has('3 add 1 true') || sink.has('4 add 1 true'));
  t.equal(ingest.lag(), null);
  await ingest.close();
});
