/** The other thread of the hammer test: sends back what comes, through its own queue, until a message of kind 2. */
import { parentPort, workerData } from 'node:worker_threads';
import { Bell, BellRinger } from '#millrace/ring/bell.js';
import { RingConsumer } from '#millrace/ring/ring-consumer.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';
import { RingProducer } from '#millrace/ring/ring-producer.js';
import { systemClock } from '#millrace/runtime/clock.js';

const { there, back, mainBell, echoBell, options } = workerData;
const bell = new Bell(new RingMemory(echoBell), systemClock);
const ringer = new BellRinger(new RingMemory(mainBell));
const consumer = new RingConsumer(new RingMemory(there), ringer, options);
const producer = new RingProducer(new RingMemory(back), ringer, options);
const pending = (): boolean => consumer.pending || producer.sendable;
const port = parentPort!;
port.on('message', () => {});

let open = true;
const onMessage = (kind: number, key: number, bytes: Uint8Array): void => {
  if (kind === 2) open = false;
  else if (producer.send(kind, key, [Buffer.from(bytes)]) === 'full')
    throw new Error('the queue back is full');
};
while (open || producer.queuedBytes > 0) {
  // A queue that is over half its limit takes no more: the pressure goes back through the ring there.
  const taken = producer.queuedBytes < options.queueBytesMax / 2 ? consumer.drain(onMessage, 64) : 0;
  const empty = producer.flush();
  if (taken > 0) continue;
  if (empty) await bell.wait(pending);
  else await bell.wait(() => producer.sendable);
}
port.close();
