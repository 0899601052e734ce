// Promise: wherever a pool thread is cut off, and however adoption and reaping interleave, a reservation has exactly one
// winner and the load lines end exact.
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { createLedgerMemory, EPOCH_DISCARDED, Ledger } from '#millrace/router/ledger.js';
import { SLOT_STATE } from '#millrace/router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '#millrace/router/load-table.js';

const POOL = 50;
const SOCKET = 2;

const makeFleet = () => {
  const loadMemory = createLoadMemory(2);
  const table = new LoadTable(loadMemory);
  table.install(0, 1, SLOT_STATE.ready);
  table.install(1, 1, SLOT_STATE.ready);
  const memory = createLedgerMemory(8);
  const ledger = new Ledger({ memory, loadTable: table, partition: { index: 0, count: 1 }, addon: null });
  return { loadMemory, table, memory, ledger };
};
const loadOf = (table: LoadTable, slot: number): number[] => {
  const load = table.snapshot(slot)!;
  return [load.activePrefillTokens, load.decodeBlocks, load.requests];
};

class CutOff extends Error {}

/** Runs `body` and ends it before its atomic step number `steps`, as terminating its thread there would. */
function cutAt(steps: number, body: () => void): boolean {
  const names = ['load', 'store', 'add', 'sub', 'compareExchange'] as const;
  const real = names.map(name => Atomics[name]);
  let left = steps;
  names.forEach((name, index) => {
    const call = real[index] as (...args: unknown[]) => unknown;
    Object.assign(Atomics, {
      [name]: (...args: unknown[]) => {
        if (left === 0) throw new CutOff();
        left -= 1;
        return call(...args);
      },
    });
  });
  try {
    body();
    return false;
  } catch (error) {
    if (error instanceof CutOff) return true;
    throw error;
  } finally {
    names.forEach((name, index) => {
      Object.assign(Atomics, { [name]: real[index] });
    });
  }
}

t.test('a reservation cut off at any step leaves nothing after the reaper', async t => {
  let steps = 0;
  for (let cut = true; cut; steps += 1) {
    const { table, ledger } = makeFleet();
    ledger.adopt(ledger.reserve(0, 1, 1000, 10, POOL), POOL, SOCKET);
    cut = cutAt(steps, () => ledger.reserve(0, 1, 77, 7, POOL));
    ledger.reap(POOL);
    if (ledger.held() !== 1 || loadOf(table, 0).join() !== '1000,10,1' || loadOf(table, 1).join() !== '0,0,0')
      t.fail(`cut at step ${steps}: held ${ledger.held()}, load ${loadOf(table, 0)}`);
    const next = ledger.reserve(0, 1, 5, 1, POOL + 1);
    t.ok(next > 0 && ledger.release(next), `cut at step ${steps}: the ledger goes on`);
  }
  t.ok(steps > 15, `${steps} cuts were made`);
});

t.test('a discard cut off at any step is whole or has not happened', async t => {
  for (let steps = 0, cut = true; cut; steps += 1) {
    const { table, ledger } = makeFleet();
    const id = ledger.reserve(0, 1, 77, 7, POOL);
    cut = cutAt(steps, () => ledger.discard(id, POOL));
    t.equal(ledger.reap(EPOCH_DISCARDED) + ledger.reap(POOL), 1, `cut at step ${steps}`);
    t.same([ledger.held(), ...loadOf(table, 0)], [0, 0, 0, 0]);
  }
});

/** Plays one schedule: before each atomic step of the two threads, `choose` says which of those not ended goes on. */
function play(turns: Int32Array, choose: (open: number[]) => number): void {
  for (;;) {
    const open = [1, 2].filter(me => Atomics.load(turns, me) === 0);
    if (open.length === 0) return;
    Atomics.store(turns, 0, open.length === 2 ? choose(open) : (open[0] as number));
    Atomics.notify(turns, 0);
    for (let now = Atomics.load(turns, 0); now !== 0; now = Atomics.load(turns, 0))
      Atomics.wait(turns, 0, now);
  }
}

t.test('adoption and reaping: exactly one wins, in every interleaving of their atomic steps', async t => {
  const threads = ['adopt', 'reap'].map(
    (role, index) =>
      new Worker(new URL('./ledger-thread.js', import.meta.url), {
        workerData: { task: 'turns', role, me: index + 1 },
      }),
  );
  await Promise.all(threads.map(thread => once(thread, 'message')));
  const wins = { adopt: 0, reap: 0 };
  const wrong: string[] = [];
  /** Choices of the schedule under test; depth first, the last choice that has an alternative is changed next. */
  let schedule: number[] = [];
  do {
    const { loadMemory, table } = makeFleet();
    const memory = createLedgerMemory(1);
    const ledger = new Ledger({ memory, loadTable: table, partition: { index: 0, count: 1 }, addon: null });
    const id = ledger.reserve(0, 1, 77, 7, POOL);
    const turns = new Int32Array(new SharedArrayBuffer(12));
    const answers = Promise.all(threads.map(thread => once(thread, 'message') as Promise<[number]>));
    for (const thread of threads)
      thread.postMessage({ turns, loadMemory, memory, id, from: POOL, to: SOCKET });
    let at = 0;
    play(turns, () => {
      if (at === schedule.length) schedule.push(1);
      at += 1;
      return schedule[at - 1] as number;
    });
    const [[adopted], [reaped]] = (await answers) as [[number], [number]];
    if (adopted + reaped !== 1) wrong.push(`${schedule.join('')}: adopted ${adopted}, reaped ${reaped}`);
    if (adopted === 1) wins.adopt += 1;
    else wins.reap += 1;
    const wanted = adopted === 1 ? '1,77,7,1' : '0,0,0,0';
    const got = [ledger.held(), ...loadOf(table, 0)].join();
    if (got !== wanted) wrong.push(`${schedule.join('')}: ${got}, wanted ${wanted}`);
    while (schedule.at(-1) === 2) schedule.pop();
    schedule = schedule.length === 0 ? schedule : [...schedule.slice(0, -1), 2];
  } while (schedule.length > 0);
  t.same(wrong.slice(0, 5), []);
  t.ok(wins.adopt > 5 && wins.reap > 5, `adoption won ${wins.adopt} interleavings, the reaper ${wins.reap}`);
  await Promise.all(threads.map(thread => thread.terminate()));
});
