/**
 * Routing in figures (R3, R4), with the addon and without it. A row each for:
 *
 * hash, decision: a prompt's block hashes; the whole decision: hash, look up, score all workers, reserve.
 * look-up:        one call for all workers while a writer thread applies events all the time (addon only); of few again.
 * throughput:     requests and events of evicting mock engines on one thread, counted in block-ops as Dynamo's
 *                 mooncake_bench counts them: blocks in stores and removals plus blocks in look-ups. Calls beside them.
 * apply:          msgpack batches of engines decoded, translated, hashed and applied; the same from a socket of libzmq at
 *                 a given rate, with the time from sending to being visible, and from a sender that is never the slower one.
 * small messages: batches of one block through one socket into the index, per second and per second of CPU.
 * memory:         bytes per block and per further holder of a block.
 */
import { loadAddon } from '#millrace/runtime/addon.js';
import { applyRow, smallMessagesRow, socketRow } from './lib/event-rows.js';
import { mergedStream, recordedFrames, smallFrames } from './lib/event-stream.js';
import { decisionRow, lookupRow, memoryRow, slopeRow, throughputRow } from './lib/index-rows.js';
import { commit, machine, median, parseFlags, printResult, progress } from './lib/report.js';

const MIB = 1024 ** 2;
const count = (value, min, max, help) => ({ type: 'number', default: value, min, max, integer: true, help });
const flags = parseFlags({
  usage: 'node bench/route.js [flags]',
  summary:
    'Routing: block hashes, prefix look-up with an active writer, whole decisions, KV events from bytes to index, memory. Native and not.',
  flags: {
    json: { type: 'boolean', help: 'print one JSON object' },
    'index-mib': count(256, 16, 1024, 'size of the index in MiB'),
    workers: count(64, 1, 1024, 'workers, all candidates of every look-up and decision'),
    'prompt-tokens': count(12_000, 64, 131_072, 'tokens of a prompt, 64 per block'),
    'few-workers': count(8, 1, 1024, 'workers of the second row of look-ups'),
    lookups: count(200_000, 1000, 10_000_000, 'timed look-ups'),
    decisions: count(50_000, 1000, 10_000_000, 'timed decisions'),
    requests: count(4000, 100, 100_000, 'requests of the merged stream of requests and events'),
    'engine-blocks': count(2048, 512, 65_536, 'KV blocks of a mock engine'),
    'event-blocks': count(200_000, 1000, 10_000_000, 'blocks in recorded batches'),
    'event-blocks-per-second': count(200_000, 1000, 10_000_000, 'blocks per second through the socket'),
    'small-messages': count(400_000, 1000, 10_000_000, 'messages of one block through the socket'),
    'slope-blocks': count(
      0,
      0,
      1_000_000_000,
      'unique blocks stored to see memory stand still at the cap; 0: none',
    ),
    repeats: count(5, 1, 100, 'runs of each row; the median counts'),
  },
  examples: ['node bench/route.js', 'node bench/route.js --json --workers 1000 --slope-blocks 10000000'],
});
const settings = {
  indexBytes: flags.indexMib * MIB,
  workers: flags.workers,
  fewWorkers: flags.fewWorkers,
  promptTokens: flags.promptTokens,
  blocks: Math.floor(flags.promptTokens / 64),
  batchBlocks: 32,
  lookups: flags.lookups,
  decisions: flags.decisions,
  requests: flags.requests,
  engineBlocks: flags.engineBlocks,
  eventWorkers: 8,
  eventBlocks: flags.eventBlocks,
  eventBlocksPerSecond: flags.eventBlocksPerSecond,
  smallMessages: flags.smallMessages,
  slopeBlocks: flags.slopeBlocks,
  repeats: flags.repeats,
  seed: 42,
};
/** Without the addon all is slower by a factor of about ten, and as many runs would take as much longer. */
const settingsWithoutAddon = {
  ...settings,
  lookups: Math.ceil(settings.lookups / 20),
  decisions: Math.ceil(settings.decisions / 20),
  smallMessages: Math.ceil(settings.smallMessages / 20),
};

