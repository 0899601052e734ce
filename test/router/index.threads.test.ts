// Promise: while another thread writes, no look-up gives a depth that is greater than the true one was in every state
// between its call and its return, though reads do meet the writer and are repeated.
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import type { IndexStats } from '#millrace/router/index/contract.js';
import { createIndexMemory, SharedIndexReader } from '#millrace/router/index/shared-index.js';
import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { Forest, HOLDERS, Model, type OpKind, OpStream } from './index-model.js';
import { COUNTER, type WriterTask } from './index-thread.js';

const LONG = process.env.MILLRACE_TEST_LONG === '1';
const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const OPERATIONS = LONG ? 100_000_000 : 2_000_000;
const ROUND_OPS = 20_000;
const LOOKUPS_MAX = 400_000;
const READ = 4;
const addon = loadAddon();

const KINDS: readonly OpKind[] = [
  ...Array<OpKind>(20).fill('store'),
  ...Array<OpKind>(8).fill('storeNamed'),
  ...Array<OpKind>(20).fill('remove'),
  ...Array<OpKind>(8).fill('removeNamed'),
  ...Array<OpKind>(4).fill('predict'),
  ...Array<OpKind>(4).fill('expire'),
  ...Array<OpKind>(4).fill('join'),
  ...Array<OpKind>(4).fill('sweep'),
  'clear',
  'leave',
];

/** Look-ups of one round: which, what was known before and after, what came out. */
const log = {
  count: 0,
  path: new Uint16Array(LOOKUPS_MAX),
  ended: new Int32Array(LOOKUPS_MAX),
  begun: new Int32Array(LOOKUPS_MAX),
  depths: new Uint8Array(LOOKUPS_MAX * READ * 2),
};
const tally = { operations: 0, lookups: 0, retries: 0, overcounts: 0, undercounts: 0, overlapping: 0 };

/** Looks up until the writer has ended its round. */
function readRound(
  reader: SharedIndexReader,
  forest: Forest,
  counters: Int32Array,
  round: number,
  random: () => number,
): void {
  const depths = new Uint32Array(READ * 2);
  log.count = 0;
  while (Atomics.load(counters, COUNTER.done) < round && log.count < LOOKUPS_MAX) {
    const at = log.count;
    const path = randomInteger(random, forest.paths.length);
    log.path[at] = path;
    log.ended[at] = Atomics.load(counters, COUNTER.ended);
    tally.retries += reader.lookup(forest.hashes[path]!, forest.paths[path]!.length, HOLDERS, READ, depths);
    log.begun[at] = Atomics.load(counters, COUNTER.begun);
    log.depths.set(depths, at * READ * 2);
    log.count += 1;
  }
}

/** Plays the round's operations on the model, and compares each look-up with all states that it may have seen. */
function judgeRound(model: Model, stream: OpStream, from: number): void {
  const lowest = new Uint8Array(READ * 2);
  const highest = new Uint8Array(READ * 2);
  let open: { at: number; lowest: Uint8Array; highest: Uint8Array }[] = [];
  const see = (path: number, low: Uint8Array, high: Uint8Array): void => {
    for (let i = 0; i < READ * 2; i += 1) {
      const depth = model.depth(path, i % READ, i >= READ);
      if (depth < low[i]!) low[i] = depth;
      if (depth > high[i]!) high[i] = depth;
    }
  };
  const judge = (at: number, low: Uint8Array, high: Uint8Array): void => {
    let under = 0;
    for (let i = 0; i < READ * 2; i += 1) {
      const depth = log.depths[at * READ * 2 + i]!;
      if (depth > high[i]!) tally.overcounts += 1;
      if (depth < low[i]!) under = 1;
    }
    tally.undercounts += under;
  };
  let next = 0;
  for (let version = from; version <= from + ROUND_OPS; version += 1) {
    if (version > from) model.apply(stream.next());
    for (const look of open) see(log.path[look.at]!, look.lowest, look.highest);
    for (; next < log.count && log.ended[next]! <= version; next += 1) {
      lowest.fill(255);
      highest.fill(0);
      see(log.path[next]!, lowest, highest);
      if (log.begun[next]! <= version) judge(next, lowest, highest);
      else open.push({ at: next, lowest: lowest.slice(), highest: highest.slice() });
    }
    const over = open.filter(({ at }) => log.begun[at]! <= version);
    if (over.length === 0) continue;
    for (const look of over) judge(look.at, look.lowest, look.highest);
    open = open.filter(({ at }) => log.begun[at]! > version);
    tally.overlapping += over.length;
  }
  tally.lookups += log.count;
  tally.operations += log.count + ROUND_OPS;
}

t.test(
  'one writer, one reader',
  addon === null ? { skip: `no addon: ${addonStatus().reason}` } : {},
  async t => {
    t.comment(`SEED=${SEED}`);
    const shape = { seed: SEED, blocks: 40, depthMax: 16, kinds: KINDS, roundOps: ROUND_OPS };
    const memory = createIndexMemory({ bytes: 2 ** 21, predictionsMax: 16_384, random: seededRandom(SEED) });
    const counters = new Int32Array(new SharedArrayBuffer(16));
    const task: WriterTask = { ...shape, memory, counters };
    const thread = new Worker(new URL('./index-thread.js', import.meta.url), { workerData: task });
    const forest = new Forest(SEED, shape.blocks, shape.depthMax);
    const model = new Model(forest);
    const stream = new OpStream(SEED, forest, KINDS);
    const reader = new SharedIndexReader(addon!, memory);
    const random = seededRandom(SEED + 7);
    let stats: IndexStats | undefined;
    for (let round = 1; tally.operations < OPERATIONS && tally.overcounts === 0; round += 1) {
      const ended = once(thread, 'message');
      thread.postMessage(round);
      readRound(reader, forest, counters, round, random);
      [stats] = (await ended) as [IndexStats];
      judgeRound(model, stream, (round - 1) * ROUND_OPS);
    }
    await thread.terminate();
    const result = { seed: SEED, ...tally, givenUp: reader.undercounts, refused: stats?.refused };
    t.comment(JSON.stringify(result));
    t.equal(tally.overcounts, 0, `no overcount in ${tally.operations} operations`);
    t.ok(tally.retries > 0, `${tally.retries} reads were repeated`);
    t.ok(tally.overlapping > 0, `${tally.overlapping} look-ups met a change`);
    t.ok(tally.undercounts <= reader.undercounts, `${tally.undercounts} undercounts, all of reads given up`);
    if (!LONG) return;
    mkdirSync('test/results', { recursive: true });
    writeFileSync('test/results/index-long.json', `${JSON.stringify(result, null, 2)}\n`);
  },
);
