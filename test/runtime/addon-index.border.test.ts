// Promise: the addon's index and event functions refuse every wrong argument by name.
import t, { type Test } from 'tap';
import {
  EVENT_BLOCKS_MAX,
  EVENT_MEDIA_MAX,
  EVENT_MEDIA_WORDS,
  EVENT_ROW_WORDS,
  EVENT_ROWS_MAX,
  EVENT_TOKENS_MAX,
} from '#millrace/router/events/event-tables.js';
import { ENGINE_HASH_WORDS } from '#millrace/router/index/contract.js';
import { INDEX_STATS } from '#millrace/router/index/index-descriptor.js';
import { createIndexMemory, INDEX_BYTES_MIN } from '#millrace/router/index/shared-index.js';
import { type Addon, addonStatus, loadAddon } from '#millrace/runtime/addon.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { allocateShared } from '#millrace/runtime/shared-memory.js';

const addon = loadAddon();
const needsAddon = addon === null ? { skip: `no addon: ${addonStatus().reason}` } : {};
const shared = (words: number): Uint32Array => new Uint32Array(allocateShared(words * 4, 'border'), 0, words);

/** Calls with arguments of any type, as a JavaScript caller can. */
type Untyped = Record<keyof Addon, (...args: unknown[]) => unknown>;
/** Sound arguments with some replaced. */
const but = (sound: unknown[], other: Record<number, unknown>): unknown[] => Object.assign([...sound], other);
type Wrong = [name: keyof Addon, args: unknown[], error: 'TypeError' | 'RangeError', message: RegExp];

function refusesAll(t: Test, calls: Untyped, wrong: readonly Wrong[]): void {
  for (const [name, args, error, message] of wrong) {
    t.throws(() => calls[name](...args), { name: error, message }, `${name} ${message}`);
  }
}

t.test('index', needsAddon, async t => {
  const calls = addon as unknown as Untyped;
  const memory = createIndexMemory({ bytes: INDEX_BYTES_MIN, predictionsMax: 16, random: seededRandom(1) });
  const words = new Uint32Array(memory, 0, memory.byteLength / 4);
  const writer = calls.attachIndexWriter(words) as number;
  const reader = calls.attachIndexReader(words) as number;
  const arrays = calls.attachLookupArrays(shared(8), shared(2), shared(4)) as number;
  const four = new Uint32Array(4);
  const store = [writer, 0, 1, 1, 0, four, 2, 0, null];
  const remove = [writer, 0, four, 1, 0, 1];
  const translate = [writer, 0, four, 1, four];
  const predict = [writer, 0, four, 0, 2, 5, 0];
  const lookup = [reader, four, 2, four, 2, four];
  const attached = [reader, arrays, 4, 2];
  for (const [name, args] of Object.entries({
    indexStore: store,
    indexRemove: remove,
    indexTranslate: translate,
  }))
    t.doesNotThrow(() => calls[name as keyof Addon](...args), name);
  t.doesNotThrow(() => calls.indexPredict(...predict));
  t.doesNotThrow(() => calls.indexLookup(...lookup));
  t.doesNotThrow(() => calls.indexLookupAttached(...attached));
  refusesAll(t, calls, [
    ['attachIndexWriter', [four], 'RangeError', /^words must be over a Shared/],
    ['attachIndexWriter', [new Int32Array(4)], 'TypeError', /^words /],
    ['attachIndexReader', [shared(1024)], 'RangeError', /^words must be a whole index/],
    ['attachIndexReader', [words.subarray(1)], 'RangeError', /^words must be a whole index/],
    ['attachIndexReader', [words.subarray(0, -1024)], 'RangeError', /^words must be a whole index/],
    ['indexHolder', [reader, 0, 0], 'RangeError', /^handle /],
    ['indexHolder', [writer, 4096, 0], 'RangeError', /^holder /],
    ['indexHolder', [writer, -1, 0], 'RangeError', /^holder /],
    ['indexHolder', [writer, 0, 3], 'RangeError', /^change /],
    ['indexStore', but(store, { 0: 0 }), 'RangeError', /^handle /],
    ['indexStore', but(store, { 1: 4096 }), 'RangeError', /^holder /],
    ['indexStore', but(store, { 2: null }), 'TypeError', /^hasParent /],
    ['indexStore', but(store, { 3: 1.5 }), 'RangeError', /^parentLow /],
    ['indexStore', but(store, { 4: -1 }), 'RangeError', /^parentHigh /],
    ['indexStore', but(store, { 5: [1, 2, 3, 4] }), 'TypeError', /^hashes /],
    ['indexStore', but(store, { 6: 3 }), 'RangeError', /^hashes /],
    ['indexStore', but(store, { 7: 3 }), 'RangeError', /^tier /],
    ['indexStore', but(store, { 8: undefined }), 'TypeError', /^engineHashes /],
    ['indexStore', but(store, { 8: four }), 'RangeError', /^engineHashes /],
    ['indexRemove', but(remove, { 0: reader }), 'RangeError', /^handle /],
    ['indexRemove', but(remove, { 2: null }), 'TypeError', /^hashes /],
    ['indexRemove', but(remove, { 3: 2 }), 'RangeError', /^hashes /],
    ['indexRemove', but(remove, { 3: 3, 5: 0 }), 'RangeError', /^hashes /],
    ['indexRemove', but(remove, { 4: 9 }), 'RangeError', /^tier /],
    ['indexRemove', but(remove, { 5: '1' }), 'TypeError', /^byEngineHash /],
    ['indexTranslate', but(translate, { 1: 4096 }), 'RangeError', /^holder /],
    ['indexTranslate', but(translate, { 3: 2 }), 'RangeError', /^engineHashes /],
    ['indexTranslate', but(translate, { 4: new Uint32Array(1) }), 'RangeError', /^hashesOut /],
    ['indexPredict', but(predict, { 2: new Uint32Array(3) }), 'RangeError', /^sequenceHashes /],
    ['indexPredict', but(predict, { 3: 3 }), 'RangeError', /^from /],
    ['indexPredict', but(predict, { 4: 3 }), 'RangeError', /^sequenceHashes /],
    ['indexPredict', but(predict, { 5: -1 }), 'RangeError', /^expiresLow /],
    ['indexPredict', but(predict, { 6: 2 ** 32 }), 'RangeError', /^expiresHigh /],
    ['indexExpire', [writer, 0.5, 0], 'RangeError', /^nowLow /],
    ['indexExpire', [writer, 0], 'TypeError', /^nowHigh /],
    ['indexSweep', [writer, -1], 'RangeError', /^stepsMax /],
    ['indexStats', [writer, new Uint32Array(INDEX_STATS.length * 2 - 1)], 'RangeError', /^out /],
    ['indexLookup', but(lookup, { 0: writer }), 'RangeError', /^handle /],
    ['indexLookup', but(lookup, { 1: null }), 'TypeError', /^sequenceHashes /],
    ['indexLookup', but(lookup, { 2: 3 }), 'RangeError', /^sequenceHashes /],
    ['indexLookup', but(lookup, { 3: Uint32Array.of(0, 4096) }), 'RangeError', /^holders must be at most/],
    ['indexLookup', but(lookup, { 4: 5 }), 'RangeError', /^holders /],
    ['indexLookup', but(lookup, { 5: new Uint32Array(3) }), 'RangeError', /^depthsOut /],
    [
      'attachLookupArrays',
      [four, shared(2), shared(4)],
      'RangeError',
      /^sequenceHashes must be over a Shared/,
    ],
    ['attachLookupArrays', [shared(8), four, shared(4)], 'RangeError', /^holders must be over a Shared/],
    ['attachLookupArrays', [shared(8), shared(2), four], 'RangeError', /^depthsOut must be over a Shared/],
    ['indexLookupAttached', but(attached, { 0: arrays }), 'RangeError', /^handle /],
    ['indexLookupAttached', but(attached, { 1: reader }), 'RangeError', /^arrays /],
    ['indexLookupAttached', but(attached, { 2: 5 }), 'RangeError', /^blocks /],
    ['indexLookupAttached', but(attached, { 3: 3 }), 'RangeError', /^holderCount /],
  ]);
  for (const handle of [writer, reader, arrays]) addon!.detach(handle);
  refusesAll(t, calls, [['indexLookupAttached', attached, 'RangeError', /^handle /]]);
});

