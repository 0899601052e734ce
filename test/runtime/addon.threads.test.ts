// Promise: the addon works in 20 threads at once, survives their termination at any moment, and a terminated thread
// leaves whole reservations behind: no entry half-written, and each load line the sum of its entries. No moment of its
// end is a crash of the process.
import { Worker } from 'node:worker_threads';
import t from 'tap';
import {
  LEDGER,
  LEDGER_ENTRY_WORDS,
  LEDGER_GENERATION_SHIFT,
  LEDGER_STATE,
  LOAD,
  LOAD_LINE_WORDS,
} from '#millrace/router/load-descriptor.js';
import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import type { EndingThreadInput, ThreadInput } from './addon-thread.js';

const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const THREADS = 20;
const ENTRIES = 8192;
const SLOTS = 3;
const needsAddon = loadAddon() === null ? { skip: `no addon: ${addonStatus().reason}` } : {};

t.test('threads that are terminated at any moment', needsAddon, async t => {
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  const table = new Uint32Array(new SharedArrayBuffer(SLOTS * LOAD_LINE_WORDS * 4));
  const ledger = new Uint32Array(new SharedArrayBuffer(ENTRIES * LEDGER_ENTRY_WORDS * 4));
  const progress = new Int32Array(new SharedArrayBuffer(THREADS * 4));
  const exits = Array.from({ length: THREADS }, (_, index) => {
    const workerData: ThreadInput = {
      index,
      threads: THREADS,
      table,
      ledger,
      entries: ENTRIES,
      slots: SLOTS,
      progress,
    };
    const thread = new Worker(new URL('./addon-thread.js', import.meta.url), { workerData });
    const failed = new Promise<never>((_, reject) => thread.once('error', reject));
    return Promise.race([failed, endAfter(thread, progress, index, 1 + randomInteger(random, 400))]);
  });
  await Promise.all(exits);

  const sums = Array.from({ length: SLOTS }, () => ({ tokens: 0, blocks: 0, requests: 0 }));
  const states = new Set<number>();
  const owners = new Set<number>();
  for (let at = 0; at < ledger.length; at += LEDGER_ENTRY_WORDS) {
    const state = ledger[at + LEDGER.state]! % 2 ** LEDGER_GENERATION_SHIFT;
    states.add(state);
    if (state !== LEDGER_STATE.prefill) continue;
    owners.add(ledger[at + LEDGER.owner]!);
    const sum = sums[ledger[at + LEDGER.slot]!]!;
    sum.tokens += ledger[at + LEDGER.prefillTokens]!;
    sum.blocks += ledger[at + LEDGER.blocks]!;
    sum.requests++;
  }
  states.delete(LEDGER_STATE.free);
  t.same([...states], [LEDGER_STATE.prefill], 'no entry is half-written');
  t.equal(owners.size, THREADS, 'every thread reserved');
  for (let slot = 0; slot < SLOTS; slot++) {
    const line = slot * LOAD_LINE_WORDS;
    t.same(
      sums[slot],
      {
        tokens: table[line + LOAD.activePrefillTokens],
        blocks: table[line + LOAD.decodeBlocks],
        requests: table[line + LOAD.requests],
      },
      `line ${slot}`,
    );
  }
});

t.test('threads that are terminated while they load the addon or while it throws', needsAddon, async t => {
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  const progress = new Int32Array(new SharedArrayBuffer(THREADS * 4));
  const exits = Array.from({ length: THREADS }, (_, index) => {
    const workerData: EndingThreadInput = { index, progress };
    const thread = new Worker(new URL('./addon-ending-thread.js', import.meta.url), { workerData });
    const failed = new Promise<never>((_, reject) => thread.once('error', reject));
    return Promise.race([failed, endAfter(thread, progress, index, 1 + randomInteger(random, 20))]);
  });
  await Promise.all(exits);
  t.notOk(progress.includes(0), 'every thread was at work, and the process lives');
});

/** Terminates the thread as soon as it has done `rounds`. */
async function endAfter(thread: Worker, progress: Int32Array, index: number, rounds: number): Promise<void> {
  while (Atomics.load(progress, index) < rounds) await new Promise(resolve => setImmediate(resolve));
  await thread.terminate();
}
