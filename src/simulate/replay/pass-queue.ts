/** Which worker's pass ends next: a binary heap over virtual time. Each worker has at most one entry. Owned by one fleet. */

/** See the head of the file. Equal times come in order of the workers, so that a run can be repeated. */
export class PassQueue {
  readonly #endsMs: Float64Array;
  readonly #heap: Int32Array;
  #size = 0;

  constructor(workers: number) {
    this.#endsMs = new Float64Array(workers);
    this.#heap = new Int32Array(workers);
  }

  /** When the next pass ends; Infinity when none runs. */
  get nextMs(): number {
    return this.#size === 0 ? Number.POSITIVE_INFINITY : this.#endsMs[this.#heap[0]!]!;
  }

  /** Adds a worker that is not in the queue. */
  push(worker: number, endMs: number): void {
    this.#endsMs[worker] = endMs;
    const heap = this.#heap;
    let at = this.#size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#before(worker, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = worker;
  }

  /** Takes out the worker whose pass ends next; the queue must not be empty. */
  pop(): number {
    const heap = this.#heap;
    const first = heap[0]!;
    const last = heap[--this.#size]!;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= this.#size) break;
      if (child + 1 < this.#size && this.#before(heap[child + 1]!, heap[child]!)) child += 1;
      if (!this.#before(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }

  #before(left: number, right: number): boolean {
    const difference = this.#endsMs[left]! - this.#endsMs[right]!;
    return difference < 0 || (difference === 0 && left < right);
  }
}
