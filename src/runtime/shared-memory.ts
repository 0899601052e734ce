/**
 * The one allocator of shared memory: rings, bells, the load table, the ledger, the prefix index and the tokenizer
 * arenas all come from here. A segment has a fixed size, a base that is page-aligned and a name for its errors.
 * Whoever allocates a segment owns it; it is freed when no thread holds a reference any more.
 */

/** The largest segment: u32 word offsets and int32 byte offsets both reach all of it. */
export const SEGMENT_BYTES_MAX = 1024 ** 3;

/** Sizes are rounded up to whole cache lines. */
export const CACHE_LINE_BYTES = 64;

const WORD_BYTES = 4;

/**
 * Allocates a zeroed segment of at least `byteLength` bytes (1 … SEGMENT_BYTES_MAX), rounded up to 64. Pages are
 * committed by the kernel when they are first written. `maxByteLength` makes V8 map the segment by itself, so its base
 * lies on a page border; without it the base is only 16-byte aligned. Throws a RangeError that names the segment.
 */
export function allocateShared(byteLength: number, name: string): SharedArrayBuffer {
  if (!Number.isSafeInteger(byteLength) || byteLength < 1 || byteLength > SEGMENT_BYTES_MAX)
    throw new RangeError(
      `shared memory "${name}": byteLength is ${byteLength}, allowed are whole numbers 1 to ${SEGMENT_BYTES_MAX}`,
    );
  const bytes = Math.ceil(byteLength / CACHE_LINE_BYTES) * CACHE_LINE_BYTES;
  try {
    return new SharedArrayBuffer(bytes, { maxByteLength: bytes });
  } catch (cause) {
    throw new RangeError(`shared memory "${name}": the system gave no ${bytes} bytes`, { cause });
  }
}

/**
 * A fixed-length view of all words of a segment. The length is explicit because a view without one would follow the
 * (growable) segment, which V8 compiles to slower code.
 */
export function sharedWords(memory: SharedArrayBuffer): Int32Array<SharedArrayBuffer> {
  return new Int32Array(memory, 0, memory.byteLength / WORD_BYTES);
}

/** A fixed-length view of all bytes of a segment; see `sharedWords`. */
export function sharedBytes(memory: SharedArrayBuffer): Uint8Array<SharedArrayBuffer> {
  return new Uint8Array(memory, 0, memory.byteLength);
}
