/**
 * The bytes of a ring (R2): a SharedArrayBuffer with one producer thread and one consumer thread. All numbers here are
 * 32-bit words unless their name says bytes. Every word has one writer; the words of the two sides lie two cache lines
 * apart, because the adjacent-line prefetcher moves lines in pairs.
 *
 *     byte 0     capacityBytes  epoch  producerAttached  consumerAttached            written at creation and attach
 *     byte 128   tail  sentMessages                                                  producer
 *     byte 256   head  receivedMessages                                              consumer
 *     byte 384   wantSpace                                                           producer
 *     byte 512   records: capacityBytes, a power of two
 *
 * `tail` and `head` are byte positions that only grow and wrap at 2^32; position mod capacity is a place in the
 * records. A record starts at a multiple of 8:
 *
 *     word 0  length     bytes of header and payload: > 0 committed, < 0 claimed, 0 nothing here yet
 *     word 1  kind (low 16 bits) and flags (high 16 bits)
 *     word 2  key        whatever the sender wants to find again, usually the request
 *     word 3  remaining  bytes of the message from this payload to its end (so the first record tells the total)
 *     then the payload, then up to 7 bytes of nothing
 *
 * To write a record the producer zeroes the length of the place after it, stores the negative length, moves `tail`,
 * fills the record and stores the positive length; that last store is the publication. The consumer therefore polls
 * the record itself and fetches its data with the same cache line; it never needs `tail`, which is for metrics, for
 * the space protocol and for what a dead producer left. A record does not cross the end of the memory: padding fills
 * the rest (word 0 and 1 only, so 8 bytes are enough). A message longer than the longest record is a chain of them.
 */

/** Bytes before the records. */
export const RING_HEADER_BYTES = 512;

/** Word offsets of the header. */
export const RING = {
  capacityBytes: 0,
  epoch: 1,
  producerAttached: 2,
  consumerAttached: 3,
  tail: 32,
  sentMessages: 33,
  head: 64,
  receivedMessages: 65,
  wantSpace: 96,
} as const;

/** Smallest ring, in bytes of records. */
export const RING_CAPACITY_BYTES_MIN = 1024;
/** Largest ring, in bytes of records. */
export const RING_CAPACITY_BYTES_MAX = 256 * 1024 * 1024;

/** The longest record is the capacity shifted by this: an eighth, so record and padding always fit an empty ring. */
export const RECORD_CAPACITY_SHIFT = 3;

/** Every record starts at a multiple of this. */
export const RECORD_ALIGN_BYTES = 8;
/** Bytes of a record before its payload. */
export const RECORD_HEADER_BYTES = 16;
/** Word offsets of the record header. */
export const RECORD = { length: 0, kindAndFlags: 1, key: 2, remaining: 3 } as const;

/** Flags of a record, above the kind. */
export const RECORD_FLAG = { first: 1, last: 2, padding: 4 } as const;
/** Bits of the kind, below the flags. */
export const RECORD_FLAGS_SHIFT = 16;
/** Highest kind. */
export const RECORD_KIND_MAX = 0xffff;

/** Bytes that a record of `lengthBytes` takes in the ring. */
export function recordSpanBytes(lengthBytes: number): number {
  return (lengthBytes + (RECORD_ALIGN_BYTES - 1)) & -RECORD_ALIGN_BYTES;
}

/** The doorbell of one thread: one cache line of its own. */
export const BELL_BYTES = 64;

/** `count` is written by those who ring, `sleeping` by the owner. */
export const BELL = { count: 0, sleeping: 1 } as const;
