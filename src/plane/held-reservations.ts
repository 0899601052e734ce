/**
 * Reservations that callers of `pick` hold (R4): each until it is released, for a time at most. Owned by one socket thread.
 */
import type { Ledger } from '../router/ledger.js';
import type { Clock } from '../runtime/clock.js';
import type { Reservation } from './pick-request.js';

/** See the head of the file. */
export class HeldReservations {
  readonly #clock: Clock;
  readonly #ledger: Pick<Ledger, 'firstToken' | 'release'>;
  readonly #held = new Set<Reservation>();

  constructor(clock: Clock, ledger: Pick<Ledger, 'firstToken' | 'release'>) {
    this.#clock = clock;
    this.#ledger = ledger;
  }

  /** Holds a reservation of this thread until it is released, for at most `expiresInMs`. */
  hold(reservation: number, expiresInMs: number): Reservation {
    const release = (): void => {
      if (!this.#held.delete(held)) return;
      timer.cancel();
      this.#ledger.release(reservation);
    };
    const timer = this.#clock.after(expiresInMs, release);
    const held: Reservation = Object.freeze({
      expiresAt: this.#clock.wallMs() + expiresInMs,
      firstToken: () => {
        if (this.#held.has(held)) this.#ledger.firstToken(reservation);
      },
      release,
    });
    this.#held.add(held);
    return held;
  }

  /** The thread stops. */
  releaseAll(): void {
    for (const reservation of this.#held) reservation.release();
  }
}
