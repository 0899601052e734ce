/**
 * The pool as the core has it: the supervisor of its threads, the rings of each incarnation to every socket thread, and
 * its way to the prefix index. Owned by the core, on its thread.
 */
import { MessageChannel } from 'node:worker_threads';
import type { Limits } from '../limits.js';
import type { ModelFolder } from '../preprocess/model-folder/model-folder.js';
import { createRing } from '../ring/spsc-ring.js';
import type { Ledger } from '../router/ledger.js';
import type { Clock } from '../runtime/clock.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { Logger } from '../runtime/logger.js';
import type { IngestSide, PrefixLink } from './ingest-side.js';
import type { PlaneMemory } from './plane-memory.js';
import { createLinkMemory, type LinkMemory } from './pool-link.js';
import type { ProcessBoard } from './process-board.js';
import type { SocketSide } from './socket-side.js';
import { Supervisor } from './supervisor.js';

/** Bytes of the ring that takes the predictions of one pool thread to the ingest thread. */
const ROUTED_RING_BYTES = 1_048_576;

/** What the pool is made of. */
export interface PoolSideOptions {
  readonly threads: number;
  readonly limits: Limits;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly guard: FaultGuard;
  readonly seed: number;
  readonly folders: readonly ModelFolder[];
  readonly extensions: readonly string[];
  readonly memory: PlaneMemory;
  readonly board: ProcessBoard;
  readonly ledger: Ledger;
  readonly sides: readonly SocketSide[];
  /** Null: there is no prefix index. */
  readonly ingest: IngestSide | null;
  readonly restarted: () => void;
}

/** Starts the pool threads under a supervisor that attaches each incarnation to the other threads. */
export function startPool(options: PoolSideOptions): Supervisor {
  const { threads, limits, clock, logger, guard, seed, memory, board, sides, ingest } = options;
  return new Supervisor({
    threads,
    limits,
    folders: options.folders,
    extensions: options.extensions,
    loadMemory: memory.load,
    ledgerMemory: memory.ledger,
    boardMemory: memory.board,
    clock,
    logger,
    seed,
    attach: (index, epoch) => {
      const links = createLinkMemory(index, epoch, limits.ringBytes, memory.socketBells);
      const prefixes = ingest === null ? null : attachIngest(ingest, memory, index, epoch);
      guard.run(() => attachSockets(sides, index, links));
      return { links, prefixes };
    },
    lost: (index, epoch) => guard.run(() => poolThreadLost(options, index, epoch)),
    changed: ({ running, off }) =>
      guard.run(() => {
        board.setPool(running, off);
        if (board.poolIsOff) for (const side of sides) side.poolIsOff();
      }),
    restarted: options.restarted,
  });
}

function attachSockets(sides: readonly SocketSide[], index: number, links: readonly LinkMemory[]): void {
  for (const [at, side] of sides.entries()) side.attach(index, links[at]!);
}

function attachIngest(ingest: IngestSide, memory: PlaneMemory, index: number, epoch: number): PrefixLink {
  if (memory.index === null) {
    const [batches, news] = [new MessageChannel(), new MessageChannel()];
    ingest.attachPort(batches.port1, news.port1);
    return { kind: 'posted', port: batches.port2, news: news.port2 };
  }
  const ringMemory = createRing(ROUTED_RING_BYTES, epoch);
  ingest.attachRing(index, epoch, ringMemory);
  return { kind: 'shared', indexMemory: memory.index, ringMemory, epoch, bellMemory: memory.ingestBell };
}

/** Once its last answers have been taken everywhere, what the dead incarnation still owns is freed. */
function poolThreadLost(
  { sides, ingest, guard, ledger }: PoolSideOptions,
  index: number,
  epoch: number,
): void {
  ingest?.poolLost(index);
  const waits = sides.map(side => side.lost(index)).filter(wait => wait !== undefined);
  const reap = (): void => guard.run(() => void ledger.reap(epoch));
  if (waits.length === 0) reap();
  else void Promise.allSettled(waits).then(reap);
}
