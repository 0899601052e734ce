/**
 * The one place that loads the C++ addon (R2–R6 use it through the `Addon` interface below). Each thread that loads it
 * gets its own instance: handles are integers that mean something only on the thread that attached. Without a built
 * addon, or with `MILLRACE_NO_ADDON=1` in the environment, `loadAddon` gives null and every caller takes its TypeScript
 * twin; `addonStatus` says why. Build and packaging are in `install.cjs`.
 */
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type { TransferAddon } from './transfer-addon.js';

/**
 * Version of the border between this file and the addon. A change to a signature below, or to the meaning of a
 * descriptor word, raises it; an addon that was built for another number is not used.
 */
export const ADDON_ABI = 6;

/**
 * The addon's functions, with those of the transfer engine. All are synchronous and safe on any JS thread. Every argument is checked: a wrong type throws
 * TypeError, a wrong value or a too small array RangeError, both naming the argument. "u32" is an integer in
 * [0, 2^32). A 64-bit value is passed as its low and its high 32-bit word.
 */
export interface Addon extends TransferAddon {
  /** Equals ADDON_ABI. */
  readonly abi: number;

  /**
   * `BlockHasher.hashAfter` (router/hashing/block-hasher.ts) under the given seeds. `hasParent` is 0 or 1. Writes the
   * sequence hash of block `i` at words 2i (low) and 2i + 1 (high) of the output, which must not overlap `ids`.
   */
  hashBlocks(
    ids: Uint32Array,
    from: number,
    blocks: number,
    blockSize: number,
    blockSeedLow: number,
    blockSeedHigh: number,
    chainSeedLow: number,
    chainSeedHigh: number,
    hasParent: number,
    parentLow: number,
    parentHigh: number,
    media: Uint32Array | null,
    sequenceHashesOut: Uint32Array,
  ): void;

  /**
   * Binds the output of a frame scanner: `table` of at least FRAME_TABLE_WORDS and `ids` of at least FRAME_IDS_MAX
   * words, both over a SharedArrayBuffer (which cannot be detached under the addon). Returns a handle (> 0).
   */
  attachFrames(table: Int32Array, ids: Uint32Array): number;

  /** Scans bytes [from, to) and fills the table and ids of the handle, as engines/frame-scanner.ts documents. */
  scanFrames(handle: number, bytes: Uint8Array, from: number, to: number): void;

  /**
   * Binds the load table and the reservation ledger (router/load-descriptor.ts), both over a SharedArrayBuffer and a
   * whole number of lines or entries long. Returns a handle (> 0).
   */
  attachLoad(table: Uint32Array, ledger: Uint32Array): number;

  /**
   * Reserves load in one uninterruptible call. Checks the slot's generation; claims the first free entry found from
   * `firstEntry + cursor % entryCount` on, wrapping inside [firstEntry, firstEntry + entryCount); raises the entry's
   * generation by 1 (by 2 where its low 12 bits would be 0, so that no id is 0); writes slot, slot generation,
   * prefill tokens, blocks and owner; adds the tokens, the blocks and 1 request to the slot's line; sets state
   * `prefill`. All words are touched with sequentially consistent atomics.
   *
   * Returns the reservation id (> 0); 0 when no entry is free; -1 when the slot's generation is not `slotGeneration`.
   * With 0 and -1 the load line is as it was, and no entry is held.
   */
  reserve(
    handle: number,
    firstEntry: number,
    entryCount: number,
    cursor: number,
    slot: number,
    slotGeneration: number,
    prefillTokens: number,
    blocks: number,
    ownerEpoch: number,
  ): number;

  /**
   * Binds the tables of an event decoder (router/events/event-tables.ts), all over a SharedArrayBuffer and at least as
   * long as their `..._MAX` say. Returns a handle (> 0).
   */
  attachEventTables(
    rows: Int32Array,
    parents: Uint32Array,
    hashes: Uint32Array,
    tokens: Uint32Array,
    media: Uint32Array,
  ): number;
  /** `EventDecoder.decode` into the tables of the handle: rows, or a DecodeFault below 0. */
  decodeEvents(handle: number, payload: Uint8Array): number;

