// Promise: calls between threads bring answers and errors across, keep their order and their deadline, and a dead end is told.
import { once } from 'node:events';
import { MessageChannel, Worker } from 'node:worker_threads';
import t, { type Test } from 'tap';
import { loadConfig } from '#millrace/config.js';
import { ConfigError } from '#millrace/errors.js';
import { createBoardMemory, ProcessBoard } from '#millrace/plane/process-board.js';
import { RemoteUnit } from '#millrace/plane/remote-unit.js';
import type { SocketTask } from '#millrace/plane/socket-side.js';
import { ThreadCalls } from '#millrace/plane/thread-calls.js';
import { createActivityMemory } from '#millrace/plane/worker-activity.js';
import { createBell } from '#millrace/ring/bell.js';
import { createLedgerMemory } from '#millrace/router/ledger.js';
import { createLoadMemory } from '#millrace/router/load-table.js';
import { ManualClock, systemClock } from '#millrace/runtime/clock.js';

class Served {
  readonly seen: number[] = [];
  note(value: number): void {
    this.seen.push(value);
  }
  list(): readonly number[] {
    return this.seen;
  }
  async double(value: number): Promise<number> {
    return value * 2;
  }
  refuse(how: 'config' | 'other' | 'text'): void {
    if (how === 'config') throw new ConfigError('port is taken');
    if (how === 'other') throw new Error('broken');
    throw 'a text';
  }
  never(): Promise<void> {
    return new Promise(() => {});
  }
}

function connect(t: Test): { calls: ThreadCalls<Served>; clock: ManualClock } {
  const { port1, port2 } = new MessageChannel();
  const clock = new ManualClock();
  new ThreadCalls<object>(port1, new Served(), clock);
  t.teardown(() => port1.close());
  return { calls: new ThreadCalls<Served>(port2, {}, clock), clock };
}

t.test('answers, order and errors', async t => {
  const { calls } = connect(t);
  const first = calls.call('list', 100);
  for (const value of [1, 2, 3]) calls.tell('note', value);
  t.ok(calls.isWaiting);
  t.same(await first, [], 'asked before');
  t.same(await calls.call('list', 100), [1, 2, 3]);
  t.equal(await calls.call('double', 100, 21), 42);
  await t.rejects(calls.call('refuse', 100, 'config'), { code: 'MILLRACE_CONFIG', message: 'port is taken' });
  await t.rejects(calls.call('refuse', 100, 'other'), { code: 'MILLRACE_INTERNAL', message: 'broken' });
  await t.rejects(calls.call('refuse', 100, 'text'), { code: 'MILLRACE_INTERNAL', message: 'a text' });
  t.notOk(calls.isWaiting);
});

t.test('a call that is not answered ends at its deadline; those to a dead end at once', async t => {
  const { calls, clock } = connect(t);
  const late = calls.call('never', 100);
  clock.advance(99);
  t.ok(calls.isWaiting);
  clock.advance(1);
  await t.rejects(late, { message: 'a thread did not answer "never" within 100 ms' });
  const cut = calls.call('never', 100);
  calls.abandon(new Error('gone'));
  await t.rejects(cut, { message: 'gone' });
  await t.rejects(calls.call('list', 100), { message: 'gone' });
  t.notOk(calls.isWaiting);
});

t.test('a name that is not offered is a bug of the other end', async t => {
  const { port1, port2 } = new MessageChannel();
  t.teardown(() => port1.close());
  const calls = new ThreadCalls<{ absent(): void }>(port1, {}, new ManualClock());
  new ThreadCalls<object>(port2, {}, new ManualClock());
  await t.rejects(calls.call('absent', 100), { message: /no call "absent"/ });
});

const taskOf = (ledgerMemory: SharedArrayBuffer): SocketTask => ({
  index: 0,
  threads: 2,
  config: loadConfig({ policies: ['p'], tokenizers: ['t'] }, {}),
  tables: new Map(),
  loadMemory: createLoadMemory(1),
  ledgerMemory,
  boardMemory: createBoardMemory(1),
  activityMemory: createActivityMemory(1),
  bellMemory: createBell('socket thread'),
});

t.test('an exception in a socket thread is told, and the thread lives on until it is stopped', async t => {
  const entry = new URL(import.meta.resolve('#millrace/plane/unit-thread.js'));
  const thread = new Worker(entry, { workerData: taskOf(createLedgerMemory(64)) });
  const exited = once(thread, 'exit');
  thread.postMessage({ kind: 'tell', name: 'absent', args: [] });
  const [fault] = await once(thread, 'message');
  t.match(fault, { kind: 'tell', name: 'fault', args: [/no call "absent"/] });
  thread.postMessage({ kind: 'call', id: 7, name: 'stop', args: [] });
  t.same(await once(thread, 'message'), [{ kind: 'answer', id: 7, value: undefined }]);
  t.same(await exited, [0], 'it ends by itself');
});

t.test('a socket thread that dies as it starts: who waits is told, else the core', async t => {
  const task = taskOf(new SharedArrayBuffer(8));
  const faults: string[] = [];
  const told = new EventTarget();
  const core = {
    reportFailure: () => {},
    metricsText: async () => '',
    decisions: async () => [],
    admin: async () => ({ status: 200, value: null }) as const,
    log: () => {},
    fault: (text: string) => {
      faults.push(text);
      told.dispatchEvent(new Event('fault'));
    },
  };
  const unit = new RemoteUnit(task, core, systemClock);
  await t.rejects(unit.listen('127.0.0.1', 0, true), { message: /whole number of entries/ });
  await unit.stop();
  t.same(faults, [], 'once is enough');
  const fault = once(told, 'fault');
  new RemoteUnit(task, core, systemClock);
  await fault;
  t.match(faults[0], /whole number of entries/);
});

t.test('the board: health of the process, and phases that only grow', async t => {
  const memory = createBoardMemory(2);
  const board = new ProcessBoard(memory);
  const other = new ProcessBoard(memory);
  const status = (): string => other.health().status;
  t.equal(status(), 'unavailable', 'no worker');
  board.setPool(2, 0);
  board.setWorkers(1, 2);
  t.same(other.health(), {
    status: 'degraded',
    workers: { ready: 1, total: 2 },
    poolThreads: { running: 2, off: 0 },
    prefixIndex: 'none',
    requestsInFlight: 0,
  });
  board.setWorkers(2, 2);
  t.equal(status(), 'ok');
  board.setPool(1, 1);
  t.equal(status(), 'degraded');
  t.notOk(other.poolIsOff);
  board.setPool(0, 2);
  t.equal(status(), 'unavailable');
  t.ok(other.poolIsOff);
  board.addRequests(2);
  other.addRequests(-1);
  t.equal(board.requestsInFlight, 1);
  board.setPhase('failed');
  board.setPhase('draining');
  t.equal(status(), 'failed');
});
