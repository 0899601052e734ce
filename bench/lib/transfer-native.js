/**
 * The native side of bench/transfer.js: builds the native yardsticks against the C library on first use, speaks to it one line at a time,
 * and runs the measuring programs of others (iperf3, ucx_perftest) where they are installed.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../..', import.meta.url));
const LIBRARY = 'build/Release/libmillrace_kv.so';
const PROGRAM = 'build/bench/yardsticks';
const SOURCES = 'native/bench/yardsticks';
const BUILD_MS = 600_000;
const CLIENT_MS = 30_000;
const CONNECT_TRIES = 30;
const CONNECT_MS = 100;
const UCX_BYTES = 2e9;

/** Newest change below the folders, in milliseconds. @param {string[]} folders */
function newest(folders) {
  const files = folders.flatMap(folder =>
    readdirSync(`${root}/${folder}`).map(name => `${root}/${folder}/${name}`),
  );
  return Math.max(...files.map(file => statSync(file).mtimeMs));
}

/** @param {string} file @param {number} changedMs */
const isOld = (file, changedMs) =>
  !existsSync(`${root}/${file}`) || statSync(`${root}/${file}`).mtimeMs < changedMs;

/** Builds what is older than its sources; says so on stderr, as it takes a minute the first time. */
export async function buildYardsticks() {
  const options = { cwd: root, timeout: BUILD_MS, maxBuffer: 1 << 26 };
  const engineMs = newest(['native/transfer', 'native/transport', 'native/capi']);
  if (isOld(LIBRARY, engineMs)) {
    process.stderr.write('transfer: building the C library, about a minute\n');
    await run('npm', ['run', '--silent', 'build:kv'], options);
  }
  if (isOld(PROGRAM, Math.max(newest([SOURCES]), statSync(`${root}/${LIBRARY}`).mtimeMs))) {
    process.stderr.write('transfer: building the native yardsticks, some seconds\n');
    mkdirSync(`${root}/build/bench`, { recursive: true });
    const sources = ['main', 'memory', 'sockets', 'engine'].map(name => `${SOURCES}/${name}.cc`);
    const flags = ['-std=c++20', '-O3', '-Wall', '-Wextra', '-pthread', '-Inative/capi', '-o', PROGRAM];
    const link = ['-Lbuild/Release', '-lmillrace_kv', `-Wl,-rpath,${root}/build/Release`];
    await run(process.env.CXX ?? 'c++', [...flags, ...sources, ...link], options);
  }
}

/** A program that answers lines of commands with lines of numbers. Ends when it is closed or this process ends. */
export class LineProgram {
  #child;
  #answers;

