/**
 * The reading side of a ring (R2), owned by one thread. `drain` hands over whole messages: one that lies in a single
 * record as a view into the ring, a chain as a buffer of its own. A record that breaks the layout fails the drain with
 * an assertion that names the ring, and every later drain again: the plane must not go on with such a ring.
 */
import assert from 'node:assert';
import type { BellRinger } from './bell.js';
import {
  RECORD,
  RECORD_CAPACITY_SHIFT,
  RECORD_FLAG,
  RECORD_FLAGS_SHIFT,
  RECORD_HEADER_BYTES,
  RECORD_KIND_MAX,
  RING,
  RING_HEADER_BYTES,
  recordSpanBytes,
} from './ring-descriptor.js';
import type { RingMemory } from './ring-memory.js';
import { attachRing } from './spsc-ring.js';

/** Messages of one `drain` when the caller names no number: a fast producer must not hold the thread for ever. */
export const DRAIN_MESSAGES_MAX = 4096;

/** How a consumer is set up. */
export interface RingConsumerOptions {
  /** Epoch under which the ring was made. */
  readonly epoch: number;
  /** For messages of errors, such as `socket 0 → pool 1`. */
  readonly name: string;
  /** The longest message that is assembled from a chain. */
  readonly messageBytesMax: number;
}

/**
 * Takes one message. `bytes` may be a view into the ring that is valid only during the call: copy what must stay.
 * On Node, TextDecoder and `Buffer.from(bytes.buffer, …)` read such views; Web APIs may refuse them.
 */
export type OnMessage = (kind: number, key: number, bytes: Uint8Array) => void;

interface Chain {
  readonly kind: number;
  readonly key: number;
  readonly bytes: Uint8Array;
  filled: number;
}

/** The one consumer of a ring; see the top of this file. */
export class RingConsumer {
  readonly #memory: RingMemory;
  readonly #producerBell: BellRinger;
  readonly #options: RingConsumerOptions;
  readonly #capacityBytes: number;
  #head: number;
  #receivedMessages = 0;
  #chain: Chain | null = null;
  #draining = false;

  /** Claims the consumer side; `producerBell` is the producer thread's, rung when its queue waits for room. */
  constructor(memory: RingMemory, producerBell: BellRinger, options: RingConsumerOptions) {
    this.#capacityBytes = attachRing(memory, 'consumer', options.epoch);
    this.#memory = memory;
    this.#producerBell = producerBell;
    this.#options = options;
    this.#head = memory.load(RING.head);
  }

  /** `drain` has something to do. Part of what `Bell.wait` must look at. */
  get pending(): boolean {
    return this.#memory.load(this.#headWord()) > 0;
  }

