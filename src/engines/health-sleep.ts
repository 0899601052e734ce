/**
 * The look at one worker whose engine sleeps (R5): no health route, which may make a token, no canary and no scrape; it is
 * only asked whether it is there and asleep. Owned by the worker's watch, on its thread.
 */
import type { Clock, Timer } from '../runtime/clock.js';
import type { EngineAdapter } from './contract.js';
import type { ControlAsk } from './control-contract.js';
import { faultOf } from './health-fault.js';

/** What it needs of its watch. */
export interface SleepLookOptions {
  readonly clock: Clock;
  readonly periodMs: number;
  readonly adapter: EngineAdapter;
  readonly ask: ControlAsk;
  /** It is awake, woken by somebody else, or its process has ended: the next one does not sleep. Told once. */
  readonly onOver: () => void;
}

/** See the head of the file. Does nothing until `start`. */
export class SleepLook {
  readonly #options: SleepLookOptions;
  #timer: Timer | null = null;
  #isStopped = false;

  constructor(options: SleepLookOptions) {
    this.#options = options;
  }

  start(): void {
    const { clock, periodMs } = this.#options;
    this.#timer = clock.after(periodMs, () => void this.#look());
  }

  /** Nothing is told any more. */
  stop(): void {
    this.#isStopped = true;
    this.#timer?.cancel();
  }

  async #look(): Promise<void> {
    const { adapter, ask, onOver } = this.#options;
    let isOver = false;
    try {
      isOver = (await adapter.control.isSleeping(ask)) === false;
    } catch (error) {
      // One that is late or answers nonsense may sleep all the same; where nothing listens, nothing sleeps.
      isOver = faultOf(error).isRefused;
    }
    if (this.#isStopped) return;
    if (isOver) onOver();
    else this.start();
  }
}
