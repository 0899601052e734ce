/**
 * The mock engines that `serve` starts when it is given no worker: one process each, with vLLM's stock HTTP surface,
 * on ports of the system's choice. They exit when their standard input closes, so that none outlives `serve`, however
 * that ends.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { MillraceError } from '../errors.js';
import type { WorkerRole } from '../messages/disagg.js';
import type { Clock } from '../runtime/clock.js';

const START_DEADLINE_MS = 20_000;
const EXIT_DEADLINE_MS = 2000;

/** Where one mock engine is found. */
export interface MockAddress {
  /** Without a path or a slash at the end. */
  readonly url: string;
  /** Endpoint of its KV events, such as `tcp://127.0.0.1:5557`. */
  readonly kvEvents: string;
  /** Endpoint at which they can be replayed. */
  readonly kvEventsReplay: string;
  readonly role: WorkerRole;
}

/** Running mock engines, owned by `serve`. */
export interface MockChildren {
  readonly addresses: readonly MockAddress[];
  readonly pids: readonly number[];
  /** How each process ended, once it has: the name of its signal, or its exit code. */
  readonly endings: readonly Promise<string | number>[];
  /** Closes their standard input and waits until they are gone. */
  close(): Promise<void>;
}

/** Starts a mock engine for each role and waits until each says where it listens. */
export async function startMockChildren(
  roles: readonly WorkerRole[],
  speed: number | 'unlimited',
  clock: Clock,
): Promise<MockChildren> {
  const main = fileURLToPath(new URL('./main.js', import.meta.url));
  const argv = [
    main,
    'mock',
    '--count',
    '1',
    '--port',
    '0',
    '--speed',
    String(speed),
    '--events',
    '--json',
    '--exit-with-stdin',
  ];
  // In process groups of their own: Ctrl-C in a terminal goes to a whole group, and they must outlive the drain.
  const handsOver = roles.some(role => role !== 'both');
  const all = handsOver ? [...argv, '--disagg'] : argv;
  const children = roles.map(() =>
    spawn(process.execPath, all, { stdio: ['pipe', 'pipe', 'inherit'], detached: true }),
  );
  const endings = children.map(endingOf);
  const close = async (): Promise<void> => {
    await Promise.all(children.map(child => endChild(child, clock)));
  };
  try {
    const addresses = await Promise.all(children.map((child, at) => addressOf(child, roles[at]!, clock)));
    return { addresses, pids: children.map(child => child.pid!), endings, close };
  } catch (error) {
    await close();
    throw error;
  }
}

function endingOf(child: ChildProcess): Promise<string | number> {
  return new Promise(resolve => child.once('exit', (code, signal) => resolve(signal ?? code!)));
}

function addressOf(child: ChildProcess, role: WorkerRole, clock: Clock): Promise<MockAddress> {
  return new Promise((resolve, reject) => {
    const fail = (why: string): void =>
      reject(new MillraceError('MILLRACE_INTERNAL', `a mock engine did not start: ${why}`));
    const timer = clock.after(START_DEADLINE_MS, () => fail(`no answer within ${START_DEADLINE_MS} ms`));
    child.once('error', error => fail(error.message));
    child.once('exit', code => fail(`it exited with code ${code}`));
    createInterface({ input: child.stdout! }).once('line', line => {
      timer.cancel();
      const { event, url, kvEvents, kvEventsReplay } = JSON.parse(line) as Partial<
        MockAddress & { event: string }
      >;
      if (event === 'listening' && url && kvEvents && kvEventsReplay)
        resolve({ url, kvEvents, kvEventsReplay, role });
      else fail(`it said ${line.slice(0, 200)}`);
    });
  });
}

async function endChild(child: ChildProcess, clock: Clock): Promise<void> {
  // Without a pid it never started, and will not exit.
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise<void>(resolve => child.once('exit', () => resolve()));
  child.stdin?.end();
  const timer = clock.after(EXIT_DEADLINE_MS, () => child.kill('SIGKILL'));
  await gone;
  timer.cancel();
}
