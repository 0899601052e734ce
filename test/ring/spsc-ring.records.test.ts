// Promise: records of any size arrive whole and in order across every edge of the ring, and a full ring is an answer.
import t from 'tap';
import { BellRinger, createBell } from '#millrace/ring/bell.js';
import { RingConsumer } from '#millrace/ring/ring-consumer.js';
import { BELL, RING, RING_HEADER_BYTES } from '#millrace/ring/ring-descriptor.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';
import { RingProducer } from '#millrace/ring/ring-producer.js';
import { createRing, ringDepth } from '#millrace/ring/spsc-ring.js';

const EPOCH = 3;

function pair(
  options: { capacityBytes?: number; start?: number; queueBytesMax?: number; messageBytesMax?: number } = {},
) {
  const shared = createRing(options.capacityBytes ?? 1024, EPOCH, options.start ?? 0);
  const memory = new RingMemory(shared);
  const [producerBell, consumerBell] = [new RingMemory(createBell('p')), new RingMemory(createBell('c'))];
  const producer = new RingProducer(memory, new BellRinger(consumerBell), {
    epoch: EPOCH,
    queueBytesMax: options.queueBytesMax ?? 0,
  });
  const consumer = new RingConsumer(memory, new BellRinger(producerBell), {
    epoch: EPOCH,
    name: 'a → b',
    messageBytesMax: options.messageBytesMax ?? 100_000,
  });
  const received: { kind: number; key: number; bytes: Buffer }[] = [];
  const onMessage = (kind: number, key: number, bytes: Uint8Array): void => {
    received.push({ kind, key, bytes: Buffer.from(bytes) });
  };
  return { shared, memory, producer, consumer, producerBell, consumerBell, received, onMessage };
}

const pattern = (bytes: number, seed = 1): Buffer =>
  Buffer.from(Array.from({ length: bytes }, (_, i) => i * seed));

t.test('every payload length at every place of the ring, also over 2^31 and 2^32', async t => {
  for (const start of [0, 2 ** 31 - 1024, 2 ** 32 - 1024]) {
    const { producer, consumer, received, onMessage } = pair({ start });
    let wrong = 0;
    for (let round = 0; round < 40; round++)
      for (let bytes = 0; bytes <= 112; bytes += 3) {
        const payload = pattern(bytes, round + 1);
        const cut = bytes >> 1;
        const sent = producer.send(bytes, 2 ** 32 - 1 - round, [
          payload.subarray(0, cut),
          payload.subarray(cut),
        ]);
        const drained = consumer.drain(onMessage);
        const got = received.pop();
        const same = got?.kind === bytes && got.key === 2 ** 32 - 1 - round && got.bytes.equals(payload);
        if (sent !== 'ok' || drained !== 1 || !same) wrong += 1;
      }
    t.equal(wrong, 0, `from position ${start}`);
  }
});

t.test('payloads are 8-byte aligned views of the ring, chains are not', async t => {
  const { shared, producer, consumer } = pair();
  producer.send(1, 1, [pattern(5)]);
  producer.send(1, 2, [pattern(112)]);
  producer.send(1, 3, [pattern(113)]);
  const places: (number | null)[] = [];
  consumer.drain((_kind, _key, bytes) => places.push(bytes.buffer === shared ? bytes.byteOffset : null));
  t.strictSame(places, [RING_HEADER_BYTES + 16, RING_HEADER_BYTES + 24 + 16, null]);
});

t.test('without a queue a full ring takes nothing, and depth tells what lies in it', async t => {
  const { memory, producer, consumer, received, onMessage } = pair();
  let taken = 0;
  while (producer.send(1, taken, [pattern(100)]) === 'ok') taken += 1;
  t.equal(taken, 8);
  t.strictSame(ringDepth(memory), { bytes: 8 * 120, messages: 8 });
  t.equal(producer.outstandingBytes, 960);
  t.equal(consumer.drain(onMessage, 3), 3, 'no more messages than asked for');
  t.strictSame(ringDepth(memory), { bytes: 5 * 120, messages: 5 });
  t.equal(producer.send(1, taken, [pattern(100)]), 'ok');
  t.equal(consumer.drain(onMessage), 6);
  t.strictSame(
    received.map(message => message.key),
    [0, 1, 2, 3, 4, 5, 6, 7, 8],
  );
  t.equal(producer.send(1, 9, [pattern(1025)]), 'full', 'never fits, so it is refused whole');
  t.strictSame(ringDepth(memory), { bytes: 0, messages: 0 });
});

