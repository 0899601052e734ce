// Promise: each rule of the applier: what is stored, under which hash, and what is left out, counted and logged once.
import t from 'tap';
import type { SinkCounts } from '#millrace/router/events/contract.js';
import { FACTS, HOLDER, hashers, PROMPT, remove, setUp, store } from './applied.js';
import { FORMS, hashAs, ids, pack, packBatch, type StoredEvent } from './event-batches.js';

/** The counters that are not 0. */
const nonZero = (counts: SinkCounts): Partial<SinkCounts> =>
  Object.fromEntries(Object.entries(counts).filter(([, count]) => count !== 0));

t.test('stores, continuations, removals and clears', async t => {
  const { sink, depths, apply, logged } = await setUp();
  apply(store(0, 2), store(2, 3));
  t.same(depths(PROMPT), [3, 3]);
  apply(remove(1));
  t.same(depths(PROMPT), [1, 1], 'what follows a hole does not count');
  apply(store(1, 2), remove(50));
  t.same(depths(PROMPT), [3, 3], 'removal of an unknown block changes nothing');
  apply(store(0, 3), store(0, 3));
  t.same(depths(PROMPT), [3, 3], 'nor does a store twice');
  apply({ type: 'AllBlocksCleared' });
  t.same(depths(PROMPT), [0, 0]);
  apply(store(0, 1));
  t.same(depths(PROMPT), [1, 1]);
  t.same(nonZero(sink.counters), { batches: 6, events: 8, storedBlocks: 11, removedBlocks: 2, clears: 1 });
  t.same(logged, []);
});

t.test('every tier counts, the device apart', async t => {
  const { depths, apply, sink, logged } = await setUp();
  apply(store(0, 3), store(0, 3, { medium: 'CPU' }), store(0, 3, { medium: 'DISK' }));
  apply(remove(1), remove(2));
  t.same(depths(PROMPT), [3, 1]);
  apply(remove(2, { medium: 'CPU' }), remove(2, { medium: 'DISK' }));
  t.same(depths(PROMPT), [2, 1]);
  apply(store(0, 3, { medium: 'EXTERNAL' }), store(0, 3, { medium: 'tape' }));
  t.same(depths(PROMPT), [2, 1]);
  t.equal(sink.counters.unknownTier, 2);
  t.equal(logged.length, 1, 'one line for the kind');
  t.match(logged[0]?.fields, { worker: 'http://w', holder: HOLDER, anomaly: 'unknownTier' });
});

t.test('groups other than full attention are left out, in removals too', async t => {
  const { depths, apply, sink } = await setUp();
  apply(store(0, 2, { group_idx: 1, kv_cache_spec_kind: 'full_attention' }));
  apply(store(0, 3, { group_idx: 0, kv_cache_spec_kind: 'sliding_window' }));
  t.same(depths(PROMPT), [2, 2]);
  apply(remove(0, { group_idx: 0 }), remove(0, { group_idx: 5 }));
  t.same(depths(PROMPT), [2, 2], 'a removal is read with the kind that stores gave its group');
  t.equal(sink.counters.otherGroup, 3);
  apply(store(0, 3, { group_idx: 1 }), remove(0, { group_idx: 1 }));
  t.same(depths(PROMPT), [0, 0]);
  const unsaid = await setUp();
  unsaid.apply(store(0, 1, { group_idx: 0 }), store(0, 3, { group_idx: 1 }));
  t.same(unsaid.depths(PROMPT), [1, 1], 'without kinds only the first group counts');
});

