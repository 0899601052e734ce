// Promise: with pool threads that reserve, die at any moment and are reaped, and workers that are replaced meanwhile, no
// reservation is counted twice or lost: in the end every counter is zero.
import { once } from 'node:events';
import { setImmediate as nextTick } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { createLedgerMemory, EPOCH_DISCARDED, Ledger } from '#millrace/router/ledger.js';
import { LOAD, LOAD_LINE_WORDS, SLOT_STATE } from '#millrace/router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '#millrace/router/load-table.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { MAILBOX_IDS, type PoolTask } from './ledger-thread.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const DEATHS = process.env.MILLRACE_TEST_LONG === '1' ? 200 : 5;
const SLOTS = 3;
const SOCKET_EPOCH = 1;

type Tap = Pick<typeof t, 'comment' | 'equal' | 'same' | 'ok'>;

interface Pool {
  thread: Worker;
  task: PoolTask;
}

async function hammer(t: Tap, native: boolean, poolCount: number): Promise<void> {
  t.comment(`seed ${SEED}`);
  const random = seededRandom(SEED);
  const loadMemory = createLoadMemory(SLOTS);
  const table = new LoadTable(loadMemory);
  for (let slot = 0; slot < SLOTS; slot += 1) table.install(slot, 1, SLOT_STATE.ready);
  const memory = createLedgerMemory(1024);
  const ledger = new Ledger({ memory, loadTable: table, partition: null, addon: null });
  const living: number[] = [];
  let epoch = 100;
  let adopted = 0;
  let refused = 0;
  let lost = 0;
  let replaced = 0;

  const start = (index: number): Pool => {
    epoch += 1;
    const mailbox = new Uint32Array(new SharedArrayBuffer((2 + MAILBOX_IDS) * 4));
    const partition = { index, count: poolCount };
    const task: PoolTask = {
      task: 'pool',
      loadMemory,
      memory,
      partition,
      native,
      epoch,
      mailbox,
      slots: SLOTS,
      seed: SEED + epoch,
    };
    return { thread: new Worker(new URL('./ledger-thread.js', import.meta.url), { workerData: task }), task };
  };
  /** As a socket thread does: adopts what is posted; reservations end in any order, some twice. */
  const drain = ({ task }: Pool): void => {
    const { mailbox } = task;
    let taken = Atomics.load(mailbox, 1);
    for (; taken < Atomics.load(mailbox, 0); taken += 1) {
      const id = Atomics.load(mailbox, 2 + (taken % MAILBOX_IDS));
      if (ledger.adopt(id, task.epoch, SOCKET_EPOCH)) adopted += 1;
      else refused += 1;
      living.push(id);
      if (random() < 0.7) ledger.firstToken(id);
    }
    Atomics.store(mailbox, 1, taken);
    Atomics.notify(new Int32Array(mailbox.buffer), 1);
    while (living.length > 300 / poolCount) {
      const [id] = living.splice(randomInteger(random, living.length), 1) as [number];
      if (!ledger.release(id) || ledger.release(id)) refused += 1;
    }
  };
  const bury = async (pool: Pool): Promise<void> => {
    await pool.thread.terminate();
    drain(pool);
    lost += ledger.reap(pool.task.epoch);
    ledger.reap(EPOCH_DISCARDED);
  };

  const pools = Array.from({ length: poolCount }, (_, index) => start(index));
  await Promise.all(pools.map(({ thread }) => once(thread, 'online')));
  for (let death = 0; death < DEATHS; death += 1) {
    const goal = adopted + 1000 + randomInteger(random, 1000);
    while (adopted < goal && refused === 0) {
      for (const pool of pools) drain(pool);
      ledger.reap(EPOCH_DISCARDED);
      if (random() < 0.2) {
        const slot = randomInteger(random, SLOTS);
        table.install(slot, (table.snapshot(slot)?.generation ?? 0) + 1, SLOT_STATE.ready);
        replaced += 1;
      }
      await nextTick();
    }
    const index = randomInteger(random, poolCount);
    await bury(pools[index] as Pool);
    pools[index] = start(index);
  }
  for (const pool of pools) await bury(pool);
  for (const id of living) if (!ledger.release(id)) refused += 1;

  t.equal(refused, 0, `${adopted} adopted and ended once, over ${DEATHS + poolCount} deaths`);
  t.equal(ledger.held(), 0, 'no entry is held');
  const sums = [LOAD.activePrefillTokens, LOAD.decodeBlocks, LOAD.requests].map(word =>
    table.words.filter((_, at) => at % LOAD_LINE_WORDS === word).reduce((sum, value) => sum + value, 0),
  );
  t.same(sums, [0, 0, 0], 'every load word is zero');
  t.ok(lost > 0 && replaced > 0, `${lost} reservations were reaped, ${replaced} workers replaced`);
}

t.test('without the addon: one pool thread', t => hammer(t, false, 1));
t.test('with the addon: two pool threads', { skip: loadAddon() === null && 'no addon' }, t =>
  hammer(t, true, 2),
);
