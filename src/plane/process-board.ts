/**
 * The process board: one line of shared memory with what `/health` says of the whole process, so that every socket
 * thread answers without asking another. The core writes the state of pool, workers and prefix index, each socket thread
 * adds and takes away its requests. Pool threads look here whether the index is still updated.
 *
 *     word 0  requestsInFlight   all socket threads, by add
 *     word 1  poolThreads        slots of the pool, written once       core
 *     word 2  poolRunning        pool threads that run                 core
 *     word 3  poolOff            slots switched off                    core
 *     word 4  workersReady                                             core
 *     word 5  workersTotal                                             core
 *     word 6  phase              0 serving, 1 draining, 2 failed       core; only grows
 *     word 7  index              0 none, 1 serving, 2 failed           core; only grows
 *     word 8  predictionsDropped all pool threads, by add; wraps
 */
import { allocateShared, sharedWords } from '../runtime/shared-memory.js';
import type { Health } from './routes.js';

const BOARD_BYTES = 64;
const BOARD = {
  requestsInFlight: 0,
  poolThreads: 1,
  poolRunning: 2,
  poolOff: 3,
  workersReady: 4,
  workersTotal: 5,
  phase: 6,
  index: 7,
  predictionsDropped: 8,
} as const;
const PHASE = { serving: 0, draining: 1, failed: 2 } as const;
const INDEX_STATES = ['none', 'serving', 'failed'] as const;
const INDEX_FAILED = INDEX_STATES.indexOf('failed');

/** Shared memory for the board of a process with `poolThreads` pool threads. */
export function createBoardMemory(poolThreads: number): SharedArrayBuffer {
  const memory = allocateShared(BOARD_BYTES, 'process board');
  sharedWords(memory)[BOARD.poolThreads] = poolThreads;
  return memory;
}

/** One thread's view of the board. */
export class ProcessBoard {
  readonly #words: Int32Array;

  constructor(memory: SharedArrayBuffer) {
    this.#words = sharedWords(memory);
  }

  /** Requests of all socket threads. */
  get requestsInFlight(): number {
    return this.#load(BOARD.requestsInFlight);
  }

  /** Adds to the requests in flight, or takes away. */
  addRequests(count: number): void {
    Atomics.add(this.#words, BOARD.requestsInFlight, count);
  }

  /** Every slot of the pool is switched off. */
  get poolIsOff(): boolean {
    return this.#load(BOARD.poolOff) === this.#load(BOARD.poolThreads);
  }

  setPool(running: number, off: number): void {
    Atomics.store(this.#words, BOARD.poolRunning, running);
    Atomics.store(this.#words, BOARD.poolOff, off);
  }

  setWorkers(ready: number, total: number): void {
    Atomics.store(this.#words, BOARD.workersReady, ready);
    Atomics.store(this.#words, BOARD.workersTotal, total);
  }

  /** `/health` says 'draining', or 'failed' for good. */
  setPhase(phase: 'draining' | 'failed'): void {
    const words = this.#words;
    Atomics.store(words, BOARD.phase, Math.max(this.#load(BOARD.phase), PHASE[phase]));
  }

  /** The prefix index is kept up to date, or not any more, for good. */
  setIndex(state: 'serving' | 'failed'): void {
    const words = this.#words;
    Atomics.store(words, BOARD.index, Math.max(this.#load(BOARD.index), INDEX_STATES.indexOf(state)));
  }

  /** Nobody updates the prefix index any more. */
  get indexFailed(): boolean {
    return this.#load(BOARD.index) === INDEX_FAILED;
  }

  /** Counts a prediction for which the ring to the ingest thread had no room. */
  addPredictionDropped(): void {
    Atomics.add(this.#words, BOARD.predictionsDropped, 1);
  }

  /** Predictions dropped by all pool threads. */
  get predictionsDropped(): number {
    return this.#load(BOARD.predictionsDropped) >>> 0;
  }

  /** What `/health` says. */
  health(): Health {
    const ready = this.#load(BOARD.workersReady);
    const total = this.#load(BOARD.workersTotal);
    const off = this.#load(BOARD.poolOff);
    const running = this.#load(BOARD.poolRunning);
    const isWhole = running === this.#load(BOARD.poolThreads) && ready === total && !this.indexFailed;
    let status: Health['status'] = isWhole ? 'ok' : 'degraded';
    if (ready === 0 || this.poolIsOff) status = 'unavailable';
    const phase = this.#load(BOARD.phase);
    if (phase === PHASE.draining) status = 'draining';
    if (phase === PHASE.failed) status = 'failed';
    return {
      status,
      workers: { ready, total },
      poolThreads: { running, off },
      prefixIndex: INDEX_STATES[this.#load(BOARD.index)]!,
      requestsInFlight: this.requestsInFlight,
    };
  }

  #load(word: number): number {
    return Atomics.load(this.#words, word);
  }
}
