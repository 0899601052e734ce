// Promise: two real threads that sleep and wake on their bells lose, repeat, reorder and tear nothing.
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { Bell, BellRinger, createBell } from '#millrace/ring/bell.js';
import { RingConsumer } from '#millrace/ring/ring-consumer.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';
import { RingProducer } from '#millrace/ring/ring-producer.js';
import { createRing, ringDepth } from '#millrace/ring/spsc-ring.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = Number(process.env.SEED ?? 20_261_120);
const MESSAGES = process.env.MILLRACE_TEST_LONG === '1' ? 2_000_000 : 200_000;

/** Mostly short, some at the longest record, some chains, a few longer than the ring. */
function messageBytes(random: () => number): number {
  const choice = random();
  if (choice < 0.97) return randomInteger(random, 120);
  if (choice < 0.985) return 2032 - 8 + randomInteger(random, 16);
  return randomInteger(random, choice < 0.999 ? 6000 : 40_000);
}

/** First and last words and the length depend on the message; the bytes between repeat its number. */
function fill(bytes: Buffer, key: number): Buffer {
  bytes.fill(key & 0xff);
  if (bytes.byteLength >= 8) {
    bytes.writeUInt32LE(Math.imul(key, 0x9e3779b1) >>> 0, 0);
    bytes.writeUInt32LE(Math.imul(key, 0x85ebca6b) >>> 0, bytes.byteLength - 4);
  }
  return bytes;
}

t.test(`${MESSAGES} messages there and back`, { timeout: 600_000 }, async t => {
  t.comment(`SEED=${SEED}`);
  const there = createRing(16 * 1024, 9, 2 ** 32 - 4096);
  const back = createRing(16 * 1024, 9, 2 ** 31 - 4096);
  const [mainBell, echoBell] = [createBell('main'), createBell('echo')];
  const options = { epoch: 9, name: 'hammer', queueBytesMax: 256 * 1024, messageBytesMax: 64 * 1024 };
  const worker = new Worker(new URL('./ring-echo-thread.js', import.meta.url), {
    workerData: { there, back, mainBell, echoBell, options },
  });
  const ended = once(worker, 'exit');
  const bell = new Bell(new RingMemory(mainBell), systemClock);
  worker.once('error', () => bell.close());
  const ringer = new BellRinger(new RingMemory(echoBell));
  const producer = new RingProducer(new RingMemory(there), ringer, options);
  const consumer = new RingConsumer(new RingMemory(back), ringer, options);
  const [sizes, expected] = [seededRandom(SEED), seededRandom(SEED)];
  const pace = seededRandom(SEED + 1);
  let [sent, received, wrong, sleeps] = [0, 0, 0, 0];
  const onMessage = (_kind: number, key: number, bytes: Uint8Array): void => {
    const want = fill(Buffer.alloc(messageBytes(expected)), received);
    if (key !== received || Buffer.compare(want, bytes) !== 0) wrong += 1;
    received += 1;
  };
  while (received < MESSAGES) {
    for (let batch = randomInteger(pace, 64); batch > 0 && sent < MESSAGES; batch--) {
      if (producer.queuedBytes > options.queueBytesMax / 2) break;
      if (producer.send(1, sent, [fill(Buffer.alloc(messageBytes(sizes)), sent)]) === 'full') wrong += 1;
      sent += 1;
    }
    producer.flush();
    if (consumer.drain(onMessage) > 0 || producer.sendable) continue;
    if (sent < MESSAGES && producer.queuedBytes <= options.queueBytesMax / 2 && pace() < 0.7) continue;
    if (producer.outstandingBytes === 0 && ringDepth(new RingMemory(back)).bytes === 0 && sent === received)
      continue;
    sleeps += 1;
    if ((await bell.wait(() => consumer.pending || producer.sendable)) === 'closed') break;
  }
  t.equal(received, MESSAGES);
  t.equal(wrong, 0);
  t.ok(sleeps > 100, 'the thread did sleep');
  t.comment(`${sleeps} sleeps`);
  t.equal(producer.send(2, 0, []), 'ok');
  producer.publish();
  t.strictSame(await ended, [0]);
  t.strictSame(ringDepth(new RingMemory(there)), { bytes: 0, messages: 0 });
});
