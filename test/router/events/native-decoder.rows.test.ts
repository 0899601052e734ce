// Promise: whatever form vLLM and SGLang give a batch in, its events become the documented rows.
import { xxhash3 } from 'hash-wasm';
import { Packr } from 'msgpackr';
import t from 'tap';
import {
  EVENT_GROUP,
  EVENT_KIND,
  EVENT_ROW,
  EVENT_ROW_WORDS,
  EVENT_TIER,
} from '#millrace/router/events/event-tables.js';
import { createNativeDecoder } from '#millrace/router/events/native-decoder.js';
import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';

const addon = loadAddon();
const needsAddon = addon === null ? { skip: `no addon: ${addonStatus().reason}` } : {};
const packr = new Packr({ useRecords: false, variableMapSize: true, encodeUndefinedAsNil: true });
const pack = (value: unknown): Uint8Array => new Uint8Array(packr.pack(value));
const batch = (...events: unknown[]): Uint8Array => pack([1.5, events, 0]);

t.test('rows', needsAddon, async t => {
  const decoder = createNativeDecoder(addon!);
  const { rows, parents, hashes, tokens, media } = decoder.tables;
  const column = (row: number, name: keyof typeof EVENT_ROW): number =>
    rows[row * EVENT_ROW_WORDS + EVENT_ROW[name]]!;
  /** The named columns of a row. */
  const row = (index: number, ...names: (keyof typeof EVENT_ROW)[]): number[] =>
    names.map(name => column(index, name));
  const hashesOf = (index: number): number[][] =>
    Array.from({ length: column(index, 'blocks') }, (_, i) => {
      const at = (column(index, 'firstBlock') + i) * 4;
      return Array.from(hashes.subarray(at, at + 4));
    });
  const tokensOf = (index: number): number[] => {
    const first = column(index, 'firstToken');
    return Array.from(tokens.subarray(first, first + column(index, 'tokens')));
  };
  const mediaOf = (index: number): number[] => {
    const first = column(index, 'firstMedia') * 3;
    return Array.from(media.subarray(first, first + column(index, 'media') * 3));
  };
  const textOf = (payload: Uint8Array, index: number, name: 'adapter' | 'salt'): string => {
    const at = column(index, `${name}At`);
    return Buffer.from(payload.subarray(at, at + column(index, `${name}Bytes`))).toString();
  };

  await t.test('arrays and maps say the same', async t => {
    const hash = Buffer.from(Array.from({ length: 32 }, (_, i) => i));
    const stored = [
      [hash, 5],
      -2,
      [1, 2, 3, 4_294_967_295],
      2,
      7,
      'CPU',
      'lora',
      null,
      3,
      'mla_attention',
      128,
    ];
    const names = [
      'block_hashes',
      'parent_block_hash',
      'token_ids',
      'block_size',
      'lora_id',
      'medium',
      'lora_name',
      'extra_keys',
      'group_idx',
      'kv_cache_spec_kind',
      'kv_cache_spec_sliding_window',
    ];
    const asMap = Object.fromEntries(names.map((name, i) => [name, stored[i]]));
    const removed = { block_hashes: [9], medium: 'DISK', group_idx: 1 };
    const byPosition = [
      ['BlockStored', ...stored, 'a later field'],
      ['BlockRemoved', [9], 'DISK', 1],
      ['AllBlocksCleared'],
      ['BlockMoved', [[{ a: 1 }]]],
    ];
    const byName = [
      { ...asMap, later: { deep: [[[]]] }, type: 'BlockStored' },
      { type: 'BlockRemoved', ...removed },
      { type: 'AllBlocksCleared' },
      { type: 'BlockMoved', block_hashes: 'other' },
    ];
    for (const payload of [
      pack([1.5, byPosition]),
      pack([1.5, byName, 0, 'a later field']),
      pack({ ts: 1.5, events: byName, data_parallel_rank: null }),
      pack({ data_parallel_rank: 3, events: byPosition }),
    ]) {
      t.equal(decoder.decode(payload), 4);
      t.same(row(0, 'kind', 'tier', 'groupKind', 'group'), [
        EVENT_KIND.store,
        EVENT_TIER.host,
        EVENT_GROUP.full,
        3,
      ]);
      t.same(row(0, 'blockSize', 'hasParent', 'isBigram', 'hasAdapterId'), [2, 1, 0, 0]);
      t.same(row(0, 'saltAt', 'saltBytes', 'media'), [0, 0, 0]);
      t.equal(textOf(payload, 0, 'adapter'), 'lora');
      t.same(Array.from(parents.subarray(0, 4)), [0xffff_fffe, 0xffff_ffff, 0, 0]);
      t.same(hashesOf(0), [
        [0x1c1d1e1f, 0x18191a1b, 0x14151617, 0x10111213],
        [5, 0, 0, 0],
      ]);
      t.same(tokensOf(0), [1, 2, 3, 0xffff_ffff]);
      t.same(row(1, 'kind', 'tier', 'groupKind', 'group', 'firstBlock'), [
        EVENT_KIND.remove,
        EVENT_TIER.disk,
        EVENT_GROUP.unsaid,
        1,
        2,
      ]);
      t.same(hashesOf(1), [[9, 0, 0, 0]]);
      t.same([column(2, 'kind'), column(3, 'kind')], [EVENT_KIND.clear, EVENT_KIND.unknown]);
      t.same(row(3, 'blocks', 'tokens', 'group'), [0, 0, -1]);
    }
  });

  await t.test('hashes of every width', async t => {
    const values = [
      0,
      127,
      -1,
      -32,
      128,
      65_535,
      65_536,
      2 ** 32 - 1,
      -128,
      -129,
      -32_769,
      2n ** 64n - 1n,
      -(2n ** 63n),
      2n ** 40n,
    ];
    const wide = values.map(value => BigInt.asUintN(64, BigInt(value)));
    t.equal(decoder.decode(batch(['BlockRemoved', values])), 1);
    t.same(
      hashesOf(0),
      wide.map(value => [Number(value & 0xffff_ffffn), Number(value >> 32n), 0, 0]),
    );
    const bytes = [Buffer.of(1), Buffer.of(1, 2, 3, 4, 5), Buffer.alloc(16, 0xab), Buffer.alloc(300, 7)];
    t.equal(decoder.decode(batch(['BlockRemoved', bytes])), 1);
    t.same(hashesOf(0), [
      [1, 0, 0, 0],
      [0x02030405, 1, 0, 0],
      Array(4).fill(0xabababab),
      Array(4).fill(0x07070707),
    ]);
  });

  await t.test('tiers and groups', async t => {
    const tiers = {
      device: [null, 'GPU'],
      host: ['CPU', 'CPU_PINNED', 'CPU_TIER1'],
      disk: ['DISK'],
      external: ['CPU_TIER2', 'EXTERNAL', 'NETWORK', 'REMOTE', 'SHARED'],
      unknown: ['', 'gpu', 'GPU ', 'CXL'],
    };
    for (const [tier, names] of Object.entries(tiers)) {
      for (const medium of names) {
        t.equal(decoder.decode(batch(['BlockRemoved', [1], medium])), 1);
        t.equal(column(0, 'tier'), EVENT_TIER[tier as keyof typeof EVENT_TIER], `${medium}`);
      }
    }
    const groups = {
      unsaid: [null],
      full: ['full_attention', 'mla_attention', 'sink_full_attention'],
      other: ['', 'mamba', 'sliding_window', 'full_attention '],
    };
    for (const [group, names] of Object.entries(groups)) {
      for (const kind of names) {
        const stored = ['BlockStored', [1], null, [1], 1, null, null, null, null, null, kind];
        t.equal(decoder.decode(batch(stored)), 1);
        t.equal(column(0, 'groupKind'), EVENT_GROUP[group as keyof typeof EVENT_GROUP], `${kind}`);
      }
    }
  });

  await t.test('pairs of ids are flattened', async t => {
    const pairs = [
      [10, 11],
      [11, 12],
      [12, 13],
      [13, 70_000],
    ];
    t.equal(decoder.decode(batch(['BlockStored', [1, 2], null, pairs, 2])), 1);
    t.same(tokensOf(0), [10, 11, 12, 13, 70_000]);
    t.same(row(0, 'isBigram', 'tokens', 'group', 'hasAdapterId'), [1, 5, -1, 0]);
  });

  await t.test('extra keys: adapter, media and salt', async t => {
    const digest = `00112233445566FF${'ab'.repeat(24)}`;
    const named = BigInt(`0x${await xxhash3('an image', 0, 0)}`);
    const keys = [
      ['lora', [digest, 3], ['an image', -4], Buffer.of(1, 2), 'tenant', 7, null],
      null,
      [digest.toLowerCase(), 'no salt here', [1, 2], { a: 'b' }, ['x', 1, 2]],
      [[digest, 0]],
    ];
    const stored = ['BlockStored', [1, 2, 3], null, [1, 2, 3], 1, 7, 'GPU', 'lora', keys];
    const payload = batch(['BlockRemoved', [4]], stored, ['BlockStored', [5], 3, [4], 1, 7]);
    t.equal(decoder.decode(payload), 3, 'a row with media or salt is not continued');
    t.same([textOf(payload, 1, 'adapter'), textOf(payload, 1, 'salt')], ['lora', 'tenant']);
    const half = [0x445566ff, 0x00112233];
    t.same(mediaOf(1), [0, ...half, 0, Number(named & 0xffff_ffffn), Number(named >> 32n), 2, ...half]);
    t.same(row(2, 'hasAdapterId', 'adapterBytes', 'saltBytes', 'media', 'firstMedia'), [1, 0, 0, 0, 3]);
  });

  await t.test('stores that continue each other are one row', async t => {
    const page = (hash: number, parent: number | null, medium = 'GPU', ids = [hash, hash]): unknown => [
      'BlockStored',
      [hash],
      parent,
      ids,
      2,
      null,
      medium,
    ];
    const cases: [string, unknown[], number[]][] = [
      ['a chain', [page(1, null), page(2, 1), page(3, 2), page(4, 3)], [4]],
      ['another parent', [page(1, null), page(2, 1), page(3, 1), page(4, 3)], [2, 2]],
      ['a new sequence', [page(1, null), page(2, null)], [1, 1]],
      ['another tier', [page(1, null), page(2, 1, 'CPU'), page(3, 2, 'CPU')], [1, 2]],
      ['a removal between', [page(1, null), ['BlockRemoved', [1]], page(2, 1)], [1, 1, 1]],
      ['ids that do not fill', [page(1, null), page(2, 1, 'GPU', [7]), page(3, 2)], [1, 1, 1]],
      ['no blocks', [['BlockStored', [], null, [], 2], page(2, 1)], [0, 1]],
    ];
    for (const [name, events, blocks] of cases) {
      t.equal(decoder.decode(batch(...events)), blocks.length, name);
      t.same(
        blocks.map((_, i) => column(i, 'blocks')),
        blocks,
        name,
      );
    }
    decoder.decode(batch(page(1, null), page(2, 1)));
    t.same(
      [tokensOf(0), hashesOf(0).map(words => words[0]), column(0, 'hasParent')],
      [[1, 1, 2, 2], [1, 2], 0],
    );
  });
});