t.test('the block size is that of the holder, or what the first store on the device says', async t => {
  const known = await setUp();
  known.apply(store(0, 1, { block_size: 2, block_hashes: [1, 2] }), store(0, 1));
  t.same(known.depths(PROMPT), [1, 1]);
  t.equal(known.sink.counters.blockSizeMismatch, 1);
  t.same(known.told, []);
  const unknown = await setUp({ blockSize: null });
  unknown.apply(store(0, 1, { block_size: 2, block_hashes: [1, 2], medium: 'CPU' }));
  unknown.apply(
    store(0, 1, { token_ids: [1] }),
    store(0, 2),
    store(0, 1, { block_size: 2, block_hashes: [1, 2] }),
  );
  t.same(unknown.told, [[HOLDER, 4]]);
  t.same(unknown.depths(PROMPT), [2, 2]);
  t.match(unknown.sink.counters, { blockSizeMismatch: 2, tokenCountMismatch: 1 });
  unknown.sink.clear(HOLDER);
  unknown.apply(store(0, 1, { block_size: 2, block_hashes: [1, 2] }));
  t.same(unknown.told[1], [HOLDER, 2], 'a holder that lost its blocks may have begun anew');
});

t.test('ids that do not fill the blocks', async t => {
  const { depths, apply, sink } = await setUp();
  const pairs = (count: number): number[][] => PROMPT.slice(0, count).map((id, i) => [id, PROMPT[i + 1]!]);
  for (const token_ids of [[], ids(1, 7), ids(1, 9), pairs(7)]) apply(store(0, 2, { token_ids }));
  t.equal(sink.counters.tokenCountMismatch, 4);
  t.same(depths(PROMPT), [0, 0]);
  apply(store(0, 2, { token_ids: pairs(8) }));
  t.same(depths(PROMPT), [2, 2], 'EAGLE pairs are hashed by their first ids');
});

t.test('orphans and blocks that are named twice', async t => {
  const { depths, apply, sink, logged } = await setUp();
  apply(store(1, 2), store(2, 3));
  t.equal(sink.counters.orphans, 1, 'the two are one row');
  apply(store(0, 1, { parent_block_hash: 100 }));
  apply(store(0, 3, { block_hashes: [100, 101, 100] }));
  apply(store(0, 2, { block_hashes: [hashAs(5n, 'bytes'), hashAs(5n, 'bytes')] }));
  t.equal(sink.counters.selfParent, 3);
  t.same(depths(PROMPT), [0, 0]);
  apply(store(0, 2, { block_hashes: [hashAs(5n, 'bytes'), hashAs(6n, 'bytes')] }));
  t.same(depths(PROMPT), [2, 2]);
  t.equal(logged.length, 2);
});

t.test('adapters and salts are other sequences; a continuation has the salt of its parent', async t => {
  const { depths, apply, sink } = await setUp();
  apply(store(0, 1, { lora_name: 'lora', extra_keys: [['lora', 'salt']] }));
  apply(store(1, 3, { lora_name: 'lora', extra_keys: [['lora'], ['lora']] }));
  t.same(depths(PROMPT, 'lora', 'salt'), [3, 3]);
  for (const [adapter, salt] of [
    ['', ''],
    ['lora', ''],
    ['', 'salt'],
  ])
    t.same(depths(PROMPT, adapter, salt), [0, 0]);
  apply(store(0, 1, { block_hashes: [200], lora_name: 'lora', extra_keys: [['lora']] }));
  t.same(depths(PROMPT, 'lora'), [1, 1]);
  apply(store(0, 3, { lora_id: 3 }));
  t.equal(sink.counters.unnamedAdapter, 1);
  t.same(depths(PROMPT), [0, 0]);
  sink.clear(HOLDER);
  apply(store(0, 1), store(1, 2));
  t.same(depths(PROMPT), [2, 2], 'the salt of a name is forgotten with the blocks');
});

t.test('media change the block that they touch and all that follow', async t => {
  const { depths, apply } = await setUp();
  apply(store(0, 3, { extra_keys: [null, [['ab'.repeat(32), 0]], null] }));
  t.same(depths(PROMPT), [1, 1]);
  t.same(depths(PROMPT, '', '', Uint32Array.of(1, 0xabab_abab, 0xabab_abab)), [3, 3]);
});

