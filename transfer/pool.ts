/**
 * Memory whose blocks can be moved (K0): made by the engine, so that other processes can map it, or registered. Owned by the
 * caller and closed before or with its agent; all on the agent's JS thread. Bytes of KV are not copied into the JS heap:
 * `buffer` is the pool's own memory.
 */
import { BlockPool } from './blocks/block-pool.js';
import { blockList, options, wholeNumber } from './checks.js';
import { TRANSFER_BLOCKS_MAX } from './descriptor.js';
import { type Layout, putTwoWords } from './layout.js';
import type { NativeAgent } from './native-agent.js';
import type { Peer } from './peer.js';

const TTL_MS_MAX = 3_600_000;

/** What a pool was made from. */
export interface PoolFacts {
  readonly id: number;
  readonly bytes: number;
  readonly blocks: number;
  readonly layout: Layout;
  readonly hasTable: boolean;
  /** Keeps leases so that their end can be told. */
  readonly leases: Map<number, Lease>;
}

/** Blocks here that a peer may read (or, reserved ones, write) until it says it is done, its time is over, or it dies. */
export class Lease {
  /** What the peer gives as `lease` when it posts. */
  readonly id: number;
  readonly pool: Pool;
  readonly blocks: Uint32Array;
  readonly #end: () => void;

  constructor(id: number, pool: Pool, blocks: Uint32Array, end: () => void) {
    this.id = id;
    this.pool = pool;
    this.blocks = blocks;
    this.#end = end;
  }

  /** Ends it. A second call does nothing. */
  release(): void {
    this.#end();
  }
}

/** A pool of an agent. */
export class Pool {
  /** What peers name it by; never used again in the agent's life. */
  readonly id: number;
  readonly bytes: number;
  readonly blocks: number;
  readonly layout: Layout;
  /** The states of its blocks; null where the caller accounts for them itself. */
  readonly table: BlockPool | null;
  readonly #native: NativeAgent;
  readonly #facts: PoolFacts;

  constructor(native: NativeAgent, facts: PoolFacts) {
    this.#native = native;
    this.#facts = facts;
    this.id = facts.id;
    this.bytes = facts.bytes;
    this.blocks = facts.blocks;
    this.layout = facts.layout;
    this.table = facts.hasTable ? new BlockPool(native, facts.id, facts.blocks) : null;
  }

  /**
   * The pool's memory, the same object each time. Detached (length 0) once the pool or the agent is closed. Never put it in a
   * transfer list: it would be copied. Another thread maps the pool by `TransferPort.openPool`. UNSUPPORTED for a registered
   * pool, whose memory the caller has, for one on a device, and for over 4 GiB.
   */
  get buffer(): ArrayBuffer {
    const buffer = this.#native.addon.transferPoolBuffer(this.#native.handle, this.id);
    if (typeof buffer === 'number') this.#native.pass(`pool ${this.id}`, buffer);
    return buffer as ArrayBuffer;
  }

  /** Size of the pages that back it: 2 MiB where huge pages were to be had. */
  get pageBytes(): number {
    return this.#native.pass('pool', this.#native.addon.transferPoolPageBytes(this.#native.handle, this.id));
  }

  /**
   * Leases blocks to a peer for `ttlMs`, renewed by the peer's heartbeats while it holds the lease. Ready blocks are pinned;
   * blocks that are reserved or filling are held for the writes of `peer`, which must be given then. Ends with 'leaseExpired'
   * or `release`.
   */
  lease(
    blocks: Uint32Array | readonly number[],
    given: { readonly ttlMs: number; readonly peer?: Peer },
  ): Lease {
    options('lease', given, ['ttlMs', 'peer']);
    const list = blockList('blocks', blocks, 1, TRANSFER_BLOCKS_MAX).slice();
    const ttlMs = wholeNumber('ttlMs', given.ttlMs, 1, TTL_MS_MAX);
    const native = this.#native;
    const peer = given.peer?.id ?? 0;
    const id = native.pass('lease', native.addon.transferLease(native.handle, this.id, list, ttlMs, peer));
    const lease = new Lease(id, this, list, () => this.#release(id));
    this.#facts.leases.set(id, lease);
    return lease;
  }

  #release(id: number): void {
    if (!this.#facts.leases.delete(id) || !this.#native.isOpen) return;
    const words = new Uint32Array(2);
    putTwoWords(words, 0, id);
    const native = this.#native;
    native.pass('lease', native.addon.transferReleaseLease(native.handle, words[0]!, words[1]!));
  }

  /** Gives the memory back. BUSY while a transfer or a lease is in it. */
  close(): void {
    const native = this.#native;
    native.pass(`pool ${this.id}`, native.addon.transferPoolClose(native.handle, this.id));
  }
}
