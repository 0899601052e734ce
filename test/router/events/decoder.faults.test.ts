// Promise: no bytes make the decoder throw, read what is not there, or allocate; each wrong batch has its fault.
import t from 'tap';
import { createEventDecoder } from '#millrace/router/events/decoder.js';
import {
  DECODE_FAULT,
  EVENT_BLOCKS_MAX,
  EVENT_MEDIA_MAX,
  EVENT_MEDIA_WORDS,
  EVENT_ROW,
  EVENT_ROW_WORDS,
  EVENT_ROWS_MAX,
  EVENT_TOKENS_MAX,
  type EventDecoder,
} from '#millrace/router/events/event-tables.js';
import { createNativeDecoder } from '#millrace/router/events/native-decoder.js';
import { ENGINE_HASH_WORDS } from '#millrace/router/index/contract.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { FORMS, hashAs, ids, pack, packBatch, type WireEvent } from './event-batches.js';

const addon = loadAddon();
const decoder = await createEventDecoder();
const { truncated, malformed, oversized } = DECODE_FAULT;

const WHOLE: readonly WireEvent[] = [
  {
    type: 'BlockStored',
    block_hashes: [1n, hashAs(2n, 'bytes')],
    parent_block_hash: -3n,
    token_ids: [1, 200, 70_000, 2 ** 31, 5, 6, 7, 8],
    block_size: 4,
    medium: 'GPU',
    lora_name: 'lora',
    extra_keys: [['lora', ['image', 1], 'salt'], null],
    group_idx: 0,
    kv_cache_spec_kind: 'full_attention',
  },
  {
    type: 'BlockStored',
    block_hashes: [9n],
    token_ids: [
      [1, 2],
      [2, 3],
    ],
    block_size: 2,
  },
  { type: 'BlockRemoved', block_hashes: [5n] },
  { type: 'AllBlocksCleared' },
];

t.test('a batch cut off anywhere is truncated', async t => {
  for (const form of FORMS) {
    const payload = packBatch(WHOLE, form);
    t.equal(decoder.decode(payload), WHOLE.length);
    const faults = new Set<number>();
    for (let end = 0; end < payload.length; end += 1) faults.add(decoder.decode(payload.subarray(0, end)));
    t.same([...faults], [truncated], form);
  }
});

t.test('lengths that the bytes cannot hold are truncated, at once', async t => {
  const huge = [0xff, 0xff, 0xff, 0xff];
  t.equal(decoder.decode(Uint8Array.from([0xdd, ...huge])), truncated, 'a list as batch');
  t.equal(decoder.decode(Uint8Array.from([0xdf, ...huge])), truncated, 'a map as batch');
  t.equal(decoder.decode(Uint8Array.from([0x92, 0x01, 0xdd, ...huge])), truncated, 'events');
  t.equal(decoder.decode(Uint8Array.from([0x92, 0xc6, ...huge, 0x90])), truncated, 'bytes');
  t.equal(
    decoder.decode(Uint8Array.from([0x92, 0xdf, ...huge, 0x90])),
    truncated,
    'a map that is passed over',
  );
});

t.test('deep nesting costs no stack', async t => {
  const deep = new Uint8Array(1_000_000).fill(0x91);
  t.equal(decoder.decode(deep), malformed, 'a list of one is no batch');
  const nested = Uint8Array.from([0x93, 0x01, 0x90, ...deep, 0xc0]);
  t.equal(decoder.decode(nested), 0, 'passed over');
  t.equal(decoder.decode(nested.subarray(0, -1)), truncated);
});

t.test('what is no batch is malformed', async t => {
  const stored = (fields: Record<string, unknown>): unknown => [
    1,
    [{ type: 'BlockStored', block_hashes: [1], token_ids: [1], block_size: 1, ...fields }],
  ];
  t.equal(decoder.decode(pack(stored({}))), 1, 'the store that is changed below is right');
  const without = (field: string): unknown => {
    const whole: Record<string, unknown> = {
      type: 'BlockStored',
      block_hashes: [1],
      token_ids: [1],
      block_size: 1,
    };
    delete whole[field];
    return [1, [whole]];
  };
  const wrong: readonly [string, unknown][] = [
    ['a number', 5],
    ['a text', 'BlockStored'],
    ['nil', null],
    ['an empty list', []],
    ['no events', [1]],
    ['events that are no list', [1, 'x']],
    ['a map without events', { ts: 1 }],
    ['an event that is no list', [1, [5]]],
    ['an empty event', [1, [[]]]],
    ['a tag that is no text', [1, [[5, [1]]]]],
    ['a map without type', [1, [{ block_hashes: [1] }]]],
    ['a removal without hashes', [1, [['BlockRemoved']]]],
    ...['type', 'block_hashes', 'token_ids', 'block_size'].map(
      f => [`no ${f}`, without(f)] as [string, unknown],
    ),
    ['hashes that are no list', stored({ block_hashes: 1 })],
    ['a hash of another type', stored({ block_hashes: ['x'] })],
    ['an empty hash', stored({ block_hashes: [Buffer.alloc(0)] })],
    ['a real hash', stored({ block_hashes: [1.5] })],
    ['a negative id', stored({ token_ids: [-1] })],
    ['an id beyond 32 bits', stored({ token_ids: [2n ** 32n] })],
    ['a pair of three', stored({ token_ids: [[1, 2, 3]] })],
    ['a pair, then an id', stored({ token_ids: [[1, 2], 3] })],
    ['a block size of 0', stored({ block_size: 0 })],
    ['a block size beyond 31 bits', stored({ block_size: 2n ** 31n })],
    ['a medium that is no text', stored({ medium: 1 })],
    ['a group that is no number', stored({ group_idx: 'x' })],
    ['extra keys that are no list', stored({ extra_keys: 'x' })],
    ['extra keys of a block that are no list', stored({ extra_keys: ['x'] })],
  ];
  for (const [name, value] of wrong) t.equal(decoder.decode(pack(value)), malformed, name);
  t.equal(decoder.decode(Uint8Array.from([0xc1])), malformed, 'a byte that begins no value');
  t.equal(
    decoder.decode(Buffer.concat([packBatch(WHOLE), Buffer.of(0)])),
    malformed,
    'bytes behind the batch',
  );
});

