/**
 * The rows of bench/route.js about KV events: recorded batches of mock engines through decoder, translation, hashing and
 * index on one thread; and the same through a socket, with the time from sending to being visible.
 */
import { fork } from 'node:child_process';
import { on } from 'node:events';
import { Worker } from 'node:worker_threads';
import { IndexApplier } from '#millrace/router/events/applier.js';
import { ApproximateResidency } from '#millrace/router/events/approximate.js';
import { createEventDecoder } from '#millrace/router/events/decoder.js';
import { Ingest } from '#millrace/router/events/ingest.js';
import { createNativeDecoder } from '#millrace/router/events/native-decoder.js';
import { createHashers } from '#millrace/router/hashing/block-hasher.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { monotonicSeconds, readDouble, STAMP_AT } from './event-source.js';
import { SMALL_BLOCK_SIZE } from './event-stream.js';
import { openIndex } from './index-rows.js';
import { percentile } from './report.js';

/** Longest wait for a batch after the last one that was sent. */
const SILENCE_MS = 5000;
/** From one look for the end to the next: rare enough not to be in the figures. */
const LOOK_MS = 50;
const SUBSCRIBE_MS = 200;
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

/** Applies all frames; returns how many blocks the applier has stored and removed since its start. */
function applyAll(applier, frames) {
  for (const { holder, payload } of frames) applier.apply(holder, payload);
  return applier.counters.storedBlocks + applier.counters.removedBlocks;
}

/**
 * Has the system commit the memory, by applying and forgetting all frames: the first batches of a new index touch all of
 * it, and would be all that a percentile tells. Returns the blocks, and the milliseconds of the first batch.
 */
function warmUp({ applier, index }, frames, facts) {
  const holders = new Set(frames.map(frame => frame.holder));
  for (const holder of holders) applier.addHolder(holder, facts);
  const startedS = monotonicSeconds();
  applyAll(applier, frames.slice(0, 1));
  const firstMs = (monotonicSeconds() - startedS) * 1000;
  const blocks = applyAll(applier, frames.slice(1));
  for (const holder of holders) applier.clear(holder);
  while (index.writer.sweep(100_000));
  return { blocks, firstMs };
}

/** Blocks in stores and removals per second of CPU of one thread, once the system has committed the memory. */
export async function applyRow(addon, settings, frames) {
  const opened = await openApplier(addon, settings);
  const { applier, index } = opened;
  const before = warmUp(opened, frames, FACTS).blocks;
  const cpu = process.cpuUsage();
  const blocks = applyAll(applier, frames) - before;
  const { user, system } = process.cpuUsage(cpu);
  index.close();
  return { applyBlocksPerSecond: blocks / ((user + system) / 1e6) };
}

/** A publisher over libzmq in another thread, at a rate of blocks. */
function publisherThread(frames, blocksPerSecond) {
  const thread = new Worker(new URL('./event-source.js', import.meta.url), {
    workerData: {
      frames: frames.map(({ payload, blocks }) => ({ bytes: payload, blocks })),
      blocksPerSecond,
    },
  });
  const heard = messagesOf(thread);
  return {
    endpoint: () => heard.next(),
    // A subscription has no answer here: time enough for one on loopback.
    subscribed: () => new Promise(resolve => setTimeout(resolve, SUBSCRIBE_MS)),
    begin: () => thread.postMessage('begin'),
    async end() {
      thread.postMessage('end');
      await new Promise(resolve => thread.once('exit', resolve));
    },
  };
}

/** A publisher of bytes made before, in another process. */
function senderProcess(frames) {
  const child = fork(new URL('./zmtp-sender.js', import.meta.url), { serialization: 'advanced' });
  const heard = messagesOf(child);
  child.send(frames.map(({ payload }) => payload));
  return {
    endpoint: () => heard.next(),
    subscribed: () => heard.next(),
    begin: () => child.send('begin'),
    async end() {
      child.send('end');
      await new Promise(resolve => child.once('exit', resolve));
    },
  };
}

