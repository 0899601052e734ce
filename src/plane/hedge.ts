/**
 * Hedging of first tokens (R5): a request that has had none for `hedgeAfterMs` is sent to a second worker too, the first
 * one that answers wins, and the other call is closed. How many requests do so at one time is bounded, because a fleet that
 * is slow as a whole must not get twice the work. Owned by one socket thread.
 */
import type { HedgeOutcome } from '../frontend/metrics.js';
import type { RequestContext } from './request-context.js';

/** The places of hedged requests on one socket thread. */
export class HedgePlaces {
  readonly #percentMax: number;
  readonly #inFlight: () => number;
  #open = 0;

  /** @param percentMax of the requests that are `inFlight`, rounded up to a whole one */
  constructor(percentMax: number, inFlight: () => number) {
    this.#percentMax = percentMax;
    this.#inFlight = inFlight;
  }

  /** Requests that are hedged now. */
  get open(): number {
    return this.#open;
  }

  /** Takes a place; false: there is none. */
  take(): boolean {
    if (this.#open >= Math.ceil((this.#inFlight() * this.#percentMax) / 100)) return false;
    this.#open += 1;
    return true;
  }

  /** Gives a place back. */
  give(): void {
    this.#open -= 1;
  }
}

/** The hedge of one request, which has one at most: from its ASK to the first token of either worker. */
export class Hedge {
  readonly #context: Pick<RequestContext, 'hedges' | 'observer'>;
  #state: 'none' | 'capped' | 'open' | 'over' = 'none';

  constructor(context: Pick<RequestContext, 'hedges' | 'observer'>) {
    this.#context = context;
  }

  /** It is under way, or was. */
  get isUsed(): boolean {
    return this.#state === 'open' || this.#state === 'over';
  }

  /** Begins, where there is a place. */
  begin(): boolean {
    if (this.#context.hedges.take()) this.#state = 'open';
    else if (this.#state === 'none') {
      this.#state = 'capped';
      this.#context.observer.hedged('capped');
    }
    return this.#state === 'open';
  }

  /** Nothing runs twice any more. Only the first call after `begin` counts. */
  end(outcome: HedgeOutcome): void {
    if (this.#state !== 'open') return;
    this.#state = 'over';
    this.#context.hedges.give();
    this.#context.observer.hedged(outcome);
  }
}
