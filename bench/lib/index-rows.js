/**
 * The rows of bench/route.js about the prefix index and the decision, each for the shared index of the addon and for the
 * one without. The shared index is read while a writer thread changes it; the other one has no second thread.
 */
import { readFileSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { createDecider } from '#millrace/router/decide.js';
import { createHashers } from '#millrace/router/hashing/block-hasher.js';
import {
  createIndexMemory,
  SharedIndexReader,
  SharedIndexWriter,
} from '#millrace/router/index/shared-index.js';
import { createSimpleIndex } from '#millrace/router/index/simple-index.js';
import { createLedgerMemory, Ledger } from '#millrace/router/ledger.js';
import { SLOT_STATE } from '#millrace/router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '#millrace/router/load-table.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { allocateShared } from '#millrace/runtime/shared-memory.js';
import { chainOf, eventsOf, fill, mostDepth, storeAll } from './index-load.js';
import { percentile, progress } from './report.js';

const MODEL = 'bench';
const TIER_DEVICE = 0;
/** Prompts of the decision row; reservations that are held at one time; virtual time from one decision to the next. */
const PROMPTS = 1000;
const HELD = 256;
const GAP_MS = 10;
/** Blocks of the index without addon: as many as fit in memory beside everything else. */
const SIMPLE_BLOCKS_MAX = 500_000;

/** Words over shared memory, as pool threads have them: the addon binds them once. */
const sharedWords = words => new Uint32Array(allocateShared(words * 4, 'bench'), 0, words);

/** Memory for a shared index of the settings' size. */
export const memoryOf = ({ indexBytes, seed }, bytes = indexBytes) =>
  createIndexMemory({ bytes, predictionsMax: 16_384, random: seededRandom(seed) });

/** An index with its writer on this thread. */
export function openIndex(addon, settings) {
  if (addon === null) {
    const index = createSimpleIndex({ blocksMax: SIMPLE_BLOCKS_MAX, predictionsMax: 16_384 });
    return { writer: index, reader: index, memory: null, close: () => {} };
  }
  const memory = memoryOf(settings);
  const writer = new SharedIndexWriter(addon, memory);
  const reader = new SharedIndexReader(addon, memory);
  const close = () => {
    reader.close();
    writer.close();
  };
  return { writer, reader, memory, close };
}

/** A filled index. With the addon its writer is at work in another thread until `stop`. */
async function loaded(addon, settings, prepare = () => {}) {
  const index = openIndex(addon, settings);
  for (let holder = 0; holder < settings.workers; holder++) index.writer.addHolder(holder);
  prepare(index.writer);
  const load = { blocks: settings.blocks, batchBlocks: settings.batchBlocks, holders: settings.workers };
  if (addon === null) {
    const prompts = Math.floor((SIMPLE_BLOCKS_MAX * 0.5) / settings.blocks);
    for (let prompt = 0; prompt < prompts; prompt++) storeAll(index.writer, eventsOf(prompt, load));
    return { reader: index.reader, prompts, load, stop: async () => {} };
  }
  index.writer.close();
  const worker = new Worker(new URL('./index-load.js', import.meta.url), {
    workerData: { memory: index.memory, settings: load },
  });
  const message = () =>
    new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
  const prompts = await message();
  const stop = async () => {
    const stopped = message();
    worker.postMessage('stop');
    await stopped;
    await worker.terminate();
    index.reader.close();
  };
  return { reader: index.reader, prompts, load, stop };
}

/** Look-ups of one prompt at all workers, each timed; its hashes are in the cache as if just made, the index is not. */
export async function lookupRow(addon, settings) {
  const index = await loaded(addon, settings);
  const { blocks, workers, lookups, seed } = settings;
  const random = seededRandom(seed + 1);
  const asked = Array.from({ length: 20_000 }, () => Math.floor(random() * index.prompts));
  const chains = asked.map(prompt => chainOf(prompt, blocks));
  const holders = sharedWords(workers);
  for (let holder = 0; holder < workers; holder++) holders[holder] = holder;
  const depths = sharedWords(2 * workers);
  const hashes = sharedWords(2 * blocks);
  const timesUs = new Float64Array(lookups);
  let retries = 0;
  let overcounts = 0;
  const warmUp = Math.ceil(lookups / 10);
  for (let n = -warmUp; n < lookups; n++) {
    const at = (n + warmUp) % asked.length;
    hashes.set(chains[at]);
    const startMs = performance.now();
    const repeated = index.reader.lookup(hashes, blocks, holders, workers, depths);
    const timeUs = (performance.now() - startMs) * 1000;
    for (let holder = 0; holder < workers; holder++)
      if (depths[holder] > 0 && depths[holder] > mostDepth(asked[at], holder, index.load)) overcounts++;
    if (n < 0) continue;
    timesUs[n] = timeUs;
    retries += repeated;
  }
  await index.stop();
  const undercounts = addon === null ? 0 : index.reader.undercounts;
  return {
    lookupP50Us: percentile(timesUs, 50),
    lookupP99Us: percentile(timesUs, 99),
    retries,
    overcounts,
    undercounts,
  };
}

const workerView = slot => ({
  slot,
  generation: 1,
  url: '',
  engine: 'vllm',
  models: [{ id: MODEL, contextLength: null }],
  blockSize: 64,
  totalBlocks: 16_384,
  returnsTokenIds: true,
  foreignIds: [],
});

/** Prompts of token ids, and what of them is in the caches: a random part of each, at one worker. */
function decisionPrompts(hasher, { promptTokens, seed }) {
  const random = seededRandom(seed + 2);
  return Array.from({ length: PROMPTS }, () => {
    const ids = Uint32Array.from({ length: promptTokens }, () => random() * 128_000);
    const hashes = new Uint32Array(2 * Math.floor(promptTokens / 64));
    const count = hasher.hash(ids, 64, null, hashes);
    return { ids, hashes, cached: Math.floor(random() * (count + 1)), at: random() };
  });
}

/** The decider of a fleet of ready workers, with the ledger that it reserves in. */
function routerOf(addon, workers, random, prefixes, nowMs) {
  const loadTable = new LoadTable(createLoadMemory(workers));
  const views = Array.from({ length: workers }, (_, slot) => workerView(slot));
  for (const { slot } of views) loadTable.install(slot, 1, SLOT_STATE.ready);
  const memory = createLedgerMemory(2 * HELD);
  const ledger = new Ledger({ memory, loadTable, partition: { index: 0, count: 1 }, addon });
  const decider = createDecider({
    loadTable,
    ledger,
    random,
    nowMs,
    ownerEpoch: 1,
    prefixes,
    routed: null,
  });
  return { decider, ledger, views };
}

/** Whole decisions of `ttft`: hash the prompt's ids, look up, score all workers, reserve. */
export async function decisionRow(addon, settings) {
  const { workers, promptTokens, decisions, seed } = settings;
  const hasher = (await createHashers(addon)).of('', '');
  const prompts = decisionPrompts(hasher, settings);
  const index = await loaded(addon, settings, writer => {
    for (const { hashes, cached, at } of prompts)
      if (cached > 0)
        writer.store(
          Math.floor(at * workers),
          null,
          hashes.subarray(0, 2 * cached),
          cached,
          TIER_DEVICE,
          null,
        );
  });
  const random = seededRandom(seed + 3);
  let nowMs = 0;
  const { decider, ledger, views } = routerOf(addon, workers, random, index.reader, () => nowMs);
  const held = new Float64Array(HELD);
  // As when the prompt has just been tokenized.
  const ids = new Uint32Array(promptTokens);
  const hashes = sharedWords(2 * Math.floor(promptTokens / 64));
  const hashUs = new Float64Array(decisions);
  const decisionUs = new Float64Array(decisions);
  const warmUp = Math.ceil(decisions / 5);
  for (let n = -warmUp; n < decisions; n++) {
    ids.set(prompts[Math.floor(random() * PROMPTS)].ids);
    nowMs += GAP_MS;
    const startMs = performance.now();
    const count = hasher.hash(ids, 64, null, hashes);
    const hashedMs = performance.now();
    const placed = decider.decide(
      {
        model: MODEL,
        promptTokens,
        excludedSlots: [],
        outputTokens: null,
        blocks: [{ hashes, count, blockSize: 64 }],
      },
      'ttft',
      views,
    );
    const endMs = performance.now();
    if (typeof placed === 'string') throw new Error(`a decision failed: ${placed}`);
    const at = (n + warmUp) % HELD;
    if (held[at] > 0) ledger.release(held[at]);
    held[at] = placed.reservation;
    ledger.firstToken(held[(at + HELD / 2) % HELD]);
    if (n < 0) continue;
    hashUs[n] = (hashedMs - startMs) * 1000;
    decisionUs[n] = (endMs - startMs) * 1000;
  }
  await index.stop();
  return {
    hashUs: percentile(hashUs, 50),
    decisionP50Us: percentile(decisionUs, 50),
    decisionP99Us: percentile(decisionUs, 99),
  };
}

/**
 * Requests and events of mock engines on one thread: blocks looked up, stored and removed, per second of CPU. All of it
 * comes twice: the first time the system commits the memory.
 */
export function throughputRow(addon, settings, stream) {
  const { workers } = settings;
  const index = openIndex(addon, settings);
  const holders = sharedWords(workers);
  for (let holder = 0; holder < workers; holder++) holders[holder] = holder;
  for (const holder of holders) index.writer.addHolder(holder);
  const depths = sharedWords(2 * workers);
  const run = () => {
    let blocks = 0;
    for (const { kind, holder, parent, hashes, names, count } of stream) {
      if (kind === 'query') index.reader.lookup(hashes, count, holders, workers, depths);
      else if (kind === 'store') index.writer.store(holder, parent, hashes, count, TIER_DEVICE, names);
      else index.writer.removeEngine(holder, names, count, TIER_DEVICE);
      blocks += count;
    }
    return blocks;
  };
  run();
  for (const holder of holders) index.writer.clear(holder);
  while (index.writer.sweep(100_000));
  const cpu = process.cpuUsage();
  const blocks = run();
  const { user, system } = process.cpuUsage(cpu);
  index.close();
  const seconds = (user + system) / 1e6;
  return { blockOpsPerSecondPerCore: blocks / seconds, callsPerSecondPerCore: stream.length / seconds };
}

/** Bytes of an index per block, when it is filled to its cap with blocks that `holders` workers have each. */
function bytesPerBlock(addon, settings, bytes, holders) {
  const writer = new SharedIndexWriter(addon, memoryOf(settings, bytes));
  const load = { blocks: settings.blocks, batchBlocks: settings.batchBlocks, holders };
  for (let holder = 0; holder < holders; holder++) writer.addHolder(holder);
  const { blocksMax } = writer.stats();
  for (let prompt = 0; prompt * load.blocks < 1.3 * blocksMax; prompt++)
    for (let holder = 0; holder < holders; holder++)
      storeAll(writer, { ...eventsOf(prompt, load, holder), holder });
  const { blocks } = writer.stats();
  writer.close();
  return bytes / blocks;
}

/**
 * Bytes that one block takes, and each further holder of a block that has one. The latter of small indexes: their fixed
 * parts are the same on both sides.
 */
export function memoryRow(addon, settings) {
  const SHARED = 8;
  const small = count => bytesPerBlock(addon, settings, 16 * 1024 ** 2, count);
  return {
    bytesPerBlock: bytesPerBlock(addon, settings, settings.indexBytes, 1),
    bytesPerHolder: (small(SHARED) - small(1)) / (SHARED - 1),
  };
}

function residentBytes() {
  const kib = /VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'));
  return Number(kib?.[1] ?? Number.NaN) * 1024;
}

/** Stores unique blocks far past the cap: resident memory gained per block after the index is full. */
export function slopeRow(addon, settings) {
  const writer = new SharedIndexWriter(addon, memoryOf(settings));
  const load = { blocks: settings.blocks, batchBlocks: settings.batchBlocks, holders: settings.workers };
  const { blocksMax } = writer.stats();
  const chains = Math.ceil(settings.slopeBlocks / settings.blocks);
  const samples = [];
  const bar = progress('memory', 10);
  for (let part = 0; part < 10; part++) {
    fill(writer, load, { first: Math.floor((chains * part) / 10), chains: Math.ceil(chains / 10) });
    samples.push({ stored: writer.stats().stored, bytes: residentBytes() });
    bar.step();
  }
  bar.done();
  writer.close();
  const full = samples.filter(({ stored }) => stored > blocksMax * 1.5);
  if (full.length < 2)
    throw new Error(`--slope-blocks must be far above the ${blocksMax} blocks that the index takes`);
  const [first, last] = [full[0], full.at(-1)];
  return { residentGrowthBytesPerBlock: (last.bytes - first.bytes) / (last.stored - first.stored) };
}
