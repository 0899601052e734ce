/**
 * What a hop between two threads costs: the round trip of one message main thread → echo thread → main thread over a
 * pair of rings, one message in flight, so that every figure is a latency.
 *
 * asleep:   both threads sleep on their bell (Atomics.waitAsync in an event loop) when the message comes; each trip
 *           holds two wake-ups. A trip starts only when the echo thread has gone to sleep.
 * floor:    two wake-ups by blocking Atomics.wait without ring, bell or event loop: what asleep is to be compared with,
 *           because an idle virtual core can cost tens of microseconds to wake whatever the code does.
 * draining: both threads drain in a loop and never sleep, as a busy thread does; no wake-up at all.
 */
import { Worker } from 'node:worker_threads';
import { Bell, BellRinger, createBell } from '#millrace/ring/bell.js';
import { RingConsumer } from '#millrace/ring/ring-consumer.js';
import { BELL } from '#millrace/ring/ring-descriptor.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';
import { RingProducer } from '#millrace/ring/ring-producer.js';
import { createRing } from '#millrace/ring/spsc-ring.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { commit, machine, parseFlags, percentile, printResult, progress } from './lib/report.js';

const flags = parseFlags({
  usage: 'node bench/ring.js [flags]',
  summary:
    'Round trip of one message between two threads over a pair of rings, both asleep and both draining.',
  flags: {
    json: { type: 'boolean', help: 'print one JSON object' },
    trips: {
      type: 'number',
      default: 20_000,
      min: 1,
      max: 1_000_000,
      integer: true,
      help: 'asleep trips; draining runs ten times as many',
    },
    bytes: { type: 'number', default: 256, min: 0, max: 65_536, integer: true, help: 'payload of a message' },
  },
  examples: ['node bench/ring.js', 'node bench/ring.js --json --trips 100000'],
});
const settings = {
  asleepTrips: flags.trips,
  drainingTrips: flags.trips * 10,
  warmUpTrips: 2000,
  messageBytes: flags.bytes,
  ringBytes: 1024 * 1024,
};
const CLOSE_KIND = 2;
const PROGRESS_STEPS = 10;

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
  const bar = progress('asleep', PROGRESS_STEPS);
  for (let trip = 0; trip < trips; trip++) {
    if (trip % Math.ceil(trips / PROGRESS_STEPS) === 0) bar.step();
    while (!echo.echoSleeps());
    answer.key = trip;
    const startMs = performance.now();
    echo.producer.send(1, trip, payload);
    echo.producer.publish();
    while (echo.consumer.drain(answer.check) === 0) await echo.bell.wait(pending);
    if (trip >= settings.warmUpTrips)
      tripsUs[trip - settings.warmUpTrips] = (performance.now() - startMs) * 1000;
  }
  bar.done();
  await closeEcho(echo);
  return tripsUs;
}

async function draining() {
  const echo = await openEcho('draining');
  const payload = [new Uint8Array(settings.messageBytes)];
  const answer = answerChecker(settings.messageBytes);
  const tripsUs = new Float64Array(settings.drainingTrips);
  const trips = settings.warmUpTrips + settings.drainingTrips;
  const bar = progress('draining', PROGRESS_STEPS);
  for (let trip = 0; trip < trips; trip++) {
    if (trip % Math.ceil(trips / PROGRESS_STEPS) === 0) bar.step();
    answer.key = trip;
    const startMs = performance.now();
    echo.producer.send(1, trip, payload);
    echo.producer.publish();
    while (echo.consumer.drain(answer.check) === 0);
    if (trip >= settings.warmUpTrips)
      tripsUs[trip - settings.warmUpTrips] = (performance.now() - startMs) * 1000;
  }
  bar.done();
  await closeEcho(echo);
  return tripsUs;
}

async function floor() {
  const words = new Int32Array(new SharedArrayBuffer(128));
  const trips = settings.warmUpTrips + settings.asleepTrips;
  const worker = new Worker(new URL('./lib/ring-echo.js', import.meta.url), {
    workerData: { mode: 'floor', words, trips },
  });
  const ended = new Promise((resolve, reject) => worker.once('error', reject).once('exit', resolve));
  await Promise.race([new Promise(resolve => worker.once('message', resolve)), ended]);
  const tripsUs = new Float64Array(settings.asleepTrips);
  for (let trip = 1; trip <= trips; trip++) {
    const startMs = performance.now();
    Atomics.store(words, 0, trip);
    Atomics.notify(words, 0);
    while (Atomics.load(words, 16) !== trip) Atomics.wait(words, 16, trip - 1);
    if (trip > settings.warmUpTrips)
      tripsUs[trip - settings.warmUpTrips - 1] = (performance.now() - startMs) * 1000;
  }
  await ended;
  return tripsUs;
}

const summary = tripsUs => ({ p50: percentile(tripsUs, 50), p99: percentile(tripsUs, 99) });
const results = {
  asleepUs: summary(await asleep()),
  floorUs: summary(await floor()),
  drainingUs: summary(await draining()),
};
printResult(
  { bench: 'ring', commit: commit(), machine: machine(), settings, results },
  {
    json: flags.json,
    table: Object.entries(results).map(([name, { p50, p99 }]) => ({ roundTrip: name, p50, p99 })),
  },
);
