/**
 * How long the links of workers will be busy with hand-overs that were decided (R4). A prompt that many requests share is
 * handed over for each of them, and a link that is full then delays all that follows, which no worker reports. Counted as
 * work that drains at the link's own rate from the decision on; what other threads decide is not seen. One per decider, on
 * its thread; a number per slot and direction.
 */

/** See the head of the file. Times are monotonic milliseconds. */
export class HandoverBacklog {
  readonly #nowMs: () => number;
  readonly #sendsUntilMs: Float64Array;
  readonly #receivesUntilMs: Float64Array;

  constructor(slots: number, nowMs: () => number) {
    this.#nowMs = nowMs;
    this.#sendsUntilMs = new Float64Array(slots);
    this.#receivesUntilMs = new Float64Array(slots);
  }

  /** Milliseconds until both the sending and the receiving link are free. */
  waitMs(from: number, to: number): number {
    return Math.max(0, Math.max(this.#sendsUntilMs[from]!, this.#receivesUntilMs[to]!) - this.#nowMs());
  }

  /** A hand-over that occupies both links for `ms` milliseconds was decided. */
  add(from: number, to: number, ms: number): void {
    const nowMs = this.#nowMs();
    this.#sendsUntilMs[from] = Math.max(nowMs, this.#sendsUntilMs[from]!) + ms;
    this.#receivesUntilMs[to] = Math.max(nowMs, this.#receivesUntilMs[to]!) + ms;
  }
}
