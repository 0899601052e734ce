// Promise: with pool threads that reserve, die at any moment and are reaped, and workers that are replaced meanwhile, no
// reservation is counted twice or lost: in the end every counter is zero.
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

/** The fleet as its socket thread sees it: this thread adopts, ends, reaps and replaces. */
class Fleet {
  readonly table: LoadTable;
  readonly ledger: Ledger;
  readonly living: number[] = [];
  readonly pools: Pool[];
  readonly random = seededRandom(SEED);
  adopted = 0;
  refused = 0;
  lost = 0;
  replaced = 0;
  readonly #native: boolean;
  readonly #loadMemory = createLoadMemory(SLOTS);
  readonly #memory = createLedgerMemory(1024);
  readonly #poolCount: number;
  #epoch = 100;

  constructor(native: boolean, poolCount: number) {
    this.#native = native;
    this.#poolCount = poolCount;
    this.table = new LoadTable(this.#loadMemory);
    for (let slot = 0; slot < SLOTS; slot += 1) this.table.install(slot, 1, SLOT_STATE.ready);
    this.ledger = new Ledger({ memory: this.#memory, loadTable: this.table, partition: null, addon: null });
    this.pools = Array.from({ length: poolCount }, (_, index) => this.start(index));
  }

  start(index: number): Pool {
    this.#epoch += 1;
    const task: PoolTask = {
      task: 'pool',
      loadMemory: this.#loadMemory,
      memory: this.#memory,
      partition: { index, count: this.#poolCount },
      native: this.#native,
      epoch: this.#epoch,
      mailbox: new Uint32Array(new SharedArrayBuffer((2 + MAILBOX_IDS) * 4)),
      slots: SLOTS,
      seed: SEED + this.#epoch,
    };
    return { thread: new Worker(new URL('./ledger-thread.js', import.meta.url), { workerData: task }), task };
  }

  /** Adopts what is posted; reservations end in any order, each of them twice. */
  drain({ task }: Pool): void {
    const { mailbox } = task;
    let taken = Atomics.load(mailbox, 1);
    for (; taken < Atomics.load(mailbox, 0); taken += 1) {
      const id = Atomics.load(mailbox, 2 + (taken % MAILBOX_IDS));
      if (this.ledger.adopt(id, task.epoch, SOCKET_EPOCH)) this.adopted += 1;
      else this.refused += 1;
      this.living.push(id);
      if (this.random() < 0.7) this.ledger.firstToken(id);
    }
    Atomics.store(mailbox, 1, taken);
    Atomics.notify(new Int32Array(mailbox.buffer), 1);
    while (this.living.length > 300) {
      const [id] = this.living.splice(randomInteger(this.random, this.living.length), 1) as [number];
      if (!this.ledger.release(id) || this.ledger.release(id)) this.refused += 1;
    }
  }

  replaceSome(): void {
    if (this.random() >= 0.2) return;
    const slot = randomInteger(this.random, SLOTS);
    this.table.install(slot, (this.table.snapshot(slot)?.generation ?? 0) + 1, SLOT_STATE.ready);
    this.replaced += 1;
  }

  async bury(pool: Pool): Promise<void> {
    await pool.thread.terminate();
    this.drain(pool);
    this.lost += this.ledger.reap(pool.task.epoch);
    this.ledger.reap(EPOCH_DISCARDED);
  }
}

async function hammer(t: Tap, native: boolean, poolCount: number): Promise<void> {
  t.comment(`seed ${SEED}`);
  const fleet = new Fleet(native, poolCount);
  for (let death = 0; death < DEATHS; death += 1) {
    const goal = fleet.adopted + 1000 + randomInteger(fleet.random, 1000);
    while (fleet.adopted < goal && fleet.refused === 0) {
      for (const pool of fleet.pools) fleet.drain(pool);
      fleet.ledger.reap(EPOCH_DISCARDED);
      fleet.replaceSome();
      await nextTick();
    }
    const index = randomInteger(fleet.random, poolCount);
    await fleet.bury(fleet.pools[index] as Pool);
    fleet.pools[index] = fleet.start(index);
  }
  for (const pool of fleet.pools) await fleet.bury(pool);
  for (const id of fleet.living) if (!fleet.ledger.release(id)) fleet.refused += 1;

  t.equal(fleet.refused, 0, `${fleet.adopted} adopted and ended once, over ${DEATHS + poolCount} deaths`);
  t.equal(fleet.ledger.held(), 0, 'no entry is held');
  const sums = [LOAD.activePrefillTokens, LOAD.decodeBlocks, LOAD.requests].map(word =>
    fleet.table.words.filter((_, at) => at % LOAD_LINE_WORDS === word).reduce((sum, value) => sum + value, 0),
  );
  t.same(sums, [0, 0, 0], 'every load word is zero');
  t.ok(fleet.replaced > 0, `${fleet.lost} reservations were reaped, ${fleet.replaced} workers replaced`);
  t.ok(fleet.lost > 0, 'a death left reservations behind');
}

t.test('without the addon: one pool thread', t => hammer(t, false, 1));
t.test('with the addon: two pool threads', { skip: loadAddon() === null && 'no addon' }, t =>
  hammer(t, true, 2),
);
