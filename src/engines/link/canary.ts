/**
 * Canary (R5): sends the engine a small request at a period and says how long it took. A health route answers while the
 * scheduler behind it hangs; a generated token does not. Owned by the link process, on its main thread.
 */
import type { Clock, Timer } from '../../runtime/clock.js';

/** What the last canaries showed. */
export interface CanaryResult {
  /** Milliseconds of the last one; null: it failed, or none was sent. */
  readonly ms: number | null;
  /** Failed ones since the last that did not fail. */
  readonly failures: number;
}

/** What a Canary needs. */
export interface CanaryOptions {
  /** Sends the request; rejects where the engine does not answer in time. */
  readonly send: () => Promise<{ status: number }>;
  /** From the end of one to the begin of the next. */
  readonly periodMs: number;
  readonly clock: Clock;
  readonly onResult: (result: CanaryResult) => void;
}

/** See the head of the file. */
export class Canary {
  readonly #options: CanaryOptions;
  #timer: Timer | null = null;
  #failures = 0;
  #isStopped = false;

  constructor(options: CanaryOptions) {
    this.#options = options;
  }

  /** Sends the first one after a period. */
  start(): void {
    const { clock, periodMs } = this.#options;
    this.#timer = clock.after(periodMs, () => void this.#run());
  }

  /** Nothing is told any more. */
  stop(): void {
    this.#isStopped = true;
    this.#timer?.cancel();
  }

  async #run(): Promise<void> {
    const { send, clock, onResult } = this.#options;
    const startMs = clock.nowMs();
    // Whatever it rejects with is the same news: no token came.
    const isGood = await send().then(
      ({ status }) => status === 200,
      () => false,
    );
    if (this.#isStopped) return;
    this.#failures = isGood ? 0 : this.#failures + 1;
    onResult({ ms: isGood ? clock.nowMs() - startMs : null, failures: this.#failures });
    this.start();
  }
}
