/**
 * The core's end of the ingest thread: starts it, passes every call on, and tells the core once when it has failed. After
 * `stop` the thread ends by itself; one that does not is terminated. Runs on the core's thread.
 */
import { type MessagePort, Worker } from 'node:worker_threads';
import { MillraceError } from '../errors.js';
import type { EventEndpoints, HolderFacts } from '../router/events/contract.js';
import type { Clock } from '../runtime/clock.js';
import type { IngestCore, IngestCounts, IngestSide, IngestTask } from './ingest-side.js';
import { ThreadCalls } from './thread-calls.js';

/** The thread answers at once, unless it is blocked or still starting. */
const ANSWER_DEADLINE_MS = 5000;

/** The ingest thread; see the head of the file. */
export class RemoteIngest implements IngestSide {
  /** The thread itself, for tests that make it fail. */
  readonly thread: Worker;
  readonly #calls: ThreadCalls<IngestSide>;
  readonly #ended: Promise<void>;
  readonly #clock: Clock;
  /** It is being stopped, or its end was told. */
  #isOver = false;

  /** @param core what the thread may call; its `fault` is told once, of the thread's end too. */
  constructor(task: IngestTask, core: IngestCore, clock: Clock) {
    this.#clock = clock;
    this.thread = new Worker(new URL('./ingest-thread.js', import.meta.url), {
      workerData: task,
      name: 'millrace ingest',
      // The host's loaders are not for our files.
      execArgv: [],
    });
    let isTold = false;
    const fault = (text: string): void => {
      if (this.#isOver || isTold) return;
      isTold = true;
      core.fault(text);
    };
    this.#calls = new ThreadCalls<IngestSide>(this.thread, { ...core, fault }, clock);
    this.thread.on('error', error => fault(error.stack ?? error.message));
    this.#ended = new Promise(resolve => {
      this.thread.on('exit', () => {
        fault('the ingest thread has ended');
        this.#calls.abandon(new MillraceError('MILLRACE_INTERNAL', 'the ingest thread has ended'));
        this.#isOver = true;
        resolve();
      });
    });
  }

  addWorker(slot: number, facts: HolderFacts, endpoints: EventEndpoints | null): void {
    this.#calls.tell('addWorker', slot, facts, endpoints);
  }

  addPushed(slot: number, facts: HolderFacts): void {
    this.#calls.tell('addPushed', slot, facts);
  }

  push(slot: number, payload: Uint8Array | null): Promise<void> {
    return this.#calls.call('push', ANSWER_DEADLINE_MS, slot, payload);
  }

  removeWorker(slot: number): void {
    this.#calls.tell('removeWorker', slot);
  }

  suspectWorker(slot: number): void {
    this.#calls.tell('suspectWorker', slot);
  }

  resumeWorker(slot: number): void {
    this.#calls.tell('resumeWorker', slot);
  }

  attachRing(index: number, epoch: number, ringMemory: SharedArrayBuffer): void {
    this.#calls.tell('attachRing', index, epoch, ringMemory);
  }

  attachPort(port: MessagePort, news: MessagePort): void {
    this.#calls.tellWith([port, news], 'attachPort', port, news);
  }

  poolLost(index: number): void {
    this.#calls.tell('poolLost', index);
  }

  counts(): Promise<IngestCounts> {
    return this.#calls.call('counts', ANSWER_DEADLINE_MS);
  }

  async stop(): Promise<void> {
    try {
      if (!this.#isOver) {
        this.#isOver = true;
        await this.#calls.call('stop', ANSWER_DEADLINE_MS);
      }
    } finally {
      await this.#waitForEnd();
    }
  }

  #waitForEnd(): Promise<void> {
    return new Promise(resolve => {
      const timer = this.#clock.after(ANSWER_DEADLINE_MS, () => {
        void this.thread.terminate();
        resolve();
      });
      void this.#ended.then(() => {
        timer.cancel();
        resolve();
      });
    });
  }
}
