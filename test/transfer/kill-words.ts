// What the process that is killed and the one that survives it say to each other, and the contents of their blocks.
import type { Layout } from '#millrace/transfer/index.js';

export const BLOCKS = 32;
export const BLOCK_BYTES = 128 * 1024;
export const BLOCK_WORDS = BLOCK_BYTES / 4;
export const LAYOUT: Layout = { kind: 'opaque', blockBytes: BLOCK_BYTES };

/** Every word of a block of the peer: of no block of the survivor. */
export const peerTag = (block: number): number => (0x8000_0000 | block) >>> 0;

/** Blocks that the other side may use: the first half is written to, the second read, or the other way round at the peer. */
export interface Offer {
  readonly pool: number;
  readonly blocks: number[];
  readonly generations: number[];
}

/** What the peer has, once it has met the survivor: ready blocks, then reserved ones, and a lease on the ready ones. */
export interface Meeting extends Offer {
  readonly lease: number;
}

/** What the peer is told to do. */
export interface Blow {
  /** Meet the agent of this metadata (base64). */
  readonly metadata?: string;
  /** Move these without end. */
  readonly offer?: Offer;
  /** Renew this lease. */
  readonly lease?: number;
  readonly closes?: boolean;
}