t.test('the queue keeps order, moves a long chain through a short ring and has a limit', async t => {
  const { memory, producer, consumer, received, onMessage } = pair({ queueBytesMax: 10_000 });
  const long = [pattern(4000), pattern(0), pattern(5000, 7)];
  t.equal(producer.send(5, 1, long), 'queued');
  t.equal(producer.send(6, 2, [pattern(4)]), 'queued', 'behind the chain although it is short');
  t.equal(producer.send(7, 3, [pattern(2500)]), 'full');
  t.equal(memory.load(RING.wantSpace), 1);
  t.ok(producer.outstandingBytes > 9000);
  t.equal(producer.sendable, false);
  for (let turn = 0; turn < 100 && !producer.flush(); turn++) {
    consumer.drain(onMessage);
    t.equal(producer.sendable, true);
  }
  consumer.drain(onMessage);
  t.strictSame(
    received.map(({ kind, key, bytes }) => [kind, key, bytes.byteLength]),
    [
      [5, 1, 9000],
      [6, 2, 4],
    ],
  );
  t.ok(received[0]!.bytes.equals(Buffer.concat(long)));
  t.equal(producer.queuedBytes, 0);
  t.equal(producer.outstandingBytes, 0);
  t.equal(memory.load(RING.wantSpace), 0);
});

t.test('bells ring once per batch, only for a sleeper, and for room only at half', async t => {
  const { producer, consumer, producerBell, consumerBell, onMessage } = pair({ queueBytesMax: 1000 });
  const rings = (bell: RingMemory): number => bell.load(BELL.count);
  producer.send(1, 0, [pattern(100)]);
  producer.publish();
  t.equal(rings(consumerBell), 0, 'awake: not rung');
  consumerBell.store(BELL.sleeping, 1);
  producerBell.store(BELL.sleeping, 1);
  producer.publish();
  t.equal(rings(consumerBell), 0, 'nothing new: not rung');
  for (let key = 1; key < 9; key++) producer.send(1, key, [pattern(100)]);
  producer.publish();
  t.equal(rings(consumerBell), 1);
  t.equal(producer.queuedBytes, 116);
  consumer.drain(onMessage, 3);
  t.equal(rings(producerBell), 0, 'less than half is free');
  consumer.drain(onMessage, 1);
  t.equal(rings(producerBell), 1);
});

t.test('a callback that throws has consumed its message', async t => {
  const { producer, consumer, received, onMessage } = pair();
  for (const [key, bytes] of [8, 300, 8].entries()) producer.send(1, key, [pattern(bytes)]);
  const fail = (_kind: number, key: number): void => {
    throw new Error(`no ${key}`);
  };
  t.throws(() => consumer.drain(fail), { message: 'no 0' });
  t.throws(() => consumer.drain(fail), { message: 'no 1' }, 'a chain too');
  consumer.drain(onMessage);
  t.strictSame(
    received.map(message => message.key),
    [2],
  );
  producer.send(1, 4, [pattern(8)]);
  t.throws(() => consumer.drain(() => consumer.drain(onMessage)), /drain inside drain/);
});

t.test('what is wrong is named', async t => {
  const { memory, producer, consumer, onMessage } = pair({ messageBytesMax: 500 });
  t.throws(() => createRing(1000, 1), /capacityBytes is 1000, allowed are powers of two 1024 to/);
  t.throws(() => createRing(512, 1), /capacityBytes is 512/);
  t.throws(() => createRing(1024, 0), /epoch is 0/);
  t.throws(() => createRing(1024, 1, 12), /startPosition is 12/);
  const ringer = new BellRinger(new RingMemory(createBell('x')));
  t.throws(
    () => new RingProducer(memory, ringer, { epoch: 4, queueBytesMax: 0 }),
    /epoch 3.*came with epoch 4/,
  );
  t.throws(() => new RingProducer(memory, ringer, { epoch: 3, queueBytesMax: 0 }), /has a producer already/);
  t.throws(() => producer.send(65536, 0, []), /kind is 0 to 65535/);
  t.throws(() => producer.send(1, -1, []), /key is a u32/);
  producer.send(1, 1, [pattern(501)]);
  const tooLong = /ring a → b: a message of 501 bytes, allowed are 1 to 500/;
  t.throws(() => consumer.drain(onMessage), tooLong);
  t.throws(() => consumer.drain(onMessage), tooLong, 'and again: the ring stays failed');
});