  /**
   * Binds a segment of the prefix index (router/index/index-descriptor.ts) to write or to look up. Returns a handle
   * (> 0). One thread at a time may write. Arrays of hashes below have 2 words per block, engine hashes 4.
   */
  attachIndexWriter(words: Uint32Array): number;
  attachIndexReader(words: Uint32Array): number;
  /** `change`: 0 adds, 1 removes, 2 clears the holder. Returns 1, or 0 when nothing changed. */
  indexHolder(handle: number, holder: number, change: number): number;
  /** `PrefixIndexWriter.store`; `hasParent` is 0 or 1. */
  indexStore(
    handle: number,
    holder: number,
    hasParent: number,
    parentLow: number,
    parentHigh: number,
    hashes: Uint32Array,
    count: number,
    tier: number,
    engineHashes: Uint32Array | null,
  ): number;
  /** `PrefixIndexWriter.remove`, or `removeEngine` when `byEngineHash` is 1. */
  indexRemove(
    handle: number,
    holder: number,
    hashes: Uint32Array,
    count: number,
    tier: number,
    byEngineHash: number,
  ): number;
  /** `PrefixIndexWriter.translate`. */
  indexTranslate(
    handle: number,
    holder: number,
    engineHashes: Uint32Array,
    count: number,
    hashesOut: Uint32Array,
  ): number;
  /** `PrefixIndexWriter.predict`; the time as two words. */
  indexPredict(
    handle: number,
    holder: number,
    sequenceHashes: Uint32Array,
    from: number,
    to: number,
    expiresLow: number,
    expiresHigh: number,
  ): number;
  /** `PrefixIndexWriter.expire`. */
  indexExpire(handle: number, nowLow: number, nowHigh: number): void;
  /** `PrefixIndexWriter.sweep`: 1 while there is more to do. */
  indexSweep(handle: number, stepsMax: number): number;
  /** Writes the numbers of INDEX_STATS, two words each. */
  indexStats(handle: number, out: Uint32Array): void;
  /** `PrefixIndexReader.lookup`. Returns repeated reads + 2^32 × reads that were given up. */
  indexLookup(
    handle: number,
    sequenceHashes: Uint32Array,
    blocks: number,
    holders: Uint32Array,
    holderCount: number,
    depthsOut: Uint32Array,
  ): number;

  /**
   * Binds the arrays of look-ups, all over a SharedArrayBuffer, so that a look-up need not check three arrays, which costs
   * more than a small one takes. Returns a handle (> 0).
   */
  attachLookupArrays(sequenceHashes: Uint32Array, holders: Uint32Array, depthsOut: Uint32Array): number;
  /** `indexLookup` with the arrays of a handle. */
  indexLookupAttached(handle: number, arrays: number, blocks: number, holderCount: number): number;

  /** Releases a handle of this thread, of any kind; a transfer agent is closed. At most 255 handles can be held per thread. */
  detach(handle: number): void;
}

/** Whether this thread has the addon, and if not, why. */
export interface AddonStatus {
  readonly loaded: boolean;
  /** 'loaded', or the reason in words for an operator. */
  readonly reason: string;
  /** The loaded file; null when there is none. */
  readonly path: string | null;
}

const ADDON_PATH = fileURLToPath(new URL('../../build/Release/millrace.node', import.meta.url));
const BUILD_STATUS_PATH = fileURLToPath(new URL('../../build/addon-status.json', import.meta.url));

interface Loaded {
  readonly addon: Addon | null;
  readonly status: AddonStatus;
}

let current: Loaded | null = null;

/** The addon of this thread, or null. The first call loads it; the answer does not change after that. */
export function loadAddon(): Addon | null {
  current ??= load();
  return current.addon;
}

/** Says whether `loadAddon` has an addon on this thread, and why not. For `doctor`, the banner and logs. */
export function addonStatus(): AddonStatus {
  current ??= load();
  return current.status;
}

function load(): Loaded {
  const without = (reason: string): Loaded => ({
    addon: null,
    status: { loaded: false, reason, path: null },
  });
  if (process.env.MILLRACE_NO_ADDON === '1') return without('disabled by MILLRACE_NO_ADDON=1');
  if (!existsSync(ADDON_PATH)) return without(buildFailure());
  let addon: Addon;
  try {
    addon = createRequire(import.meta.url)(ADDON_PATH) as Addon;
  } catch (error) {
    return without(error instanceof Error ? error.message : String(error));
  }
  if (addon.abi !== ADDON_ABI) {
    return without(
      `the addon was built for ABI ${addon.abi}, this code needs ${ADDON_ABI}; millrace doctor says how to rebuild it`,
    );
  }
  return { addon, status: { loaded: true, reason: 'loaded', path: ADDON_PATH } };
}

/** The reason that install.cjs left behind when it could not build. */
function buildFailure(): string {
  const unknown = 'the addon is not built; millrace doctor says how to build it';
  try {
    const status = JSON.parse(readFileSync(BUILD_STATUS_PATH, 'utf8')) as { built: boolean; reason: string };
    return status.built ? unknown : status.reason;
  } catch {
    return unknown;
  }
}
