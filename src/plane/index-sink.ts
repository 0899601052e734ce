/**
 * The sink that writes a prefix index, put together: decoder, applier and guesses for workers without events, native where
 * there is an addon. Made on the thread that owns the index: the ingest thread, or without the addon the pool thread.
 */
import type { Limits } from '../limits.js';
import { IndexApplier, type IndexApplierOptions } from '../router/events/applier.js';
import { ApproximateResidency } from '../router/events/approximate.js';
import { createEventDecoder } from '../router/events/decoder.js';
import type { EventDecoder } from '../router/events/event-tables.js';
import { createNativeDecoder } from '../router/events/native-decoder.js';
import { createHashers, type Hashers } from '../router/hashing/block-hasher.js';
import type { IndexStats, PrefixIndexWriter } from '../router/index/contract.js';
import type { Addon } from '../runtime/addon.js';
import type { Clock } from '../runtime/clock.js';
import type { Random } from '../runtime/random.js';
import type { IndexCounts } from './ingest-side.js';

/** What takes a moment to load. */
export interface IndexTools {
  readonly decoder: EventDecoder;
  readonly hashers: Hashers;
}

/** Loads the tools of the calling thread: native ones where there is an addon. */
export async function loadIndexTools(addon: Addon | null): Promise<IndexTools> {
  const decoder = addon === null ? await createEventDecoder() : createNativeDecoder(addon);
  return { decoder, hashers: await createHashers(addon) };
}

/** What the sink is made of. */
export interface IndexSinkOptions extends Pick<IndexApplierOptions, 'writer' | 'log' | 'onBlockSize'> {
  readonly tools: IndexTools;
  readonly clock: Clock;
  readonly limits: Limits;
  readonly random: Random;
}

/** Makes the sink. */
export function createIndexSink(options: IndexSinkOptions): IndexApplier {
  const { writer, tools, clock, limits, random, log, onBlockSize } = options;
  return new IndexApplier({
    writer,
    ...tools,
    residency: new ApproximateResidency({ writer, random, ttlMs: limits.approximateTtlMs }),
    log,
    now: () => clock.nowMs(),
    onBlockSize,
  });
}

/** The numbers of an index that the metrics show. */
export function indexCounts(writer: PrefixIndexWriter): IndexCounts {
  const { blocks, blocksMax, engineHashes, holders, predictions }: IndexStats = writer.stats();
  return { blocks, blocksMax, engineHashes, holders, predictions };
}