t.test('a batch that cannot be read empties the holder; the next one counts again', async t => {
  const { depths, apply, sink, logged } = await setUp();
  const oversized = packBatch([{ type: 'BlockRemoved', block_hashes: Array(200_000).fill(1) }]);
  const bad = [Uint8Array.of(0xc1), packBatch([store(0, 1)]).subarray(0, -2), pack([1]), oversized];
  for (const payload of bad) {
    apply(store(0, 3));
    t.same(depths(PROMPT), [3, 3]);
    sink.apply(HOLDER, payload);
    t.same(depths(PROMPT), [0, 0]);
  }
  t.match(sink.counters, { malformed: 3, oversized: 1, batches: 4 });
  t.equal(logged.length, 2);
  apply({ type: 'Other' });
  t.equal(sink.counters.unknownEvent, 1);
  t.same(
    logged.map(({ fields }) => fields?.anomaly),
    ['malformed', 'oversized', 'unknownEvent'],
  );
});

t.test('holders come, go and are known by their generation', async t => {
  const { depths, apply, sink, index, calls } = await setUp();
  const route = (generation: number): void => {
    const hashes = new Uint32Array(6);
    hashers.of('', '').hashAfter(null, Uint32Array.from(PROMPT), 0, 3, 4, null, hashes);
    sink.route({ slot: HOLDER, generation, hashes, blocks: 3, cachedBlocks: 1, expiresMs: 50 });
  };
  apply(store(0, 1));
  route(2);
  t.same(depths(PROMPT), [1, 1], 'another generation');
  route(3);
  t.same(depths(PROMPT), [3, 3]);
  sink.tend(49);
  t.same(depths(PROMPT), [3, 3]);
  sink.tend(50);
  t.same(depths(PROMPT), [1, 1], 'a prediction ends');
  sink.addHolder(HOLDER, { ...FACTS, generation: 4 });
  t.same(depths(PROMPT), [0, 0], 'a holder that is known is emptied');
  sink.removeHolder(HOLDER);
  apply(store(0, 1));
  route(3);
  sink.clear(HOLDER);
  sink.removeHolder(HOLDER);
  t.equal(index.stats().unknownHolders, 0, 'what comes late for a holder reaches no index');
  t.same(calls, [
    ['tend', 49],
    ['tend', 50],
  ]);
});

t.test('a holder without events is guessed', async t => {
  const { calls, sink, apply, depths } = await setUp({ hasEvents: false, totalBlocks: 900 });
  const hashes = new Uint32Array(6);
  sink.route({ slot: HOLDER, generation: 3, hashes, blocks: 3, cachedBlocks: 0, expiresMs: 50 });
  apply(store(0, 1));
  t.same(depths(PROMPT), [0, 0]);
  sink.clear(HOLDER);
  sink.addHolder(HOLDER, { ...FACTS, hasEvents: false });
  sink.removeHolder(HOLDER);
  t.same(calls, [
    ['add', HOLDER, 900],
    ['route', HOLDER, 3, 1234],
    ['remove', HOLDER],
    ['add', HOLDER, 900],
    ['remove', HOLDER],
    ['add', HOLDER, null],
    ['remove', HOLDER],
  ]);
});

t.test('one store per page gives the same index as one for all', async t => {
  const long = ids(1, 400);
  for (const form of FORMS) {
    const single = await setUp();
    const pages: StoredEvent[] = Array.from({ length: 100 }, (_, i) => ({
      type: 'BlockStored',
      block_hashes: [hashAs(BigInt(i) - 50n, 'signed')],
      parent_block_hash: i === 0 ? null : hashAs(BigInt(i) - 51n, 'signed'),
      token_ids: long.slice(i * 4, i * 4 + 4),
      block_size: 4,
    }));
    for (const page of pages) single.sink.apply(HOLDER, packBatch([page], form));
    const merged = await setUp();
    merged.sink.apply(HOLDER, packBatch(pages, form));
    t.same(merged.sink.counters.events, 1);
    for (const { apply, depths } of [single, merged]) {
      t.same(depths(long), [100, 100]);
      apply({ type: 'BlockRemoved', block_hashes: [hashAs(10n, 'unsigned')] });
      t.same(depths(long), [60, 60]);
    }
    t.same(merged.index.stats(), single.index.stats());
  }
});
