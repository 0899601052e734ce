// Promise: in every interleaving of producer and consumer, messages arrive in order, whole and once, and no wake-up is lost.
import assert from 'node:assert';
import t from 'tap';
import { Bell, BellRinger, createBell } from '#millrace/ring/bell.js';
import { RingConsumer } from '#millrace/ring/ring-consumer.js';
import { BELL, RING } from '#millrace/ring/ring-descriptor.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';
import { RingProducer } from '#millrace/ring/ring-producer.js';
import { createRing } from '#millrace/ring/spsc-ring.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { explore, layOut, type Segment, SteppedMemory, type Stepper, type Thread } from './explorer.js';

const EPOCH = 7;
const clock = new ManualClock();
type Memories = new (segment: Segment, stepper: Stepper) => SteppedMemory;

interface Scenario {
  /** Payload bytes of each message that is sent while everything is interleaved, multiples of 4. */
  messages: readonly number[];
  /** Messages of 112 bytes (the longest record of this ring) that lie in the ring already. */
  filled?: number;
  /** How many of those the consumer takes in its first step, to keep the number of states down. */
  takenAtOnce?: number;
  /** The consumer ends after so many messages, and the producer does not wait for room. */
  endAfter?: number;
  startPosition?: number;
  queueBytesMax?: number;
  producerMemory?: Memories;
  consumerMemory?: Memories;
  arm?: (bell: Bell, memory: RingMemory, pending: () => boolean) => Promise<unknown> | null;
  ringBeforeSend?: boolean;
}

const payloadOf = (message: number, bytes: number): Buffer => Buffer.alloc(bytes, message + 1);
const armBell = (bell: Bell, _memory: RingMemory, pending: () => boolean) => bell.arm(pending);

/** Messages that lie in the ring from the start; the producer side is free again afterwards. */
function fillRing(ring: SharedArrayBuffer, messages: number): void {
  const nobody = new BellRinger(new RingMemory(createBell('nobody')));
  const producer = new RingProducer(new RingMemory(ring), nobody, { epoch: EPOCH, queueBytesMax: 0 });
  for (let key = 0; key < messages; key++) assert.equal(producer.send(1, key, [payloadOf(key, 112)]), 'ok');
  new Int32Array(ring)[RING.producerAttached] = 0;
}

/** All states of one producer thread and one consumer thread, each with its own bell. */
function run(scenario: Scenario): number {
  const { messages, filled = 0, arm = armBell } = scenario;
  const ring = createRing(1024, EPOCH, scenario.startPosition ?? 0);
  fillRing(ring, filled);
  const { segments, cells } = layOut([ring, createBell('producer'), createBell('consumer')]);
  const [ringSegment, producerBell, consumerBell] = segments as [Segment, Segment, Segment];
  const sizes = [...Array(filled).fill(112), ...messages] as number[];
  const open = (stepper: Stepper, own: Segment, other: Segment, Memory: Memories) => {
    const bellMemory = new SteppedMemory(own, stepper);
    return {
      ring: new Memory(ringSegment, stepper),
      ringer: new BellRinger(new SteppedMemory(other, stepper)),
      bellMemory,
      bell: new Bell(bellMemory, clock),
    };
  };
  const producer: Thread = stepper => {
    const side = open(stepper, producerBell, consumerBell, scenario.producerMemory ?? SteppedMemory);
    const options = { epoch: EPOCH, queueBytesMax: scenario.queueBytesMax ?? 0 };
    const sender = stepper.setup(() => new RingProducer(side.ring, side.ringer, options));
    const checkpoint = (at: number): void =>
      stepper.checkpoint(`${at} ${sender.queuedBytes} ${side.ring.lastHead}`);
    messages.forEach((bytes, i) => {
      checkpoint(i);
      if (scenario.ringBeforeSend) side.ringer.ring();
      const result = sender.send(1, filled + i, [payloadOf(filled + i, bytes)]);
      assert.notEqual(result, 'full');
      if (!scenario.ringBeforeSend) sender.publish();
    });
    checkpoint(messages.length);
    const once = scenario.ringBeforeSend || scenario.endAfter !== undefined;
    while (!once && !sender.flush()) {
      if (arm(side.bell, side.bellMemory, () => sender.sendable) !== null) side.bell.disarm();
      checkpoint(messages.length);
    }
  };
  const consumer: Thread = stepper => {
    const side = open(stepper, consumerBell, producerBell, scenario.consumerMemory ?? SteppedMemory);
    const options = { epoch: EPOCH, name: 'explored', messageBytesMax: 4096 };
    let received = 0;
    const onMessage = (kind: number, key: number, bytes: Uint8Array): void => {
      assert.equal(kind, 1);
      assert.equal(key, received, 'order');
      assert.ok(payloadOf(key, sizes[key]!).equals(bytes), 'torn message');
      received += 1;
      stepper.checkpoint(`took ${received}`);
    };
    const receiver = stepper.setup(() => {
      const made = new RingConsumer(side.ring, side.ringer, options);
      made.drain(onMessage, scenario.takenAtOnce ?? 0);
      return made;
    });
    while (received < (scenario.endAfter ?? sizes.length)) {
      stepper.checkpoint(`has ${received}`);
      if (receiver.drain(onMessage, 1) > 0) continue;
      if (arm(side.bell, side.bellMemory, () => receiver.pending) !== null) side.bell.disarm();
    }
  };
  return explore(cells, [producer, consumer]);
}

