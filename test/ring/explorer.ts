/**
 * Runs the real ring and bell code of several threads through every interleaving of their accesses to shared memory.
 * A thread here is a plain function; one step of it is one access. To take a step the function is run again from its
 * start, its earlier accesses are answered from its log, the next one is carried out on the shared words, and the
 * access after that stops the function. Equal states are visited once: same words, same sleepers and, for each thread, the
 * same log since its last checkpoint. At a checkpoint the thread says in a few words all that its own memory depends on.
 * The model is sequentially consistent, plain accesses included.
 */
import { RING } from '#millrace/ring/ring-descriptor.js';
import { RingMemory } from '#millrace/ring/ring-memory.js';

const SUSPENDED = Symbol('suspended');

/** One shared segment: its words are `cells[base … base + length)` of the world. */
export interface Segment {
  readonly base: number;
  readonly image: SharedArrayBuffer;
}

interface State {
  readonly cells: Int32Array;
  readonly logs: readonly (readonly number[])[];
  /** The word that each thread sleeps on, or −1. */
  readonly sleeping: readonly number[];
  /** The last checkpoint of each thread and the log since then. */
  readonly local: readonly string[];
  readonly ended: readonly boolean[];
}

/** Thrown when some interleaving breaks a promise; the message lists the thread of each step. */
export class Violation extends Error {
  constructor(message: string, last: Taken | null) {
    const steps: number[] = [];
    for (let taken = last; taken !== null; taken = taken.before) steps.unshift(taken.thread);
    super(`${message} (steps: ${steps.join('')})`);
  }
}

/** The last of the steps that led to a state. */
interface Taken {
  readonly thread: number;
  readonly before: Taken | null;
}

/** What a thread of the explorer sees of the world. */
export class Stepper {
  cells: Int32Array = new Int32Array(0);
  log: number[] = [];
  sleepsOn = -1;
  #label = '';
  #labelAt = 0;
  #replayed = 0;
  #stepped = false;
  #inSetup = false;

  begin(cells: Int32Array, log: readonly number[]): void {
    this.cells = cells;
    this.log = [...log];
    this.sleepsOn = -1;
    this.#label = '';
    this.#labelAt = 0;
    this.#replayed = 0;
    this.#stepped = false;
    this.#inSetup = false;
  }

  /** `label` and the words of the world decide how the thread goes on from here. */
  checkpoint(label: string): void {
    this.#label = label;
    this.#labelAt = this.#replayed;
  }

  /** Names the thread's own state. */
  local(): string {
    return `${this.#label}:${this.log.slice(this.#labelAt).join()}`;
  }