t.test('more than the tables hold is oversized, and just as much is not', async t => {
  const clears = (count: number): WireEvent[] =>
    Array.from({ length: count }, () => ({ type: 'AllBlocksCleared' }));
  t.equal(decoder.decode(packBatch(clears(EVENT_ROWS_MAX))), EVENT_ROWS_MAX);
  t.equal(decoder.decode(packBatch(clears(EVENT_ROWS_MAX + 1))), oversized, 'rows');
  const removal = (count: number): WireEvent => ({
    type: 'BlockRemoved',
    block_hashes: Array(count).fill(1),
  });
  t.equal(decoder.decode(packBatch([removal(EVENT_BLOCKS_MAX - 1), removal(1)])), 2);
  t.equal(decoder.decode(packBatch([removal(EVENT_BLOCKS_MAX), removal(1)])), oversized, 'blocks');
  const store = (tokens: number, media: number): WireEvent => ({
    type: 'BlockStored',
    block_hashes: [1],
    token_ids: Array(tokens).fill(1),
    block_size: 1,
    extra_keys: [Array(media).fill(['x', 0])],
  });
  t.equal(decoder.decode(packBatch([store(EVENT_TOKENS_MAX, 0)])), 1);
  t.equal(decoder.decode(packBatch([store(EVENT_TOKENS_MAX, 0), store(1, 0)])), oversized, 'tokens');
  t.equal(decoder.decode(packBatch([store(1, EVENT_MEDIA_MAX)])), 1);
  t.equal(decoder.decode(packBatch([store(1, EVENT_MEDIA_MAX), store(1, 1)])), oversized, 'media');
  t.equal(decoder.decode(packBatch(WHOLE)), WHOLE.length, 'the decoder goes on');
});

/** Whether the addon's decoder has the same rows, with the same words behind them. */
function isSame(native: EventDecoder, nativeRows: number, rows: number): boolean {
  if (nativeRows !== rows) return false;
  const last = (rows - 1) * EVENT_ROW_WORDS;
  const end = (first: number, count: number): number =>
    rows < 1 ? 0 : decoder.tables.rows[last + first]! + decoder.tables.rows[last + count]!;
  const used = {
    rows: Math.max(rows, 0) * EVENT_ROW_WORDS,
    parents: Math.max(rows, 0) * ENGINE_HASH_WORDS,
    hashes: end(EVENT_ROW.firstBlock, EVENT_ROW.blocks) * ENGINE_HASH_WORDS,
    tokens: end(EVENT_ROW.firstToken, EVENT_ROW.tokens),
    media: end(EVENT_ROW.firstMedia, EVENT_ROW.media) * EVENT_MEDIA_WORDS,
  };
  return (Object.keys(used) as (keyof typeof used)[]).every(name =>
    decoder.tables[name].subarray(0, used[name]).every((word, i) => word === native.tables[name][i]),
  );
}

t.test(
  'random and damaged batches never throw, stay inside the tables, and are to the addon the same',
  async t => {
    const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 32));
    t.comment(`SEED=${seed}`);
    const random = seededRandom(seed);
    const byte = (): number => randomInteger(random, 256);
    const wholes = FORMS.map(form => packBatch(WHOLE, form));
    const native = addon === null ? null : createNativeDecoder(addon);
    const outcomes = new Map<number, number>();
    for (let round = 0; round < 60_000; round += 1) {
      const payload =
        random() < 0.2
          ? Uint8Array.from({ length: randomInteger(random, 64) }, byte)
          : Uint8Array.from(wholes[round % wholes.length]!);
      for (let i = randomInteger(random, 4); i > 0; i -= 1)
        payload[randomInteger(random, payload.length)] = byte();
      const rows = decoder.decode(payload);
      if (native !== null && !isSame(native, native.decode(payload), rows))
        return t.fail(`the addon differs for ${Buffer.from(payload).toString('hex')}`);
      outcomes.set(Math.min(rows, 1), (outcomes.get(Math.min(rows, 1)) ?? 0) + 1);
      for (let row = 0; row < rows; row += 1) {
        const word = (column: number): number => decoder.tables.rows[row * EVENT_ROW_WORDS + column]!;
        const isInside =
          word(EVENT_ROW.adapterAt) + word(EVENT_ROW.adapterBytes) <= payload.length &&
          word(EVENT_ROW.saltAt) + word(EVENT_ROW.saltBytes) <= payload.length &&
          word(EVENT_ROW.firstBlock) + word(EVENT_ROW.blocks) <= EVENT_BLOCKS_MAX &&
          word(EVENT_ROW.firstToken) + word(EVENT_ROW.tokens) <= EVENT_TOKENS_MAX;
        if (!isInside) t.fail(`row ${row} of ${Buffer.from(payload).toString('hex')}`);
      }
    }
    for (const outcome of [truncated, malformed, 1])
      t.ok((outcomes.get(outcome) ?? 0) > 1000, `saw ${outcome}`);
    t.equal(
      decoder.decode(packBatch([{ ...WHOLE[1]!, token_ids: ids(1, 2) } as WireEvent])),
      1,
      'it goes on',
    );
  },
);
