/**
 * The states of a pool's blocks (K4): which are free, being written, ready under a sequence hash, pinned, or in quarantine
 * until the last transfer has left them. The TypeScript face of native/transfer/block_table.h, which draws the states; every
 * call takes a list and is one call of the addon. On the agent's JS thread, which owns the table; lists of hashes and blocks
 * are the caller's.
 */

import { type Clock, systemClock } from '../../runtime/clock.js';
import { blockList, wholeNumber } from '../checks.js';
import {
  BLOCK_COMMIT_WORDS,
  BLOCK_OUTCOME_WORDS,
  BLOCK_STATS,
  NO_BLOCK,
  TRANSFER_BLOCKS_MAX,
} from '../descriptor.js';
import { codeOf, invalid, type TransferErrorCode } from '../errors.js';
import { putTwoWords, twoWords } from '../layout.js';
import type { NativeAgent } from '../native-agent.js';

/** Blocks and, one for one, the generations under which they are meant. */
export interface BlockSet {
  readonly blocks: Uint32Array;
  readonly generations: Uint32Array;
}

/** What a filled block holds. */
export interface BlockContent {
  readonly block: number;
  /** Chained sequence hash, its low and its high word. */
  readonly hashLow: number;
  readonly hashHigh: number;
  /** CRC-32C of its bytes; default 0, not computed. */
  readonly crc?: number;
  /** The block before it in the sequence; default: none. */
  readonly parent?: number;
}

/** How a commit of one block ended: 'OK', or BUSY where `existing` holds this hash already, or another code. */
export interface CommitOutcome {
  readonly code: 'OK' | TransferErrorCode;
  readonly existing: number | null;
}

/** Numbers of a table. */
export type BlockStats = Record<(typeof BLOCK_STATS)[number], number>;

const U32_MAX = 0xffff_ffff;

/** The block table of a pool. */
export class BlockPool {
  /** Blocks of the pool. */
  readonly size: number;
  readonly #native: NativeAgent;
  readonly #pool: number;
  readonly #clock: Clock;
  readonly #time = new Uint32Array(2);

  constructor(native: NativeAgent, pool: number, size: number, clock: Clock = systemClock) {
    this.#native = native;
    this.#pool = pool;
    this.size = size;
    this.#clock = clock;
  }

