/**
 * The prefix index under load, in figures (R4). A row each for:
 *
 * look-up:    one call for all candidates while the writer thread applies events all the time; each call is timed.
 * throughput: look-ups and events without a clock between them, counted in block-ops as Dynamo's mooncake_bench counts
 *             them: blocks in stores and removals plus blocks in look-ups.
 * apply:      blocks stored and removed per second on one thread, with engine hashes, in batches.
 * memory:     unique blocks stored far past the cap: bytes per block, and how resident memory grows after the fill.
 */
import { readFileSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import {
  createIndexMemory,
  SharedIndexReader,
  SharedIndexWriter,
} from '#millrace/router/index/shared-index.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { allocateShared } from '#millrace/runtime/shared-memory.js';
import { chainOf, fill } from './lib/index-load.js';
import { commit, machine, median, parseFlags, percentile, printResult, progress } from './lib/report.js';

const MIB = 1024 ** 2;
const flags = parseFlags({
  usage: 'node bench/route.js [flags]',
  summary:
    'Prefix index: look-up latency with an active writer, block-ops per core, event apply, memory at the cap.',
  flags: {
    json: { type: 'boolean', help: 'print one JSON object' },
    'index-mib': {
      type: 'number',
      default: 256,
      min: 2,
      max: 1024,
      integer: true,
      help: 'size of the index',
    },
    blocks: { type: 'number', default: 188, min: 1, max: 4096, integer: true, help: 'blocks of a prompt' },
    holders: {
      type: 'number',
      default: 8,
      min: 1,
      max: 4096,
      integer: true,
      help: 'candidates of a look-up',
    },
    lookups: {
      type: 'number',
      default: 200_000,
      min: 1000,
      max: 10_000_000,
      integer: true,
      help: 'timed look-ups',
    },
    'unique-blocks': {
      type: 'number',
      default: 10_000_000,
      min: 10_000,
      max: 1_000_000_000,
      integer: true,
      help: 'blocks stored in the memory row',
    },
    repeats: {
      type: 'number',
      default: 5,
      min: 1,
      max: 100,
      integer: true,
      help: 'runs of each row; the median counts',
    },
  },
  examples: ['node bench/route.js', 'node bench/route.js --json --holders 64'],
});
const settings = {
  indexBytes: flags.indexMib * MIB,
  blocks: flags.blocks,
  holders: flags.holders,
  lookups: flags.lookups,
  uniqueBlocks: flags.uniqueBlocks,
  repeats: flags.repeats,
  batchBlocks: 32,
  predictionsMax: 16_384,
  warmUpLookups: 20_000,
  seed: 42,
};
const addon = loadAddon();
if (addon === null) throw new Error('the bench of the prefix index needs the addon');
const memoryOf = bytes =>
  createIndexMemory({ bytes, predictionsMax: settings.predictionsMax, random: seededRandom(settings.seed) });
// As in the data plane: the arrays of look-ups lie in shared memory and are the same each time.
const shared = words => new Uint32Array(allocateShared(words * 4, 'look-up arrays'), 0, words);
const holders = shared(settings.holders);
holders.forEach((_, holder) => {
  holders[holder] = holder;
});

function residentBytes() {
  const kib = /VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'));
  return Number(kib?.[1] ?? Number.NaN) * 1024;
}

/** An index filled to nine tenths, with its writer at work in another thread. */
async function loaded() {
  const memory = memoryOf(settings.indexBytes);
  const worker = new Worker(new URL('./lib/index-load.js', import.meta.url), {
    workerData: { memory, settings },
  });
  const prompts = await new Promise((resolve, reject) =>
    worker.once('message', resolve).once('error', reject),
  );
  return { worker, reader: new SharedIndexReader(addon, memory), prompts };
}

async function stopped({ worker, reader }) {
  const applied = new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
  worker.postMessage('stop');
  const result = await applied;
  await worker.terminate();
  reader.close();
  return result;
}

/** The sequence hashes of random prompts that are in the index, whole or in part. */
function queries(prompts, count) {
  const random = seededRandom(settings.seed + 1);
  return Array.from({ length: count }, () => chainOf(Math.floor(random() * prompts), settings.blocks));
}

async function lookupRow() {
  const index = await loaded();
  const asked = queries(index.prompts, 20_000);
  const depths = shared(settings.holders * 2);
  // As when the prompt has just been hashed: its hashes are in the cache, the index is not.
  const hashes = shared(settings.blocks * 2);
  const look = () => index.reader.lookup(hashes, settings.blocks, holders, settings.holders, depths);
  for (let n = 0; n < settings.warmUpLookups; n++) {
    hashes.set(asked[n % asked.length]);
    look();
  }
  const timesUs = new Float64Array(settings.lookups);
  let retries = 0;
  for (let n = 0; n < settings.lookups; n++) {
    hashes.set(asked[(n + 7) % asked.length]);
    const startMs = performance.now();
    retries += look();
    timesUs[n] = (performance.now() - startMs) * 1000;
  }
  let clockUs = 0;
  for (let n = 0; n < 1000; n++) clockUs -= (performance.now() - performance.now()) * 1000;
  const cpu = process.cpuUsage();
  const startMs = performance.now();
  for (let n = 0; n < settings.lookups; n++) {
    hashes.set(asked[(n + 11) % asked.length]);
    look();
  }
  const seconds = (performance.now() - startMs) / 1000;
  const { user, system } = process.cpuUsage(cpu);
  const writer = await stopped(index);
  const lookupsPerSecond = settings.lookups / seconds;
  return {
    p50Us: percentile(timesUs, 50),
    p99Us: percentile(timesUs, 99),
    p999Us: percentile(timesUs, 99.9),
    clockUs: clockUs / 1000,
    meanUs: (seconds / settings.lookups) * 1e6,
    retries,
    undercounts: index.reader.undercounts,
    writerBlocksPerSecond: writer.blocksPerSecond,
    lookupsPerSecond,
    blockOpsPerCore:
      (settings.lookups * settings.blocks + writer.blocksPerSecond * seconds) / ((user + system) / 1e6),
  };
}

function applyRow() {
  const memory = memoryOf(settings.indexBytes);
  const writer = new SharedIndexWriter(addon, memory);
  const result = fill(writer, settings, {
    chains: Math.floor((writer.stats().blocksMax * 0.8) / settings.blocks),
    remove: true,
  });
  writer.close();
  return result;
}

/** Stores blocks past the cap; resident memory must not grow once the index is full. */
function memoryRow() {
  const before = residentBytes();
  const memory = memoryOf(settings.indexBytes);
  const writer = new SharedIndexWriter(addon, memory);
  const { blocksMax } = writer.stats();
  const chains = Math.ceil(settings.uniqueBlocks / settings.blocks);
  const samples = [];
  const bar = progress('memory', 10);
  for (let part = 0; part < 10; part++) {
    fill(writer, settings, {
      first: Math.floor((chains * part) / 10),
      chains: Math.ceil(chains / 10),
      remove: false,
    });
    samples.push({ stored: writer.stats().stored, residentBytes: residentBytes() });
    bar.step();
  }
  bar.done();
  const full = samples.filter(({ stored }) => stored > blocksMax * 1.5);
  const [first, last] = [full[0], full.at(-1)];
  const { evicted, refused, blocks } = writer.stats();
  writer.close();
  return {
    blocksMax,
    blocks,
    stored: last?.stored,
    evicted,
    refused,
    bytesPerBlock: memory.byteLength / blocksMax,
    residentBytes: (last?.residentBytes ?? Number.NaN) - before,
    growthBytesPerBlockAfterFill:
      first === undefined || first === last
        ? null
        : (last.residentBytes - first.residentBytes) / (last.stored - first.stored),
  };
}

/** The median of every figure over the repeats. */
async function repeated(label, row) {
  const runs = [];
  const bar = progress(label, settings.repeats);
  for (let n = 0; n < settings.repeats; n++) {
    runs.push(await row());
    bar.step();
  }
  bar.done();
  return Object.fromEntries(Object.keys(runs[0]).map(name => [name, median(runs.map(run => run[name]))]));
}

// Before the others, whose freed memory would blur what it reads of the process.
const memoryFigures = memoryRow();
const results = {
  lookup: await repeated('look-up', lookupRow),
  apply: await repeated('apply', applyRow),
  memory: memoryFigures,
};
printResult(
  { bench: 'route', commit: commit(), machine: machine(), settings, results },
  {
    json: flags.json,
    table: Object.entries(results).flatMap(([row, figures]) =>
      Object.entries(figures).map(([figure, value]) => ({ row, figure, value })),
    ),
  },
);
