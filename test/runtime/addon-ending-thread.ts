/**
 * One thread of addon.threads.test.ts: loads the addon again and again, each time as a new instance (even threads), or
 * makes it throw (odd ones), without end until it is terminated. `progress[index]` counts its rounds.
 */
import assert from 'node:assert';
import { createRequire } from 'node:module';
import { workerData } from 'node:worker_threads';
import { type Addon, addonStatus } from '#millrace/runtime/addon.js';
import type { EndingThreadInput } from './addon-thread.js';

const { index, progress } = workerData as EndingThreadInput;
const require = createRequire(import.meta.url);
const path = addonStatus().path!;
const load = (): Addon => {
  delete require.cache[path];
  return require(path) as Addon;
};
const addon = load();
const pause = new Int32Array(new SharedArrayBuffer(4));
for (let round = 0; ; round++) {
  if (index % 2 === 0) load();
  else assert.throws(() => addon.detach(0), RangeError);
  Atomics.add(progress, index, 1);
  // Whoever has done more than any end is waited for leaves the cores to the others, and to whoever ends it.
  if (round > 100) Atomics.wait(pause, 0, 0, 1);
}
