/**
 * How much of a worker's outstanding prefill is probably done, and how fast it is (R4). The load table learns of a prompt's
 * prefill only when its first token comes, all at once; a prompt of 100,000 tokens would count in full until then. This
 * observer lets the outstanding tokens drain from one look to the next at the speed that the worker has shown, and sets
 * them right by what first tokens prove. One per decider, on its thread; reads figures, keeps six numbers per slot.
 */
import { expectedPrefillMs } from './prefill-model.js';

/** Time of a slot that was not looked at. */
const NEVER = -1;
/** Tokens, as if measured at slowness 1, that a worker begins with: a few prompts do not make it slow or fast. */
const PRIOR_TOKENS = 32_768;
/** Above this many tokens of evidence the older half counts half. */
const EVIDENCE_TOKENS_MAX = 1_048_576;
const SLOWNESS_MAX = 64;
/** Of the outstanding tokens: what a late worker may still have had to do. */
const LATE_SHARE = 0.25;

/** See the head of the file. */
export class PrefillDrain {
  readonly #generations: Uint32Array;
  /** Monotonic time of the last look. */
  readonly #lookedMs: Float64Array;
  /** Outstanding tokens at the last look, and those of them that are thought to be computed. */
  readonly #outstanding: Float64Array;
  readonly #done: Float64Array;
  /** The slot's count of prefilled tokens at the last look. */
  readonly #prefilled: Uint32Array;
  /** Evidence: tokens that the constants gave for the time spent, and tokens that were done in it. */
  readonly #expected: Float64Array;
  readonly #proven: Float64Array;

  constructor(slots: number) {
    this.#generations = new Uint32Array(slots);
    this.#lookedMs = new Float64Array(slots).fill(NEVER);
    this.#outstanding = new Float64Array(slots);
    this.#done = new Float64Array(slots);
    this.#prefilled = new Uint32Array(slots);
    this.#expected = new Float64Array(slots);
    this.#proven = new Float64Array(slots);
  }

  /** Time that the worker takes ÷ time by the constants of prefill-model.ts; 1 until measured. */
  slowness(slot: number): number {
    const ratio = (this.#expected[slot]! + PRIOR_TOKENS) / (this.#proven[slot]! + PRIOR_TOKENS);
    return Math.min(Math.max(ratio, 1 / SLOWNESS_MAX), SLOWNESS_MAX);
  }

  /**
   * Tokens of `outstanding` that are probably still to be computed at `nowMs`.
   *
   * @param prefilled the load table's count of prefilled tokens, modulo 2^32
   * @param decodeMs expected milliseconds of a decode step there, which comes with each pass
   */
  look(
    slot: number,
    generation: number,
    outstanding: number,
    prefilled: number,
    decodeMs: number,
    nowMs: number,
  ): number {
    const beforeMs = this.#lookedMs[slot]!;
    const before = this.#outstanding[slot]!;
    const proven = (prefilled - this.#prefilled[slot]!) >>> 0;
    this.#lookedMs[slot] = nowMs;
    this.#outstanding[slot] = outstanding;
    this.#prefilled[slot] = prefilled;
    if (beforeMs === NEVER || this.#generations[slot] !== generation) {
      this.#generations[slot] = generation;
      this.#expected[slot] = 0;
      this.#proven[slot] = 0;
      this.#done[slot] = 0;
      return outstanding;
    }
    if (before > 0) {
      const left = before - this.#done[slot]!;
      const slowness = this.slowness(slot);
      const expected = ((nowMs - beforeMs) * before) / expectedPrefillMs(before, decodeMs);
      this.#done[slot]! += Math.min(expected / slowness, left);
      // Who has done everything may have been idle since: no more time counts than was left, or a part when it is late.
      const most = proven < before ? expected : left > 0 ? left * slowness : before * LATE_SHARE;
      this.#learn(slot, Math.min(expected, most), proven);
    }
    this.#done[slot] = Math.min(Math.max(this.#done[slot]! - proven, 0), outstanding);
    return outstanding - this.#done[slot]!;
  }

  /** The caller has itself reserved `tokens` there since its last look. */
  add(slot: number, tokens: number): void {
    this.#outstanding[slot]! += tokens;
  }

  #learn(slot: number, expected: number, proven: number): void {
    this.#expected[slot]! += expected;
    this.#proven[slot]! += proven;
    if (this.#expected[slot]! + this.#proven[slot]! < 2 * EVIDENCE_TOKENS_MAX) return;
    this.#expected[slot]! /= 2;
    this.#proven[slot]! /= 2;
  }
}
