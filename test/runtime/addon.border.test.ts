// Promise: the addon refuses every wrong argument by name, reserves load exactly as documented, and can be absent;
// its generated headers are what the TypeScript descriptors say.
import { execFileSync } from 'node:child_process';
import t from 'tap';
import { FRAME_IDS_MAX, FRAME_TABLE_WORDS } from '#millrace/engines/frame-descriptor.js';
import {
  LEDGER,
  LEDGER_ENTRY_WORDS,
  LEDGER_GENERATION_SHIFT,
  LEDGER_STATE,
  LOAD,
  LOAD_LINE_WORDS,
  RESERVATION_INDEX_BITS,
} from '#millrace/router/load-descriptor.js';
import { ADDON_ABI, type Addon, addonStatus, loadAddon } from '#millrace/runtime/addon.js';

const addon = loadAddon();
const needsAddon = addon === null ? { skip: `no addon: ${addonStatus().reason}` } : {};

const sharedU32 = (words: number): Uint32Array => new Uint32Array(new SharedArrayBuffer(words * 4));
const sharedI32 = (words: number): Int32Array => new Int32Array(new SharedArrayBuffer(words * 4));

function detachedBytes(): Uint8Array {
  const bytes = new Uint8Array(64);
  structuredClone(bytes.buffer, { transfer: [bytes.buffer] });
  return bytes;
}

/** Calls with arguments of any type, as a JavaScript caller can. */
type Untyped = Record<keyof Addon, (...args: unknown[]) => unknown>;

t.test('the addon says why it is absent', async t => {
  const script =
    "import('#millrace/runtime/addon.js').then(m => console.log(JSON.stringify([m.loadAddon(), m.addonStatus()])))";
  const env = { ...process.env, MILLRACE_NO_ADDON: '1' };
  const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
    env,
    encoding: 'utf8',
  });
  t.same(JSON.parse(output), [
    null,
    { loaded: false, reason: 'disabled by MILLRACE_NO_ADDON=1', path: null },
  ]);
  t.equal(addonStatus().loaded, addon !== null);
  t.ok(addonStatus().reason.length > 0);
});

t.test('the committed C++ headers are generated from the descriptors', async t => {
  t.doesNotThrow(() => execFileSync(process.execPath, ['native/generate-descriptors.mjs', '--check']));
});

