/**
 * The record by which a pool thread tells the ingest thread of a prompt that it has sent to a worker (R4), on a ring of
 * its own. All words are u32:
 *
 *     word 0  slot   1  generation   2  cachedBlocks   3  blocks   4  expiresMs, low   5  expiresMs, high
 *     word 6  sequence hashes, two words per block
 */
import { strict as assert } from 'node:assert';
import type { RoutedPrompt } from '../router/events/contract.js';

/** Kind of the record on its ring, which has no other. */
export const ROUTED_KIND = 1;
const HEAD_WORDS = 6;
const WORD_BYTES = 4;
const WORDS_PER_HASH = 2;
const WORD_RANGE = 2 ** 32;

/** Bytes of the record, in parts of which the last is the prompt's own memory. */
export function encodeRouted(prompt: RoutedPrompt): Uint8Array[] {
  const { slot, generation, cachedBlocks, blocks, expiresMs, hashes } = prompt;
  const head = Uint32Array.of(
    slot,
    generation,
    cachedBlocks,
    blocks,
    expiresMs,
    Math.floor(expiresMs / WORD_RANGE),
  );
  const hashBytes = blocks * WORDS_PER_HASH * WORD_BYTES;
  return [new Uint8Array(head.buffer), new Uint8Array(hashes.buffer, hashes.byteOffset, hashBytes)];
}

/** The prompt in `bytes`, whose hashes are a view of them. */
export function decodeRouted(bytes: Uint8Array): RoutedPrompt {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / WORD_BYTES);
  const [slot, generation, cachedBlocks, blocks, expiresLow, expiresHigh] = words as unknown as readonly [
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  assert(words.length === HEAD_WORDS + WORDS_PER_HASH * blocks, 'a routed prompt is as long as it says');
  assert(cachedBlocks <= blocks, 'no more blocks are cached than there are');
  const expiresMs = expiresHigh * WORD_RANGE + expiresLow;
  return { slot, generation, cachedBlocks, blocks, expiresMs, hashes: words.subarray(HEAD_WORDS) };
}
