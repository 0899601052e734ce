/**
 * The workers that are out of rotation, as the requests of one socket thread see them (R5): since when each has shown no
 * sign of life, on this thread's clock, and what found it dead. The core tells of each that goes and comes back; requests
 * look here with every sweep and move what has heard nothing of its worker since. Owned by the socket thread.
 */
import type { Outage } from '../engines/health-contract.js';
import type { PlanStep } from '../messages/records.js';
import type { Clock } from '../runtime/clock.js';

interface LostWorker {
  readonly generation: number;
  readonly cause: Outage['cause'];
  /** When it was last seen alive. */
  readonly aliveMs: number;
}

/** See the head of the file. */
export class LostWorkers {
  readonly #clock: Pick<Clock, 'nowMs'>;
  /** By slot. */
  readonly #lost = new Map<number, LostWorker>();

  constructor(clock: Pick<Clock, 'nowMs'>) {
    this.#clock = clock;
  }

  get isEmpty(): boolean {
    return this.#lost.size === 0;
  }

  /** A worker went out, just now; null: it is back. */
  set(slot: number, generation: number, outage: Outage | null): void {
    if (outage === null) this.#lost.delete(slot);
    else
      this.#lost.set(slot, {
        generation,
        cause: outage.cause,
        aliveMs: this.#clock.nowMs() - outage.silentMs,
      });
  }

  /**
   * What found the worker of a step dead whose last token came at `tokenMs`; null, too, where that was after the last other
   * sign of life: it may be slow. Before the first token `tokenMs` is -Infinity.
   */
  causeFor({ slot, generation }: PlanStep, tokenMs: number): Outage['cause'] | null {
    const lost = this.#lost.get(slot);
    return lost?.generation === generation && tokenMs <= lost.aliveMs ? lost.cause : null;
  }
}
