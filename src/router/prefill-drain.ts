/**
 * How much of a worker's outstanding prefill is probably done, and how fast it is (R4). The load table learns of a prompt's
 * prefill only when its first token comes, all at once; a prompt of 100,000 tokens would count in full until then. This
 * observer lets the outstanding tokens drain from one look to the next at the speed that the worker has shown, and sets
 * them right by what first tokens prove. One per decider, on its thread; reads figures, keeps a cache line per slot.
 */
import { expectedPrefillMs } from './prefill-model.js';

/** Tokens, as if measured at slowness 1, that a worker begins with: a few prompts do not make it slow or fast. */
const PRIOR_TOKENS = 32_768;
/** Above this many tokens of evidence the older half counts half. */
const EVIDENCE_TOKENS_MAX = 1_048_576;
const SLOWNESS_MAX = 64;
/** Of the outstanding tokens: what a late worker may still have had to do. */
const LATE_SHARE = 0.25;

/** Numbers of one slot. */
const SLOT = {
  generation: 0,
  /** Monotonic time of the last look. */
  lookedMs: 1,
  /** Outstanding tokens at the last look, and those of them that are thought to be computed. */
  outstanding: 2,
  done: 3,
  /** The slot's count of prefilled tokens at the last look. */
  prefilled: 4,
  /** Evidence: tokens that the constants gave for the time spent, and tokens that were done in it. */
  expected: 5,
  proven: 6,
  /** What the evidence says. */
  slowness: 7,
} as const;
const SLOT_NUMBERS = 8;

/** See the head of the file. */
export class PrefillDrain {
  readonly #slots: Float64Array;

  constructor(slots: number) {
    this.#slots = new Float64Array(slots * SLOT_NUMBERS);
    for (let slot = 0; slot < slots; slot += 1) this.#begin(slot * SLOT_NUMBERS, 0);
  }

  /** Time that the worker takes ÷ time by the constants of prefill-model.ts; 1 until measured. */
  slowness(slot: number): number {
    return this.#slots[slot * SLOT_NUMBERS + SLOT.slowness]!;
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
    const slots = this.#slots;
    const at = slot * SLOT_NUMBERS;
    if (slots[at + SLOT.generation] !== generation) this.#begin(at, generation);
    const beforeMs = slots[at + SLOT.lookedMs]!;
    const before = slots[at + SLOT.outstanding]!;
    const proven = (prefilled - slots[at + SLOT.prefilled]!) >>> 0;
    slots[at + SLOT.lookedMs] = nowMs;
    slots[at + SLOT.outstanding] = outstanding;
    slots[at + SLOT.prefilled] = prefilled;
    // Nothing was to be done since the last look, or this is the first one.
    if (before === 0) return outstanding;
    const left = before - slots[at + SLOT.done]!;
    const slowness = slots[at + SLOT.slowness]!;
    const expected = ((nowMs - beforeMs) * before) / expectedPrefillMs(before, decodeMs);
    const done = slots[at + SLOT.done]! + Math.min(expected / slowness, left);
    // Who has done everything may have been idle since: no more time counts than was left, or a part when it is late.
    const most = proven < before ? expected : left > 0 ? left * slowness : before * LATE_SHARE;
    this.#learn(at, Math.min(expected, most), proven);
    slots[at + SLOT.done] = Math.min(Math.max(done - proven, 0), outstanding);
    return outstanding - slots[at + SLOT.done]!;
  }

  /** The caller has itself reserved `tokens` there since its last look. */
  add(slot: number, tokens: number): void {
    this.#slots[slot * SLOT_NUMBERS + SLOT.outstanding]! += tokens;
  }

  #begin(at: number, generation: number): void {
    this.#slots.fill(0, at, at + SLOT_NUMBERS);
    this.#slots[at + SLOT.generation] = generation;
    this.#slots[at + SLOT.slowness] = 1;
  }

  #learn(at: number, expected: number, proven: number): void {
    const slots = this.#slots;
    let expectedSum = slots[at + SLOT.expected]! + expected;
    let provenSum = slots[at + SLOT.proven]! + proven;
    if (expectedSum + provenSum >= 2 * EVIDENCE_TOKENS_MAX) {
      expectedSum /= 2;
      provenSum /= 2;
    }
    slots[at + SLOT.expected] = expectedSum;
    slots[at + SLOT.proven] = provenSum;
    const ratio = (expectedSum + PRIOR_TOKENS) / (provenSum + PRIOR_TOKENS);
    slots[at + SLOT.slowness] = Math.min(Math.max(ratio, 1 / SLOWNESS_MAX), SLOWNESS_MAX);
  }
}
