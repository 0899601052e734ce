/** The plane under chaos as the test holds it: a process of its own (chaos-plane-process.ts) that answers commands. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { Command, PlaneMemory, PlaneState } from './chaos-plane-process.js';

const POLL_MS = 50;
const WAIT_DEADLINE_MS = 30_000;

export class ChaosPlane {
  readonly #child: ChildProcess;
  readonly #calls = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  readonly #exit: Promise<unknown[]>;
  #nextId = 0;
  #port = 0;

  private constructor() {
    this.#child = fork(fileURLToPath(new URL('./chaos-plane-process.js', import.meta.url)), {
      execArgv: ['--expose-gc'],
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      // What the test's process preloads is not for the plane's.
      env: { ...process.env, NODE_OPTIONS: '' },
    });
    this.#child.on('message', ({ id, value }: { id: number; value: unknown }) => {
      this.#calls.get(id)?.resolve(value);
      this.#calls.delete(id);
    });
    this.#exit = once(this.#child, 'exit');
    void this.#exit.then(([code]) => {
      for (const { reject } of this.#calls.values()) reject(new Error(`the plane's process ended: ${code}`));
    });
  }

  /** Starts the process and its plane. */
  static async start(options: Record<string, unknown>, seed: number): Promise<ChaosPlane> {
    const plane = new ChaosPlane();
    plane.#port = await plane.#call<number>({ kind: 'start', options, seed });
    return plane;
  }

  get port(): number {
    return this.#port;
  }

  state(): Promise<PlaneState> {
    return this.#call({ kind: 'state' });
  }

  /** With all pool threads up, and the garbage of all threads collected. */
  memory(): Promise<PlaneMemory> {
    return this.#call({ kind: 'memory' });
  }

  /** Kills a pool thread once all are up. */
  killPoolThread(at: number): Promise<void> {
    return this.#call({ kind: 'kill', at });
  }

  /** The first state that satisfies the condition, or the last one before a deadline. */
  async stateWhen(condition: (state: PlaneState) => boolean): Promise<PlaneState> {
    const endMs = performance.now() + WAIT_DEADLINE_MS;
    for (;;) {
      const state = await this.state();
      if (condition(state) || performance.now() > endMs) return state;
      await new Promise(resolve => setTimeout(resolve, POLL_MS));
    }
  }

  /** The values of `/metrics` by series. */
  async metrics(): Promise<ReadonlyMap<string, number>> {
    const response = await fetch(`http://127.0.0.1:${this.#port}/metrics`, {
      headers: { connection: 'close' },
    });
    const lines = (await response.text()).split('\n').filter(line => line !== '' && !line.startsWith('#'));
    return new Map(
      lines.map(line => {
        const gap = line.lastIndexOf(' ');
        return [line.slice(0, gap), Number(line.slice(gap + 1))];
      }),
    );
  }

  /** Closes the plane and waits until its process has ended by itself; what the plane still held then. */
  async close(): Promise<{ timers: number; exitCode: unknown }> {
    const timers = await this.#call<number>({ kind: 'close' });
    const [exitCode] = await this.#exit;
    return { timers, exitCode };
  }

  /** Ends the process whatever state it is in. */
  kill(): void {
    this.#child.kill('SIGKILL');
  }

  #call<T>(command: Command): Promise<T> {
    const id = this.#nextId++;
    return new Promise<T>((resolve, reject) => {
      this.#calls.set(id, { resolve: resolve as (value: unknown) => void, reject });
      this.#child.send({ id, command }, error => {
        if (error !== null) reject(error);
      });
    });
  }
}
