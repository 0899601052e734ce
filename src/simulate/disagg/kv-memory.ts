/**
 * Memory of a tiny model's KV that other processes may read: a pool of the transfer engine, whose block table gives out
 * the blocks of this engine's BlockPool. The BlockPool decides what is cached and evicted; here each of its steps becomes one
 * of the table, which refuses those that would hand out a block while somebody reads or writes it. Owned by one mock engine.
 *
 *     BlockPool   take ──────► write ─► offer ─► lease of a reader ─► give
 *     table       reserve, fill         commit   pin, generation      release: free, or in quarantine until the last has left
 */
import assert from 'node:assert';
import { ConfigError } from '../../errors.js';
import { addonStatus } from '../../runtime/addon.js';
import type { Clock, Timer } from '../../runtime/clock.js';
import {
  type BlockPool as BlockTable,
  createAgent,
  type Lease,
  type PagedKvLayout,
  type Peer,
  type Pool,
  type TransferAgent,
  TransferError,
  type TransportName,
} from '../../transfer/index.js';
import type { BlockStore } from '../block-store.js';
import { FLOAT_BYTES, type KvOrder, KvPages, pageBytes, TINY_SHAPE } from '../tiny/kv-pages.js';

/** How often an engine that waits for blocks in quarantine looks again. */
const QUARANTINE_POLL_MS = 20;

/** How KV goes through the transfer engine; everything has a default. */
export interface TransferOptions {
  /** Those that may be used; default: all that are available, the cheapest that reaches a peer first. */
  readonly transports?: readonly TransportName[];
  /** Order of the numbers in a block, default nhd; the engine turns one into the other. */
  readonly order?: KvOrder;
}

/** What the memory belongs to. */
export interface KvMemoryOptions extends TransferOptions {
  readonly blocks: number;
  readonly blockSize: number;
  /** Weights of the model: KV of others is of no use. */
  readonly seed: number;
  /** Where tcp listens. */
  readonly host: string;
  readonly clock: Clock;
}

/** What is with a KvMemory, for tests and for people. */
export interface KvMemoryStats {
  readonly blocks: Readonly<Record<string, number>>;
  /** Reads of peers that have a lease. */
  readonly leases: number;
  /** Transfers of this engine that have not completed. */
  readonly inFlight: number;
  readonly agent: Readonly<Record<string, unknown>>;
}

function refusal(error: unknown): Error {
  if (!(error instanceof TransferError)) return error as Error;
  const { loaded, reason } = addonStatus();
  const why = loaded
    ? error.message
    : `the transfer engine is part of the addon, which is not loaded: ${reason}. Build it with npm rebuild millrace --ignore-scripts=false (in a checkout: npm run build:addon), or hand KV over by http`;
  return new ConfigError(`disagg.transfer: ${why}`, { param: 'disagg.transfer', cause: error });
}

/** See the head of the file. */
export class KvMemory implements BlockStore {
  readonly agent: TransferAgent;
  readonly pool: Pool;
  readonly layout: PagedKvLayout;
  readonly pages: KvPages;
  /** Told when blocks may have become free by themselves. */
  onRoom: () => void = () => {};
  readonly #table: BlockTable;
  readonly #clock: Clock;
  /** Of the blocks that are taken; 0 for the others. */
  readonly #generations: Uint32Array;
  readonly #isReady: Uint8Array;
  readonly #reads = new Map<Lease, () => void>();
  #look: Timer | null = null;
  #isClosed = false;

  private constructor(agent: TransferAgent, options: KvMemoryOptions) {
    const { blocks, blockSize, seed, order = 'nhd', clock } = options;
    this.agent = agent;
    this.#clock = clock;
    this.layout = {
      kind: 'paged-kv',
      layers: TINY_SHAPE.layers,
      blockTokens: blockSize,
      heads: TINY_SHAPE.heads,
      headDim: TINY_SHAPE.headDim,
      elementBytes: FLOAT_BYTES,
      blockOrder: 'block-major',
      kvSplit: 'adjacent',
      innerOrder: order,
      model: `tiny, seed ${seed}`,
    };
    this.pool = agent.createPool({ layout: this.layout, blocks, name: 'mock-kv', blockTable: true });
    this.pages = new KvPages(blocks, blockSize, this.pool.buffer, order);
    this.#table = this.pool.table!;
    this.#generations = new Uint32Array(blocks);
    this.#isReady = new Uint8Array(blocks);
    agent.on('leaseExpired', lease => {
      const end = this.#reads.get(lease);
      this.#reads.delete(lease);
      end?.();
    });
  }

