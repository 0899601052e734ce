/**
 * The process of the plane under chaos, alone with it, so that its memory, descriptors, threads and timers are the
 * plane's. Started by ChaosPlane (chaos-plane.ts), whose commands it answers over the IPC channel; ends by itself once
 * the plane is closed and the channel is gone.
 */
import { readdirSync, readlinkSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { finished } from 'node:stream/promises';
import { loadConfig } from '#millrace/config.js';
import { Plane } from '#millrace/plane/plane.js';
import { TOKENIZER_NAMES } from '#millrace/preprocess/tokenizers/load.js';
import { POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { type Clock, systemClock, type Timer } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { planeLeftovers, until } from '../plane-fixture.js';

/** What the plane and its process hold. */
export interface PlaneState {
  readonly leftovers: readonly string[];
  readonly readyWorkers: number;
  readonly poolThreads: number;
  readonly restarts: number;
  /** Open descriptors by kind; empty where there is no /proc. */
  readonly fds: Readonly<Record<string, number>>;
  /** Threads of the operating system; 0 where there is no /proc. */
  readonly threads: number;
  /** Timers of the plane's clock that are neither over nor cancelled. */
  readonly timers: number;
  /** Lines that the plane logged at level error. */
  readonly errors: readonly string[];
}

/** Memory after a full collection, in bytes. */
export interface PlaneMemory {
  readonly rss: number;
  readonly heapUsed: number;
  readonly external: number;
}

/** What the process can be asked. `kill` ends a pool thread once all are up. */
export type Command =
  | { readonly kind: 'start'; readonly options: Record<string, unknown>; readonly seed: number }
  | { readonly kind: 'state' }
  | { readonly kind: 'memory' }
  | { readonly kind: 'kill'; readonly at: number }
  | { readonly kind: 'close' };

const live = new Set<Timer>();
const errors: string[] = [];
const killed = new WeakSet<object>();
let plane: Plane | null = null;
let isClosed = false;

/** The real clock, whose open timers can be counted. */
const countingClock: Clock = {
  nowMs: () => systemClock.nowMs(),
  wallMs: () => systemClock.wallMs(),
  after: (delayMs, fn) => counted(onRun => systemClock.after(delayMs, () => onRun(fn))),
  every: (periodMs, fn) => counted(() => systemClock.every(periodMs, fn)),
};

function counted(set: (onRun: (fn: () => void) => void) => Timer): Timer {
  const timer = set(fn => {
    live.delete(handle);
    fn();
  });
  const handle = {
    cancel: () => {
      live.delete(handle);
      timer.cancel();
    },
  };
  live.add(handle);
  return handle;
}

function kindOf(fd: string): string {
  try {
    return /^(?:anon_inode:)?\[?([a-z]+)/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1] ?? 'file';
  } catch {
    // The descriptor of the listing itself is gone by now.
    return 'listing';
  }
}

function openDescriptors(): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const kind of readdirSync('/proc/self/fd').map(kindOf))
    if (kind !== 'listing') counts[kind] = (counts[kind] ?? 0) + 1;
  return counts;
}

async function start(options: Record<string, unknown>, seed: number): Promise<number> {
  // libuv makes its four threads with the first file that is asked for off the loop: before threads are counted.
  await stat('.');
  const config = loadConfig({ policies: POLICY_NAMES, tokenizers: TOKENIZER_NAMES }, { options });
  const logger = createLogger({ level: 'error', format: 'text', write: line => errors.push(line) });
  plane = await Plane.start({ config, clock: countingClock, logger, seed });
  const { port } = await plane.listen('127.0.0.1', 0);
  return port;
}

function state(): PlaneState {
  const hasProc = process.platform === 'linux';
  return {
    leftovers: planeLeftovers(plane!),
    readyWorkers: plane!.workers.filter(worker => worker.state === 'ready').length,
    poolThreads: plane!.supervisor.state.running,
    restarts: plane!.supervisor.state.restarts,
    fds: hasProc ? openDescriptors() : {},
    threads: hasProc ? readdirSync('/proc/self/task').length : 0,
    timers: live.size,
    errors,
  };
}

/** Every thread runs and has taken all that was sent to it. */
function poolIsUp(): boolean {
  const { socket, supervisor, status } = plane!;
  const { threads, state } = supervisor;
  return (
    state.running === status.poolThreads &&
    threads.every(thread => !killed.has(thread)) &&
    socket.link.depths().every(({ messages }) => messages === 0)
  );
}

async function kill(at: number): Promise<void> {
  await until(poolIsUp, 'the pool threads are up');
  const { threads } = plane!.supervisor;
  const thread = threads[at % threads.length]!;
  killed.add(thread);
  await thread.terminate();
}

async function memory(): Promise<PlaneMemory> {
  await until(poolIsUp, 'the pool threads are up');
  // A snapshot is the one way to make another thread collect: garbage of theirs would look like growth.
  for (const thread of plane!.supervisor.threads) {
    const snapshot = await thread.getHeapSnapshot();
    await finished(snapshot.resume());
  }
  globalThis.gc!();
  const { rss, heapUsed, external } = process.memoryUsage();
  return { rss, heapUsed, external };
}

async function close(): Promise<number> {
  await plane!.close(0);
  isClosed = true;
  setImmediate(() => process.disconnect());
  return live.size;
}

async function answer(command: Command): Promise<unknown> {
  if (command.kind === 'start') return start(command.options, command.seed);
  if (command.kind === 'state') return state();
  if (command.kind === 'memory') return memory();
  return command.kind === 'kill' ? kill(command.at) : close();
}

process.on('message', (message: { id: number; command: Command }) => {
  void answer(message.command).then(value => process.send!({ id: message.id, value }));
});

// A test that is cut off takes its plane with it; one that has closed the plane waits for it to end by itself.
process.on('disconnect', () => {
  if (!isClosed) process.exit(1);
});
