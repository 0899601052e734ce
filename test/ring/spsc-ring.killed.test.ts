// Promise: a producer killed at any access leaves its committed messages readable, nothing else, and a consumer that does not hang.
import t from 'tap';
import { BellRinger, createBell } from '#millrace/ring/bell.js';
import { RingConsumer } from '#millrace/ring/ring-consumer.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';
import { RingProducer } from '#millrace/ring/ring-producer.js';
import { createRing } from '#millrace/ring/spsc-ring.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

class Killed extends Error {}

/** Real shared memory that stops its thread before the access with number `lifetime`. */
class MortalMemory extends RingMemory {
  lifetime: number;
  stores = 0;

  constructor(memory: SharedArrayBuffer, lifetime: number) {
    super(memory);
    this.lifetime = lifetime;
  }

  #live(): void {
    if (this.lifetime-- <= 0) throw new Killed();
  }

  override load(word: number): number {
    this.#live();
    return super.load(word);
  }

  override store(word: number, value: number): void {
    this.#live();
    super.store(word, value);
    if (word >= 128) this.stores += 1;
  }

  override put(word: number, value: number): void {
    this.#live();
    super.put(word, value);
  }

  override copyIn(byte: number, part: Uint8Array, start: number, end: number): void {
    this.#live();
    const middle = (start + end) >> 1;
    super.copyIn(byte, part, start, middle);
    this.#live();
    super.copyIn(byte + middle - start, part, middle, end);
  }
}

const ringer = new BellRinger(new RingMemory(createBell('nobody')));
const SIZES = [8, 112, 300, 20, 8];
const payload = (key: number): Buffer => Buffer.alloc(SIZES[key]!, key + 1);
const consumerOptions = { epoch: 1, name: 'killed', messageBytesMax: 1000 };

/** Sends until killed; returns what the consumer finds. */
function killAfter(accesses: number) {
  // The start makes the second message need padding.
  const shared = createRing(1024, 1, 1024 - 64);
  const memory = new MortalMemory(shared, Number.POSITIVE_INFINITY);
  const producer = new RingProducer(memory, ringer, { epoch: 1, queueBytesMax: 0 });
  memory.lifetime = accesses;
  let killed = false;
  try {
    for (const key of SIZES.keys()) producer.send(1, key, [payload(key)]);
  } catch (error) {
    if (!(error instanceof Killed)) throw error;
    killed = true;
  }
  const consumer = new RingConsumer(new RingMemory(shared), ringer, consumerOptions);
  let wrong = 0;
  let received = 0;
  const onMessage = (_kind: number, key: number, bytes: Uint8Array): void => {
    if (key !== received || !payload(key).equals(bytes)) wrong += 1;
    received += 1;
  };
  consumer.drain(onMessage);
  const again = consumer.drain(onMessage);
  return {
    killed,
    received,
    wrong,
    again,
    pending: consumer.pending,
    left: consumer.abandonedBytes,
    commits: memory.stores,
  };
}

t.test('killed before each access in turn', async t => {
  // Commits: message 0, padding, message 1, three records of message 2, messages 3 and 4.
  const messagesOf = [0, 1, 1, 2, 2, 2, 3, 4, 5];
  let [deaths, halfDone, wrong] = [0, 0, 0];
  for (let accesses = 0; ; accesses++) {
    const result = killAfter(accesses);
    if (!result.killed) {
      t.equal(result.received, SIZES.length);
      t.equal(result.left, 0);
      break;
    }
    deaths += 1;
    if (result.left > 0) halfDone += 1;
    const fine = result.received === messagesOf[result.commits] && result.again === 0 && !result.pending;
    if (!fine || result.wrong > 0) wrong += 1;
  }
  t.equal(wrong, 0);
  t.ok(deaths > 50, `${deaths} places to die`);
  t.ok(halfDone > 20, `${halfDone} of them left something unfinished`);
});

t.test('random sends, drains and refusals agree with an array', async t => {
  const seed = Number(process.env.SEED ?? 4711);
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  let [wrong, fulls, queued, cases] = [0, 0, 0, process.env.MILLRACE_TEST_LONG === '1' ? 4000 : 200];
  for (; cases > 0; cases--) {
    const start = [0, 2 ** 31 - 2048, 2 ** 32 - 2048][cases % 3]!;
    const shared = createRing(1024 << randomInteger(random, 3), 1, start);
    const producer = new RingProducer(new RingMemory(shared), ringer, { epoch: 1, queueBytesMax: 3000 });
    const consumer = new RingConsumer(new RingMemory(shared), ringer, {
      ...consumerOptions,
      messageBytesMax: 5000,
    });
    const oracle: { key: number; bytes: Buffer }[] = [];
    const onMessage = (_kind: number, key: number, bytes: Uint8Array): void => {
      const want = oracle.shift();
      if (want?.key !== key || !want.bytes.equals(bytes)) wrong += 1;
    };
    for (let turn = 0; turn < 300; turn++) {
      const bytes = Buffer.alloc(randomInteger(random, random() < 0.9 ? 160 : 3000), turn);
      const cut = randomInteger(random, bytes.byteLength + 1);
      const result = producer.send(1, turn, [bytes.subarray(0, cut), bytes.subarray(cut)]);
      if (result === 'full') fulls += 1;
      else oracle.push({ key: turn, bytes });
      if (result === 'queued') queued += 1;
      if (random() < 0.3) consumer.drain(onMessage, 1 + randomInteger(random, 8));
      if (random() < 0.5) producer.flush();
    }
    while (!producer.flush()) consumer.drain(onMessage);
    consumer.drain(onMessage);
    if (oracle.length > 0 || producer.outstandingBytes !== 0) wrong += 1;
  }
  t.equal(wrong, 0);
  t.ok(fulls > 100 && queued > 100, `${fulls} refused, ${queued} queued`);
});
