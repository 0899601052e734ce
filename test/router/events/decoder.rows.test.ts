// Promise: every form in which vLLM and SGLang pack an event gives the same rows, with all bits and nothing else.
import { createXXHash3 } from 'hash-wasm';
import t from 'tap';
import { createEventDecoder } from '#millrace/router/events/decoder.js';
import {
  EVENT_GROUP,
  EVENT_KIND,
  EVENT_ROW,
  EVENT_ROW_WORDS,
  EVENT_TIER,
} from '#millrace/router/events/event-tables.js';
import { FORMS, hashAs, ids, pack, packBatch, type StoredEvent, type WireEvent } from './event-batches.js';

const decoder = await createEventDecoder();
type Column = keyof typeof EVENT_ROW;

/** A row by the names of its columns. */
function row(index: number): Record<Column, number> {
  const words = Object.entries(EVENT_ROW).map(([name, column]) => [
    name,
    decoder.tables.rows[index * EVENT_ROW_WORDS + column],
  ]);
  return Object.fromEntries(words);
}
const hash = (index: number): number[] => [...decoder.tables.hashes.subarray(index * 4, index * 4 + 4)];
const parent = (index: number): number[] => [...decoder.tables.parents.subarray(index * 4, index * 4 + 4)];
const store = (more: Partial<StoredEvent> = {}): StoredEvent => ({
  type: 'BlockStored',
  block_hashes: [1n],
  token_ids: ids(1, 4),
  block_size: 4,
  ...more,
});
const textAt = (payload: Uint8Array, at: number, bytes: number): string =>
  Buffer.from(payload).toString('utf8', at, at + bytes);

t.test('a full store, a removal, a clear and an unknown event in each form', async t => {
  const events: WireEvent[] = [
    store({
      block_hashes: [0xfedc_ba98_7654_3210n, -2n],
      parent_block_hash: 7,
      token_ids: [0, 127, 128, 255, 256, 65_535, 65_536, 0xffff_ffff],
      lora_id: 3,
      medium: 'CPU_PINNED',
      lora_name: 'äda',
      extra_keys: [['äda', 'salt-1'], null],
      group_idx: 2,
      kv_cache_spec_kind: 'mla_attention',
    }),
    { type: 'BlockRemoved', block_hashes: [5], medium: 'DISK', group_idx: 1 },
    { type: 'AllBlocksCleared' },
    { type: 'Other' },
  ];
  for (const form of FORMS) {
    const payload = packBatch(events, form);
    t.equal(decoder.decode(payload), 4, form);
    const first = row(0);
    t.match(first, {
      kind: EVENT_KIND.store,
      tier: EVENT_TIER.host,
      groupKind: EVENT_GROUP.full,
      group: 2,
      firstBlock: 0,
      blocks: 2,
      firstToken: 0,
      tokens: 8,
      blockSize: 4,
      hasParent: 1,
      isBigram: 0,
      hasAdapterId: 0,
      media: 0,
    });
    t.equal(textAt(payload, first.adapterAt, first.adapterBytes), 'äda');
    t.equal(textAt(payload, first.saltAt, first.saltBytes), 'salt-1');
    t.same(hash(0), [0x7654_3210, 0xfedc_ba98, 0, 0]);
    t.same(hash(1), [0xffff_fffe, 0xffff_ffff, 0, 0]);
    t.same(parent(0), [7, 0, 0, 0]);
    t.same([...decoder.tables.tokens.subarray(0, 8)], [0, 127, 128, 255, 256, 65_535, 65_536, 0xffff_ffff]);
    t.match(row(1), { kind: EVENT_KIND.remove, tier: EVENT_TIER.disk, group: 1, firstBlock: 2, blocks: 1 });
    t.same(hash(2), [5, 0, 0, 0]);
    t.match(row(2), { kind: EVENT_KIND.clear, blocks: 0 });
    t.match(row(3), { kind: EVENT_KIND.unknown, blocks: 0 });
  }
});

t.test('absent fields, more fields than are known, keys in any order', async t => {
  const shortest = pack([1, [['BlockStored', [1], null, [9], 1]]]);
  const longest = pack([
    1,
    [['BlockStored', [1], null, [9], 1, null, null, null, null, null, null, 4096, { more: [1] }, 'x']],
    null,
    'x',
  ]);
  const map = pack({
    later: { deep: [[[]]] },
    events: [{ block_size: 1, later: 1.5, token_ids: [9], 7: 'x', block_hashes: [1], type: 'BlockStored' }],
  });
  for (const payload of [shortest, longest, map]) {
    t.equal(decoder.decode(payload), 1);
    t.match(row(0), {
      tier: EVENT_TIER.device,
      groupKind: EVENT_GROUP.unsaid,
      group: -1,
      blocks: 1,
      hasParent: 0,
      adapterAt: 0,
      adapterBytes: 0,
      hasAdapterId: 0,
      saltAt: 0,
      saltBytes: 0,
      media: 0,
    });
  }
  t.equal(decoder.decode(pack([1, []])), 0, 'a batch without events');
});

