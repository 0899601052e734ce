/**
 * Load of each worker over a run's arrivals, at evenly spaced moments of virtual time; and whether the queue still grows
 * at the end. Owned by one run.
 */

/** Growth below this many requests without a first token per worker is noise. */
const GROWTH_PER_WORKER_MIN = 2;
/** The last quarter waits this much more than the one before, which waits more than the second: the queue grows. */
const GROWTH_FACTOR = 1.3;

/** See the head of the file. */
export class LoadSamples {
  readonly periodMs: number;
  readonly count: number;
  readonly workers: number;
  /** Requests in each worker, running or waiting: sample `s` of worker `w` at `w × count + s`. */
  readonly requests: Uint32Array;
  /** Requests of all workers without a first token, per sample. */
  readonly waiting: Uint32Array;
  #next = 0;

  constructor(workers: number, count: number, spanMs: number) {
    this.workers = workers;
    this.count = count;
    this.periodMs = spanMs / count;
    this.requests = new Uint32Array(workers * count);
    this.waiting = new Uint32Array(count);
  }

  /** Notes the load for the sample moments up to `nowMs`; to be called before what happens then. */
  record(nowMs: number, waiting: number, requestsOf: (worker: number) => number): void {
    while (this.#next < this.count && nowMs >= (this.#next + 1) * this.periodMs) {
      this.waiting[this.#next] = waiting;
      for (let worker = 0; worker < this.workers; worker += 1)
        this.requests[worker * this.count + this.#next] = requestsOf(worker);
      this.#next += 1;
    }
  }

  /** True when requests came faster than they were begun, to the end. */
  get grows(): boolean {
    const [second, third, fourth] = [1, 2, 3].map(quarter => this.#meanOfQuarter(quarter)) as [
      number,
      number,
      number,
    ];
    return (
      third > second &&
      fourth > GROWTH_FACTOR * third &&
      fourth - second > GROWTH_PER_WORKER_MIN * this.workers
    );
  }

  #meanOfQuarter(quarter: number): number {
    const part = this.waiting.subarray((quarter * this.count) / 4, ((quarter + 1) * this.count) / 4);
    return part.reduce((sum, waiting) => sum + waiting, 0) / Math.max(part.length, 1);
  }
}