/** What a thread or a process says, one by one; rejects when it fails. */
function messagesOf(emitter) {
  const heard = on(emitter, 'message');
  const failed = new Promise((_, reject) => {
    emitter.once('error', reject);
    emitter.once('exit', code => reject(new Error(`a publisher has ended with ${code}`)));
  });
  failed.catch(() => {});
  return { next: async () => (await Promise.race([heard.next(), failed])).value[0] };
}

/** Takes the batches of one publisher until all are applied. */
async function throughSocket(addon, settings, frames, blockSize, publisher) {
  const opened = await openApplier(addon, settings);
  const { applier, index } = opened;
  const facts = { ...FACTS, blockSize };
  const warm = warmUp(opened, frames, facts);
  const lagsMs = new Float64Array(frames.length);
  let taken = 0;
  let firstS = 0;
  let lastS = 0;
  let cpu = null;
  const sink = {
    addHolder: (holder, facts) => applier.addHolder(holder, facts),
    removeHolder: holder => applier.removeHolder(holder),
    clear: holder => applier.clear(holder),
    route: prompt => applier.route(prompt),
    tend: nowMs => applier.tend(nowMs),
    apply: (holder, payload) => {
      if (taken === 0) {
        firstS = monotonicSeconds();
        cpu = process.cpuUsage();
      }
      applier.apply(holder, payload);
      const nowS = monotonicSeconds();
      lagsMs[taken] = (nowS - readDouble(payload, STAMP_AT)) * 1000;
      taken += 1;
      if (taken === frames.length) {
        lastS = nowS;
        cpu = process.cpuUsage(cpu);
      }
    },
  };
  const ingest = new Ingest({
    sink,
    limits: SOURCE_LIMITS,
    clock: systemClock,
    random: seededRandom(settings.seed),
    logger: createLogger({ level: 'warn', format: 'text', write: line => process.stderr.write(line) }),
  });
  ingest.addWorker(0, facts, { publish: await publisher.endpoint(), replay: null, topic: '' });
  await publisher.subscribed();
  publisher.begin();
  for (let before = -1; taken < frames.length; ) {
    if (taken === before) throw new Error(`${taken} of ${frames.length} batches came`);
    before = taken;
    for (let waitedMs = 0; waitedMs < SILENCE_MS && taken < frames.length; waitedMs += LOOK_MS)
      await new Promise(resolve => setTimeout(resolve, LOOK_MS));
  }
  const { gaps } = ingest.counts();
  const { storedBlocks, removedBlocks } = applier.counters;
  await ingest.close();
  await publisher.end();
  index.close();
  const blocks = frames.reduce((sum, frame) => sum + frame.blocks, 0);
  const applied = storedBlocks + removedBlocks - warm.blocks;
  if (gaps > 0 || applied !== blocks) throw new Error(`${gaps} gaps; ${applied} of ${blocks} blocks applied`);
  return {
    firstMs: warm.firstMs,
    lagsMs,
    seconds: lastS - firstS,
    cpuSeconds: (cpu.user + cpu.system) / 1e6,
    blocks,
  };
}

/** Lag at the rate of the settings, and blocks per second when the socket is kept full. */
export async function socketRow(addon, settings, frames) {
  const { eventBlocksPerSecond } = settings;
  const through = source => throughSocket(addon, settings, frames, FACTS.blockSize, source);
  const paced = await through(publisherThread(frames, eventBlocksPerSecond));
  const full = await through(senderProcess(frames));
  return {
    firstBatchMs: paced.firstMs,
    applyLagP50Ms: percentile(paced.lagsMs, 50),
    applyLagP99Ms: percentile(paced.lagsMs, 99),
    achievedBlocksPerSecond: paced.blocks / paced.seconds,
    socketBlocksPerSecond: full.blocks / full.seconds,
  };
}

/** Messages of one block each per second through one socket, into the index; and per second of this process's CPU. */
export async function smallMessagesRow(addon, settings, frames) {
  const { seconds, cpuSeconds } = await throughSocket(
    addon,
    settings,
    frames,
    SMALL_BLOCK_SIZE,
    senderProcess(frames),
  );
  return { perSecond: frames.length / seconds, perCpuSecond: frames.length / cpuSeconds };
}
