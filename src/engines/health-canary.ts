/**
 * The canaries of one worker (R5): a request for one token, sent after the worker has given no token for a while, because
 * a health route answers while the scheduler behind it hangs. Real tokens are as good as a canary, so a worker with
 * traffic gets none. It reserves no load and counts in no metric of requests. Owned by the worker's watch, on its thread.
 *
 *     last token      afterMs       canary     canary     canary       three canaries without an answer: after
 *     ──────┼──────────────────────────┼──────────┼──────────┼──────┤   1.25 × afterMs + 3 × deadlineMs at the latest
 *                                        deadline   deadline
 */
import { MillraceError } from '../errors.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { CanaryOutcome } from './health-contract.js';

/** Looks per `afterMs`: by one part of it a silence may be seen too late. */
const LOOKS = 4;

/** How one canary ended; `reason` says why it was not answered, '' when it was. */
export interface CanaryEnd {
  readonly outcome: CanaryOutcome;
  readonly reason: string;
}

/** What the canaries of a worker need. */
export interface CanaryOptions {
  readonly clock: Clock;
  readonly afterMs: number;
  readonly deadlineMs: number;
  /** Sends one, and ends within the deadline. Rejects with a MillraceError. */
  readonly send: () => Promise<{ status: number }>;
  /** Another number after each token of the worker. */
  readonly readActivity: () => number;
  /** Real tokens came since the last look. */
  readonly onTokens: () => void;
  /** A canary has ended. `isSilent`: no token came of it, nor a real one meanwhile. */
  readonly onEnd: (end: CanaryEnd, isSilent: boolean) => void;
}

/** Sends one canary and says what became of it. */
export async function sendCanary(send: CanaryOptions['send']): Promise<CanaryEnd> {
  try {
    const { status } = await send();
    if (status === 200) return { outcome: 'answered', reason: '' };
    const reason = `the canary was answered with ${status}`;
    return { outcome: status >= 400 && status < 500 ? 'refused' : 'failed', reason };
  } catch (error) {
    const isLate = error instanceof MillraceError && error.code === 'MILLRACE_WORKER_STALLED';
    const reason = error instanceof Error ? error.message : String(error);
    return { outcome: isLate ? 'late' : 'failed', reason: `canary: ${reason}` };
  }
}

/** See the head of the file. Does nothing until `start`, nor with `afterMs` 0. */
export class Canaries {
  readonly #options: CanaryOptions;
  #timer: Timer | null = null;
  #turn = 0;
  #activity = 0;
  #silentSinceMs = 0;
  #isAsking = false;

  constructor(options: CanaryOptions) {
    this.#options = options;
  }

  /** When the worker last made a token, as far as was looked, or came up. */
  get silentSinceMs(): number {
    return this.#silentSinceMs;
  }

  /** The worker is up: silence counts from now. */
  start(): void {
    this.stop();
    const { clock, afterMs, readActivity } = this.#options;
    if (afterMs === 0) return;
    this.#activity = readActivity();
    this.#silentSinceMs = clock.nowMs();
    this.#lookAfter(afterMs / LOOKS);
  }

  /** Nothing is told any more; the answer to a canary under way is dropped. */
  stop(): void {
    this.#turn++;
    this.#isAsking = false;
    this.#timer?.cancel();
    this.#timer = null;
  }

  /** Sends one now, unless one is under way or real tokens have come since the last look. */
  askNow(): void {
    if (this.#timer === null || this.#isAsking || this.#sawTokens()) return;
    void this.#ask();
  }

  #look(): void {
    const { clock, afterMs } = this.#options;
    if (!this.#sawTokens() && clock.nowMs() - this.#silentSinceMs >= afterMs) void this.#ask();
    else this.#lookAfter(afterMs / LOOKS);
  }

  #sawTokens(): boolean {
    const { clock, readActivity, onTokens } = this.#options;
    const activity = readActivity();
    if (activity === this.#activity) return false;
    this.#activity = activity;
    this.#silentSinceMs = clock.nowMs();
    onTokens();
    return true;
  }

  async #ask(): Promise<void> {
    const { clock, afterMs, deadlineMs, send, onEnd } = this.#options;
    const turn = this.#turn;
    const startMs = clock.nowMs();
    this.#timer?.cancel();
    this.#isAsking = true;
    const end = await sendCanary(send);
    if (turn !== this.#turn) return;
    this.#isAsking = false;
    const isWell = end.outcome === 'answered' || end.outcome === 'refused';
    if (isWell) this.#silentSinceMs = clock.nowMs();
    const isSilent = !isWell && !this.#sawTokens();
    // An error that comes at once is asked about again as late as one that never comes: a hiccup is not three of them.
    this.#lookAfter(isSilent ? Math.max(0, startMs + deadlineMs - clock.nowMs()) : afterMs / LOOKS);
    onEnd(end, isSilent);
  }

  #lookAfter(delayMs: number): void {
    this.#timer?.cancel();
    this.#timer = this.#options.clock.after(delayMs, () => this.#look());
  }
}
