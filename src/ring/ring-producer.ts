/**
 * The writing side of a ring (R2). It is owned by one thread, which also owns the queue of messages that found no room.
 * Messages leave in the order of `send`. Nothing wakes the consumer until `publish`, so a batch costs one wake-up. When
 * the queue waits for room the producer sets `wantSpace`, and the consumer rings the producer thread's bell.
 */
import assert from 'node:assert';
import { SEGMENT_BYTES_MAX } from '../runtime/shared-memory.js';
import type { BellRinger } from './bell.js';
import {
  RECORD,
  RECORD_ALIGN_BYTES,
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

/** How a producer is set up. */
export interface RingProducerOptions {
  /** Epoch under which the ring was made. */
  readonly epoch: number;
  /** Bytes that may wait for room; a message is charged its payload and 16 bytes. 0 = no queue. */
  readonly queueBytesMax: number;
}

/** ok: all in the ring. queued: taken, and the rest follows by `flush`. full: nothing was taken. */
export type SendResult = 'ok' | 'queued' | 'full';

/** A message on its way into the ring, with the place from which the next record continues. */
interface Outgoing {
  readonly kind: number;
  readonly key: number;
  readonly parts: readonly Uint8Array[];
  remaining: number;
  part: number;
  partOffset: number;
  started: boolean;
  next: Outgoing | null;
}

/** The one producer of a ring; see the top of this file. */
export class RingProducer {
  readonly #memory: RingMemory;
  readonly #bell: BellRinger;
  readonly #capacityBytes: number;
  readonly #payloadBytesMax: number;
  readonly #queueBytesMax: number;
  #tail: number;
  /** The head as last seen: room that it proves stays room, so the shared word is read only when this is not enough. */
  #headSeen: number;
  #sentMessages = 0;
  #unpublished = false;
  #queueFirst: Outgoing | null = null;
  #queueLast: Outgoing | null = null;
  #queuedBytes = 0;

  /** Claims the producer side; `bell` is the consumer thread's. */
  constructor(memory: RingMemory, bell: BellRinger, options: RingProducerOptions) {
    const max = options.queueBytesMax;
    assert(max >= 0 && max <= SEGMENT_BYTES_MAX, `ring: queueBytesMax is 0 to ${SEGMENT_BYTES_MAX}`);
    this.#capacityBytes = attachRing(memory, 'producer', options.epoch);
    this.#memory = memory;
    this.#bell = bell;
    this.#payloadBytesMax = (this.#capacityBytes >> RECORD_CAPACITY_SHIFT) - RECORD_HEADER_BYTES;
    this.#queueBytesMax = max;
    this.#tail = memory.load(RING.tail);
    this.#headSeen = memory.load(RING.head);
  }

  /** Bytes that wait for room in the ring, each message charged 16 bytes more. */
  get queuedBytes(): number {
    return this.#queuedBytes;
  }

  /** Bytes that the consumer has not finished yet: in the ring and queued. The measure for choosing a pool thread. */
  get outstandingBytes(): number {
    return ((this.#tail - this.#memory.load(RING.head)) | 0) + this.#queuedBytes;
  }

  /** The queue is not empty and `flush` would move something. Part of what `Bell.wait` must look at. */
  get sendable(): boolean {
    const first = this.#queueFirst;
    return first !== null && this.#fits(this.#nextSpanBytes(first));
  }

  /**
   * Writes one message: `parts` one after the other, without an intermediate copy. After `queued` the parts belong to
   * the ring until they are out: do not change them. `kind` is 0 … 65535, `key` a u32. `publish` is due afterwards.
   */
  send(kind: number, key: number, parts: readonly Uint8Array[]): SendResult {
    assert(kind >>> 0 === kind && kind <= RECORD_KIND_MAX, 'ring: kind is 0 to 65535');
    assert(key >>> 0 === key, 'ring: key is a u32');
    let bytes = 0;
    for (const part of parts) bytes += part.byteLength;
    const message: Outgoing = {
      kind,
      key,
      parts,
      remaining: bytes,
      part: 0,
      partOffset: 0,
      started: false,
      next: null,
    };
    if (this.#queueFirst === null && this.#fitsWhole(bytes)) {
      do this.#writeRecord(message);
      while (message.remaining > 0);
      return 'ok';
    }
    const charge = bytes + RECORD_HEADER_BYTES;
    if (this.#queuedBytes + charge > this.#queueBytesMax) return 'full';
    if (this.#queueLast === null) this.#queueFirst = message;
    else this.#queueLast.next = message;
    this.#queueLast = message;
    this.#queuedBytes += charge;
    return this.#moveQueue() ? 'ok' : 'queued';
  }

  /** Wakes the consumer if it sleeps and records were written since the last call. Once per batch of `send`. */
  publish(): void {
    if (!this.#unpublished) return;
    this.#unpublished = false;
    this.#bell.ring();
  }

  /** Moves queued messages into the ring as far as there is room, publishes them, and says whether the queue is empty. */
  flush(): boolean {
    const empty = this.#moveQueue();
    this.publish();
    return empty;
  }

  #moveQueue(): boolean {
    for (let first = this.#queueFirst; first !== null; first = this.#queueFirst) {
      if (!this.#fits(this.#nextSpanBytes(first))) {
        // Write, then read again: either this look sees the room or the consumer sees the wish.
        this.#memory.store(RING.wantSpace, 1);
        if (!this.#fits(this.#nextSpanBytes(first))) return false;
      }
      const before = first.remaining;
      this.#writeRecord(first);
      this.#queuedBytes -= before - first.remaining;
      if (first.remaining > 0) continue;
      this.#queuedBytes -= RECORD_HEADER_BYTES;
      this.#queueFirst = first.next;
      if (first.next !== null) continue;
      this.#queueLast = null;
      this.#memory.store(RING.wantSpace, 0);
    }
    return true;
  }

  #nextSpanBytes(message: Outgoing): number {
    return recordSpanBytes(RECORD_HEADER_BYTES + Math.min(message.remaining, this.#payloadBytesMax));
  }

  /** Room for one record here: itself, the padding before it if it would cross the end, and the zeroed length after. */
  #fits(spanBytes: number): boolean {
    const toEnd = this.#capacityBytes - (this.#tail & (this.#capacityBytes - 1));
    return this.#hasRoom((spanBytes <= toEnd ? spanBytes : toEnd + spanBytes) + RECORD_ALIGN_BYTES);
  }

  /** Room for all records of a message; for a chain an upper bound, as its padding depends on how it falls. */
  #fitsWhole(bytes: number): boolean {
    const max = this.#payloadBytesMax;
    if (bytes <= max) return this.#fits(recordSpanBytes(RECORD_HEADER_BYTES + bytes));
    const overheadBytes = Math.ceil(bytes / max) * (RECORD_HEADER_BYTES + RECORD_ALIGN_BYTES);
    return this.#hasRoom(bytes + overheadBytes + max + RECORD_HEADER_BYTES + RECORD_ALIGN_BYTES);
  }

  #hasRoom(bytes: number): boolean {
    const limit = this.#capacityBytes - bytes;
    if (((this.#tail - this.#headSeen) | 0) <= limit) return true;
    this.#headSeen = this.#memory.load(RING.head);
    return ((this.#tail - this.#headSeen) | 0) <= limit;
  }

  /** Writes the next record of a message. The caller has checked the room. */
  #writeRecord(message: Outgoing): void {
    const memory = this.#memory;
    const payloadBytes = Math.min(message.remaining, this.#payloadBytesMax);
    const lengthBytes = RECORD_HEADER_BYTES + payloadBytes;
    const toEnd = this.#capacityBytes - (this.#tail & (this.#capacityBytes - 1));
    if (recordSpanBytes(lengthBytes) > toEnd) this.#writePadding(toEnd);
    const last = payloadBytes === message.remaining;
    const flags = (message.started ? 0 : RECORD_FLAG.first) | (last ? RECORD_FLAG.last : 0);
    const word = this.#claim(lengthBytes);
    memory.put(word + RECORD.kindAndFlags, message.kind | (flags << RECORD_FLAGS_SHIFT));
    memory.put(word + RECORD.key, message.key);
    memory.put(word + RECORD.remaining, message.remaining);
    this.#copyPayload(message, word * 4 + RECORD_HEADER_BYTES, payloadBytes);
    if (last) this.#countMessage();
    message.started = true;
    message.remaining -= payloadBytes;
    memory.store(word + RECORD.length, lengthBytes);
    this.#unpublished = true;
  }

  #countMessage(): void {
    this.#sentMessages = (this.#sentMessages + 1) | 0;
    this.#memory.put(RING.sentMessages, this.#sentMessages);
  }

  #writePadding(bytes: number): void {
    const word = this.#claim(bytes);
    this.#memory.put(word + RECORD.kindAndFlags, RECORD_FLAG.padding << RECORD_FLAGS_SHIFT);
    this.#memory.store(word + RECORD.length, bytes);
  }

  /** Takes the place at the tail: the length after it says "nothing yet", its own says "being written". */
  #claim(lengthBytes: number): number {
    const memory = this.#memory;
    const word = this.#wordAt(this.#tail);
    this.#tail = (this.#tail + recordSpanBytes(lengthBytes)) | 0;
    memory.put(this.#wordAt(this.#tail) + RECORD.length, 0);
    memory.put(word + RECORD.length, -lengthBytes);
    memory.put(RING.tail, this.#tail);
    return word;
  }

  #wordAt(position: number): number {
    return (RING_HEADER_BYTES + (position & (this.#capacityBytes - 1))) >> 2;
  }

  #copyPayload(message: Outgoing, byte: number, payloadBytes: number): void {
    let copied = 0;
    while (copied < payloadBytes) {
      const part = message.parts[message.part]!;
      const start = message.partOffset;
      const end = Math.min(part.byteLength, start + payloadBytes - copied);
      this.#memory.copyIn(byte + copied, part, start, end);
      copied += end - start;
      if (end === part.byteLength) {
        message.part += 1;
        message.partOffset = 0;
      } else message.partOffset = end;
    }
  }
}
