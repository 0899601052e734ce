// Promise: bytes that are no batch, or too much of one, are a fault of the documented kind; no damage makes the decoder fail
// in any other way.
import { Packr } from 'msgpackr';
import t from 'tap';
import {
  DECODE_FAULT,
  EVENT_BLOCKS_MAX,
  EVENT_MEDIA_MAX,
  EVENT_ROWS_MAX,
  EVENT_TOKENS_MAX,
} from '#millrace/router/events/event-tables.js';
import { createNativeDecoder } from '#millrace/router/events/native-decoder.js';
import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const addon = loadAddon();
const needsAddon = addon === null ? { skip: `no addon: ${addonStatus().reason}` } : {};
const packr = new Packr({ useRecords: false, variableMapSize: true, encodeUndefinedAsNil: true });
const pack = (value: unknown): Uint8Array => new Uint8Array(packr.pack(value));
const batch = (...events: unknown[]): Uint8Array => pack([1.5, events, 0]);

t.test('what is no batch is a fault', needsAddon, async t => {
  const decoder = createNativeDecoder(addon!);
  const store = (...fields: unknown[]): Uint8Array => batch(['BlockStored', ...fields]);
  const malformed: [string, Uint8Array][] = [
    ['a number', pack(7)],
    ['no events', pack([1.5])],
    ['events of a map missing', pack({ ts: 1 })],
    ['events are no list', pack([1.5, 'events'])],
    ['bytes behind the batch', Buffer.concat([batch(), Buffer.of(0)])],
    ['an event without tag', batch([])],
    ['a map without type', batch({ block_hashes: [1] })],
    ['an event that is text', batch('AllBlocksCleared')],
    ['a tag that is a number', batch([1])],
    ['a store without ids', batch({ type: 'BlockStored', block_hashes: [1], block_size: 1 })],
    ['a store without block size', store([1], null, [1])],
    ['a removal without hashes', batch(['BlockRemoved'])],
    ['a hash of no bytes', batch(['BlockRemoved', [Buffer.alloc(0)]])],
    ['a hash that is text', batch(['BlockRemoved', ['a']])],
    ['a block size of 0', store([1], null, [], 0)],
    ['a block size below 0', store([1], null, [], -1)],
    ['a block size with a fraction', store([1], null, [], 1.5)],
    ['an id below 0', store([1], null, [-1], 1)],
    ['an id of 2^32', store([1], null, [2 ** 32], 1)],
    ['an id that is nil', store([1], null, [null], 1)],
    ['a pair and an id', store([1], null, [[1, 2], 3], 2)],
    ['a triple', store([1], null, [[1, 2, 3]], 1)],
    ['a medium that is a number', batch(['BlockRemoved', [1], 3])],
    ['a group below 0', batch(['BlockRemoved', [1], null, -1])],
    ['extra keys that are a number', store([1], null, [1], 1, null, null, null, 3)],
    ['the byte that means nothing', Buffer.of(0x92, 0x01, 0x91, 0xc1)],
  ];
  for (const [name, payload] of malformed) t.equal(decoder.decode(payload), DECODE_FAULT.malformed, name);
  const many = <T>(length: number, item: T): T[] => Array.from({ length }, () => item);
  const oversized: [string, Uint8Array][] = [
    ['rows', batch(...many(EVENT_ROWS_MAX + 1, ['AllBlocksCleared']))],
    ['blocks', batch(['BlockRemoved', many(EVENT_BLOCKS_MAX, 1)], ['BlockRemoved', [1]])],
    ['ids', store([1], null, many(EVENT_TOKENS_MAX + 1, 1), 1)],
    ['pairs', store([1], null, many(EVENT_TOKENS_MAX, [1, 1]), 1)],
    ['media', store([1], null, [1], 1, null, null, null, [many(EVENT_MEDIA_MAX + 1, ['m', 0])])],
  ];
  for (const [name, payload] of oversized) t.equal(decoder.decode(payload), DECODE_FAULT.oversized, name);
  t.equal(
    decoder.decode(batch(...many(EVENT_ROWS_MAX, ['AllBlocksCleared']))),
    EVENT_ROWS_MAX,
    'as many as fit',
  );
});

t.test('cut off, damaged and random bytes', needsAddon, async t => {
  const decoder = createNativeDecoder(addon!);
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  const keys = [['lora', ['m', 1], 'salt', Buffer.of(1)], null];
  const stored = [
    'BlockStored',
    [5, Buffer.alloc(32, 1)],
    -7,
    [1, 300, 70_000, 3],
    2,
    1,
    'GPU',
    'lora',
    keys,
    0,
    'mamba',
  ];
  const whole = pack([1.5, [stored, { type: 'BlockRemoved', block_hashes: [1] }, ['AllBlocksCleared']], 0]);
  t.equal(decoder.decode(whole), 3);
  for (let end = 0; end < whole.length; end += 1) {
    if (decoder.decode(whole.subarray(0, end)) !== DECODE_FAULT.truncated) t.fail(`cut off at ${end}`);
  }
  const counts = new Map<number, number>();
  for (let n = 0; n < 200_000; n += 1) {
    const damaged =
      n % 4 === 0 ? Uint8Array.from({ length: randomInteger(random, 40) }, () => 0) : whole.slice();
    const changes = n % 4 === 0 ? damaged.length : 1 + randomInteger(random, 3);
    for (let i = 0; i < changes; i += 1)
      damaged[randomInteger(random, damaged.length)] = randomInteger(random, 256);
    const result = decoder.decode(damaged);
    if (result < DECODE_FAULT.oversized || result > 3)
      t.fail(`gave ${result} for ${Buffer.from(damaged).toString('hex')}`);
    counts.set(Math.min(result, 0), (counts.get(Math.min(result, 0)) ?? 0) + 1);
  }
  t.ok(
    counts.get(0)! > 1000 &&
      counts.get(DECODE_FAULT.malformed)! > 1000 &&
      counts.get(DECODE_FAULT.truncated)! > 1000,
  );
});