t.test('sleep and wake: two short messages to a consumer that goes to sleep', async t => {
  const states = run({ messages: [4, 4] });
  t.comment(`${states} states`);
  t.ok(states > 1000);
});

t.test('wrap: padding, then a record at the beginning, over the edge of 2^32', async t => {
  t.ok(run({ messages: [4, 12], startPosition: 2 ** 32 - 24 }) > 1000);
  t.ok(run({ messages: [4, 12], startPosition: 2 ** 31 - 24 }) > 1000);
});

t.test('chain: a message over two records', async t => {
  t.ok(run({ messages: [116, 4] }) > 1000);
});

t.test('space: a full ring, a queued message, both sides may sleep', async t => {
  const states = run({ messages: [112], filled: 7, takenAtOnce: 2, queueBytesMax: 1024 });
  t.comment(`${states} states`);
  t.ok(states > 1000);
});

/** The sign of a claim is lost: the record looks committed before it is filled. */
class PublishesAtClaim extends SteppedMemory {
  override put(word: number, value: number): void {
    super.put(word, value < 0 && word >= 128 ? -value : value);
  }
}

/** The length after the new record is not zeroed: old bytes of the lap before look like a record. */
class LeavesOldLengths extends SteppedMemory {
  override put(word: number, value: number): void {
    if (value !== 0 || word < 128) super.put(word, value);
  }
}

/** Room is given back before the payload is read. */
class FreesBeforeReading extends SteppedMemory {
  override view(byte: number, length: number): Uint8Array {
    const spanBytes = (16 + length + 7) & -8;
    this.store(RING.head, (this.load(RING.head) + spanBytes) | 0);
    const bytes = super.view(byte, length);
    this.store(RING.head, (this.load(RING.head) - spanBytes) | 0);
    return bytes;
  }
}

/** The wish for room is never written. */
class KeepsWishes extends SteppedMemory {
  override store(word: number, value: number): void {
    if (word !== RING.wantSpace) super.store(word, value);
  }
}

t.test('planted faults are found', async t => {
  const lost = /lost wake-up/;
  t.throws(() => run({ messages: [4], arm: bell => bell.arm(() => false) }), lost, 'no second look');
  const setsLate = (bell: Bell, memory: RingMemory, pending: () => boolean) => {
    const count = memory.load(BELL.count);
    if (pending()) return null;
    memory.store(BELL.sleeping, 1);
    const armed = memory.waitAsync(BELL.count, count);
    if (armed === null) bell.disarm();
    return armed;
  };
  t.throws(() => run({ messages: [4], arm: setsLate }), lost, 'sleeping set after the second look');
  t.throws(() => run({ messages: [4], ringBeforeSend: true }), lost, 'bell rung before the commit');
  const full = { messages: [112], filled: 7, takenAtOnce: 3, queueBytesMax: 1024 };
  t.throws(() => run({ ...full, producerMemory: KeepsWishes }), lost, 'no wish for room');
  const torn = /torn message|order|ring explored/;
  t.throws(() => run({ messages: [4], producerMemory: PublishesAtClaim }), torn, 'published at the claim');
  t.throws(
    () =>
      run({ ...full, messages: [112, 4], takenAtOnce: 0, endAfter: 1, consumerMemory: FreesBeforeReading }),
    torn,
    'freed before it was read',
  );
  t.throws(
    () => run({ ...full, messages: [112, 4], takenAtOnce: 7, producerMemory: LeavesOldLengths }),
    /torn message|order|ring explored|Expected/i,
    'old length left behind',
  );
});