t.test('wrong arguments throw by name and change nothing', needsAddon, async t => {
  const calls = addon as unknown as Untyped;
  t.equal(addon!.abi, ADDON_ABI);
  const out = new Uint32Array(8);
  const ids = new Uint32Array(8);
  const frames = calls.attachFrames(sharedI32(FRAME_TABLE_WORDS), sharedU32(FRAME_IDS_MAX));
  const load = calls.attachLoad(sharedU32(LOAD_LINE_WORDS * 2), sharedU32(LEDGER_ENTRY_WORDS * 4));
  const bytes = new Uint8Array(8);
  /** Sound arguments of hashBlocks but for those given by index. */
  const hashing = (other: Record<number, unknown>): unknown[] =>
    Object.assign([ids, 0, 2, 4, 0, 0, 0, 0, 0, 0, 0, null, out], other);
  const wrong: [keyof Addon, unknown[], string, RegExp][] = [
    ['hashBlocks', [], 'TypeError', /^ids must be a Uint32Array/],
    ['hashBlocks', hashing({ 0: [1, 2] }), 'TypeError', /^ids /],
    ['hashBlocks', hashing({ 0: new Int32Array(8) }), 'TypeError', /^ids /],
    ['hashBlocks', hashing({ 1: 9 }), 'RangeError', /^from /],
    ['hashBlocks', hashing({ 2: 3 }), 'RangeError', /^blocks /],
    ['hashBlocks', hashing({ 1: 1 }), 'RangeError', /^blocks /],
    ['hashBlocks', hashing({ 3: '4' }), 'TypeError', /^blockSize must be a number/],
    ['hashBlocks', hashing({ 3: 4n }), 'TypeError', /^blockSize /],
    ['hashBlocks', hashing({ 3: 0 }), 'RangeError', /^blockSize /],
    ['hashBlocks', hashing({ 4: -1 }), 'RangeError', /^blockSeedLow /],
    ['hashBlocks', hashing({ 5: 2 ** 32 }), 'RangeError', /^blockSeedHigh /],
    ['hashBlocks', hashing({ 6: 0.5 }), 'RangeError', /^chainSeedLow /],
    ['hashBlocks', hashing({ 7: Number.NaN }), 'RangeError', /^chainSeedHigh /],
    ['hashBlocks', hashing({ 8: true }), 'TypeError', /^hasParent /],
    ['hashBlocks', hashing({ 10: undefined }), 'TypeError', /^parentHigh /],
    ['hashBlocks', hashing({ 11: undefined }), 'TypeError', /^media /],
    ['hashBlocks', hashing({ 11: new Uint32Array(4) }), 'RangeError', /^media must be of 3/],
    [
      'hashBlocks',
      hashing({ 11: Uint32Array.of(1, 0, 0, 0, 0, 0) }),
      'RangeError',
      /^media must be in the order/,
    ],
    ['hashBlocks', hashing({ 12: null }), 'TypeError', /^sequenceHashesOut /],
    ['hashBlocks', hashing({ 12: new Uint32Array(3) }), 'RangeError', /^sequenceHashesOut /],
    [
      'attachFrames',
      [sharedU32(FRAME_TABLE_WORDS), sharedU32(FRAME_IDS_MAX)],
      'TypeError',
      /^table must be an Int32Array/,
    ],
    ['attachFrames', [sharedI32(FRAME_TABLE_WORDS - 1), sharedU32(FRAME_IDS_MAX)], 'RangeError', /^table /],
    ['attachFrames', [sharedI32(FRAME_TABLE_WORDS), sharedU32(FRAME_IDS_MAX - 1)], 'RangeError', /^ids /],
    [
      'attachFrames',
      [new Int32Array(FRAME_TABLE_WORDS), sharedU32(FRAME_IDS_MAX)],
      'RangeError',
      /^table must be over a Shared/,
    ],
    [
      'attachFrames',
      [sharedI32(FRAME_TABLE_WORDS), new Uint32Array(FRAME_IDS_MAX)],
      'RangeError',
      /^ids must be over a Shared/,
    ],
    [
      'scanFrames',
      [frames, new DataView(new ArrayBuffer(8)), 0, 8],
      'TypeError',
      /^bytes must be a Uint8Array/,
    ],
    ['scanFrames', [frames, 'data', 0, 4], 'TypeError', /^bytes /],
    ['scanFrames', [frames, bytes, 0, 9], 'RangeError', /^to /],
    ['scanFrames', [frames, detachedBytes(), 0, 1], 'RangeError', /^to /],
    ['scanFrames', [frames, bytes, 5, 4], 'RangeError', /^from /],
    ['scanFrames', [0, bytes, 0, 8], 'RangeError', /^handle /],
    ['scanFrames', [load, bytes, 0, 8], 'RangeError', /^handle /],
    ['scanFrames', [0xffff_ffff, bytes, 0, 8], 'RangeError', /^handle /],
    [
      'attachLoad',
      [new Uint32Array(LOAD_LINE_WORDS), sharedU32(LEDGER_ENTRY_WORDS)],
      'RangeError',
      /^table must be over/,
    ],
    ['attachLoad', [sharedU32(LOAD_LINE_WORDS + 1), sharedU32(LEDGER_ENTRY_WORDS)], 'RangeError', /^table /],
    ['attachLoad', [sharedU32(0), sharedU32(LEDGER_ENTRY_WORDS)], 'RangeError', /^table /],
    ['attachLoad', [sharedU32(LOAD_LINE_WORDS), sharedU32(LEDGER_ENTRY_WORDS - 1)], 'RangeError', /^ledger /],
    ['attachLoad', [sharedU32(LOAD_LINE_WORDS), 3], 'TypeError', /^ledger /],
    ['reserve', [frames, 0, 4, 0, 0, 0, 1, 1, 1], 'RangeError', /^handle /],
    ['reserve', [load, 0, 0, 0, 0, 0, 1, 1, 1], 'RangeError', /^firstEntry and entryCount /],
    ['reserve', [load, 4, 1, 0, 0, 0, 1, 1, 1], 'RangeError', /^firstEntry and entryCount /],
    ['reserve', [load, 1, 4, 0, 0, 0, 1, 1, 1], 'RangeError', /^firstEntry and entryCount /],
    ['reserve', [load, 1, 0xffff_ffff, 0, 0, 0, 1, 1, 1], 'RangeError', /^firstEntry and entryCount /],
    ['reserve', [load, 0, 4, 0, 2, 0, 1, 1, 1], 'RangeError', /^slot /],
    ['reserve', [load, 0, 4, 0, 0, 0, -1, 1, 1], 'RangeError', /^prefillTokens /],
    ['reserve', [load, 0, 4, 0, 0, 0, 1, undefined, 1], 'TypeError', /^blocks /],
    ['reserve', [load, 0, 4, 0, 0, 0, 1, 1], 'TypeError', /^ownerEpoch /],
    ['detach', [], 'TypeError', /^handle /],
    ['detach', [0], 'RangeError', /^handle /],
    ['detach', [Number(frames) + 256], 'RangeError', /^handle /],
  ];
  for (const [name, args, error, message] of wrong) {
    t.throws(() => calls[name](...args), { name: error, message }, `${name} ${message}`);
  }
  addon!.detach(frames as number);
  t.throws(
    () => calls.scanFrames(frames, bytes, 0, 8),
    { name: 'RangeError', message: /^handle / },
    'detached',
  );
  addon!.detach(load as number);
});

