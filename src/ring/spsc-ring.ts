/**
 * Creation, attachment and depth of a ring with one producer and one consumer (R2). The socket thread creates a ring
 * pair per pool thread under an epoch and hands the memory over; a ring is never repaired: when one side dies the pair
 * is made anew under the next epoch. Any thread may read the depth.
 */
import assert from 'node:assert';
import { allocateShared, sharedWords } from '../runtime/shared-memory.js';
import {
  RECORD_ALIGN_BYTES,
  RING,
  RING_CAPACITY_BYTES_MAX,
  RING_CAPACITY_BYTES_MIN,
  RING_HEADER_BYTES,
} from './ring-descriptor.js';
import type { RingMemory } from './ring-memory.js';

/**
 * Allocates an empty ring. `capacityBytes` is a power of two; `epoch` (1 … 2^31 − 1) must be named again by both sides
 * when they attach. `startPosition` (a multiple of 8 below 2^32) is where head and tail begin; tests start near the wrap.
 * Throws a RangeError that names the argument.
 */
export function createRing(capacityBytes: number, epoch: number, startPosition = 0): SharedArrayBuffer {
  const powerOfTwo = Number.isInteger(Math.log2(capacityBytes));
  if (!powerOfTwo || capacityBytes < RING_CAPACITY_BYTES_MIN || capacityBytes > RING_CAPACITY_BYTES_MAX)
    throw new RangeError(
      `ring: capacityBytes is ${capacityBytes}, allowed are powers of two ${RING_CAPACITY_BYTES_MIN} to ${RING_CAPACITY_BYTES_MAX}`,
    );
  if (!Number.isInteger(epoch) || epoch < 1 || epoch > 0x7fff_ffff)
    throw new RangeError(`ring: epoch is ${epoch}, allowed are whole numbers 1 to ${0x7fff_ffff}`);
  if (startPosition >>> 0 !== startPosition || startPosition % RECORD_ALIGN_BYTES !== 0)
    throw new RangeError(`ring: startPosition is ${startPosition}, allowed are multiples of 8 below 2^32`);
  const memory = allocateShared(RING_HEADER_BYTES + capacityBytes, 'ring');
  const words = sharedWords(memory);
  words[RING.capacityBytes] = capacityBytes;
  words[RING.epoch] = epoch;
  words[RING.tail] = startPosition;
  words[RING.head] = startPosition;
  return memory;
}

/**
 * Claims one side of a ring for the calling thread, once in the ring's life, and returns the capacity in bytes. A ring
 * of another epoch and a side that is taken are programmer errors: a late thread must not write to a successor's ring.
 */
export function attachRing(memory: RingMemory, side: 'producer' | 'consumer', epoch: number): number {
  const found = memory.load(RING.epoch);
  assert(found === epoch, `ring: this is epoch ${found}, the ${side} came with epoch ${epoch}`);
  const capacityBytes = memory.load(RING.capacityBytes);
  assert(memory.byteLength === RING_HEADER_BYTES + capacityBytes, 'ring: the memory has another size');
  const word = side === 'producer' ? RING.producerAttached : RING.consumerAttached;
  assert(memory.add(word, 1) === 0, `ring: epoch ${epoch} has a ${side} already`);
  return capacityBytes;
}

/** What lies in a ring and was not consumed. A message is counted from the commit of its last record. */
export interface RingDepth {
  readonly bytes: number;
  readonly messages: number;
}

/** Reads the depth from any thread. The four words are not read at one instant, so it is exact only at rest. */
export function ringDepth(memory: RingMemory): RingDepth {
  const difference = (ahead: number, behind: number): number =>
    Math.max(0, (memory.load(ahead) - memory.load(behind)) | 0);
  return {
    bytes: difference(RING.tail, RING.head),
    messages: difference(RING.sentMessages, RING.receivedMessages),
  };
}
