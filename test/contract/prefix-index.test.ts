// Promise: the simple and the shared prefix index do the same, as the contract says.
import t from 'tap';
import {
  createIndexMemory,
  SharedIndexReader,
  SharedIndexWriter,
} from '#millrace/router/index/shared-index.js';
import { createSimpleIndex } from '#millrace/router/index/simple-index.js';
import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { prefixIndexContract } from './prefix-index.js';

const addon = loadAddon();

t.test('simple', async t =>
  prefixIndexContract(t as typeof import('tap').default, () => {
    const index = createSimpleIndex({ blocksMax: 4000, predictionsMax: 64 });
    return { writer: index, reader: index };
  }),
);

t.test('shared', addon === null ? { skip: `no addon: ${addonStatus().reason}` } : {}, async t =>
  prefixIndexContract(t as typeof import('tap').default, () => {
    const memory = createIndexMemory({ bytes: 2 ** 20, predictionsMax: 64, random: seededRandom(1) });
    return { writer: new SharedIndexWriter(addon!, memory), reader: new SharedIndexReader(addon!, memory) };
  }),
);

t.test('a segment of a wrong size, or none, is refused by name', async t => {
  const random = seededRandom(1);
  t.throws(() => createIndexMemory({ bytes: 2 ** 19, predictionsMax: 1, random }), {
    message: /bytes is 524288/,
  });
  t.throws(() => createIndexMemory({ bytes: 2 ** 31, predictionsMax: 1, random }), RangeError);
  t.throws(() => createIndexMemory({ bytes: 2 ** 20, predictionsMax: 0, random }), {
    message: /predictionsMax is 0/,
  });
  if (addon === null) return;
  t.throws(() => addon.attachIndexReader(new Uint32Array(new SharedArrayBuffer(4096))), {
    message: /^words /,
  });
  t.throws(() => addon.attachIndexWriter(new Uint32Array(4096)), { message: /^words must be over a Shared/ });
});
