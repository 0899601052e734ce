/**
 * FaultGuard: keeps a bug of ours out of the host process. Everything that the outside calls (timers, sockets, ring bells,
 * child threads) runs through it, and the clock and the logger that the host handed in are called through it: an
 * exception becomes one call of `onFault` and goes no further. Owned by the plane; runs on the socket thread.
 */
import { type Clock, systemClock } from './clock.js';
import type { Logger } from './logger.js';

/** Throws an exception outside all callers, where a process sees it as uncaught. */
export function throwLater(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
}

/** Runs foreign-called code; see the head of the file. */
export class FaultGuard {
  readonly #onFault: (error: unknown) => void;

  /** @param onFault called for each exception; what it throws reaches the caller of the guarded code */
  constructor(onFault: (error: unknown) => void) {
    this.#onFault = onFault;
  }

  /** Calls `fn`; an exception is reported. */
  run(fn: () => void): void {
    try {
      fn();
    } catch (error) {
      this.#onFault(error);
    }
  }

  /** Reports an exception that was caught elsewhere: a rejected promise. */
  report(error: unknown): void {
    this.#onFault(error);
  }

  /** The same clock with guarded callbacks. Where the clock itself throws, the system clock stands in. */
  clock(clock: Clock): Clock {
    const either = <T>(call: (source: Clock) => T): T => {
      try {
        return call(clock);
      } catch (error) {
        this.#onFault(error);
        return call(systemClock);
      }
    };
    return {
      nowMs: () => either(source => source.nowMs()),
      wallMs: () => either(source => source.wallMs()),
      after: (delayMs, fn) => either(source => source.after(delayMs, () => this.run(fn))),
      every: (periodMs, fn) => either(source => source.every(periodMs, () => this.run(fn))),
    };
  }

  /** The same logger; a line that it throws on is lost. */
  logger(logger: Logger): Logger {
    return {
      debug: (message, fields) => this.run(() => logger.debug(message, fields)),
      info: (message, fields) => this.run(() => logger.info(message, fields)),
      warn: (message, fields) => this.run(() => logger.warn(message, fields)),
      error: (message, fields) => this.run(() => logger.error(message, fields)),
    };
  }
}
