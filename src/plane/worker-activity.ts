/**
 * Which workers bring tokens (R5): a word of shared memory for each slot, counted up by the socket threads with every batch
 * of an answer, and read by the health monitor, which asks only whether it has changed. It wraps.
 */
import type { Plan } from '../messages/records.js';
import { allocateShared, sharedWords } from '../runtime/shared-memory.js';
import type { PlaneObserver } from './observer.js';

const WORD_BYTES = 4;

/** Shared memory for the workers of a process. */
export function createActivityMemory(workersMax: number): SharedArrayBuffer {
  return allocateShared(workersMax * WORD_BYTES, 'worker activity');
}

/** One thread's view. */
export class WorkerActivity {
  readonly #words: Int32Array;

  constructor(memory: SharedArrayBuffer) {
    this.#words = sharedWords(memory);
  }

  /** Tokens came for a request: all workers of its plan count as alive. */
  add({ calls }: Plan): void {
    for (const { steps } of calls) for (const { slot } of steps) Atomics.add(this.#words, slot, 1);
  }

  /** Another number after each `add` of the slot's worker. */
  read(slot: number): number {
    return Atomics.load(this.#words, slot);
  }
}

/** `observer`, which also says that the workers of a plan bring tokens. */
export function countingTokens(observer: PlaneObserver, activity: WorkerActivity): PlaneObserver {
  return {
    ...observer,
    tokens(plan, count, gapMs) {
      activity.add(plan);
      observer.tokens(plan, count, gapMs);
    },
  };
}
