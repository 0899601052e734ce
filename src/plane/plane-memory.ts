/** The shared memory of a plane: all segments that its threads have in common, made once by the core. */
import type { Config } from '../config.js';
import { createBell } from '../ring/bell.js';
import { createIndexMemory } from '../router/index/shared-index.js';
import { createLedgerMemory } from '../router/ledger.js';
import { createLoadMemory } from '../router/load-table.js';
import { seededRandom } from '../runtime/random.js';
import { createBoardMemory } from './process-board.js';
import { createActivityMemory } from './worker-activity.js';

/** Segments by what they hold. */
export interface PlaneMemory {
  readonly load: SharedArrayBuffer;
  readonly ledger: SharedArrayBuffer;
  readonly board: SharedArrayBuffer;
  readonly activity: SharedArrayBuffer;
  /** Doorbells of the socket threads. */
  readonly socketBells: readonly SharedArrayBuffer[];
  /** The prefix index; null: there is none, or it is in the pool thread. */
  readonly index: SharedArrayBuffer | null;
  readonly ingestBell: SharedArrayBuffer;
}

/** Makes the segments. `hasSharedIndex`: there is a prefix index, and an addon that shares it. */
export function createPlaneMemory(
  config: Config,
  poolThreads: number,
  hasSharedIndex: boolean,
  seed: number,
): PlaneMemory {
  const { limits, socketThreads } = config;
  return {
    load: createLoadMemory(limits.workersMax),
    ledger: createLedgerMemory(limits.ledgerEntries),
    board: createBoardMemory(poolThreads),
    activity: createActivityMemory(limits.workersMax),
    socketBells: Array.from({ length: socketThreads }, (_, index) => createBell(`socket thread ${index}`)),
    index: hasSharedIndex
      ? createIndexMemory({
          bytes: limits.indexBytes,
          predictionsMax: limits.indexPredictionsMax,
          random: seededRandom(seed),
        })
      : null,
    ingestBell: createBell('ingest thread'),
  };
}
