// Promise: for any stream of stores, removals, clears, predictions and holders that come and go, holes and orphans among
// them, every look-up of either index gives exactly the depths of the naive model.
import t from 'tap';
import type { PrefixIndexReader, PrefixIndexWriter } from '#millrace/router/index/contract.js';
import {
  createIndexMemory,
  SharedIndexReader,
  SharedIndexWriter,
} from '#millrace/router/index/shared-index.js';
import { createSimpleIndex } from '#millrace/router/index/simple-index.js';
import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { applyOp, Forest, HOLDERS, Model, type OpKind, OpStream, sharedOf } from './index-model.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const OPS = process.env.MILLRACE_TEST_LONG === '1' ? 5_000_000 : 50_000;
const addon = loadAddon();

interface Index {
  writer: PrefixIndexWriter;
  reader: PrefixIndexReader;
}

const makers: Record<string, () => Index | null> = {
  simple: () => {
    const index = createSimpleIndex({ blocksMax: 4096, predictionsMax: 4096 });
    return { writer: index, reader: index };
  },
  shared: () => {
    if (addon === null) return null;
    const memory = createIndexMemory({ bytes: 2 ** 21, predictionsMax: 4096, random: seededRandom(SEED) });
    return { writer: new SharedIndexWriter(addon, memory), reader: new SharedIndexReader(addon, memory) };
  },
};

const KINDS: readonly OpKind[] = [
  ...Array<OpKind>(24).fill('store'),
  ...Array<OpKind>(12).fill('storeNamed'),
  ...Array<OpKind>(12).fill('remove'),
  ...Array<OpKind>(12).fill('removeNamed'),
  ...Array<OpKind>(10).fill('predict'),
  ...Array<OpKind>(8).fill('expire'),
  ...Array<OpKind>(4).fill('join'),
  ...Array<OpKind>(3).fill('sweep'),
  'clear',
  'leave',
];

/** The first difference between an index and the model over `ops` operations, or null. */
function firstDifference(index: Index, forest: Forest, seed: number, ops: number): string | null {
  const random = seededRandom(seed + 1);
  const stream = new OpStream(seed, forest, KINDS);
  const model = new Model(forest);
  // The shared index binds arrays in shared memory and passes others with each call: both ways in turn.
  const depthsOfBoth = [new Uint32Array(HOLDERS.length * 2), sharedOf(Array(HOLDERS.length * 2).fill(0))];
  const found = new Uint32Array(2);
  for (let n = 0; n < ops; n += 1) {
    const op = stream.next();
    applyOp(index.writer, forest, op);
    model.apply(op);
    const path = randomInteger(random, forest.paths.length);
    const blocks = forest.paths[path]!.length;
    const depths = depthsOfBoth[randomInteger(random, 2)]!;
    index.reader.lookup(forest.hashes[path]!, blocks, HOLDERS, HOLDERS.length, depths);
    for (let holder = 0; holder < HOLDERS.length; holder += 1) {
      const wanted = [model.depth(path, holder, false), model.depth(path, holder, true)];
      const got = [depths[holder], depths[HOLDERS.length + holder]];
      if (`${wanted}` !== `${got}`)
        return `op ${n} ${JSON.stringify(op)}: path ${path}, holder ${holder}: ${got} instead of ${wanted}`;
    }
    const [holder, position] = [randomInteger(random, HOLDERS.length), randomInteger(random, blocks)];
    const name = forest.engineHashes(path, position, position + 1, HOLDERS[holder]!);
    const known = index.writer.translate(HOLDERS[holder]!, name, 1, found);
    if (known !== Number(model.isNamed(path, position, holder))) return `op ${n}: translate said ${known}`;
    if (known === 1 && found[0] !== forest.hashes[path]![position * 2]) return `op ${n}: a wrong hash`;
  }
  return null;
}

for (const [name, make] of Object.entries(makers)) {
  const skip = make() === null ? { skip: `no addon: ${addonStatus().reason}` } : {};
  t.test(`${name}: equals the model`, skip, async t => {
    t.comment(`SEED=${SEED}`);
    for (const [blocks, depthMax] of [
      [12, 6],
      [60, 20],
      [400, 150],
    ] as const) {
      const forest = new Forest(SEED + blocks, blocks, depthMax);
      t.equal(firstDifference(make()!, forest, SEED, OPS), null, `${blocks} blocks, ${OPS} operations`);
    }
  });
}

t.test(
  'both count the same anomalies',
  addon === null ? { skip: `no addon: ${addonStatus().reason}` } : {},
  async t => {
    t.comment(`SEED=${SEED}`);
    const forest = new Forest(SEED, 60, 20);
    const [simple, shared] = [makers.simple!()!.writer, makers.shared!()!.writer];
    const [left, right] = [new OpStream(SEED, forest, KINDS), new OpStream(SEED, forest, KINDS)];
    for (let n = 0; n < 30_000; n += 1) {
      applyOp(simple, forest, left.next());
      const op = right.next();
      applyOp(shared, forest, op);
      // Until it is swept, what a holder left still says which block has which parent: an orphan stored meanwhile would
      // keep ancestors that the simple index, which forgets at once, has never heard of.
      if (op.kind === 'clear' || op.kind === 'leave') while (shared.sweep(1000));
    }
    const { blocksMax: _a, engineHashesMax: _b, ...want } = simple.stats();
    const { blocksMax: _c, engineHashesMax: _d, ...have } = shared.stats();
    t.same(have, want);
  },
);
