/**
 * The core's end of a socket thread of its own: starts the thread, passes every call on, and reports its exceptions. It
 * is never terminated; after `stop` the thread ends by itself. Runs on the main thread.
 */
import { SHARE_ENV, Worker } from 'node:worker_threads';
import type { Outage } from '../engines/health-contract.js';
import type { LinkTls } from '../engines/link/link-tls.js';
import { MillraceError } from '../errors.js';
import type { MetricSamples } from '../frontend/metrics.js';
import type { ListedModel } from '../frontend/openai/models-response.js';
import type { World } from '../messages/records.js';
import type { Clock } from '../runtime/clock.js';
import type { Decision } from './decision-log.js';
import type { LinkMemory } from './pool-link.js';
import type { CoreSide, Listening, SocketSide, SocketTask } from './socket-side.js';
import { ThreadCalls } from './thread-calls.js';

/** A socket thread answers at once, unless it is blocked. */
const ANSWER_DEADLINE_MS = 5000;
/** The first call waits for the thread to start. */
const START_DEADLINE_MS = 60_000;

/** A socket thread elsewhere. */
export class RemoteUnit implements SocketSide {
  readonly #worker: Worker;
  readonly #calls: ThreadCalls<SocketSide>;
  readonly #ended: Promise<void>;
  readonly #clock: Clock;
  /** It is being stopped, or its end was told. */
  #isOver = false;

  /** @param core what the thread may call; its `fault` is also told of the thread's own end. */
  constructor(task: SocketTask, core: CoreSide, clock: Clock) {
    this.#clock = clock;
    this.#worker = new Worker(new URL('./unit-thread.js', import.meta.url), {
      workerData: task,
      // The host's loaders are not for our files.
      execArgv: [],
      // uWebSockets.js reads its header limit from the real environment.
      env: SHARE_ENV,
    });
    this.#calls = new ThreadCalls<SocketSide>(this.#worker, core, clock);
    const fail = (error: Error): void => {
      if (this.#isOver) return;
      this.#isOver = true;
      // Whoever waits for the thread is told; nobody else has to be.
      const isAwaited = this.#calls.isWaiting;
      this.#calls.abandon(error);
      if (!isAwaited) core.fault(error.stack ?? error.message);
    };
    this.#worker.on('error', fail);
    this.#ended = new Promise(resolve => {
      this.#worker.on('exit', () => {
        fail(new MillraceError('MILLRACE_INTERNAL', `socket thread ${task.index} has ended`));
        resolve();
      });
    });
  }

  setWorld(world: World, listed: readonly ListedModel[]): void {
    this.#calls.tell('setWorld', world, listed);
  }

  setOutage(slot: number, generation: number, outage: Outage | null): void {
    this.#calls.tell('setOutage', slot, generation, outage);
  }

  attach(index: number, memory: LinkMemory): void {
    this.#calls.tell('attach', index, memory);
  }

  async lost(index: number): Promise<void> {
    await this.#calls.call('lost', ANSWER_DEADLINE_MS, index);
  }

  poolIsOff(): void {
    this.#calls.tell('poolIsOff');
  }

  leaveWorker(slot: number, generation: number): void {
    this.#calls.tell('leaveWorker', slot, generation);
  }

  listen(host: string, port: number, isShared: boolean): Promise<Listening> {
    return this.#calls.call('listen', START_DEADLINE_MS, host, port, isShared);
  }

  listenLane(): Promise<number> {
    return this.#calls.call('listenLane', START_DEADLINE_MS);
  }

  renewTls(tls: LinkTls): void {
    this.#calls.tell('renewTls', tls);
  }

  drain(deadlineMs: number): Promise<void> {
    return this.#calls.call('drain', deadlineMs + ANSWER_DEADLINE_MS, deadlineMs);
  }

  closeRings(): void {
    this.#calls.tell('closeRings');
  }

  async stop(): Promise<void> {
    if (!this.#isOver) {
      this.#isOver = true;
      await this.#calls.call('stop', ANSWER_DEADLINE_MS);
    }
    await new Promise<void>(resolve => {
      const timer = this.#clock.after(ANSWER_DEADLINE_MS, () => {
        this.#worker.unref();
        resolve();
      });
      void this.#ended.then(() => {
        timer.cancel();
        resolve();
      });
    });
  }

  samples(): Promise<MetricSamples> {
    return this.#calls.call('samples', ANSWER_DEADLINE_MS);
  }

  decisions(count: number): Promise<readonly Decision[]> {
    return this.#calls.call('decisions', ANSWER_DEADLINE_MS, count);
  }
}