  /** @param {string} command @param {string[]} args @param {'inherit' | 'ignore'} [stderr] */
  constructor(command, args, stderr = 'inherit') {
    this.#child = spawn(command, args, { stdio: ['pipe', 'pipe', stderr] });
    this.#answers = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  /** The words of the answer. @param {...(string | number)} words @returns {Promise<string[]>} */
  async say(...words) {
    this.#child.stdin.write(`${words.join(' ')}\n`);
    const { value, done } = await this.#answers.next();
    if (done) throw new Error(`${this.#child.spawnfile} ended at "${words[0]}"`);
    return value.split(' ');
  }

  /** The numbers of the answer. @param {...(string | number)} words @returns {Promise<number[]>} */
  async ask(...words) {
    return (await this.say(...words)).map(Number);
  }

  get isRunning() {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  get pid() {
    return this.#child.pid;
  }

  async close() {
    this.#child.stdin.end();
    if (this.isRunning) await once(this.#child, 'exit');
  }
}

/** The program of native/bench/yardsticks/main.cc, which lists its commands. */
export const openYardsticks = () => new LineProgram(`${root}/${PROGRAM}`, []);

/**
 * NIXL by bench/lib/transfer-nixl.py, which says what it takes. Its threads poll when they have nothing to do: it stands still
 * but while it is asked, so that the other side has the processors to itself too.
 */
export class Nixl {
  #program;
  #far = 0;

  /** @param {string} python */
  constructor(python) {
    this.#program = new LineProgram(python, [`${root}/bench/lib/transfer-nixl.py`], 'ignore');
    // What stands still does not notice that this process has ended.
    process.once('exit', () => this.#program.isRunning && this.#signal('SIGKILL'));
  }

  /** @param {NodeJS.Signals} name */
  #signal(name) {
    for (const pid of [this.#program.pid, this.#far]) if (pid > 0) process.kill(pid, name);
  }

  /** Its version. */
  async about() {
    return (await this.#program.say('about'))[0];
  }

  /** Two agents and the transfers of a case. @param {...(string | number)} words */
  async open(...words) {
    if (this.#far > 0) this.#signal('SIGCONT');
    const [far] = await this.#program.ask('open', ...words);
    this.#far = far;
    this.#signal('SIGSTOP');
  }

  /** Seconds of some batches and the microseconds of a post. @param {number} first @param {number} count */
  async move(first, count) {
    this.#signal('SIGCONT');
    const answer = await this.#program.ask('move', first, count);
    this.#signal('SIGSTOP');
    return answer;
  }

  async close() {
    this.#signal('SIGCONT');
    await this.#program.close();
  }
}

/** Whether a program is installed. @param {string} program */
export async function isInstalled(program) {
  return run('which', [program]).then(
    () => true,
    () => false,
  );
}

/** A port that was free a moment ago. */
async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  server.close();
  await once(server, 'close');
  return port;
}

/**
 * Runs a client against its server of the same program, again while the server is not listening yet.
 * @param {string} program
 * @param {string[]} server  Arguments.
 * @param {string[]} client
 * @param {(stdout: string) => number} parse  What the client measured; NaN or thrown when it did not.
 * @param {Record<string, string>} [settings]  Of the environment.
 */
async function runPair(program, server, client, parse, settings = {}) {
  const env = { ...process.env, ...settings };
  const serving = spawn(program, server, { env, stdio: 'ignore' });
  try {
    for (let tries = CONNECT_TRIES; ; tries--) {
      try {
        const { stdout } = await run(program, client, { env, timeout: CLIENT_MS, maxBuffer: 1 << 24 });
        const bytesPerSecond = parse(stdout);
        if (bytesPerSecond > 0) return bytesPerSecond;
        throw new Error(`${program} printed no result: ${stdout.slice(0, 200)}`);
      } catch (error) {
        if (tries === 0 || serving.exitCode !== null) throw error;
        await sleep(CONNECT_MS);
      }
    }
  } finally {
    serving.kill();
  }
}

/** Bytes per second that iperf3 moves over loopback in one second. @param {number} streams */
export async function iperf(streams) {
  const port = String(await freePort());
  return runPair(
    'iperf3',
    ['-s', '-1', '-B', '127.0.0.1', '-p', port],
    ['-c', '127.0.0.1', '-p', port, '-P', String(streams), '-t', '1', '-J'],
    stdout => JSON.parse(stdout).end.sum_received.bits_per_second / 8,
  );
}

/** Bytes per second of ucx_perftest between two processes over the posix transport. @param {number} bytes  Of one message. */
export async function ucxPerftest(bytes) {
  const port = String(await freePort());
  const iterations = String(Math.ceil(UCX_BYTES / bytes));
  return runPair(
    'ucx_perftest',
    ['-p', port],
    ['127.0.0.1', '-p', port, '-t', 'ucp_put_bw', '-s', String(bytes), '-n', iterations, '-v', '-f'],
    // A line of names and one of numbers; bandwidths are in MiB/s.
    stdout => {
      const [names, numbers] = stdout.trim().split('\n').slice(-2);
      return Number(numbers.split(',')[names.split(',').indexOf('overall_bw')]) * 2 ** 20;
    },
    { UCX_TLS: 'posix,self', UCX_LOG_LEVEL: 'error' },
  );
}
