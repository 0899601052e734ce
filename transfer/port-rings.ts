/**
 * The two rings of a transfer port as its thread uses them (K2, K3): plain words of shared memory, no call of the addon. One
 * thread writes submissions and takes completions; see port-descriptor.ts for the picture and for what the agent's progress
 * thread does on its side. Nothing here allocates for a transfer.
 */
import { allocateShared } from '../runtime/shared-memory.js';
import { NOTIFICATION_BYTES_MAX, TRANSFER_REQUEST, TRANSFER_REQUEST_WORDS } from './descriptor.js';
import {
  PORT_COMPLETION,
  PORT_COMPLETION_WORDS,
  PORT_ENTRY,
  PORT_ENTRY_WORDS,
  PORT_FLAG_SHIFT,
  PORT_HEADER,
  PORT_HEADER_WORDS,
  PORT_STATE,
  PORT_TEXT_BYTES,
  PORT_WAITING,
} from './port-descriptor.js';

const WORD_BYTES = 4;
const TEXT_WORDS = PORT_TEXT_BYTES / WORD_BYTES;
/** Shorter lists are copied by a loop, which costs less than a call that copies. */
const LOOP_WORDS = 16;
/** Lists of so many transfers of the greatest size fit at once. */
const ARENA_TRANSFERS = 2;

/** How many entries and words of arena a port has. */
export interface PortShape {
  readonly entries: number;
  readonly arenaWords: number;
}

/** The arena of a port whose transfers have at most `blocksMax` blocks. */
export function arenaWords(blocksMax: number): number {
  return ARENA_TRANSFERS * (3 * blocksMax + Math.ceil(NOTIFICATION_BYTES_MAX / WORD_BYTES));
}

function placesOf({ entries, arenaWords }: PortShape) {
  const submissions = PORT_HEADER_WORDS + entries;
  const completions = submissions + entries * PORT_ENTRY_WORDS;
  const texts = completions + entries * PORT_COMPLETION_WORDS;
  const arena = texts + entries * TEXT_WORDS;
  return { cancels: PORT_HEADER_WORDS, submissions, completions, texts, arena, words: arena + arenaWords };
}

/** Zeroed memory of a port. */
export function allocatePort(shape: PortShape): SharedArrayBuffer {
  return allocateShared(placesOf(shape).words * WORD_BYTES, 'transfer port');
}

/** All words of a port's memory; null for a memory that is too small. */
export function portWords(memory: SharedArrayBuffer, shape: PortShape): Uint32Array | null {
  const { words } = placesOf(shape);
  return memory.byteLength < words * WORD_BYTES ? null : new Uint32Array(memory, 0, words);
}

/** The rings of one port, on the port's thread. */
export class PortRings {
  readonly words: Uint32Array;
  readonly #bytes: Uint8Array;
  readonly #places: ReturnType<typeof placesOf>;
  readonly #mask: number;
  readonly #arenaWords: number;
  /** Where the lists of each submission end in the arena. */
  readonly #ends: Uint32Array;
  #posted = 0;
  #polled = 0;
  #takenSeen = 0;
  /** Lists that were not taken lie from `#head` to `#tail`, around the end of the arena when that is smaller. */
  #head = 0;
  #tail = 0;

  constructor(words: Uint32Array, shape: PortShape) {
    this.words = words;
    this.#bytes = new Uint8Array(words.buffer, 0, words.byteLength);
    this.#places = placesOf(shape);
    this.#mask = shape.entries - 1;
    this.#arenaWords = shape.arenaWords;
    this.#ends = new Uint32Array(shape.entries);
  }