  /** Carries out `access` if its turn has come; `body` of a setup counts as one step together. */
  step(access: () => number): number {
    if (this.#replayed < this.log.length) return this.log[this.#replayed++]!;
    if (this.#stepped && !this.#inSetup) throw SUSPENDED;
    this.#stepped = true;
    const value = access();
    this.log.push(value);
    this.#replayed += 1;
    return value;
  }

  /** Attaching and other beginnings need no interleaving: all of `body` is one step. */
  setup<T>(body: () => T): T {
    if (this.#replayed === this.log.length && this.#stepped) throw SUSPENDED;
    this.#inSetup = true;
    const value = body();
    this.#inSetup = false;
    return value;
  }

  sleep(word: number): void {
    this.sleepsOn = word;
  }
}

/** Contents that were read, so that a log of numbers can name them: equal contents have one number. */
const REMEMBERED: Buffer[] = [];
const TOKENS = new Map<string, number>();

function remember(bytes: Buffer): number {
  const text = bytes.toString('latin1');
  const known = TOKENS.get(text);
  if (known !== undefined) return known;
  TOKENS.set(text, REMEMBERED.length);
  return REMEMBERED.push(bytes) - 1;
}

function halves(bytes: number): [number, number][] {
  const middle = (bytes >> 3) << 2;
  return middle === 0
    ? [[0, bytes]]
    : [
        [0, middle],
        [middle, bytes],
      ];
}

/** Ring memory whose every access is a step of one thread. A copy of payload is two steps. */
export class SteppedMemory extends RingMemory {
  readonly stepper: Stepper;
  readonly base: number;
  /** What the producer knows of the consumer; part of its checkpoints. */
  lastHead = 0;

  constructor(segment: Segment, stepper: Stepper) {
    super(segment.image);
    this.stepper = stepper;
    this.base = segment.base;
  }

  override load(word: number): number {
    const value = this.stepper.step(() => this.stepper.cells[this.base + word]!);
    if (word === RING.head) this.lastHead = value;
    return value;
  }

  override get(word: number): number {
    return this.load(word);
  }

  override store(word: number, value: number): void {
    this.stepper.step(() => {
      this.stepper.cells[this.base + word] = value;
      return 0;
    });
  }

  override put(word: number, value: number): void {
    this.store(word, value);
  }

  override add(word: number, value: number): number {
    return this.stepper.step(() => {
      const before = this.stepper.cells[this.base + word]!;
      this.stepper.cells[this.base + word] = before + value;
      return before;
    });
  }

  override copyIn(byte: number, part: Uint8Array, start: number, end: number): void {
    const target = this.base * 4 + byte;
    for (const [from, to] of halves(end - start))
      this.stepper.step(() => {
        const cells = new Uint8Array(this.stepper.cells.buffer);
        cells.set(part.subarray(start + from, start + to), target + from);
        return 0;
      });
  }

  /** A copy, read in two steps, so that a write in between shows; the log keeps the number of what was read. */
  override view(byte: number, length: number): Uint8Array {
    const bytes = Buffer.alloc(length);
    const source = this.base * 4 + byte;
    for (const [from, to] of halves(length)) {
      const token = this.stepper.step(() => {
        const cells = new Uint8Array(this.stepper.cells.buffer);
        return remember(Buffer.from(cells.subarray(source + from, source + to)));
      });
      bytes.set(REMEMBERED[token]!, from);
    }
    return bytes;
  }

  override notify(word: number): void {
    this.stepper.step(() => {
      this.stepper.cells[0] = this.base + word;
      return 0;
    });
  }

  override waitAsync(word: number, expected: number): Promise<unknown> | null {
    const asleep = this.stepper.step(() => {
      const unchanged = this.stepper.cells[this.base + word] === expected;
      if (unchanged) this.stepper.sleep(this.base + word);
      return unchanged ? 1 : 0;
    });
    return asleep === 1 ? SLEEP : null;
  }
}

const SLEEP = Promise.resolve();

export type Thread = (stepper: Stepper) => void;

/** Cell 0 of the world carries the word of a notify from the access to the scheduler. */
const NOTIFY_CELL = 0;

/** Lays segments out one after the other and copies their first contents. */
export function layOut(images: readonly SharedArrayBuffer[]): { segments: Segment[]; cells: Int32Array } {
  let base = 1;
  const segments = images.map(image => {
    const segment = { base, image };
    base += image.byteLength / 4;
    return segment;
  });
  const cells = new Int32Array(base);
  for (const { base, image } of segments) cells.set(new Int32Array(image), base);
  return { segments, cells };
}

/** Visits all states; returns how many there are. Throws a Violation for a failed check or for threads that all sleep. */
export function explore(cells: Int32Array, threads: readonly Thread[], statesMax = 400_000): number {
  const stepper = new Stepper();
  const seen = new Set<string>();
  const first: State = {
    cells,
    logs: threads.map(() => []),
    sleeping: threads.map(() => -1),
    local: threads.map(() => ''),
    ended: threads.map(() => false),
  };
  const stack: { state: State; taken: Taken | null }[] = [{ state: first, taken: null }];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    const { state, taken } = top;
    const ready = threads.map((_, i) => i).filter(i => !state.ended[i] && state.sleeping[i] === -1);
    if (ready.length === 0 && state.ended.includes(false)) throw new Violation('lost wake-up', taken);
    for (const index of ready) {
      const now = { thread: index, before: taken };
      const next = step(state, index, threads[index]!, stepper, now);
      const key = stateKey(next);
      if (seen.has(key)) continue;
      seen.add(key);
      if (seen.size > statesMax) throw new Error(`more than ${statesMax} states`);
      stack.push({ state: next, taken: now });
    }
  }
  return seen.size;
}

function step(state: State, index: number, thread: Thread, stepper: Stepper, taken: Taken): State {
  const cells = state.cells.slice();
  stepper.begin(cells, state.logs[index]!);
  let ended = false;
  try {
    thread(stepper);
    ended = true;
  } catch (error) {
    if (error !== SUSPENDED)
      throw new Violation(error instanceof Error ? error.message : String(error), taken);
  }
  const notified = cells[NOTIFY_CELL]!;
  cells[NOTIFY_CELL] = 0;
  const sleeping = state.sleeping.map(word => (word === notified ? -1 : word));
  sleeping[index] = stepper.sleepsOn;
  return {
    cells,
    logs: state.logs.map((log, i) => (i === index ? stepper.log : log)),
    sleeping,
    local: state.local.map((was, i) => (i === index ? stepper.local() : was)),
    ended: state.ended.map((was, i) => (i === index ? ended : was)),
  };
}

function stateKey(state: State): string {
  let high = 0x811c9dc5;
  let low = 0x1b873593;
  const mix = (value: number): void => {
    high = Math.imul(high ^ value, 0x01000193) ^ (high >>> 15);
    low = Math.imul(low + value, 0x85ebca6b) ^ (low >>> 13);
  };
  for (const cell of state.cells) mix(cell);
  return `${high >>> 0},${low >>> 0},${state.sleeping.join()},${state.local.join('|')}`;
}
