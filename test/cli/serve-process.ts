/**
 * The real binary as a child process, for tests of it: run it to its end, or start `serve` and talk to it. A child gets
 * an environment without MILLRACE_* of the test run, a process group of its own, and is killed when its test ends.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';

/** The compiled binary. */
export const MAIN = fileURLToPath(import.meta.resolve('#millrace/cli/main.js'));
/** Generous: the machine may run other things, and a wait that is met ends at once. */
export const DEADLINE_MS = 60_000;
const POLL_MS = 10;

type Environment = Readonly<Record<string, string>>;

/** How a process ended, and what it wrote. */
export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** The line of `serve --json`. */
export interface Listening {
  readonly event: string;
  readonly url: string;
  readonly host: string;
  readonly port: number;
  readonly pid: number;
  readonly server: string;
  readonly serverNotice: string | null;
  readonly addon: { readonly loaded: boolean; readonly reason: string };
  readonly poolThreads: number;
  readonly linkAddress: string | null;
  readonly workers: readonly { readonly url: string; readonly state: string }[];
  readonly models: readonly { readonly name: string; readonly tokenizer: string | null }[];
  readonly mockPids: readonly number[];
}

/** Starts `millrace <args>`; it is killed when the test ends. */
export function launch(t: Test, args: readonly string[], env: Environment = {}): ChildProcess {
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith('MILLRACE_'));
  const child = spawn(process.execPath, [MAIN, ...args], {
    env: { ...Object.fromEntries(inherited), ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
    timeout: DEADLINE_MS * 2,
    killSignal: 'SIGKILL',
  });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

/**
 * Runs `millrace <args>` until it has exited and nobody holds its output any more: mock engines inherit its standard
 * error, so this does not resolve while one of them lives.
 */
export async function runMillrace(t: Test, args: readonly string[], env: Environment = {}): Promise<Ended> {
  const child = launch(t, args, env);
  let stdout = '';
  let stderr = '';
  child.stdout!.on('data', bytes => {
    stdout += bytes;
  });
  child.stderr!.on('data', bytes => {
    stderr += bytes;
  });
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, stdout, stderr };
}

/** Polls until `check` holds; throws with `what` when it does not in time. */
export async function until(what: string, check: () => boolean | Promise<boolean>): Promise<void> {
  const endMs = performance.now() + DEADLINE_MS;
  while (!(await check())) {
    if (performance.now() > endMs) throw new Error(`not within ${DEADLINE_MS} ms: ${what}`);
    await wait(POLL_MS);
  }
}

/** Whether a process is gone; one that has exited and only waits for its parent is. Linux only. */
export function isGone(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return /^[ZX]/.test(stat.slice(stat.lastIndexOf(')') + 2));
  } catch {
    return true;
  }
}

/** A running `millrace serve`. */
export class Serve {
  readonly child: ChildProcess;
  /** All that it wrote on standard error so far. */
  stderr = '';
  /** What it wrote on standard output until it listened: one line with --json, else the banner. */
  readonly said: string;
  readonly #exited: Promise<[number | null, NodeJS.Signals | null]>;

  private constructor(child: ChildProcess, said: string, stderr: string) {
    this.child = child;
    this.said = said;
    this.stderr = stderr;
    child.stderr!.on('data', bytes => {
      this.stderr += bytes;
    });
    this.#exited = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
  }

  /** Starts it with `args`, on a port of the system's choice, and waits until its output has a line like `last`. */
  static async start(
    t: Test,
    args: readonly string[],
    env: Environment = {},
    last: RegExp = /^\{/,
  ): Promise<Serve> {
    const child = launch(t, ['serve', '--port', '0', ...args], env);
    let stderr = '';
    const collect = (bytes: unknown): void => {
      stderr += bytes;
    };
    child.stderr!.on('data', collect);
    const lines: string[] = [];
    for await (const line of createInterface({ input: child.stdout! })) {
      lines.push(line);
      if (!last.test(line)) continue;
      child.stderr!.off('data', collect);
      return new Serve(child, lines.join('\n'), stderr);
    }
    throw new Error(`serve ended before it listened: ${stderr}`);
  }

  /** What `--json` said. */
  get listening(): Listening {
    return JSON.parse(this.said) as Listening;
  }

  /** Resolves with the exit code and the signal. */
  exited(): Promise<[number | null, NodeJS.Signals | null]> {
    return this.#exited;
  }

  /** Waits for a text on standard error. */
  async logged(text: string): Promise<void> {
    await until(`"${text}" in the log`, () => this.stderr.includes(text));
  }

  /** `/health`: its status and body. */
  async health(): Promise<{ status: number; body: { status: string; workers: { ready: number } } }> {
    const response = await fetch(`${this.listening.url}/health`);
    return { status: response.status, body: (await response.json()) as never };
  }
}

/** Body of a chat request. */
export const chatBody = (more: object = {}): string =>
  JSON.stringify({ model: 'mock-model', messages: [{ role: 'user', content: 'Hello' }], ...more });

/** POSTs a chat request. */
export const postChat = (url: string, more: object = {}): Promise<Response> =>
  fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: chatBody(more),
  });
