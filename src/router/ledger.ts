/**
 * The reservation ledger (R4): one 64-byte entry for each request that a worker is meant to carry, in shared memory. A pool
 * thread reserves in its own partition; the socket thread that consumes the PLAN adopts the reservation and from then on
 * alone calls `firstToken` and `release`; the supervisor reaps what a dead pool thread left. Layout: load-descriptor.ts.
 *
 * Invariant: a load line is the sum of what the entries of that line in state `prefill` or `decode` added. Every change
 * of an entry is won by one compare-and-set, and only the winner touches the line, so nothing is counted twice or lost.
 */
import { strict as assert } from 'node:assert';
import type { Addon } from '../runtime/addon.js';
import { allocateShared } from '../runtime/shared-memory.js';
import {
  LEDGER,
  LEDGER_ENTRY_WORDS,
  LEDGER_GENERATION_SHIFT,
  LEDGER_STATE,
  LOAD,
  LOAD_LINE_WORDS,
  RESERVATION_INDEX_BITS,
  RESERVATION_NONE,
} from './load-descriptor.js';
import { type LoadTable, loadLine } from './load-table.js';

/** Answer of `reserve` when the worker was replaced. */
export const RESERVE_STALE = -1;
/** Answer of `reserve` when no entry is free or the worker's line is at its bound. */
export const RESERVE_FULL = RESERVATION_NONE;

/** Owner of reservations that their pool thread gave up. Epochs of threads are below it and above 0. */
export const EPOCH_DISCARDED = 0xffff_fffe;
/** Owner of a reservation while it is being reaped. */
const EPOCH_REAPER = 0xffff_ffff;

/** Most prompt tokens or blocks of one reservation. */
export const RESERVATION_AMOUNT_MAX = 1 << 24;
/**
 * A line that has reached this takes no more. 2^31 and 127 threads that each add 2^24 past the check stay below 2^32,
 * so no add of this file can wrap.
 */
const LINE_AMOUNT_MAX = 2 ** 31;

const INDEX_MASK = (1 << RESERVATION_INDEX_BITS) - 1;
const GENERATION_MAX = 0xfff;

/** What the entries of one worker add up to. */
export interface LoadSum {
  readonly activePrefillTokens: number;
  readonly decodeBlocks: number;
  readonly requests: number;
}

/** Which memory a ledger views, and what this thread may do with it. */
export interface LedgerOptions {
  /** From `createLedgerMemory`. */
  readonly memory: SharedArrayBuffer;
  readonly loadTable: LoadTable;
  /** The part of the entries that this thread reserves in: one per pool thread. Null: this thread never reserves. */
  readonly partition: { readonly index: number; readonly count: number } | null;
  /** The addon of this thread, or null: `reserve` runs in TypeScript, with the same answers. */
  readonly addon: Pick<Addon, 'attachLoad' | 'reserve'> | null;
}

/** Shared memory for a ledger of `entries` reservations, all free. Made once by the plane, passed to every thread. */
export function createLedgerMemory(entries: number): SharedArrayBuffer {
  assert(Number.isInteger(entries) && entries >= 1 && entries <= INDEX_MASK + 1, 'entries is 1 to 2^20');
  return allocateShared(entries * LEDGER_ENTRY_WORDS * 4, 'reservation ledger');
}

/** View of the ledger. Each thread has its own, over the same memory. */
export class Ledger {
  readonly #table: Uint32Array;
  readonly #words: Uint32Array;
  readonly #loadTable: LoadTable;
  readonly #entries: number;
  readonly #firstEntry: number;
  readonly #entryCount: number;
  readonly #addon: LedgerOptions['addon'];
  readonly #handle: number;
  #cursor = 0;

