/**
 * The load table (R4): what every worker carries at this moment, in shared memory that any thread reads and writes with
 * Atomics. The thread that owns the registry installs workers and writes the scraped words; the ledger alone changes the
 * reserved load (router/ledger.ts). Layout: load-descriptor.ts.
 *
 * A slot has two lines and a generation lives in line `slot × 2 + generation mod 2`. So a replaced worker's reservations
 * leave the line that they were added to, and a fresh worker starts on the other one. Zeroing a line in place could not be
 * made safe: an add or a subtract under way in another thread would land on the new worker and stay there for ever.
 */
import { strict as assert } from 'node:assert';
import { allocateShared } from '../runtime/shared-memory.js';
import { LOAD, LOAD_LINE_WORDS, LOAD_UNKNOWN, SLOT_STATE } from './load-descriptor.js';

/** State of a slot as a number of `SLOT_STATE`. */
export type SlotState = (typeof SLOT_STATE)[keyof typeof SLOT_STATE];

/** Load that an engine reports of itself; null: it does not say. `kvUsage` is a share from 0 to 1. */
export interface ScrapedLoad {
  readonly running: number | null;
  readonly waiting: number | null;
  readonly kvUsage: number | null;
}

/** One slot at one moment. The words are read one by one: advisory while other threads write. */
export interface LoadSnapshot {
  readonly generation: number;
  readonly state: SlotState;
  readonly activePrefillTokens: number;
  readonly decodeBlocks: number;
  readonly requests: number;
  readonly scraped: ScrapedLoad;
  /** Monotonic seconds of the last scrape, or null. */
  readonly scrapedSeconds: number | null;
}

/** A worker and its successor in the slot never share a line. */
const LOAD_LINES_PER_SLOT = 2;
const KV_USAGE_PPM = 1_000_000;
/** Generation word of a line that holds no worker; living generations start at 1. */
const GENERATION_NONE = 0;

/** Shared memory for a load table of `workersMax` slots, all absent. Made once by the plane, passed to every thread. */
export function createLoadMemory(workersMax: number): SharedArrayBuffer {
  assert(Number.isInteger(workersMax) && workersMax >= 1, 'workersMax is a positive integer');
  return allocateShared(workersMax * LOAD_LINES_PER_SLOT * LOAD_LINE_WORDS * 4, 'load table');
}

/** Line of a worker: the load words of one (slot, generation). */
export function loadLine(slot: number, generation: number): number {
  return slot * LOAD_LINES_PER_SLOT + (generation & 1);
}

const toWord = (value: number | null, scale = 1): number =>
  value === null ? LOAD_UNKNOWN : Math.min(LOAD_UNKNOWN - 1, Math.max(0, Math.round(value * scale)));
const fromWord = (word: number, scale = 1): number | null => (word === LOAD_UNKNOWN ? null : word / scale);

/** View of the load table. Any thread may hold one; every access is atomic. */
export class LoadTable {
  /** The whole table, as the addon attaches it. */
  readonly words: Uint32Array;
  readonly workersMax: number;

  /** `memory` comes from `createLoadMemory`. */
  constructor(memory: SharedArrayBuffer) {
    this.words = new Uint32Array(memory, 0, memory.byteLength / 4);
    this.workersMax = this.words.length / (LOAD_LINE_WORDS * LOAD_LINES_PER_SLOT);
    assert(Number.isInteger(this.workersMax) && this.workersMax >= 1, 'memory is a whole number of slots');
  }

  /**
   * Puts generation `generation` (1 or more, each one larger than the last) of a worker into `slot` with its scraped
   * words unknown, and retires the one before: its line takes no new reservation, and keeps what it carries until
   * that is released. Registry thread only.
   */
  install(slot: number, generation: number, state: SlotState): void {
    assert(generation > GENERATION_NONE && generation <= 0xffff_ffff, 'generation is 1 to 2^32-1');
    const base = this.#base(slot, generation);
    for (let word = LOAD.running; word <= LOAD.scrapedSeconds; word += 1) {
      Atomics.store(this.words, base + word, LOAD_UNKNOWN);
    }
    const retired = this.#base(slot, generation + 1);
    Atomics.store(this.words, retired + LOAD.state, SLOT_STATE.absent);
    Atomics.store(this.words, retired + LOAD.generation, GENERATION_NONE);
    Atomics.store(this.words, base + LOAD.state, state);
    Atomics.store(this.words, base + LOAD.generation, generation);
  }

  /** Changes the state of a worker; false when that generation no longer has the slot. Registry thread only. */
  setState(slot: number, generation: number, state: SlotState): boolean {
    if (!this.holds(slot, generation)) return false;
    Atomics.store(this.words, this.#base(slot, generation) + LOAD.state, state);
    return true;
  }

  /** Stores a scrape; false when the worker was replaced while it was under way. Registry thread only. */
  setScraped(slot: number, generation: number, load: ScrapedLoad, nowSeconds: number): boolean {
    if (!this.holds(slot, generation)) return false;
    const base = this.#base(slot, generation);
    Atomics.store(this.words, base + LOAD.running, toWord(load.running));
    Atomics.store(this.words, base + LOAD.waiting, toWord(load.waiting));
    Atomics.store(this.words, base + LOAD.kvUsagePpm, toWord(load.kvUsage, KV_USAGE_PPM));
    Atomics.store(this.words, base + LOAD.scrapedSeconds, toWord(nowSeconds));
    return true;
  }

  /** True while `generation` has the slot. */
  holds(slot: number, generation: number): boolean {
    return this.#load(slot, generation, LOAD.generation) === generation;
  }

  /** True while `generation` has the slot and may be chosen. */
  isReady(slot: number, generation: number): boolean {
    return this.holds(slot, generation) && this.#load(slot, generation, LOAD.state) === SLOT_STATE.ready;
  }

  /** Requests reserved on this worker. */
  readRequests(slot: number, generation: number): number {
    return this.#load(slot, generation, LOAD.requests);
  }

  /** Prompt tokens reserved on this worker whose first token has not come yet. */
  readActivePrefillTokens(slot: number, generation: number): number {
    return this.#load(slot, generation, LOAD.activePrefillTokens);
  }

  /** KV blocks that the reserved requests are expected to need. */
  readDecodeBlocks(slot: number, generation: number): number {
    return this.#load(slot, generation, LOAD.decodeBlocks);
  }

  /** The worker that has the slot now, or null when there is none. */
  snapshot(slot: number): LoadSnapshot | null {
    const even = this.#load(slot, 0, LOAD.generation);
    const generation = even === GENERATION_NONE ? this.#load(slot, 1, LOAD.generation) : even;
    if (generation === GENERATION_NONE) return null;
    const word = (name: keyof typeof LOAD): number => this.#load(slot, generation, LOAD[name]);
    return {
      generation,
      state: word('state') as SlotState,
      activePrefillTokens: word('activePrefillTokens'),
      decodeBlocks: word('decodeBlocks'),
      requests: word('requests'),
      scraped: {
        running: fromWord(word('running')),
        waiting: fromWord(word('waiting')),
        kvUsage: fromWord(word('kvUsagePpm'), KV_USAGE_PPM),
      },
      scrapedSeconds: fromWord(word('scrapedSeconds')),
    };
  }

  #load(slot: number, generation: number, word: number): number {
    return Atomics.load(this.words, this.#base(slot, generation) + word);
  }

  #base(slot: number, generation: number): number {
    // A slot outside the table needs no check of its own: Atomics throws RangeError for an index outside the array.
    return loadLine(slot, generation) * LOAD_LINE_WORDS;
  }
}
