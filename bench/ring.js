/**
 * What a hop between two threads costs: the round trip of one message main thread → echo thread → main thread over a
 * pair of rings, one message in flight, so that every figure is a latency.
 *
 * asleep:   both threads sleep on their bell (Atomics.waitAsync in an event loop) when the message comes; each trip
 *           holds two wake-ups. A trip starts only when the echo thread has gone to sleep.
 * draining: both threads drain in a loop and never sleep, as a busy thread does; no wake-up at all.
 */
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { Bell, BellRinger, createBell } from '#millrace/ring/bell.js';
import { RingConsumer } from '#millrace/ring/ring-consumer.js';
import { BELL } from '#millrace/ring/ring-descriptor.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';
import { RingProducer } from '#millrace/ring/ring-producer.js';
import { createRing } from '#millrace/ring/spsc-ring.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { commit, machine, percentile, printResult, progress } from './lib/report.js';

const { values: flags } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    trips: { type: 'string', default: '20000' },
    bytes: { type: 'string', default: '256' },
  },
});
const settings = {
  asleepTrips: Number(flags.trips),
  drainingTrips: Number(flags.trips) * 10,
  warmUpTrips: 2000,
  messageBytes: Number(flags.bytes),
  ringBytes: 1024 * 1024,
};
for (const [name, value] of Object.entries(settings))
  if (!Number.isInteger(value) || value < 1 || value > 100_000_000)
    throw new Error(`${name} is ${value}, allowed are whole numbers 1 to 100000000`);
const CLOSE_KIND = 2;

async function openEcho(mode) {
  const options = { epoch: 1, name: 'bench', queueBytesMax: 0, messageBytesMax: settings.messageBytes };
  const there = createRing(settings.ringBytes, 1);
  const back = createRing(settings.ringBytes, 1);
  const [mainBell, echoBell] = [createBell('main'), createBell('echo')];
  const worker = new Worker(new URL('./lib/ring-echo.js', import.meta.url), {
    workerData: { mode, there, back, mainBell, echoBell, options, closeKind: CLOSE_KIND },
  });
  const ended = new Promise((resolve, reject) => worker.once('error', reject).once('exit', resolve));
  await Promise.race([new Promise(resolve => worker.once('message', resolve)), ended]);
  const echoBellMemory = new RingMemory(echoBell);
  const ringer = new BellRinger(echoBellMemory);
  return {
    bell: new Bell(new RingMemory(mainBell), systemClock),
    echoSleeps: () => echoBellMemory.load(BELL.sleeping) === 1,
    producer: new RingProducer(new RingMemory(there), ringer, options),
    consumer: new RingConsumer(new RingMemory(back), ringer, options),
    ended,
  };
}

async function closeEcho(echo) {
  echo.producer.send(CLOSE_KIND, 0, []);
  echo.producer.publish();
  await echo.ended;
}

/** Fails the bench when an answer is not the one that is due. */
function answerChecker(expectedBytes) {
  const state = { key: 0 };
  state.check = (_kind, key, bytes) => {
    if (key !== state.key || bytes.byteLength !== expectedBytes) throw new Error(`wrong answer ${key}`);
  };
  return state;
}

async function asleep() {
  const echo = await openEcho('asleep');
  const payload = [new Uint8Array(settings.messageBytes)];
  const answer = answerChecker(settings.messageBytes);
  const pending = () => echo.consumer.pending;
  const tripsUs = new Float64Array(settings.asleepTrips);
  const trips = settings.warmUpTrips + settings.asleepTrips;
  for (let trip = 0; trip < trips; trip++) {
    if (trip % 1000 === 0) progress('asleep', trip / trips);
    while (!echo.echoSleeps());
    answer.key = trip;
    const startMs = performance.now();
    echo.producer.send(1, trip, payload);
    echo.producer.publish();
    while (echo.consumer.drain(answer.check) === 0) await echo.bell.wait(pending);
    if (trip >= settings.warmUpTrips)
      tripsUs[trip - settings.warmUpTrips] = (performance.now() - startMs) * 1000;
  }
  await closeEcho(echo);
  return tripsUs;
}

async function draining() {
  const echo = await openEcho('draining');
  const payload = [new Uint8Array(settings.messageBytes)];
  const answer = answerChecker(settings.messageBytes);
  const tripsUs = new Float64Array(settings.drainingTrips);
  const trips = settings.warmUpTrips + settings.drainingTrips;
  for (let trip = 0; trip < trips; trip++) {
    if (trip % 10_000 === 0) progress('draining', trip / trips);
    answer.key = trip;
    const startMs = performance.now();
    echo.producer.send(1, trip, payload);
    echo.producer.publish();
    while (echo.consumer.drain(answer.check) === 0);
    if (trip >= settings.warmUpTrips)
      tripsUs[trip - settings.warmUpTrips] = (performance.now() - startMs) * 1000;
  }
  await closeEcho(echo);
  return tripsUs;
}

const summary = tripsUs => ({ p50: percentile([...tripsUs], 50), p99: percentile([...tripsUs], 99) });
const results = { asleepUs: summary(await asleep()), drainingUs: summary(await draining()) };
printResult(
  { bench: 'ring', commit: commit(), machine: machine(), settings, results },
  {
    json: flags.json,
    table: Object.entries(results).map(([name, { p50, p99 }]) => ({ roundTrip: name, p50, p99 })),
  },
);
