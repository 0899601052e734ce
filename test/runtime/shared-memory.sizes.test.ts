// Promise: a segment has the asked size in whole cache lines and fixed views, and a bad size is refused by name.
import t from 'tap';
import {
  allocateShared,
  CACHE_LINE_BYTES,
  SEGMENT_BYTES_MAX,
  sharedBytes,
  sharedWords,
} from '#millrace/runtime/shared-memory.js';

t.test('sizes', async t => {
  for (const bytes of [1, 63, 64, 65, 4096, 1_000_001]) {
    const memory = allocateShared(bytes, 'test');
    t.ok(memory.byteLength >= bytes && memory.byteLength < bytes + CACHE_LINE_BYTES);
    t.equal(memory.byteLength % CACHE_LINE_BYTES, 0);
    t.equal(sharedBytes(memory).byteLength, memory.byteLength);
    t.equal(sharedWords(memory).byteLength, memory.byteLength);
    t.ok(sharedBytes(memory).every(byte => byte === 0));
  }
  t.equal(allocateShared(SEGMENT_BYTES_MAX, 'largest').byteLength, SEGMENT_BYTES_MAX);
});

t.test('refusals', async t => {
  for (const bytes of [0, -64, 1.5, Number.NaN, SEGMENT_BYTES_MAX + 1])
    t.throws(() => allocateShared(bytes, 'index'), {
      name: 'RangeError',
      message: `shared memory "index": byteLength is ${bytes}, allowed are whole numbers 1 to ${SEGMENT_BYTES_MAX}`,
    });
});
