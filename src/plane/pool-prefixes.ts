/**
 * What a pool thread knows of the prefix index (R4): a reader for its decider, and where to tell what it has routed. With
 * the addon the index is shared and predictions go to the ingest thread by ring; without it the index is this thread's own
 * and is fed by a port. An index that nobody updates any more is not asked. Owned by one pool thread.
 */
import { strict as assert } from 'node:assert';
import type { Limits } from '../limits.js';
import { BellRinger } from '../ring/bell.js';
import { RingMemory } from '../ring/ring-memory.js';
import { RingProducer } from '../ring/ring-producer.js';
import type { RoutedPrompt } from '../router/events/contract.js';
import type { PrefixIndexReader } from '../router/index/contract.js';
import { SharedIndexReader } from '../router/index/shared-index.js';
import { loadAddon } from '../runtime/addon.js';
import type { Clock } from '../runtime/clock.js';
import type { Random } from '../runtime/random.js';
import type { PrefixLink } from './ingest-side.js';
import { openPostedIndex } from './posted-index.js';
import type { ProcessBoard } from './process-board.js';
import { encodeRouted, ROUTED_KIND } from './routed-record.js';

/** What the decider of a pool thread is given. */
export interface PoolPrefixes {
  readonly reader: PrefixIndexReader;
  readonly routed: (prompt: RoutedPrompt) => void;
  /** The events come by messages, for which the thread has to look now and then. */
  readonly isPosted: boolean;
  close(): void;
}

/** What the thread hands over. */
export interface PrefixServices {
  readonly limits: Limits;
  readonly board: ProcessBoard;
  readonly clock: Clock;
  readonly random: Random;
}

/** Opens the link of this incarnation. */
export async function openPrefixes(link: PrefixLink, services: PrefixServices): Promise<PoolPrefixes> {
  return link.kind === 'shared' ? openShared(link, services.board) : openPosted(link, services);
}

function openShared(link: PrefixLink & { kind: 'shared' }, board: ProcessBoard): PoolPrefixes {
  const addon = loadAddon();
  assert(addon !== null, 'an index is shared where there is an addon');
  const reader = new SharedIndexReader(addon, link.indexMemory);
  const ringer = new BellRinger(new RingMemory(link.bellMemory));
  // No queue: a prediction that finds no room is worth nothing later.
  const options = { epoch: link.epoch, queueBytesMax: 0 };
  const ring = new RingProducer(new RingMemory(link.ringMemory), ringer, options);
  return {
    reader: guarded(reader, board),
    routed: prompt => {
      if (ring.send(ROUTED_KIND, prompt.slot, encodeRouted(prompt)) === 'full') board.addPredictionDropped();
      ring.publish();
    },
    isPosted: false,
    close: () => reader.close(),
  };
}

async function openPosted(
  link: PrefixLink & { kind: 'posted' },
  services: PrefixServices,
): Promise<PoolPrefixes> {
  const { reader, routed, close } = await openPostedIndex(link, services);
  return { reader: guarded(reader, services.board), routed, isPosted: true, close };
}

/** Finds nothing once the index has failed: what nobody updates would send requests to caches that are gone. */
function guarded(reader: PrefixIndexReader, board: ProcessBoard): PrefixIndexReader {
  return {
    lookup(hashes, blocks, holders, holderCount, depthsOut) {
      if (!board.indexFailed) return reader.lookup(hashes, blocks, holders, holderCount, depthsOut);
      depthsOut.fill(0, 0, 2 * holderCount);
      return 0;
    },
  };
}
