// Promise: the sockets of KV events speak vLLM's protocol, and lose only what they count.

import t, { type Test } from 'tap';
import { Subscriber } from 'zeromq';
import { seededRandom } from '#millrace/runtime/random.js';
import {
  KvEventPublisher,
  type KvEventPublisherOptions,
} from '#millrace/simulate/vllm/kv-event-publisher.js';
import { be64, openDealer, REPLAY_END, readReplay, replayFrom } from './kv-event-reader.js';

const SEED = Number(process.env.SEED ?? 20_260_302);
t.comment(`SEED=${SEED}`);

const PROBE = 'probe';

const sequenceOf = (frame: Buffer): number => Number(frame.readBigUInt64BE());

async function openPublisher(
  t: Test,
  more: Partial<KvEventPublisherOptions> = {},
): Promise<KvEventPublisher> {
  const publisher = await KvEventPublisher.open({
    host: '127.0.0.1',
    port: 0,
    replayPort: 0,
    replaysTopic: false,
    topic: '',
    bufferBatches: 1000,
    loss: 0,
    random: seededRandom(SEED),
    ...more,
  });
  t.teardown(() => publisher.close());
  return publisher;
}

/** A reader of the live messages; returns once it gets them: what is sent before that never reaches it. */
async function subscribe(t: Test, publisher: KvEventPublisher, topic = ''): Promise<Subscriber> {
  const subscriber = new Subscriber({ linger: 0 });
  t.teardown(() => subscriber.close());
  subscriber.connect(publisher.publish);
  subscriber.subscribe(topic);
  let joined = false;
  const first = subscriber.receive().then(() => {
    joined = true;
  });
  while (!joined) {
    publisher.send(Buffer.from(PROBE));
    await new Promise(setImmediate);
  }
  await first;
  return subscriber;
}

/** Live messages up to the one whose payload is `last`, without the probes. */
async function readUntil(subscriber: Subscriber, last: string): Promise<Buffer[][]> {
  const messages: Buffer[][] = [];
  for await (const frames of subscriber) {
    if (String(frames[2]) !== PROBE) messages.push(frames);
    if (String(frames[2]) === last) break;
  }
  return messages;
}

t.test('live messages: topic, sequence from 0, batch; a restart begins at 0 again', async t => {
  const publisher = await openPublisher(t, { topic: 'kv@mock@m' });
  const subscriber = await subscribe(t, publisher, 'kv@');
  for (const payload of ['a', 'b', 'c']) publisher.send(Buffer.from(payload));
  const messages = await readUntil(subscriber, 'c');
  const first = publisher.counters.published - 3;
  t.same(
    messages.map(([topic, sequence, payload]) => [String(topic), sequence, String(payload)]),
    ['a', 'b', 'c'].map((payload, at) => ['kv@mock@m', be64(first + at), payload]),
  );
  publisher.restart();
  publisher.send(Buffer.from('d'));
  t.same((await readUntil(subscriber, 'd'))[0]!.slice(1), [be64(0), Buffer.from('d')]);
  t.equal((await replayFrom(t, publisher.replay, 0)).length, 2, 'one batch and the end');
});

t.test('replay of newer releases: the topic stands before the sequence, empty at the end', async t => {
  const publisher = await openPublisher(t, { replaysTopic: true, topic: 'kv@pod' });
  publisher.send(Buffer.from('batch'));
  const shown = (await replayFrom(t, publisher.replay, 0)).map(frames =>
    frames.map(frame => frame.toString()),
  );
  t.same(shown, [
    ['', 'kv@pod', be64(0).toString(), 'batch'],
    ['', '', Buffer.alloc(8, 0xff).toString(), ''],
  ]);
});

t.test('replay: what is kept from the start on, then the end', async t => {
  const publisher = await openPublisher(t, { bufferBatches: 4 });
  for (let at = 0; at < 10; at++) publisher.send(Buffer.from(`batch ${at}`));
  const expected = (first: number): unknown[] => [
    ...Array.from({ length: 10 - first }, (_, at) => [
      '',
      be64(first + at).toString('hex'),
      `batch ${first + at}`,
    ]),
    ['', REPLAY_END, ''],
  ];
  const shown = (messages: Buffer[][]): unknown[] =>
    messages.map(([empty, sequence, payload]) => [String(empty), sequence!.toString('hex'), String(payload)]);
  t.same(shown(await replayFrom(t, publisher.replay, 8)), expected(8));
  t.same(shown(await replayFrom(t, publisher.replay, 0)), expected(6), 'older ones are gone');
  t.same(shown(await replayFrom(t, publisher.replay, 10)), expected(10), 'nothing is there yet');
  t.equal(publisher.counters.replaysServed, 3);
  const dealer = openDealer(t, publisher.replay);
  await dealer.send([be64(0)]);
  await dealer.send(['', be64(0), 'more']);
  await dealer.send(['', Buffer.alloc(4)]);
  await dealer.send(['', be64(9)]);
  t.same(shown(await readReplay(dealer)), expected(9), 'requests of another shape get no answer');
  t.equal(publisher.counters.replaysServed, 4);
});

t.test('a replay of thousands of batches arrives whole', async t => {
  const publisher = await openPublisher(t, { bufferBatches: 5000 });
  for (let at = 0; at < 6000; at++) publisher.send(Buffer.alloc(100));
  const messages = await replayFrom(t, publisher.replay, 0);
  t.same(
    messages.slice(0, -1).map(([, sequence]) => sequenceOf(sequence!)),
    Array.from({ length: 5000 }, (_, at) => 1000 + at),
  );
});

t.test('a lost batch is a gap of the live sequence, is counted, and can be replayed', async t => {
  const publisher = await openPublisher(t, { loss: 0.3 });
  const subscriber = await subscribe(t, publisher);
  publisher.restart();
  const before = { ...publisher.counters };
  for (let at = 0; at < 200; at++) publisher.send(Buffer.from(`${at}`));
  const replayed = await replayFrom(t, publisher.replay, 0);
  t.equal(replayed.length, 201);
  const lost = publisher.counters.dropped - before.dropped;
  const sent = publisher.counters.published - before.published;
  t.equal(lost + sent, 200);
  t.ok(lost > 30 && lost < 100, `${lost} lost`);
  const live = new Set<number>();
  while (live.size < sent) {
    const [, sequence, payload] = await subscriber.receive();
    if (String(payload) === PROBE) continue;
    t.equal(String(payload), String(sequenceOf(sequence!)));
    live.add(sequenceOf(sequence!));
  }
  t.equal(live.size, sent, 'as many as were counted, and each one once');
});