  /** Throws ConfigError where the transfer engine or none of the transports can be used, and for too many blocks. */
  static open(options: KvMemoryOptions): KvMemory {
    const { transports, blocks, blockSize, host } = options;
    pageBytes(blocks, blockSize);
    let agent: TransferAgent | null = null;
    try {
      agent = createAgent({
        name: 'mock engine',
        listenHost: host,
        ...(transports === undefined ? {} : { transports }),
      });
      return new KvMemory(agent, options);
    } catch (error) {
      void agent?.close();
      throw refusal(error);
    }
  }

  get free(): number {
    const { free, quarantine } = this.#table.stats();
    if (quarantine > 0) this.#lookAgain();
    return free;
  }

  take(count: number, into: number[]): void {
    if (count === 0) return;
    // The table would evict what is ready and unpinned, which is for the BlockPool to do.
    assert(this.#table.stats().free >= count);
    const set = this.#table.reserve(count);
    assert(set !== 'full');
    this.#table.fill(set.blocks);
    set.blocks.forEach((block, at) => {
      this.#generations[block] = set.generations[at]!;
      into.push(block);
    });
  }

  give(blocks: readonly number[]): void {
    // The engine may end requests while it closes, when there is no memory any more.
    if (this.#isClosed) return;
    const codes = this.#table.release({
      blocks: Uint32Array.from(blocks),
      generations: this.generationsOf(blocks),
    });
    assert(codes.every(code => code === 'OK'));
    for (const block of blocks) {
      this.#generations[block] = 0;
      this.#isReady[block] = 0;
    }
  }

  clear(): void {
    const taken: number[] = [];
    this.#generations.forEach((generation, block) => {
      if (generation !== 0) taken.push(block);
    });
    if (taken.length > 0) this.give(taken);
  }

  /** The generations under which peers may read these blocks. */
  generationsOf(blocks: readonly number[]): Uint32Array {
    return Uint32Array.from(blocks, block => this.#generations[block]!);
  }

  /**
   * Keeps blocks whose KV is computed for the reads of a peer. `onEnd` is told once: the peer is done, has died, or was not
   * heard of for `ttlMs`; not after `endLease`. Throws TransferError.
   */
  lease(blocks: readonly number[], peer: Peer, ttlMs: number, onEnd: () => void): Lease {
    const fresh = blocks.filter(block => this.#isReady[block] === 0);
    // Prefixes are found by the BlockPool, where two blocks may hold the same one: here each has a name of its own.
    const outcomes = this.#table.commit(
      fresh.map(block => ({ block, hashLow: block, hashHigh: this.#generations[block]! })),
    );
    assert(outcomes.every(({ code }) => code === 'OK'));
    for (const block of fresh) this.#isReady[block] = 1;
    const lease = this.pool.lease(blocks, { ttlMs, peer });
    this.#reads.set(lease, onEnd);
    return lease;
  }

  /** Ends a lease; false if it had ended. */
  endLease(lease: Lease): boolean {
    if (!this.#reads.delete(lease)) return false;
    lease.release();
    return true;
  }

  stats(): KvMemoryStats {
    return {
      blocks: this.#table.stats(),
      leases: this.#reads.size,
      inFlight: this.agent.inFlight,
      agent: this.agent.stats(),
    };
  }

  /** Ends all leases and transfers; the pages have no memory any more. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    for (const [lease, onEnd] of this.#reads) if (this.endLease(lease)) onEnd();
    this.#isClosed = true;
    this.#look?.cancel();
    await this.agent.close();
  }

  #lookAgain(): void {
    this.#look ??= this.#clock.after(QUARANTINE_POLL_MS, () => {
      this.#look = null;
      this.onRoom();
    });
  }
}
