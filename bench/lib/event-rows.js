/**
 * The rows of bench/route.js about KV events: recorded batches of mock engines through decoder, translation, hashing and
 * index on one thread; and the same through a real ZMQ socket, with the time from sending to being visible.
 */
import { Worker } from 'node:worker_threads';
import { IndexApplier } from '#millrace/router/events/applier.js';
import { ApproximateResidency } from '#millrace/router/events/approximate.js';
import { createEventDecoder } from '#millrace/router/events/decoder.js';
import { Ingest } from '#millrace/router/events/ingest.js';
import { createNativeDecoder } from '#millrace/router/events/native-decoder.js';
import { loadZeroMq } from '#millrace/router/events/zmq-source.js';
import { createHashers } from '#millrace/router/hashing/block-hasher.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { monotonicSeconds, STAMP_AT } from './event-source.js';
import { openIndex } from './index-rows.js';
import { percentile } from './report.js';

/** Longest wait for a batch after the last one that was sent. */
const SILENCE_MS = 5000;
const FACTS = { generation: 1, blockSize: 64, totalBlocks: null, hasEvents: true, name: 'bench' };
const MIB = 1024 ** 2;
const SOURCE_LIMITS = {
  replayDeadlineMs: 1000,
  eventBytesMax: 64 * MIB,
  waitingBatchesMax: 1024,
  waitingBytesMax: 64 * MIB,
  replayBatchesMax: 1024,
  replayBytesMax: 64 * MIB,
};

/** What went wrong is an error of the bench: every figure would be of something else. */
const failingLog = {
  warn: (message, fields) => {
    throw new Error(`${message} ${JSON.stringify(fields)}`);
  },
};

/** Everything between a decoded socket message and the index. */
async function openApplier(addon, settings) {
  const index = openIndex(addon, settings);
  const random = seededRandom(settings.seed);
  const applier = new IndexApplier({
    writer: index.writer,
    decoder: addon === null ? await createEventDecoder() : createNativeDecoder(addon),
    hashers: await createHashers(addon),
    residency: new ApproximateResidency({ writer: index.writer, random }),
    log: failingLog,
    now: () => systemClock.nowMs(),
    onBlockSize: () => {},
  });
  return { applier, index };
}

/** Blocks in stores and removals per second of CPU of one thread, once the system has committed the memory. */
export async function applyRow(addon, settings, frames) {
  const { applier, index } = await openApplier(addon, settings);
  const holders = new Set(frames.map(frame => frame.holder));
  for (const holder of holders) applier.addHolder(holder, FACTS);
  const applyAll = () => {
    for (const { holder, payload } of frames) applier.apply(holder, payload);
    return applier.counters.storedBlocks + applier.counters.removedBlocks;
  };
  const before = applyAll();
  for (const holder of holders) applier.clear(holder);
  while (index.writer.sweep(100_000));
  const cpu = process.cpuUsage();
  const blocks = applyAll() - before;
  const { user, system } = process.cpuUsage(cpu);
  index.close();
  return { applyBlocksPerSecond: blocks / ((user + system) / 1e6) };
}

/** Publishes the batches of one worker from another thread and takes them until all are applied. */
async function throughSocket(addon, settings, frames, blocksPerSecond) {
  const { applier, index } = await openApplier(addon, settings);
  const total = frames.reduce((sum, { blocks }) => sum + blocks, 0);
  const lagsMs = [];
  let firstS = 0;
  let lastS = 0;
  let heard = () => {};
  const sink = {
    addHolder: (holder, facts) => applier.addHolder(holder, facts),
    removeHolder: holder => applier.removeHolder(holder),
    clear: holder => applier.clear(holder),
    route: prompt => applier.route(prompt),
    tend: nowMs => applier.tend(nowMs),
    apply: (holder, payload) => {
      applier.apply(holder, payload);
      lastS = monotonicSeconds();
      if (lagsMs.length === 0) firstS = lastS;
      const sentS = new DataView(payload.buffer, payload.byteOffset).getFloat64(STAMP_AT);
      lagsMs.push((lastS - sentS) * 1000);
      heard();
    },
  };
  const ingest = new Ingest({
    sink,
    zeroMq: await loadZeroMq(),
    limits: SOURCE_LIMITS,
    clock: systemClock,
    random: seededRandom(settings.seed),
    logger: createLogger({ level: 'warn', format: 'text', write: line => process.stderr.write(line) }),
  });
  const source = new Worker(new URL('./event-source.js', import.meta.url), {
    workerData: {
      frames: frames.map(({ payload, blocks }) => ({ bytes: payload, blocks })),
      blocksPerSecond,
    },
  });
  const message = () =>
    new Promise((resolve, reject) => source.once('message', resolve).once('error', reject));
  ingest.addWorker(0, FACTS, { publish: await message(), replay: null, topic: '' });
  // A subscription has no answer: the first batch that comes shows that it is there.
  await new Promise(resolve => setTimeout(resolve, 200));
  source.postMessage('begin');
  await new Promise((resolve, reject) => {
    let timer;
    const wait = () => {
      clearTimeout(timer);
      if (lagsMs.length === frames.length) resolve();
      else
        timer = setTimeout(
          () => reject(new Error(`${lagsMs.length} of ${frames.length} batches came`)),
          SILENCE_MS,
        );
    };
    heard = wait;
    wait();
  });
  source.postMessage('end');
  await new Promise(resolve => source.once('exit', resolve));
  const { gaps } = ingest.counts();
  await ingest.close();
  index.close();
  if (gaps > 0) throw new Error(`${gaps} gaps in the events`);
  return { lagsMs, seconds: lastS - firstS, blocks: total };
}

/** Lag at the rate of the settings, and messages per second when the socket is kept full. */
export async function socketRow(addon, settings, frames) {
  const paced = await throughSocket(addon, settings, frames, settings.eventBlocksPerSecond);
  const full = await throughSocket(addon, settings, frames, null);
  return {
    applyLagP99Ms: percentile(paced.lagsMs, 99),
    offeredBlocksPerSecond: settings.eventBlocksPerSecond,
    achievedBlocksPerSecond: paced.blocks / paced.seconds,
    socketMessagesPerSecond: full.lagsMs.length / full.seconds,
    socketBlocksPerSecond: full.blocks / full.seconds,
  };
}
