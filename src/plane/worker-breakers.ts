/**
 * Circuit breakers of the workers (R4, R5): a worker that failed `breakerFailuresMax` times within `breakerWindowMs` is
 * avoided for `breakerOpenMs`; then one request at a time may try it, until one of them succeeds. Avoided is less than
 * excluded: where no other worker is left it is asked all the same. Owned by one socket thread, which judges by its own
 * requests.
 */
import type { Limits } from '../limits.js';
import type { Clock } from '../runtime/clock.js';
import type { SentAsk } from './request-context.js';

interface Breaker {
  readonly generation: number;
  /** Times of the failures in the window, oldest first; of no interest once it is open. */
  readonly failures: number[];
  isOpen: boolean;
  /** While it is open: until then nobody tries the worker. */
  untilMs: number;
}

/** See the head of the file. */
export class WorkerBreakers {
  readonly #limits: Pick<Limits, 'breakerFailuresMax' | 'breakerWindowMs' | 'breakerOpenMs'>;
  readonly #clock: Pick<Clock, 'nowMs'>;
  /** By slot; a worker that works has none. */
  readonly #breakers = new Map<number, Breaker>();

  constructor(
    limits: Pick<Limits, 'breakerFailuresMax' | 'breakerWindowMs' | 'breakerOpenMs'>,
    clock: Pick<Clock, 'nowMs'>,
  ) {
    this.#limits = limits;
    this.#clock = clock;
  }

  /** A request failed on the worker. */
  failed(slot: number, generation: number): void {
    const { breakerFailuresMax, breakerWindowMs, breakerOpenMs } = this.#limits;
    const nowMs = this.#clock.nowMs();
    const breaker = this.#of(slot, generation);
    const { failures } = breaker;
    failures.push(nowMs);
    while (failures[0]! <= nowMs - breakerWindowMs) failures.shift();
    if (!breaker.isOpen && failures.length < breakerFailuresMax) return;
    // The one that tried an open worker failed, too: it stays open, whatever the window holds.
    breaker.isOpen = true;
    breaker.untilMs = nowMs + breakerOpenMs;
    failures.length = 0;
  }

  /** The worker has answered a request. */
  succeeded(slot: number, generation: number): void {
    if (this.#breakers.get(slot)?.generation === generation) this.#breakers.delete(slot);
  }

  /** The worker asked for a pause, which it gets up to `breakerOpenMs`. */
  rest(slot: number, generation: number, forMs: number): void {
    const breaker = this.#of(slot, generation);
    const untilMs = this.#clock.nowMs() + Math.min(forMs, this.#limits.breakerOpenMs);
    breaker.isOpen = true;
    breaker.untilMs = Math.max(breaker.untilMs, untilMs);
  }

  /**
   * Slots that a request sent now should avoid. A worker whose time is over is not among them, once: the next request after
   * this one waits `breakerOpenMs` again, unless this one succeeds.
   */
  avoided(): number[] {
    if (this.#breakers.size === 0) return [];
    const nowMs = this.#clock.nowMs();
    const slots: number[] = [];
    for (const [slot, breaker] of this.#breakers) {
      if (!breaker.isOpen) continue;
      if (nowMs < breaker.untilMs) slots.push(slot);
      else breaker.untilMs = nowMs + this.#limits.breakerOpenMs;
    }
    return slots;
  }

  /** An ASK, with the slots that it and all others should avoid. */
  amended(ask: SentAsk): SentAsk {
    const slots = this.avoided();
    return slots.length === 0 ? ask : { ...ask, avoidedSlots: [...new Set([...ask.avoidedSlots, ...slots])] };
  }

  #of(slot: number, generation: number): Breaker {
    let breaker = this.#breakers.get(slot);
    if (breaker?.generation !== generation) {
      breaker = { generation, failures: [], isOpen: false, untilMs: 0 };
      this.#breakers.set(slot, breaker);
    }
    return breaker;
  }
}