t.test('byte hashes count by their last 16 bytes; shorter ones are extended', async t => {
  const digest = Buffer.from(Array.from({ length: 32 }, (_, i) => i));
  decoder.decode(
    packBatch([store({ block_hashes: [digest, Buffer.from([1, 2, 3])], token_ids: ids(1, 8) })]),
  );
  t.same(hash(0), [0x1c1d_1e1f, 0x1819_1a1b, 0x1415_1617, 0x1011_1213]);
  t.same(hash(1), [0x0001_0203, 0, 0, 0]);
  decoder.decode(packBatch([store({ block_hashes: [hashAs(-5n, 'signed')] })]));
  const signed = hash(0);
  decoder.decode(packBatch([store({ block_hashes: [hashAs(-5n, 'unsigned')] })]));
  t.same(hash(0), signed, 'signed and unsigned are the same 64 bits');
});

t.test('tiers and groups by their names', async t => {
  const tiers = {
    GPU: 'device',
    CPU: 'host',
    CPU_PINNED: 'host',
    CPU_TIER1: 'host',
    DISK: 'disk',
    CPU_TIER2: 'external',
    EXTERNAL: 'external',
    tape: 'unknown',
  } as const;
  for (const [medium, tier] of Object.entries(tiers)) {
    decoder.decode(packBatch([store({ medium })]));
    t.equal(row(0).tier, EVENT_TIER[tier], medium);
  }
  const kinds = {
    full_attention: 'full',
    mla_attention: 'full',
    sink_full_attention: 'full',
    mamba: 'other',
    sliding_window: 'other',
  } as const;
  for (const [kind, group] of Object.entries(kinds)) {
    decoder.decode(packBatch([store({ kv_cache_spec_kind: kind, group_idx: 0 })]));
    t.equal(row(0).groupKind, EVENT_GROUP[group], kind);
    t.equal(row(0).group, 0);
  }
  decoder.decode(packBatch([store({ lora_id: 4 })]));
  t.equal(row(0).hasAdapterId, 1, 'an adapter without a name');
});

t.test('EAGLE pairs are flattened', async t => {
  const pairs = [10, 11, 12, 13].map(id => [id, id + 1]);
  t.equal(decoder.decode(packBatch([store({ token_ids: pairs })])), 1);
  t.match(row(0), { isBigram: 1, tokens: 5, blocks: 1 });
  t.same([...decoder.tables.tokens.subarray(0, 5)], [10, 11, 12, 13, 14]);
});

t.test('extra keys: media of each block, the salt of the first one', async t => {
  const digest = '0123456789abcdefFEDCBA9876543210'.repeat(2);
  const extra_keys = [
    ['lora', [digest, 3], Buffer.from('embedding'), 'my-salt', 17, ['image-7', -2]],
    ['lora', digest, 'no salt here'],
    null,
    [['beyond the blocks', 0]],
  ];
  const event = store({ block_hashes: [1, 2, 3], token_ids: ids(1, 12), lora_name: 'lora', extra_keys });
  const before = store({ extra_keys: [[[digest, 0]]] });
  const payload = packBatch([before, event], 'mapEvents');
  t.equal(decoder.decode(payload), 2);
  const { saltAt, saltBytes, firstMedia, media } = row(1);
  t.equal(textAt(payload, saltAt, saltBytes), 'my-salt');
  t.same([firstMedia, media], [1, 3]);
  const named = (await createXXHash3(0, 0)).init().update('image-7').digest('hex');
  t.same(
    [...decoder.tables.media.subarray(firstMedia * 3, (firstMedia + media) * 3)],
    [
      ...[0, 0x89ab_cdef, 0x0123_4567],
      ...[0, Number.parseInt(named.slice(8), 16), Number.parseInt(named.slice(0, 8), 16)],
      ...[1, 0x89ab_cdef, 0x0123_4567],
    ],
  );
});

t.test('stores that continue each other become one row; others do not', async t => {
  const chain = (i: number, more: Partial<StoredEvent> = {}): StoredEvent =>
    store({
      block_hashes: [BigInt(i) - 9n],
      parent_block_hash: BigInt(i) - 10n,
      token_ids: ids(i, 4),
      ...more,
    });
  const pages = Array.from({ length: 100 }, (_, i) => chain(i));
  for (const form of FORMS) {
    t.equal(decoder.decode(packBatch(pages, form)), 1, form);
    t.match(row(0), { blocks: 100, tokens: 400, hasParent: 1 });
    t.same(hash(99), [90, 0, 0, 0]);
  }
  const breaks: Partial<StoredEvent>[] = [
    { medium: 'CPU' },
    { group_idx: 1 },
    { kv_cache_spec_kind: 'full_attention' },
    { lora_name: 'a' },
    { lora_id: 1 },
    { extra_keys: [['salt']] },
    { extra_keys: [[['image', 0]]] },
    { block_size: 2 },
    { token_ids: ids(1, 5) },
    { token_ids: ids(1, 4).map(id => [id, id + 1]) },
  ];
  for (const more of breaks) {
    t.equal(decoder.decode(packBatch([chain(10), chain(11, more), chain(12)])), 3, Object.keys(more)[0]!);
  }
  for (const parent_block_hash of [999, null])
    t.equal(decoder.decode(packBatch([chain(10), chain(11, { parent_block_hash })])), 2, 'another parent');
  const removal: WireEvent = { type: 'BlockRemoved', block_hashes: [1] };
  t.equal(decoder.decode(packBatch([chain(10), removal, chain(11)])), 3, 'a removal between them');
  const adapters = ['aa', 'ab', 'ab'].map((lora_name, i) => chain(10 + i, { lora_name }));
  t.equal(decoder.decode(packBatch(adapters)), 2, 'adapters are compared by their names');
});
