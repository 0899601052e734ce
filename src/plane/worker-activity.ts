/**
 * Which workers bring tokens (R5): counters in shared memory, counted up by the socket threads with every batch of an answer,
 * and read by the health monitor, which asks only whether one has changed. They wrap.
 *
 *     word slot × 2 + generation mod 2: streams of the tenant before go on, and say nothing of the one that has the slot
 */
import { allocateShared, sharedWords } from '../runtime/shared-memory.js';

const WORD_BYTES = 4;
const WORDS_PER_SLOT = 2;

/** Shared memory for the workers of a process. */
export function createActivityMemory(workersMax: number): SharedArrayBuffer {
  return allocateShared(workersMax * WORDS_PER_SLOT * WORD_BYTES, 'worker activity');
}

/** One thread's view. */
export class WorkerActivity {
  readonly #words: Int32Array;

  constructor(memory: SharedArrayBuffer) {
    this.#words = sharedWords(memory);
  }

  /** Tokens of the worker came. */
  add(slot: number, generation: number): void {
    Atomics.add(this.#words, wordOf(slot, generation), 1);
  }

  /** Another number after each `add`. */
  read(slot: number, generation: number): number {
    return Atomics.load(this.#words, wordOf(slot, generation));
  }
}

const wordOf = (slot: number, generation: number): number => slot * WORDS_PER_SLOT + (generation & 1);