  /**
   * After the producer died and `drain` returned 0: bytes that it left unfinished, a record claimed and not committed
   * and the assembled part of a chain without its end. While the producer lives this is work in progress.
   */
  get abandonedBytes(): number {
    const claimed = (this.#memory.load(RING.tail) - this.#head) | 0;
    return claimed + (this.#chain?.filled ?? 0);
  }

  /**
   * Hands over up to `messagesMax` messages in the order of `send` and returns how many. If `onMessage` throws, its
   * message counts as consumed, the error goes to the caller, and the next drain continues behind it. Not re-entrant.
   */
  drain(onMessage: OnMessage, messagesMax = DRAIN_MESSAGES_MAX): number {
    assert(!this.#draining, 'ring: drain inside drain');
    this.#draining = true;
    let messages = 0;
    try {
      while (messages < messagesMax) {
        const lengthBytes = this.#memory.load(this.#headWord());
        if (lengthBytes <= 0) break;
        if (this.#takeRecord(lengthBytes, onMessage)) messages += 1;
      }
    } finally {
      this.#draining = false;
    }
    return messages;
  }

  #headWord(): number {
    return (RING_HEADER_BYTES + (this.#head & (this.#capacityBytes - 1))) >> 2;
  }

  /** Consumes the committed record at the head and says whether it ended a message. */
  #takeRecord(lengthBytes: number, onMessage: OnMessage): boolean {
    const memory = this.#memory;
    const word = this.#headWord();
    const kindAndFlags = memory.get(word + RECORD.kindAndFlags);
    const flags = kindAndFlags >>> RECORD_FLAGS_SHIFT;
    const toEnd = this.#capacityBytes - (this.#head & (this.#capacityBytes - 1));
    if (flags === RECORD_FLAG.padding) {
      if (lengthBytes !== toEnd) this.#corrupt('padding that does not reach the end');
      this.#advance(lengthBytes);
      return false;
    }
    const longest = Math.min(toEnd, this.#capacityBytes >> RECORD_CAPACITY_SHIFT);
    if (lengthBytes < RECORD_HEADER_BYTES || lengthBytes > longest)
      this.#corrupt('a record of a wrong length');
    const kind = kindAndFlags & RECORD_KIND_MAX;
    const key = memory.get(word + RECORD.key) >>> 0;
    const payload = memory.view(word * 4 + RECORD_HEADER_BYTES, lengthBytes - RECORD_HEADER_BYTES);
    const remaining = memory.get(word + RECORD.remaining);
    if (flags !== (RECORD_FLAG.first | RECORD_FLAG.last))
      return this.#takeLink(kind, key, flags, remaining, payload, onMessage);
    if (this.#chain !== null || remaining !== payload.byteLength) this.#corrupt('a message inside a chain');
    try {
      onMessage(kind, key, payload);
    } finally {
      this.#countMessage();
      this.#advance(lengthBytes);
    }
    return true;
  }

  /** Consumes one record of a chain; the record is freed before the whole message is handed over. */
  #takeLink(
    kind: number,
    key: number,
    flags: number,
    remaining: number,
    payload: Uint8Array,
    onMessage: OnMessage,
  ): boolean {
    const chain = flags === RECORD_FLAG.first ? this.#openChain(kind, key, remaining) : this.#chain;
    if (chain === null || chain.kind !== kind || chain.key !== key)
      this.#corrupt('a chain without its first record');
    if (chain.bytes.byteLength - chain.filled !== remaining || payload.byteLength > remaining)
      this.#corrupt('a chain with a gap');
    const last = payload.byteLength === remaining;
    if (last !== (flags === RECORD_FLAG.last)) this.#corrupt('a chain with a wrong end');
    chain.bytes.set(payload, chain.filled);
    chain.filled += payload.byteLength;
    this.#chain = last ? null : chain;
    if (last) this.#countMessage();
    this.#advance(RECORD_HEADER_BYTES + payload.byteLength);
    if (last) onMessage(kind, key, chain.bytes);
    return last;
  }

  #openChain(kind: number, key: number, bytes: number): Chain {
    if (this.#chain !== null) this.#corrupt('a chain inside a chain');
    const max = this.#options.messageBytesMax;
    if (bytes < 1 || bytes > max) this.#corrupt(`a message of ${bytes} bytes, allowed are 1 to ${max}`);
    return { kind, key, bytes: Buffer.allocUnsafeSlow(bytes), filled: 0 };
  }

  #countMessage(): void {
    this.#receivedMessages = (this.#receivedMessages + 1) | 0;
    this.#memory.put(RING.receivedMessages, this.#receivedMessages);
  }

  /** Frees the record at the head, and wakes a producer that waits for room once half of the ring is free. */
  #advance(lengthBytes: number): void {
    const memory = this.#memory;
    this.#head = (this.#head + recordSpanBytes(lengthBytes)) | 0;
    memory.store(RING.head, this.#head);
    if (memory.load(RING.wantSpace) === 0) return;
    const usedBytes = (memory.load(RING.tail) - this.#head) | 0;
    if (usedBytes <= this.#capacityBytes >> 1) this.#producerBell.ring();
  }

  #corrupt(what: string): never {
    assert.fail(`ring ${this.#options.name}: ${what} at position ${this.#head >>> 0}`);
  }
}
