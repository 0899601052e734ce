/** The threads of the ledger tests: one whose atomic steps are scheduled from outside, and one that reserves all the time. */
import { parentPort, workerData } from 'node:worker_threads';
import { Ledger } from '#millrace/router/ledger.js';
import { LoadTable } from '#millrace/router/load-table.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

/** One job of the `turns` thread. `turns`: word 0 is whose turn it is, words 1 and 2 say that a thread has ended. */
export interface TurnsJob {
  turns: Int32Array;
  loadMemory: SharedArrayBuffer;
  memory: SharedArrayBuffer;
  id: number;
  from: number;
  to: number;
}

/** What a `pool` thread is given. `mailbox`: word 0 ids posted, word 1 ids taken, then a ring of MAILBOX_IDS ids. */
export interface PoolTask {
  task: 'pool';
  loadMemory: SharedArrayBuffer;
  memory: SharedArrayBuffer;
  partition: { index: number; count: number };
  native: boolean;
  epoch: number;
  mailbox: Uint32Array;
  slots: number;
  seed: number;
}

export const MAILBOX_IDS = 256;
const BURST = 8;

/** Waits for its turn before every atomic step and gives the turn back after it. */
function takeTurns(role: 'adopt' | 'reap', me: number): void {
  const names = ['load', 'store', 'add', 'sub', 'compareExchange'] as const;
  const real = names.map(name => Atomics[name]) as ((...args: unknown[]) => number)[];
  const [load, store] = [Atomics.load, Atomics.store];
  parentPort!.on('message', ({ turns, loadMemory, memory, id, from, to }: TurnsJob) => {
    const ledger = new Ledger({
      memory,
      loadTable: new LoadTable(loadMemory),
      partition: null,
      addon: null,
    });
    const pass = (): void => {
      store(turns, 0, 0);
      Atomics.notify(turns, 0);
    };
    const awaitTurn = (): void => {
      for (let now = load(turns, 0); now !== me; now = load(turns, 0)) Atomics.wait(turns, 0, now);
    };
    names.forEach((name, index) => {
      Object.assign(Atomics, {
        [name]: (...args: unknown[]) => {
          awaitTurn();
          const answer = real[index]!(...args);
          pass();
          return answer;
        },
      });
    });
    const answer = role === 'adopt' ? Number(ledger.adopt(id, from, to)) : ledger.reap(from);
    names.forEach((name, index) => {
      Object.assign(Atomics, { [name]: real[index] });
    });
    awaitTurn();
    store(turns, me, 1);
    pass();
    parentPort!.postMessage(answer);
  });
  parentPort!.postMessage('ready');
}

/** Reserves in bursts, discards some and posts the others, until it is terminated. */
function reserveForEver(task: PoolTask): void {
  const table = new LoadTable(task.loadMemory);
  const ledger = new Ledger({
    memory: task.memory,
    loadTable: table,
    partition: task.partition,
    addon: task.native ? loadAddon() : null,
  });
  const random = seededRandom(task.seed);
  const { mailbox } = task;
  const taken = new Int32Array(mailbox.buffer, 4, 1);
  const reserveOne = (): number => {
    const slot = randomInteger(random, task.slots);
    const generation = table.snapshot(slot)?.generation ?? 1;
    return ledger.reserve(
      slot,
      generation,
      randomInteger(random, 9000),
      randomInteger(random, 99),
      task.epoch,
    );
  };
  // Never posted, so that every death leaves at least this one to the reaper.
  while (reserveOne() <= 0);
  for (;;) {
    const ids: number[] = [];
    for (let count = 0; count < BURST; count += 1) {
      const id = reserveOne();
      if (id > 0) ids.push(id);
    }
    for (const id of ids) {
      if (random() < 0.1) {
        ledger.discard(id, task.epoch);
        continue;
      }
      const posted = Atomics.load(mailbox, 0);
      for (let seen = Atomics.load(taken, 0); posted - seen === MAILBOX_IDS; seen = Atomics.load(taken, 0)) {
        Atomics.wait(taken, 0, seen);
      }
      Atomics.store(mailbox, 2 + (posted % MAILBOX_IDS), id);
      Atomics.store(mailbox, 0, posted + 1);
    }
    if (ids.length === 0) Atomics.wait(taken, 0, Atomics.load(taken, 0), 1);
  }
}

if (workerData?.task === 'turns') takeTurns(workerData.role, workerData.me);
else if (workerData?.task === 'pool') reserveForEver(workerData as PoolTask);
