/**
 * The doorbell of a thread (R2): each thread has one, shared by all rings that it reads (records for me) or writes
 * (space for me). Ringing costs one load while the owner is awake. No wake-up is lost, because each side first writes
 * and then reads, in one total order of the atomic accesses:
 *
 *     ringer   commit the record (or free space) → load `sleeping` → if set: count + 1, notify
 *     owner    load `count` → set `sleeping` → look at all rings again → wait while `count` is the one loaded
 *
 * If the ringer finds `sleeping` clear, its commit came before the owner's second look, which sees it. If it finds it
 * set, `count` differs from the loaded one and the wait returns at once or is woken. Only the owner writes `sleeping`,
 * so a ringer that dies between two steps takes no wake-up of others with it.
 */
import assert from 'node:assert';
import type { Clock, Timer } from '../runtime/clock.js';
import { allocateShared } from '../runtime/shared-memory.js';
import { BELL, BELL_BYTES } from './ring-descriptor.js';
import type { ArmedWait, RingMemory } from './ring-memory.js';

/** Why `Bell.wait` came back. `rung` also covers work that was found before sleeping; spurious wake-ups are possible. */
export type WakeReason = 'rung' | 'timeout' | 'closed';

/** Allocates the memory of one bell; the owner hands it to every thread that must be able to wake it. */
export function createBell(name: string): SharedArrayBuffer {
  return allocateShared(BELL_BYTES, `${name} bell`);
}

/** The side that wakes. Any number of threads may hold one for the same bell. */
export class BellRinger {
  readonly #memory: RingMemory;

  constructor(memory: RingMemory) {
    this.#memory = memory;
  }

  /** Wakes the owner if it sleeps. Call it after the change that the owner shall see. */
  ring(): void {
    const memory = this.#memory;
    if (memory.load(BELL.sleeping) === 0) return;
    memory.add(BELL.count, 1);
    memory.notify(BELL.count);
  }
}

/** The side that sleeps: exactly one, on the thread that owns the bell. It never blocks the thread. */
export class Bell {
  readonly #memory: RingMemory;
  readonly #clock: Clock;
  #waiting = false;
  #closed = false;

  constructor(memory: RingMemory, clock: Clock) {
    this.#memory = memory;
    this.#clock = clock;
  }

  /**
   * Sleeps until the bell is rung, `timeoutMs` have passed or the bell is closed. `isPending` must look at everything
   * that rings this bell (records of each consumer, `sendable` of each producer); when it says true nothing sleeps.
   * One wait at a time. The wait does not keep the event loop alive: what the thread serves does.
   */
  async wait(isPending: () => boolean, timeoutMs?: number): Promise<WakeReason> {
    assert(!this.#waiting, 'one wait at a time on a bell');
    if (this.#closed) return 'closed';
    const armed = this.arm(isPending);
    if (armed === null) return 'rung';
    let timer: Timer | null = null;
    let timedOut = false;
    if (timeoutMs !== undefined)
      timer = this.#clock.after(timeoutMs, () => {
        timedOut = true;
        this.#wakeSelf();
      });
    this.#waiting = true;
    await armed;
    this.#waiting = false;
    timer?.cancel();
    this.disarm();
    if (this.#closed) return 'closed';
    return timedOut ? 'timeout' : 'rung';
  }

  /**
   * The part of `wait` that is the protocol: null when there is something to do now, else the wake-up to wait for,
   * after which `disarm` is due.
   */
  arm(isPending: () => boolean): ArmedWait {
    const memory = this.#memory;
    const count = memory.load(BELL.count);
    memory.store(BELL.sleeping, 1);
    const armed = isPending() ? null : memory.waitAsync(BELL.count, count);
    if (armed === null) this.disarm();
    return armed;
  }

  /** Says that the owner is awake: rings cost one load again. */
  disarm(): void {
    this.#memory.store(BELL.sleeping, 0);
  }

  /** Ends the wait in progress and all later ones with `closed`. For the owner; other threads send it a message. */
  close(): void {
    this.#closed = true;
    this.#wakeSelf();
  }

  #wakeSelf(): void {
    this.#memory.add(BELL.count, 1);
    this.#memory.notify(BELL.count);
  }
}
