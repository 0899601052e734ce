/**
 * Time as a value that is handed in: nothing else in Millrace reads the clock or sets a timer. `systemClock` is the
 * real one; `ManualClock` moves only when a test or a simulation says so.
 */

/** A timer that was set; `cancel` after it ran is a no-op. */
export interface Timer {
  cancel(): void;
}

/** Time and timers, in milliseconds. */
export interface Clock {
  /** Monotonic milliseconds, with fractions. */
  nowMs(): number;
  /** Milliseconds since the Unix epoch. */
  wallMs(): number;
  /** Runs `fn` once after `delayMs`. Does not keep the process alive. */
  after(delayMs: number, fn: () => void): Timer;
  /** Runs `fn` every `periodMs`. Does not keep the process alive. */
  every(periodMs: number, fn: () => void): Timer;
}

/** The real clock of the process. */
export const systemClock: Clock = {
  nowMs: () => performance.now(),
  wallMs: () => Date.now(),
  after(delayMs, fn) {
    const handle = setTimeout(fn, delayMs).unref();
    return { cancel: () => clearTimeout(handle) };
  },
  every(periodMs, fn) {
    const handle = setInterval(fn, periodMs).unref();
    return { cancel: () => clearInterval(handle) };
  },
};

interface Due {
  atMs: number;
  order: number;
  periodMs: number | null;
  fn: () => void;
}

/** A clock that stands still until `advance`; due timers run in order of time, then of creation. */
export class ManualClock implements Clock {
  #nowMs = 0;
  #order = 0;
  readonly #wallStartMs: number;
  readonly #due = new Set<Due>();

  constructor(wallStartMs = 1_700_000_000_000) {
    this.#wallStartMs = wallStartMs;
  }

  nowMs(): number {
    return this.#nowMs;
  }

  wallMs(): number {
    return this.#wallStartMs + this.#nowMs;
  }

  after(delayMs: number, fn: () => void): Timer {
    return this.#add(delayMs, null, fn);
  }

  every(periodMs: number, fn: () => void): Timer {
    return this.#add(periodMs, periodMs, fn);
  }

  /** Milliseconds until the next timer is due, or null when none is set. */
  nextInMs(): number | null {
    const next = this.#next(Number.POSITIVE_INFINITY);
    return next === null ? null : next.atMs - this.#nowMs;
  }

  /** Moves time forward, running each timer at its own moment. */
  advance(ms: number): void {
    const endMs = this.#nowMs + ms;
    for (let due = this.#next(endMs); due !== null; due = this.#next(endMs)) {
      this.#nowMs = due.atMs;
      if (due.periodMs === null) this.#due.delete(due);
      else due.atMs += due.periodMs;
      due.fn();
    }
    this.#nowMs = endMs;
  }

  #add(delayMs: number, periodMs: number | null, fn: () => void): Timer {
    const due: Due = { atMs: this.#nowMs + Math.max(0, delayMs), order: this.#order++, periodMs, fn };
    this.#due.add(due);
    return { cancel: () => this.#due.delete(due) };
  }

  #next(endMs: number): Due | null {
    let next: Due | null = null;
    for (const due of this.#due) {
      if (due.atMs > endMs) continue;
      if (next === null || due.atMs < next.atMs || (due.atMs === next.atMs && due.order < next.order))
        next = due;
    }
    return next;
  }
}