  /**
   * Takes `count` blocks for a tenant (0 to 2^32 − 1), evicting the least recently used leaves where too few are free;
   * 'full', and nothing taken, when that is not enough.
   */
  reserve(count: number, tenant = 0): BlockSet | 'full' {
    wholeNumber('count', count, 1, this.size);
    wholeNumber('tenant', tenant, 0, U32_MAX);
    this.expire();
    const set = { blocks: new Uint32Array(count), generations: new Uint32Array(count) };
    const { addon, handle } = this.#native;
    const status = addon.blocksReserve(handle, this.#pool, count, tenant, set.blocks, set.generations);
    if (status < 0 && codeOf(status) === 'FULL') return 'full';
    this.#native.pass('reserve', status);
    return set;
  }

  /** A write into reserved blocks begins. */
  fill(blocks: Uint32Array | readonly number[]): void {
    const list = blockList('blocks', blocks, 1, TRANSFER_BLOCKS_MAX);
    this.#native.pass('fill', this.#native.addon.blocksFill(this.#native.handle, this.#pool, list));
  }

  /** Blocks are written: ready, in this order, so that a parent comes before its child. One outcome for each. */
  commit(contents: readonly BlockContent[]): CommitOutcome[] {
    const entries = new Uint32Array(contents.length * BLOCK_COMMIT_WORDS);
    contents.forEach(({ block, hashLow, hashHigh, crc = 0, parent = NO_BLOCK }, i) => {
      const at = i * BLOCK_COMMIT_WORDS;
      entries[at] = wholeNumber(`contents[${i}].block`, block, 0, this.size - 1);
      entries[at + 1] = wholeNumber(`contents[${i}].hashLow`, hashLow, 0, U32_MAX);
      entries[at + 2] = wholeNumber(`contents[${i}].hashHigh`, hashHigh, 0, U32_MAX);
      entries[at + 3] = wholeNumber(`contents[${i}].crc`, crc, 0, U32_MAX);
      entries[at + 4] = wholeNumber(`contents[${i}].parent`, parent, 0, U32_MAX);
    });
    const outcomes = new Uint32Array(contents.length * BLOCK_OUTCOME_WORDS);
    const { addon, handle } = this.#native;
    this.#native.pass('commit', addon.blocksCommit(handle, this.#pool, entries, outcomes));
    return contents.map((_, i) => {
      const status = outcomes[i * BLOCK_OUTCOME_WORDS]! | 0;
      const existing = outcomes[i * BLOCK_OUTCOME_WORDS + 1]!;
      return { code: status < 0 ? codeOf(status) : 'OK', existing: existing === NO_BLOCK ? null : existing };
    });
  }

  /** Pins all or none; pins count. `forMs` ends it by itself. Throws STALE for a block of another generation. */
  pin(set: BlockSet, forMs?: number): void {
    const untilMs =
      forMs === undefined ? 0 : Math.floor(this.#clock.nowMs()) + wholeNumber('forMs', forMs, 1, U32_MAX);
    putTwoWords(this.#time, 0, untilMs);
    const { addon, handle } = this.#native;
    const [blocks, generations] = this.#lists(set);
    const status = addon.blocksPin(handle, this.#pool, blocks, generations, this.#time[0]!, this.#time[1]!);
    this.#native.pass('pin', status);
  }

  /** Takes one pin from each; a code per block. */
  unpin(set: BlockSet): ('OK' | TransferErrorCode)[] {
    const [blocks, generations] = this.#lists(set);
    const statuses = new Uint32Array(blocks.length);
    const { addon, handle } = this.#native;
    this.#native.pass('unpin', addon.blocksUnpin(handle, this.#pool, blocks, generations, statuses));
    return codes(statuses);
  }

  /** Gives blocks up, each by itself: free, or in quarantine until transfers have left it; a code per block. */
  release(set: BlockSet): ('OK' | TransferErrorCode)[] {
    const [blocks, generations] = this.#lists(set);
    const statuses = new Uint32Array(blocks.length);
    const { addon, handle } = this.#native;
    this.#native.pass('release', addon.blocksRelease(handle, this.#pool, blocks, generations, statuses));
    return codes(statuses);
  }

  /** The blocks of the longest prefix that is ready; `hashes` has two words, low and high, for each block. */
  match(hashes: Uint32Array): BlockSet {
    if (!(hashes instanceof Uint32Array) || hashes.length % 2 !== 0)
      invalid('hashes', hashes, 'a Uint32Array of two words for each block');
    const blocks = new Uint32Array(hashes.length / 2);
    const generations = new Uint32Array(hashes.length / 2);
    const { addon, handle } = this.#native;
    const matched = addon.blocksMatch(handle, this.#pool, hashes, blocks, generations);
    this.#native.pass('match', matched);
    return { blocks: blocks.subarray(0, matched), generations: generations.subarray(0, matched) };
  }

  /** Ends pins whose time is over and frees blocks that transfers have left. `reserve` and `stats` do it first. */
  expire(): void {
    putTwoWords(this.#time, 0, Math.floor(this.#clock.nowMs()));
    const { addon, handle } = this.#native;
    this.#native.pass('expire', addon.blocksExpire(handle, this.#pool, this.#time[0]!, this.#time[1]!));
  }

  /** Numbers of blocks in each state, and of evictions and refusals so far. */
  stats(): BlockStats {
    this.expire();
    const out = new Uint32Array(BLOCK_STATS.length * 2);
    const { addon, handle } = this.#native;
    this.#native.pass('stats', addon.blocksStats(handle, this.#pool, out));
    return Object.fromEntries(BLOCK_STATS.map((name, i) => [name, twoWords(out, i * 2)])) as BlockStats;
  }

  #lists(set: BlockSet): [Uint32Array, Uint32Array] {
    const blocks = blockList('blocks', set.blocks, 1, TRANSFER_BLOCKS_MAX);
    return [blocks, blockList('generations', set.generations, blocks.length, blocks.length)];
  }
}

function codes(statuses: Uint32Array): ('OK' | TransferErrorCode)[] {
  return Array.from(statuses, status => ((status | 0) < 0 ? codeOf(status | 0) : 'OK'));
}
