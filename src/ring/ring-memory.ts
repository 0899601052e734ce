/**
 * Every access of the ring and the bell to shared memory (R2), and nothing else. `load` and `store` are sequentially
 * consistent, `get` and `put` are plain and are ordered only by the atomic accesses around them. Keeping them in one
 * class lets the tests put an explorer in its place that runs the real producer and consumer through all
 * interleavings; V8 inlines the methods, so the hot path pays nothing.
 */
import { sharedBytes, sharedWords } from '../runtime/shared-memory.js';

/** What `waitAsync` answers: `null` when the word had already changed, else a promise of the wake-up. */
export type ArmedWait = Promise<unknown> | null;

/** One shared segment as seen by one thread. Word indexes count 4 bytes, byte offsets 1. */
export class RingMemory {
  readonly #words: Int32Array;
  readonly #bytes: Uint8Array;

  constructor(memory: SharedArrayBuffer) {
    this.#words = sharedWords(memory);
    this.#bytes = sharedBytes(memory);
  }

  get byteLength(): number {
    return this.#bytes.byteLength;
  }

  load(word: number): number {
    return Atomics.load(this.#words, word);
  }

  store(word: number, value: number): void {
    Atomics.store(this.#words, word, value);
  }

  /** Adds and returns the value before. */
  add(word: number, value: number): number {
    return Atomics.add(this.#words, word, value);
  }

  get(word: number): number {
    return this.#words[word]!;
  }

  put(word: number, value: number): void {
    this.#words[word] = value;
  }

  /** Copies `part[start … end)` to `byte`. */
  copyIn(byte: number, part: Uint8Array, start: number, end: number): void {
    const whole = start === 0 && end === part.byteLength;
    this.#bytes.set(whole ? part : part.subarray(start, end), byte);
  }

  /** The bytes in place, not a copy. */
  view(byte: number, length: number): Uint8Array {
    return new Uint8Array(this.#bytes.buffer, byte, length);
  }

  /** Wakes every `waitAsync` on the word. */
  notify(word: number): void {
    Atomics.notify(this.#words, word);
  }

  /** A wait that does not block the thread. It does not keep the thread's event loop alive either. */
  waitAsync(word: number, expected: number): ArmedWait {
    const result = Atomics.waitAsync(this.#words, word, expected);
    return result.async ? result.value : null;
  }
}
