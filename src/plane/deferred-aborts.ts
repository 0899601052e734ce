/**
 * How many hand-overs of KV are finished although nobody waits for their answer any more: a bound, so that clients that
 * come and go cannot keep more of the engines busy than is worth it. One per socket thread, which owns it.
 */

/** See the head of the file. */
export class DeferredAborts {
  readonly #max: number;
  #open = 0;

  constructor(max: number) {
    this.#max = max;
  }

  /** Under way now. */
  get open(): number {
    return this.#open;
  }

  /** Takes a place; false: there is none. */
  take(): boolean {
    if (this.#open >= this.#max) return false;
    this.#open += 1;
    return true;
  }

  /** Gives a place back. */
  give(): void {
    this.#open -= 1;
  }
}