t.test('handles are limited, are given back and do not name the next tenant', needsAddon, async t => {
  const table = sharedI32(FRAME_TABLE_WORDS);
  const ids = sharedU32(FRAME_IDS_MAX);
  const handles = Array.from({ length: 255 }, () => addon!.attachFrames(table, ids));
  t.equal(new Set(handles).size, 255);
  t.throws(() => addon!.attachFrames(table, ids), { name: 'RangeError', message: /^handles / });
  addon!.detach(handles[7]!);
  const next = addon!.attachFrames(table, ids);
  t.not(next, handles[7]);
  t.throws(() => addon!.detach(handles[7]!), { name: 'RangeError' });
  for (const handle of handles) if (handle !== handles[7]) addon!.detach(handle);
  addon!.detach(next);
});

const stateOf = (generation: number, state: keyof typeof LEDGER_STATE): number =>
  generation * 2 ** LEDGER_GENERATION_SHIFT + LEDGER_STATE[state];

t.test('reserve', needsAddon, async t => {
  const table = sharedU32(LOAD_LINE_WORDS * 3);
  const ledger = sharedU32(LEDGER_ENTRY_WORDS * 8);
  const handle = addon!.attachLoad(table, ledger);
  const line = (slot: number): number[] =>
    Array.from(table.subarray(slot * LOAD_LINE_WORDS, slot * LOAD_LINE_WORDS + 5));
  const entry = (index: number): number[] =>
    Array.from(ledger.subarray(index * LEDGER_ENTRY_WORDS, index * LEDGER_ENTRY_WORDS + 6));
  table[1 * LOAD_LINE_WORDS + LOAD.generation] = 9;

  await t.test('writes the entry, adds to the line and names both', async t => {
    const id = addon!.reserve(handle, 2, 4, 7, 1, 9, 100, 5, 77);
    t.equal(id, 2 ** RESERVATION_INDEX_BITS + 5, 'cursor 7 of 4 entries from 2 on is entry 5; generation 1');
    t.same(entry(5), [stateOf(1, 'prefill'), 77, 1, 9, 100, 5]);
    t.same(line(1), [100, 5, 1, 9, 0]);
    t.same(
      [line(0), line(2)],
      [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
      ],
    );
  });

  await t.test('wraps inside its partition and is full after that', async t => {
    const indices = [0, 1, 2].map(
      () => addon!.reserve(handle, 2, 4, 3, 1, 9, 1, 1, 77) % 2 ** RESERVATION_INDEX_BITS,
    );
    t.same(indices, [2, 3, 4]);
    const before = [table.join(), ledger.join()];
    t.equal(addon!.reserve(handle, 2, 4, 3, 1, 9, 1, 1, 77), 0);
    t.same([table.join(), ledger.join()], before, 'full changes nothing');
    t.same(
      [entry(0), entry(1), entry(6)],
      [0, 1, 6].map(() => [0, 0, 0, 0, 0, 0]),
      'outside the partition',
    );
  });

  await t.test('refuses a slot whose generation has moved on and changes nothing', async t => {
    const before = [table.join(), ledger.join()];
    t.equal(addon!.reserve(handle, 6, 2, 0, 1, 8, 1, 1, 77), -1);
    t.same([table.join(), ledger.join()], before);
  });

  await t.test('an id is never 0 and differs from the last one of its entry', async t => {
    ledger[LEDGER.state] = stateOf(2 ** 12 - 2, 'free');
    const ids: number[] = [];
    for (let i = 0; i < 3; i++) {
      ids.push(addon!.reserve(handle, 0, 1, 0, 0, 0, 0, 0, 1));
      ledger[LEDGER.state] = ledger[LEDGER.state]! - LEDGER_STATE.prefill;
    }
    t.same(ids, [(2 ** 12 - 1) * 2 ** 20, 2 ** 20, 2 * 2 ** 20]);
    t.equal(ledger[LEDGER.state], stateOf(2, 'free'));
  });
  addon!.detach(handle);
});