/** The median of every figure over the repeats; counts of mistakes are summed. */
async function repeated(label, row) {
  const runs = [];
  const bar = progress(label, settings.repeats);
  for (let n = 0; n < settings.repeats; n++) {
    runs.push(await row());
    bar.step();
  }
  bar.done();
  const SUMMED = ['overcounts', 'undercounts', 'retries'];
  const figure = (name, values) =>
    SUMMED.includes(name) ? values.reduce((sum, value) => sum + value, 0) : median(values);
  return Object.fromEntries(
    Object.keys(runs[0]).map(name => [
      name,
      figure(
        name,
        runs.map(run => run[name]),
      ),
    ]),
  );
}

async function side(addon, name, settings, { stream, frames, socketFrames, small }) {
  const label = row => `${name}: ${row}`;
  const decision = await repeated(label('decision'), () => decisionRow(addon, settings));
  const lookup = await repeated(label('look-up'), () => lookupRow(addon, settings));
  const few = { ...settings, workers: settings.fewWorkers };
  const lookupFew = await repeated(label('look-up of few'), () => lookupRow(addon, few));
  const throughput = await repeated(label('throughput'), () => throughputRow(addon, settings, stream));
  const apply = await repeated(label('apply'), () => applyRow(addon, settings, frames));
  const socket = await repeated(label('socket'), () => socketRow(addon, settings, socketFrames));
  const smallRow = () => smallMessagesRow(addon, settings, small.slice(0, settings.smallMessages));
  const smallMessages = await repeated(label('small messages'), smallRow);
  const memory = addon === null ? { bytesPerBlock: null, bytesPerHolder: null } : memoryRow(addon, settings);
  const both = name => lookup[name] + lookupFew[name];
  return {
    hashUs: decision.hashUs,
    lookupUs: { p50: lookup.lookupP50Us, p99: lookup.lookupP99Us },
    lookupOfFewUs: { p50: lookupFew.lookupP50Us, p99: lookupFew.lookupP99Us },
    decisionUs: { p50: decision.decisionP50Us, p99: decision.decisionP99Us },
    ...throughput,
    ...apply,
    firstBatchMs: socket.firstBatchMs,
    applyLagMs: { p50: socket.applyLagP50Ms, p99: socket.applyLagP99Ms },
    appliedBlocksPerSecond: socket.achievedBlocksPerSecond,
    socketBlocksPerSecond: socket.socketBlocksPerSecond,
    smallMessages,
    ...memory,
    overcounts: both('overcounts'),
    undercounts: both('undercounts'),
    retries: both('retries'),
  };
}

const addon = loadAddon();
if (addon === null) throw new Error('this bench compares with the addon, which is not built');
// Before the others, whose freed memory would blur what it reads of the process.
const slope = settings.slopeBlocks > 0 ? slopeRow(addon, settings) : {};
const { workers, engineBlocks, requests, seed, batchBlocks, eventWorkers, eventBlocks } = settings;
const recording = progress('recording events', 4);
const recorded = {};
recorded.stream = mergedStream({ workers, engineBlocks, requests, seed });
recording.step();
recorded.frames = recordedFrames({
  workers: eventWorkers,
  engineBlocks,
  blocks: eventBlocks,
  batchBlocks,
  seed,
});
recording.step();
recorded.socketFrames = recordedFrames({ workers: 1, engineBlocks, blocks: eventBlocks, batchBlocks, seed });
recording.step();
recorded.small = smallFrames({ messages: settings.smallMessages, seed });
recording.step();
recording.done();
const results = { ...(await side(addon, 'native', settings, recorded)), ...slope };
const resultsWithoutAddon = await side(null, 'without addon', settingsWithoutAddon, recorded);

/** Figures by name, those of an object one by one. */
const flat = figures =>
  Object.entries(figures).flatMap(([name, value]) =>
    value !== null && typeof value === 'object'
      ? Object.entries(value).map(([part, inner]) => [`${name} ${part}`, inner])
      : [[name, value]],
  );
const plain = new Map(flat(resultsWithoutAddon));
printResult(
  { bench: 'route', commit: commit(), machine: machine(), settings, results, resultsWithoutAddon },
  {
    json: flags.json,
    table: flat(results).map(([figure, native]) => ({
      figure,
      native,
      'without addon': plain.get(figure) ?? null,
    })),
  },
);