  /**
   * Writes a submission: `head` as in a request, `lists` the words after it. The caller has seen to it that fewer than
   * `entries` are in flight. Returns its turn, or -1 when the arena has no room.
   */
  submit(head: Uint32Array, lists: Uint32Array, tag: number, notification: Uint8Array | undefined): number {
    const bytes = notification === undefined ? 0 : notification.length;
    const length = lists.length + Math.ceil(bytes / WORD_BYTES);
    const at = this.#allocate(length);
    if (at < 0) return -1;
    const words = this.words;
    const place = this.#places.arena + at;
    if (lists.length > LOOP_WORDS) words.set(lists, place);
    else for (let i = 0; i < lists.length; i++) words[place + i] = lists[i]!;
    if (notification !== undefined) this.#bytes.set(notification, (place + lists.length) * WORD_BYTES);
    const index = this.#posted & this.#mask;
    this.#ends[index] = at + length;
    const entry = this.#places.submissions + index * PORT_ENTRY_WORDS;
    this.#putEntry(entry, head, at);
    words[entry + PORT_ENTRY.tag] = tag;
    words[entry + PORT_ENTRY.notificationBytes] = bytes;
    this.#posted = (this.#posted + 1) >>> 0;
    Atomics.store(words, entry + PORT_ENTRY.turn, this.#posted);
    return this.#posted;
  }

  #putEntry(entry: number, head: Uint32Array, at: number): void {
    const words = this.words;
    words[entry + PORT_ENTRY.peer] = head[TRANSFER_REQUEST.peer]!;
    words[entry + PORT_ENTRY.localPool] = head[TRANSFER_REQUEST.localPool]!;
    words[entry + PORT_ENTRY.remotePool] = head[TRANSFER_REQUEST.remotePool]!;
    words[entry + PORT_ENTRY.blocks] = head[TRANSFER_REQUEST.blocks]!;
    words[entry + PORT_ENTRY.lists] = at;
    words[entry + PORT_ENTRY.flags] =
      (head[TRANSFER_REQUEST.direction]! << PORT_FLAG_SHIFT.direction) |
      (head[TRANSFER_REQUEST.generations]! << PORT_FLAG_SHIFT.generations) |
      (head[TRANSFER_REQUEST.integrity]! << PORT_FLAG_SHIFT.integrity) |
      (head[TRANSFER_REQUEST.reader]! << PORT_FLAG_SHIFT.reader) |
      (head[TRANSFER_REQUEST.transport]! << PORT_FLAG_SHIFT.transport) |
      (head[TRANSFER_REQUEST.priority]! << PORT_FLAG_SHIFT.priority);
    words[entry + PORT_ENTRY.firstLayer] = head[TRANSFER_REQUEST.firstLayer]!;
    words[entry + PORT_ENTRY.layers] = head[TRANSFER_REQUEST.layers]!;
    words[entry + PORT_ENTRY.firstHead] = head[TRANSFER_REQUEST.firstHead]!;
    words[entry + PORT_ENTRY.heads] = head[TRANSFER_REQUEST.heads]!;
    words[entry + PORT_ENTRY.deadlineMs] = head[TRANSFER_REQUEST.deadlineMs]!;
    words[entry + PORT_ENTRY.lease] = head[TRANSFER_REQUEST.lease]!;
    words[entry + PORT_ENTRY.lease + 1] = head[TRANSFER_REQUEST.lease + 1]!;
  }

  /** The progress thread sleeps and has to be kicked; asked after a submission or a cancel. */
  get mustKick(): boolean {
    return Atomics.load(this.words, PORT_HEADER.sleeping) !== 0;
  }

  /** Asks that the transfer under the tag, submitted with this turn, be cancelled. */
  cancel(tag: number, turn: number): void {
    Atomics.store(this.words, this.#places.cancels + tag, ((turn << 1) | 1) >>> 0);
    Atomics.add(this.words, PORT_HEADER.cancels, 1);
  }

  /** The tag has no transfer any more. */
  clearCancel(tag: number): void {
    this.words[this.#places.cancels + tag] = 0;
  }

  /** Where the next completion lies in `words`, or -1. It stays there until `release`. */
  peek(): number {
    const at = this.#places.completions + (this.#polled & this.#mask) * PORT_COMPLETION_WORDS;
    const turn = Atomics.load(this.words, at + PORT_COMPLETION.turn);
    return turn === (this.#polled + 1) >>> 0 ? at : -1;
  }

  /** The words that belong to the next completion. */
  text(): string {
    const index = this.#polled & this.#mask;
    const at = this.#places.completions + index * PORT_COMPLETION_WORDS;
    const bytes = Math.min(this.words[at + PORT_COMPLETION.textBytes]!, PORT_TEXT_BYTES);
    const from = (this.#places.texts + index * TEXT_WORDS) * WORD_BYTES;
    return Buffer.from(this.#bytes.slice(from, from + bytes)).toString();
  }

  /** The next completion has been read. */
  release(): void {
    this.#polled = (this.#polled + 1) >>> 0;
    Atomics.store(this.words, PORT_HEADER.polled, this.#polled);
  }

  /** Nothing will be taken or completed any more, but for the completions that are there. */
  get hasEnded(): boolean {
    return Atomics.load(this.words, PORT_HEADER.state) === PORT_STATE.ended;
  }

  /** Asks for the wake-up of those in PORT_WAITING by the next completion, which may have come already. Returns the word. */
  arm(bits: number): number {
    return Atomics.or(this.words, PORT_HEADER.waiting, bits) | bits;
  }

  /** The thread blocks no more. */
  disarmBlocked(): void {
    Atomics.and(this.words, PORT_HEADER.waiting, ~PORT_WAITING.blocked);
  }

  #allocate(length: number): number {
    let at = this.#fit(length);
    if (at < 0) {
      this.#seeTaken();
      at = this.#fit(length);
    }
    if (at >= 0) this.#tail = at + length;
    return at;
  }

  /** A list is in one piece; the tail never reaches the head from behind, as that would look empty. */
  #fit(length: number): number {
    if (this.#tail < this.#head) return length < this.#head - this.#tail ? this.#tail : -1;
    if (length <= this.#arenaWords - this.#tail) return this.#tail;
    return length < this.#head ? 0 : -1;
  }

  #seeTaken(): void {
    const taken = Atomics.load(this.words, PORT_HEADER.taken);
    if (taken === this.#posted) this.#head = this.#tail = 0;
    else if (taken !== this.#takenSeen) this.#head = this.#ends[(taken - 1) & this.#mask]!;
    this.#takenSeen = taken;
  }
}

/** The head of a request and its lists, apart. */
export function splitRequest(request: Uint32Array): { head: Uint32Array; lists: Uint32Array } {
  return {
    head: request.slice(0, TRANSFER_REQUEST_WORDS),
    lists: request.subarray(TRANSFER_REQUEST_WORDS),
  };
}
