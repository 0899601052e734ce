/**
 * One thread of addon.threads.test.ts: loads the addon, then reserves, scans and hashes without end until it is
 * terminated. `progress[index]` counts its rounds.
 */
import { workerData } from 'node:worker_threads';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { loadAddon } from '#millrace/runtime/addon.js';

export interface EndingThreadInput {
  readonly index: number;
  readonly progress: Int32Array;
}

export interface ThreadInput extends EndingThreadInput {
  readonly threads: number;
  readonly table: Uint32Array;
  readonly ledger: Uint32Array;
  readonly entries: number;
  readonly slots: number;
}

const { index, threads, table, ledger, entries, slots, progress } = workerData as ThreadInput;
const addon = loadAddon()!;
const load = addon.attachLoad(table, ledger);
const scanner = createFrameScanner(addon);
const bytes = new TextEncoder().encode(
  'data: {"choices":[{"index":0,"text":"x","token_ids":[1,2,3]}]}\n\n'.repeat(20),
);
const ids = Uint32Array.from({ length: 2048 }, (_, i) => i * index);
const hashes = new Uint32Array(256);
const pause = new Int32Array(new SharedArrayBuffer(4));

// Few enough that the ledger is never full: a search for the last free entries would take all the time.
const reservations = Math.floor(entries / threads);
for (let round = 0; ; round++) {
  if (round < reservations)
    addon.reserve(
      load,
      0,
      entries,
      round * 31 + index,
      round % slots,
      0,
      1 + (round % 100),
      1 + (round % 7),
      index,
    );
  if (round % 8 === 0) scanner.scan(bytes, 0, bytes.length);
  if (round % 16 === 0)
    addon.hashBlocks(ids, 0, ids.length / 16, 16, 1337, 0, 1337, 0, 0, 0, 0, null, hashes);
  Atomics.add(progress, index, 1);
  // Whoever has done more than any end is waited for leaves the cores to the others, and to whoever ends it.
  if (round > 1000) Atomics.wait(pause, 0, 0, 1);
}
