/**
 * The echo thread of bench/ring.js: sends back every message that it receives. In `asleep` mode it waits on its bell
 * between messages, in `draining` mode it only drains, until the main thread sends a message of kind CLOSE.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { Bell, BellRinger } from '#millrace/ring/bell.js';
import { RingConsumer } from '#millrace/ring/ring-consumer.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';
import { RingProducer } from '#millrace/ring/ring-producer.js';
import { systemClock } from '#millrace/runtime/clock.js';

const { mode, there, back, mainBell, echoBell, options, closeKind } = workerData;
const bell = new Bell(new RingMemory(echoBell), systemClock);
const ringer = new BellRinger(new RingMemory(mainBell));
const consumer = new RingConsumer(new RingMemory(there), ringer, options);
const producer = new RingProducer(new RingMemory(back), ringer, options);

let open = true;
const onMessage = (kind, key, bytes) => {
  if (kind === closeKind) open = false;
  else if (producer.send(kind, key, [bytes]) !== 'ok') throw new Error('the ring back is full');
};
const pending = () => consumer.pending;

// A wait on a bell does not keep the thread alive; an open port does.
parentPort.ref();
parentPort.on('message', () => {});
parentPort.postMessage('ready');
while (open) {
  if (consumer.drain(onMessage) > 0) producer.publish();
  else if (mode === 'asleep') await bell.wait(pending);
}
parentPort.close();
