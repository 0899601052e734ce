/**
 * The transfer engine's part of the addon (K0–K4), as `Addon` in addon.ts extends it; transfer/ is its only caller. An
 * agent belongs to the JS thread that opened it, which makes every call below; the agent's own progress thread moves the
 * bytes and never calls JavaScript. Words are those of transfer/descriptor.ts. A call that the engine refuses returns its
 * status below zero (transfer/errors.ts has the names) and `transferError` has the words; wrong types still throw.
 */

/** Functions of the transfer engine. A 64-bit value is passed as its low and its high word. */
export interface TransferAddon {
  /** What each transport of this build can do here, as JSON: name, available, reason, memoryKinds, sameHostOnly, oneSided. */
  transferProbe(): string;
  /** The words that belong to the last status below zero on this thread. */
  transferError(): string;

  /**
   * Opens an agent and returns its handle, which `detach` closes: it ends every transfer and joins the progress thread.
   * `transports` are names with commas between them, empty: all. `events` and `notifications` lie over SharedArrayBuffers
   * and take what `transferPoll` finds. `wake` is called on this thread, once for all that has happened; it holds the
   * event loop only while transfers are in flight.
   */
  transferOpen(
    name: string,
    transports: string,
    listenHost: string,
    operationsMax: number,
    spinUs: number,
    events: Uint32Array,
    notifications: Uint8Array,
    wake: () => void,
  ): number;

  /** A pool of new memory that other processes can map. Returns its id. */
  transferPoolCreate(
    handle: number,
    bytesLow: number,
    bytesHigh: number,
    name: string,
    layout: Uint32Array,
    model: string,
    hasTable: number,
  ): number;
  /** A pool over the memory of an array, which is held until the pool is closed. Returns its id. */
  transferPoolWrap(
    handle: number,
    memory: Uint8Array,
    layout: Uint32Array,
    model: string,
    hasTable: number,
  ): number;
  /** A pool in the memory of a device: at the address, which stays the caller's, or new where that is 0. Returns its id. */
  transferPoolDevice(
    handle: number,
    device: number,
    addressLow: number,
    addressHigh: number,
    bytesLow: number,
    bytesHigh: number,
    layout: Uint32Array,
    model: string,
    hasTable: number,
  ): number;
  /** The memory of a pool, the same object each time; closing the pool detaches it. */
  transferPoolBuffer(handle: number, pool: number): ArrayBuffer | number;
  /** The size of its pages: what huge pages became. */
  transferPoolPageBytes(handle: number, pool: number): number;
  transferPoolClose(handle: number, pool: number): number;

  /** What a peer needs to connect; any channel carries it. */
  transferMetadata(handle: number): Uint8Array;
  /** Returns the peer's id. */
  transferAddPeer(handle: number, metadata: Uint8Array): number;
  transferRemovePeer(handle: number, peer: number): number;

  /** Begins one transfer: words of a request with its block lists. Returns its id, which never is 0. */
  transferSubmit(handle: number, request: Uint32Array, notification: Uint8Array | null): number;
  transferCancel(handle: number, idLow: number, idHigh: number): void;
  transferNotify(handle: number, peer: number, notification: Uint8Array): number;
  /** Writes events that have happened and returns how many; call it until it returns 0. */
  transferPoll(handle: number): number;
  /** Leases blocks of a pool here to `peer`, 0: whoever renews it. Returns the lease's id. */
  transferLease(handle: number, pool: number, blocks: Uint32Array, ttlMs: number, peer: number): number;
  transferReleaseLease(handle: number, idLow: number, idHigh: number): number;
  /** Renews a peer's lease until `transferDropLease` or the loss of the peer. */
  transferHoldLease(handle: number, peer: number, leaseLow: number, leaseHigh: number): number;
  transferDropLease(handle: number, peer: number, leaseLow: number, leaseHigh: number): number;
  /** The agent's numbers as JSON. */
  transferStats(handle: number): string;

  /**
   * Gives the agent a port of `entries` and `arenaWords` over memory laid out as transfer/port-descriptor.ts says, which is
   * held until the port has ended. Returns its number in the process.
   */
  transferPortCreate(handle: number, words: Uint32Array, entries: number, arenaWords: number): number;
  /** Asks for the end of a port; nothing where it has ended. */
  transferPortClose(handle: number, port: number): void;
  /**
   * Makes this thread the port's, once in the port's life, and returns a handle whose `detach` closes the port, as does the
   * end of the thread. `wake` is called on this thread when a completion finds PORT_WAITING.loop set, and clears it.
   */
  transferPortOpen(port: number, words: Uint32Array, wake: () => void): number;
  /** Wakes the progress thread, which has said that it sleeps. */
  transferPortKick(handle: number): void;
  /** Blocks this thread while the word `waiting` is `expected`, at most `timeoutMs` (0 to 1000). */
  transferPortWait(handle: number, expected: number, timeoutMs: number): void;
  /** Whether the port holds this thread's event loop; at first it does not. */
  transferPortHold(handle: number, isHeld: number): void;
  /** A new mapping of a pool of the port's agent, which is undone when the buffer is collected. */
  transferPortPool(handle: number, pool: number): ArrayBuffer | number;

  /** The calls below are those of native/transfer/block_table.h for lists; the table is that of a pool. */
  blocksReserve(
    handle: number,
    pool: number,
    count: number,
    tenant: number,
    blocksOut: Uint32Array,
    generationsOut: Uint32Array,
  ): number;
  blocksFill(handle: number, pool: number, blocks: Uint32Array): number;
  /** Entries of BLOCK_COMMIT_WORDS in order; writes BLOCK_OUTCOME_WORDS for each. */
  blocksCommit(handle: number, pool: number, entries: Uint32Array, outcomesOut: Uint32Array): number;
  /** All or none. */
  blocksPin(
    handle: number,
    pool: number,
    blocks: Uint32Array,
    generations: Uint32Array,
    untilLow: number,
    untilHigh: number,
  ): number;
  /** Each by itself; writes a status per block. */
  blocksUnpin(
    handle: number,
    pool: number,
    blocks: Uint32Array,
    generations: Uint32Array,
    statusesOut: Uint32Array,
  ): number;
  /** Each by itself; writes a status per block. */
  blocksRelease(
    handle: number,
    pool: number,
    blocks: Uint32Array,
    generations: Uint32Array,
    statusesOut: Uint32Array,
  ): number;
  /** Hashes of two words. Writes the blocks of the longest ready prefix and their generations, and returns its length. */
  blocksMatch(
    handle: number,
    pool: number,
    hashes: Uint32Array,
    blocksOut: Uint32Array,
    generationsOut: Uint32Array,
  ): number;
  /** Ends pins whose time is over, and frees blocks whose last operation has left. */
  blocksExpire(handle: number, pool: number, nowLow: number, nowHigh: number): number;
  /** Writes the numbers of BLOCK_STATS, two words each. */
  blocksStats(handle: number, pool: number, out: Uint32Array): number;
}