  constructor(options: LedgerOptions) {
    this.#loadTable = options.loadTable;
    this.#table = options.loadTable.words;
    this.#words = new Uint32Array(options.memory, 0, options.memory.byteLength / 4);
    this.#entries = this.#words.length / LEDGER_ENTRY_WORDS;
    assert(Number.isInteger(this.#entries), 'memory is a whole number of entries');
    const { index, count } = options.partition ?? { index: 0, count: 1 };
    assert(index >= 0 && index < count && count <= this.#entries, 'partition is inside the ledger');
    const share = Math.floor(this.#entries / count);
    this.#firstEntry = index * share;
    this.#entryCount = options.partition === null ? 0 : share;
    this.#addon = options.partition === null ? null : options.addon;
    this.#handle = this.#addon?.attachLoad(this.#table, this.#words) ?? 0;
  }

  /**
   * Reserves one request on a worker. Pool threads only, in the thread's own partition.
   * Returns the reservation id (> 0), `RESERVE_FULL` or `RESERVE_STALE`; the last two leave everything as it was.
   * The amounts are whole numbers up to `RESERVATION_AMOUNT_MAX`.
   */
  reserve(
    slot: number,
    slotGeneration: number,
    prefillTokens: number,
    blocks: number,
    ownerEpoch: number,
  ): number {
    assertAmount('prefillTokens', prefillTokens);
    assertAmount('blocks', blocks);
    if (!(ownerEpoch > 0 && ownerEpoch < EPOCH_DISCARDED))
      assert.fail(`${ownerEpoch} is no epoch of a thread`);
    if (this.#entryCount === 0) assert.fail('a ledger without a partition does not reserve');
    if (!this.#loadTable.holds(slot, slotGeneration)) return RESERVE_STALE;
    if (
      this.#loadTable.readActivePrefillTokens(slot, slotGeneration) >= LINE_AMOUNT_MAX ||
      this.#loadTable.readDecodeBlocks(slot, slotGeneration) >= LINE_AMOUNT_MAX
    ) {
      return RESERVE_FULL;
    }
    const id = this.#reserveOnLine(
      loadLine(slot, slotGeneration),
      slotGeneration,
      prefillTokens,
      blocks,
      ownerEpoch,
    );
    if (id > 0) this.#cursor = ((id & INDEX_MASK) - this.#firstEntry + 1) % this.#entryCount;
    return id;
  }

  /**
   * Hands a living reservation from one thread's epoch to another's; false when it is gone, or when the reaper or
   * another thread took it first. A false adoption makes its PLAN void.
   */
  adopt(reservation: number, fromEpoch: number, toEpoch: number): boolean {
    const entry = this.#entryOf(reservation);
    const generation = reservation >>> RESERVATION_INDEX_BITS;
    if (entry < 0 || !this.#isLivingUse(entry, generation)) return false;
    const owner = entry + LEDGER.owner;
    if (Atomics.compareExchange(this.#words, owner, fromEpoch, toEpoch) !== fromEpoch) return false;
    if (this.#isLivingUse(entry, generation)) return true;
    // A stale id met the entry's next use in between: what was taken goes back.
    Atomics.compareExchange(this.#words, owner, toEpoch, fromEpoch);
    return false;
  }

  /**
   * Gives up a reservation whose PLAN is not sent. Pool threads call this and not `release`: it is one
   * compare-and-set, so a pool thread that is terminated inside it leaves nothing half done. `reap(EPOCH_DISCARDED)`
   * takes the load off the worker.
   */
  discard(reservation: number, ownerEpoch: number): boolean {
    return this.adopt(reservation, ownerEpoch, EPOCH_DISCARDED);
  }

  /** The first token came: the prompt no longer waits for its prefill. True once. The owner alone calls this. */
  firstToken(reservation: number): boolean {
    const entry = this.#entryOf(reservation);
    const generation = reservation >>> RESERVATION_INDEX_BITS;
    if (entry < 0 || !this.#move(entry, generation, LEDGER_STATE.prefill, LEDGER_STATE.decode)) return false;
    const tokens = this.#word(entry, LEDGER.prefillTokens);
    this.#subtract(entry, LOAD.activePrefillTokens, tokens);
    // Modulo 2^32: readers take differences of it to learn how fast the worker is.
    const line = this.#word(entry, LEDGER.slot) * LOAD_LINE_WORDS;
    Atomics.add(this.#table, line + LOAD.prefilledTokens, tokens);
    return true;
  }

  /**
   * Takes the reservation off its worker and frees the entry. True once. The owner alone calls this, and a pool thread
   * calls `discard`. The load of a worker that has since taken over the slot does not change.
   */
  release(reservation: number): boolean {
    const entry = this.#entryOf(reservation);
    return entry >= 0 && this.#releaseEntry(entry, reservation >>> RESERVATION_INDEX_BITS);
  }

  /**
   * Frees every reservation that `deadEpoch` still owns, and returns how many. The thread must have ended: the addon's
   * `reserve` cannot be cut short, but the twin can, and then the entry is found in state `claimed` and its line is
   * counted anew. That last step needs the caller to be the only thread that changes the ledger at that moment, which holds
   * without the addon: one pool thread, now dead, and the socket thread that calls this.
   */
  reap(deadEpoch: number): number {
    let freed = 0;
    for (let index = 0; index < this.#entries; index += 1) {
      const entry = index * LEDGER_ENTRY_WORDS;
      const word = this.#word(entry, LEDGER.state);
      const state = stateIn(word);
      if (state !== LEDGER_STATE.claimed && !isLiving(state)) continue;
      const owner = entry + LEDGER.owner;
      if (Atomics.compareExchange(this.#words, owner, deadEpoch, EPOCH_REAPER) !== deadEpoch) continue;
      if (state === LEDGER_STATE.claimed) this.#settleClaimed(entry, generationIn(word));
      else this.#releaseEntry(entry, generationIn(word));
      freed += 1;
    }
    return freed;
  }

  /** Reservations that are not free, of all threads. */
  held(): number {
    let count = 0;
    for (let index = 0; index < this.#entries; index += 1) {
      if (this.#state(index * LEDGER_ENTRY_WORDS) !== LEDGER_STATE.free) count += 1;
    }
    return count;
  }

  /** What the reservations of one worker add up to: equals its load line when no thread is changing it. */
  sum(slot: number, slotGeneration: number): LoadSum {
    return this.#sumLine(loadLine(slot, slotGeneration));
  }

  #reserveOnLine(line: number, generation: number, tokens: number, blocks: number, epoch: number): number {
    const first = this.#firstEntry;
    const count = this.#entryCount;
    const cursor = this.#cursor;
    return this.#addon === null
      ? reserveTwin(this.#table, this.#words, first, count, cursor, line, generation, tokens, blocks, epoch)
      : this.#addon.reserve(this.#handle, first, count, cursor, line, generation, tokens, blocks, epoch);
  }

  #settleClaimed(entry: number, generation: number): void {
    const line = this.#word(entry, LEDGER.slot);
    Atomics.store(this.#words, entry + LEDGER.state, stateWord(generation, LEDGER_STATE.free));
    const sum = this.#sumLine(line);
    const base = line * LOAD_LINE_WORDS;
    Atomics.store(this.#table, base + LOAD.activePrefillTokens, sum.activePrefillTokens);
    Atomics.store(this.#table, base + LOAD.decodeBlocks, sum.decodeBlocks);
    Atomics.store(this.#table, base + LOAD.requests, sum.requests);
  }

  #sumLine(line: number): LoadSum {
    let activePrefillTokens = 0;
    let decodeBlocks = 0;
    let requests = 0;
    for (let index = 0; index < this.#entries; index += 1) {
      const entry = index * LEDGER_ENTRY_WORDS;
      const state = this.#state(entry);
      if (!isLiving(state) || this.#word(entry, LEDGER.slot) !== line) continue;
      if (state === LEDGER_STATE.prefill) activePrefillTokens += this.#word(entry, LEDGER.prefillTokens);
      decodeBlocks += this.#word(entry, LEDGER.blocks);
      requests += 1;
    }
    return { activePrefillTokens, decodeBlocks, requests };
  }

  #releaseEntry(entry: number, generation: number): boolean {
    if (this.#move(entry, generation, LEDGER_STATE.prefill, LEDGER_STATE.releasing)) {
      this.#subtract(entry, LOAD.activePrefillTokens, this.#word(entry, LEDGER.prefillTokens));
    } else if (!this.#move(entry, generation, LEDGER_STATE.decode, LEDGER_STATE.releasing)) {
      return false;
    }
    this.#subtract(entry, LOAD.decodeBlocks, this.#word(entry, LEDGER.blocks));
    this.#subtract(entry, LOAD.requests, 1);
    // A claimed entry must never show the owner of its last use: the reaper would take it for a torn one.
    Atomics.store(this.#words, entry + LEDGER.owner, 0);
    Atomics.store(this.#words, entry + LEDGER.state, stateWord(generation, LEDGER_STATE.free));
    return true;
  }

  #subtract(entry: number, word: number, amount: number): void {
    const line = this.#word(entry, LEDGER.slot);
    const before = Atomics.sub(this.#table, line * LOAD_LINE_WORDS + word, amount);
    if (before < amount) assert.fail(`load line ${line} went below zero`);
  }

  #move(entry: number, generation: number, from: number, to: number): boolean {
    const expected = stateWord(generation, from);
    const at = entry + LEDGER.state;
    return Atomics.compareExchange(this.#words, at, expected, stateWord(generation, to)) === expected;
  }

  #isLivingUse(entry: number, generation: number): boolean {
    const word = this.#word(entry, LEDGER.state);
    return generationIn(word) === generation && isLiving(stateIn(word));
  }

  #state(entry: number): number {
    return stateIn(this.#word(entry, LEDGER.state));
  }

  #word(entry: number, word: number): number {
    return Atomics.load(this.#words, entry + word);
  }

  /** Word offset of the entry that the id names, or -1 when the id is not of its present use. */
  #entryOf(reservation: number): number {
    const index = reservation & INDEX_MASK;
    if (reservation === RESERVATION_NONE || index >= this.#entries) return -1;
    const entry = index * LEDGER_ENTRY_WORDS;
    const generation = generationIn(this.#word(entry, LEDGER.state));
    return generation === reservation >>> RESERVATION_INDEX_BITS ? entry : -1;
  }
}

const stateIn = (word: number): number => word & ((1 << LEDGER_GENERATION_SHIFT) - 1);
const generationIn = (word: number): number => word >>> LEDGER_GENERATION_SHIFT;
const stateWord = (generation: number, state: number): number =>
  (generation << LEDGER_GENERATION_SHIFT) | state;
const isLiving = (state: number): boolean => state === LEDGER_STATE.prefill || state === LEDGER_STATE.decode;

function assertAmount(name: string, amount: number): void {
  if (amount >>> 0 !== amount || amount > RESERVATION_AMOUNT_MAX)
    assert.fail(`${name} ${amount} is out of range`);
}

/**
 * The addon's `reserve` in TypeScript, step for step: claim the first free entry from `firstEntry + cursor` on, write
 * it, add to the line, publish. Used where there is no addon, and as its oracle.
 */
function reserveTwin(
  table: Uint32Array,
  words: Uint32Array,
  firstEntry: number,
  entryCount: number,
  cursor: number,
  line: number,
  slotGeneration: number,
  prefillTokens: number,
  blocks: number,
  ownerEpoch: number,
): number {
  const base = line * LOAD_LINE_WORDS;
  if (Atomics.load(table, base + LOAD.generation) !== slotGeneration) return RESERVE_STALE;
  for (let step = 0; step < entryCount; step += 1) {
    const index = firstEntry + ((cursor + step) % entryCount);
    const entry = index * LEDGER_ENTRY_WORDS;
    const free = Atomics.load(words, entry + LEDGER.state);
    if (stateIn(free) !== LEDGER_STATE.free) continue;
    // Before the claim, which this thread alone can make here: a claimed entry must always name the thread that died.
    Atomics.store(words, entry + LEDGER.owner, ownerEpoch);
    const generation = nextEntryGeneration(generationIn(free));
    const claimed = stateWord(generation, LEDGER_STATE.claimed);
    const seen = Atomics.compareExchange(words, entry + LEDGER.state, free, claimed);
    if (seen !== free) assert.fail('two threads reserve in one partition');
    Atomics.store(words, entry + LEDGER.slot, line);
    Atomics.store(words, entry + LEDGER.slotGeneration, slotGeneration);
    Atomics.store(words, entry + LEDGER.prefillTokens, prefillTokens);
    Atomics.store(words, entry + LEDGER.blocks, blocks);
    Atomics.add(table, base + LOAD.activePrefillTokens, prefillTokens);
    Atomics.add(table, base + LOAD.decodeBlocks, blocks);
    Atomics.add(table, base + LOAD.requests, 1);
    Atomics.store(words, entry + LEDGER.state, stateWord(generation, LEDGER_STATE.prefill));
    return ((generation << RESERVATION_INDEX_BITS) | index) >>> 0;
  }
  return RESERVE_FULL;
}

/** 1 to 2^12 − 1, so that no reservation id is 0. */
function nextEntryGeneration(last: number): number {
  return last >= GENERATION_MAX ? 1 : last + 1;
}
