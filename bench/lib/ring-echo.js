/**
 * The echo thread of bench/ring.js: sends back every message that it receives. In `asleep` mode it waits on its bell
 * between messages, in `draining` mode it only drains, until the main thread sends a message of kind CLOSE. In
 * `floor` mode there is no ring: it answers a counter by a blocking wait, the least that two wake-ups cost here.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { Bell, BellRinger } from '#millrace/ring/bell.js';
import { RingConsumer } from '#millrace/ring/ring-consumer.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';
import { RingProducer } from '#millrace/ring/ring-producer.js';
import { systemClock } from '#millrace/runtime/clock.js';

/** Answers turns 1 to `trips` with a bare blocking wait on word 0 and a notify on word 16. */
function answerTurns(words, trips) {
  for (let turn = 1; turn <= trips; turn++) {
    while (Atomics.load(words, 0) !== turn) Atomics.wait(words, 0, turn - 1);
    Atomics.store(words, 16, turn);
    Atomics.notify(words, 16);
  }
}

if (workerData.mode === 'floor') {
  parentPort.postMessage('ready');
  answerTurns(workerData.words, workerData.trips);
} else await echo(workerData);

async function echo({ mode, there, back, mainBell, echoBell, options, closeKind }) {
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
}
