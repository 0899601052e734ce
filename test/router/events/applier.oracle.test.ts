// Promise: whatever engines publish, in whatever form, the index holds just what a naive model of their pools holds.
import t, { type Test } from 'tap';
import { IndexApplier } from '#millrace/router/events/applier.js';
import { createEventDecoder } from '#millrace/router/events/decoder.js';
import type { EventDecoder } from '#millrace/router/events/event-tables.js';
import { createNativeDecoder } from '#millrace/router/events/native-decoder.js';
import { createHashers } from '#millrace/router/hashing/block-hasher.js';
import type { PrefixIndexReader, PrefixIndexWriter } from '#millrace/router/index/contract.js';
import {
  createIndexMemory,
  SharedIndexReader,
  SharedIndexWriter,
} from '#millrace/router/index/shared-index.js';
import { createSimpleIndex } from '#millrace/router/index/simple-index.js';
import { type Addon, addonStatus, loadAddon } from '#millrace/runtime/addon.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { FACTS } from './applied.js';
import {
  BLOCK_SIZE,
  DEPTH_MAX,
  EnginePool,
  IDENTITIES,
  idsOf,
  type Prompt,
  randomPrompt,
} from './engine-pool.js';
import { type HashForm, referenceHashers } from './event-batches.js';

const BATCHES = process.env.MILLRACE_TEST_LONG === '1' ? 60_000 : 2000;
const HASH_FORMS: readonly HashForm[][] = [['unsigned', 'signed'], ['bytes'], ['unsigned']];
const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 32));

interface Kind {
  readonly name: string;
  readonly addon: Addon | null;
  readonly index: PrefixIndexWriter & PrefixIndexReader;
  readonly decoder: EventDecoder;
}

const addon = loadAddon();
const kinds: Kind[] = [
  {
    name: 'without the addon',
    addon: null,
    index: createSimpleIndex({ blocksMax: 100_000, predictionsMax: 1 }),
    decoder: await createEventDecoder(),
  },
];
if (addon === null) t.comment(`no addon: ${addonStatus().reason}`);
else
  kinds.push({
    name: 'with the addon',
    addon,
    index: sharedIndex(addon),
    decoder: createNativeDecoder(addon),
  });

function sharedIndex(addon: Addon): PrefixIndexWriter & PrefixIndexReader {
  const options = { bytes: 2 ** 24, predictionsMax: 1, random: seededRandom(seed) };
  const memory = createIndexMemory(options);
  const reader = new SharedIndexReader(addon, memory);
  return Object.assign(new SharedIndexWriter(addon, memory), { lookup: reader.lookup.bind(reader) });
}

for (const kind of kinds) {
  t.test(`random traffic of three engines ${kind.name}`, t => randomTraffic(t, kind));
}

async function randomTraffic(t: Test, { addon, index, decoder }: Kind): Promise<void> {
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  const reference = await referenceHashers(IDENTITIES);
  const unexpected = (): void => {
    t.fail('a call that these events do not cause');
  };
  const residency = { add: unexpected, remove: unexpected, route: unexpected, tend: unexpected };
  const applier = new IndexApplier({
    writer: index,
    decoder,
    hashers: await createHashers(addon),
    residency,
    log: { warn: () => undefined },
    now: () => 0,
    onBlockSize: unexpected,
  });
  const pools = HASH_FORMS.map((forms, i) => new EnginePool(random, forms, seed + i));
  const holders = Uint32Array.from(pools.keys());
  for (const holder of holders) applier.addHolder(holder, { ...FACTS, blockSize: BLOCK_SIZE });

  const hashes = new Uint32Array(DEPTH_MAX * 2);
  const depthsOut = new Uint32Array(holders.length * 2);
  const check = (prompt: Prompt): boolean => {
    const [adapter, salt] = IDENTITIES[prompt.identity]!;
    const blocks = prompt.symbols.length;
    const ids = Uint32Array.from(idsOf(prompt.symbols));
    reference.of(adapter, salt).hashAfter(null, ids, 0, blocks, BLOCK_SIZE, null, hashes);
    index.lookup(hashes, blocks, holders, holders.length, depthsOut);
    return pools.every((pool, i) => {
      const [all, device] = pool.depths(prompt);
      return depthsOut[i] === all && depthsOut[holders.length + i] === device;
    });
  };
  let deepest = 0;
  for (let batch = 0; batch < BATCHES; batch += 1) {
    const holder = batch % pools.length;
    applier.apply(holder, pools[holder]!.batch());
    for (let i = 0; i < 4; i += 1) {
      const prompt = randomPrompt(random);
      if (!check(prompt)) {
        t.fail(`batch ${batch}: prompt ${JSON.stringify(prompt)} has depths ${depthsOut}`);
        return;
      }
      deepest = Math.max(deepest, ...depthsOut);
    }
  }
  for (const [name, count] of pools.flatMap(pool => Object.entries(pool.seen)))
    t.ok(count > 0, `${name} happened`);
  t.ok(deepest > DEPTH_MAX / 2, 'long prompts were found');
  const { counters } = applier;
  const anomalies = ['malformed', 'unknownEvent', 'unknownTier', 'otherGroup', 'blockSizeMismatch'] as const;
  for (const name of [...anomalies, 'tokenCountMismatch', 'selfParent', 'orphans'] as const)
    t.ok(counters[name] > 0, `${name} was counted`);
}