t.test('events', needsAddon, async t => {
  const calls = addon as unknown as Untyped;
  const rowWords = EVENT_ROWS_MAX * EVENT_ROW_WORDS;
  const rows = new Int32Array(allocateShared(rowWords * 4, 'border'), 0, rowWords);
  const parents = shared(EVENT_ROWS_MAX * ENGINE_HASH_WORDS);
  const hashes = shared(EVENT_BLOCKS_MAX * ENGINE_HASH_WORDS);
  const tokens = shared(EVENT_TOKENS_MAX);
  const media = shared(EVENT_MEDIA_MAX * EVENT_MEDIA_WORDS);
  const tables = [rows, parents, hashes, tokens, media];
  const handle = calls.attachEventTables(...tables) as number;
  const names = ['rows', 'parents', 'hashes', 'tokens', 'media'];
  refusesAll(t, calls, [
    ...names.map(
      (name, i): Wrong => [
        'attachEventTables',
        but(tables, { [i]: null }),
        'TypeError',
        new RegExp(`^${name} `),
      ],
    ),
    ...names.map((name, i): Wrong => {
      const short = tables[i]!.subarray(1);
      return [
        'attachEventTables',
        but(tables, { [i]: short }),
        'RangeError',
        new RegExp(`^${name} must hold`),
      ];
    }),
    ...names.map((name, i): Wrong => {
      const own = tables[i]!.slice();
      return [
        'attachEventTables',
        but(tables, { [i]: own }),
        'RangeError',
        new RegExp(`^${name} must be over`),
      ];
    }),
    ['attachEventTables', but(tables, { 0: new Uint32Array(rows.buffer) }), 'TypeError', /^rows /],
    ['decodeEvents', [0, new Uint8Array(1)], 'RangeError', /^handle /],
    ['decodeEvents', [handle, 'text'], 'TypeError', /^payload /],
    ['decodeEvents', [handle, new Uint32Array(1)], 'TypeError', /^payload /],
    ['decodeEvents', [handle], 'TypeError', /^payload /],
  ]);
  addon!.detach(handle);
  refusesAll(t, calls, [['decodeEvents', [handle, new Uint8Array(1)], 'RangeError', /^handle /]]);
});
