/**
 * How much of a worker's outstanding prefill is probably done (R4). The load table learns of a prompt's prefill only when
 * its first token comes, all at once; a prompt of 100,000 tokens would count in full until then. This observer lets the
 * outstanding tokens drain at the worker's speed from one look to the next, and takes back what first tokens then prove.
 * One per decider, on its thread; reads the figures it is given, keeps 3 numbers per slot.
 */
import { PREFILL_TOKENS_PER_MS } from './prefill-model.js';

const NEVER = -1;

/** See the head of the file. */
export class PrefillDrain {
  /** Monotonic time of the last look; `NEVER` before the first. */
  readonly #lookedMs: Float64Array;
  /** Outstanding tokens at the last look, plus those added since. */
  readonly #tokens: Float64Array;
  /** Tokens of the outstanding ones that are thought to be computed. */
  readonly #done: Float64Array;
  readonly #generations: Uint32Array;

  constructor(slots: number) {
    this.#lookedMs = new Float64Array(slots).fill(NEVER);
    this.#tokens = new Float64Array(slots);
    this.#done = new Float64Array(slots);
    this.#generations = new Uint32Array(slots);
  }

  /** Tokens of `outstanding` that are probably still to be computed at `nowMs`. */
  look(slot: number, generation: number, outstanding: number, slowness: number, nowMs: number): number {
    const beforeMs = this.#lookedMs[slot]!;
    this.#lookedMs[slot] = nowMs;
    if (beforeMs === NEVER || this.#generations[slot] !== generation) {
      this.#generations[slot] = generation;
      this.#done[slot] = 0;
    } else {
      const proven = Math.max(this.#tokens[slot]! - outstanding, 0);
      const drained = ((nowMs - beforeMs) * PREFILL_TOKENS_PER_MS) / slowness;
      const done = Math.min(this.#done[slot]! + drained, this.#tokens[slot]!) - proven;
      this.#done[slot] = Math.min(Math.max(done, 0), outstanding);
    }
    this.#tokens[slot] = outstanding;
    return outstanding - this.#done[slot]!;
  }

  /** The caller itself has added `tokens` to the slot since its last look. */
  add(slot: number, tokens: number): void {
    this.#tokens[slot]! += tokens;
  }
}
