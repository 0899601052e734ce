/**
 * Child processes of a bench, and what they cost: start one and wait for its `listening` line, fork the load generator,
 * read the CPU time of a process from the kernel, and make sure that nothing outlives the bench. Linux only (`/proc`).
 */
import { fork, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const START_DEADLINE_MS = 30_000;
const ANSWER_SLACK_MS = 30_000;
const STDERR_CHARS_MAX = 4000;
// The unit of /proc/<pid>/stat, USER_HZ, is 100 for every architecture that Node runs on, whatever the kernel's own HZ.
const TICKS_PER_SECOND = 100;

/** @type {Set<import('node:child_process').ChildProcess>} */
const alive = new Set();
process.on('exit', () => {
  for (const child of alive) child.kill('SIGKILL');
});
for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP'])) {
  process.on(signal, () => process.exit(1)); // runs the handler above, which a signal alone would not
}

/** @typedef {{ code: number | null, signal: NodeJS.Signals | null }} Exit  How a child ended, as its parent was told. */

/** @template {import('node:child_process').ChildProcess} T @param {T} child @returns {T} */
function own(child) {
  alive.add(child);
  child.on('exit', () => alive.delete(child));
  return child;
}

/** The `{"event":"listening",…}` that a line of stdout holds; null: another line. @param {string} line */
function listeningOf(line) {
  const said = line.startsWith('{') ? JSON.parse(line) : {};
  return said.event === 'listening' ? said : null;
}

/**
 * Runs `node <args>` until it says that it is ready, which a server does with its `{"event":"listening",…}` line on stdout.
 * @param {string} name  For error messages.
 * @param {readonly string[]} args
 * @param {{ channel?: boolean, readyLog?: RegExp }} [options]  `channel`: the child can be asked by message. `readyLog`: it
 *   says it with such a line on stderr instead; `listening` is empty then.
 * @returns {Promise<{ pid: number, listening: any, ask: Ask, stop(): Promise<void>, failed(): string | undefined, exited: Promise<Exit> }>}
 *   `failed` says how the child ended if it has ended by itself.
 */
export function startServer(name, args, { channel = false, readyLog } = {}) {
  const child = own(
    spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'pipe', ...(channel ? ['ipc'] : [])] }),
  );
  let stderr = '';
  let ended = '';
  child.stderr.on('data', chunk => {
    stderr = (stderr + chunk).slice(-STDERR_CHARS_MAX);
  });
  /** @type {Promise<Exit>} */
  const exited = new Promise(resolve => {
    child.on('exit', (code, signal) => {
      ended = `${name} ended with ${signal ?? `code ${code}`}\n${stderr}`;
      resolve({ code, signal });
    });
  });
  const stop = async () => {
    child.kill('SIGKILL'); // a figure is taken by now; a drain would only cost time
    await exited;
  };
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      reject(
        new Error(`${name} did not say that it is ready within ${START_DEADLINE_MS / 1000} s\n${stderr}`),
      );
    }, START_DEADLINE_MS);
    exited.then(() => {
      clearTimeout(timer);
      reject(new Error(ended));
    });
    const isReady = (/** @type {string} */ line) => (readyLog?.test(line) === true ? {} : null);
    const [input, read] = readyLog === undefined ? [child.stdout, listeningOf] : [child.stderr, isReady];
    createInterface({ input }).on('line', line => {
      const listening = read(line);
      if (listening === null) return;
      clearTimeout(timer);
      const ask = askerOf(name, child);
      resolve({ pid: Number(child.pid), listening, ask, stop, failed: () => ended || undefined, exited });
    });
  });
}

/**
 * @typedef {(message: object, withinMs: number) => Promise<any>} Ask  Sends a message and resolves with the next one that
 *   comes back; rejects when none came `withinMs` and some slack later, or when the child ended.
 */

/** @param {string} name @param {import('node:child_process').ChildProcess} child @returns {Ask} */
function askerOf(name, child) {
  return (message, withinMs) =>
    new Promise((resolve, reject) => {
      const settle = (/** @type {() => void} */ how) => {
        clearTimeout(timer);
        child.off('message', answered).off('exit', exited);
        how();
      };
      const answered = (/** @type {any} */ answer) => settle(() => resolve(answer));
      const exited = () => settle(() => reject(new Error(`${name} ended`)));
      const late = () => settle(() => reject(new Error(`${name} does not answer`)));
      const timer = setTimeout(late, withinMs + ANSWER_SLACK_MS);
      child.on('message', answered).on('exit', exited);
      child.send(message);
    });
}

/**
 * Forks a load generator: bench/lib/load.js unless told otherwise. Messages are cloned, so typed arrays stay what they are.
 * @param {string} [script]  A file of bench/lib.
 * @returns {{ pid: number, tell(message: object): void, ask: Ask, stop(): void }}
 */
export function startLoad(script = 'load.js') {
  const url = new URL(script, import.meta.url);
  const child = own(fork(url, { stdio: ['ignore', 2, 2, 'ipc'], serialization: 'advanced' }));
  return {
    pid: Number(child.pid),
    tell: message => {
      child.send(message);
    },
    ask: askerOf('the load generator', child),
    stop: () => {
      child.kill('SIGKILL');
    },
  };
}

const MILLRACE = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

/**
 * Runs `millrace worker` beside an engine. It tries to link until it is stopped.
 * @param {string} engine  URL.
 * @param {string} plane  Where the plane takes links.
 * @returns {{ pid: number, stop(): void }}
 */
export function startWorker(engine, plane) {
  const args = [MILLRACE, 'worker', '--engine', engine, '--plane', plane, '--log-level', 'warn'];
  const child = own(spawn(process.execPath, args, { stdio: ['ignore', 2, 2] }));
  return { pid: Number(child.pid), stop: () => void child.kill('SIGKILL') };
}

/**
 * User plus system CPU seconds that a process has used: all its threads, dead ones too, and the main thread alone.
 * @param {number} pid
 */
export function cpuSeconds(pid) {
  const read = (/** @type {string} */ path) => {
    const stat = readFileSync(path, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' '); // the name before it may hold spaces
    return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND; // utime and stime
  };
  return { all: read(`/proc/${pid}/stat`), mainThread: read(`/proc/${pid}/task/${pid}/stat`) };
}
