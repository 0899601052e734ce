/**
 * How many hand-overs of KV are finished although nobody waits for their answer any more: a bound, so that clients that
 * come and go cannot keep more of the engines busy than is worth it. One per socket thread, which owns it.
 */
import type { DeferredAbortCounts } from '../frontend/disagg-metrics.js';

/** See the head of the file. */
export class DeferredAborts {
  readonly #max: number;
  #open = 0;
  #deferred = 0;
  #cut = 0;

  constructor(max: number) {
    this.#max = max;
  }

  /** For the metrics. */
  get counts(): DeferredAbortCounts {
    return { open: this.#open, deferred: this.#deferred, cut: this.#cut };
  }

  /** Takes a place; false: there is none. */
  take(): boolean {
    if (this.#open >= this.#max) {
      this.#cut += 1;
      return false;
    }
    this.#open += 1;
    this.#deferred += 1;
    return true;
  }

  /** Gives a place back. */
  give(): void {
    this.#open -= 1;
  }
}
