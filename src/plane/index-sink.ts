/**
 * The sink that writes a prefix index, put together: decoder, applier and guesses for workers without events, native where
 * there is an addon. Made on the thread that owns the index: the ingest thread, or without the addon the pool thread.
 */
import type { Limits } from '../limits.js';
import { IndexApplier, type IndexApplierOptions } from '../router/events/applier.js';
import { ApproximateResidency } from '../router/events/approximate.js';
import { createEventDecoder } from '../router/events/decoder.js';
import { createNativeDecoder } from '../router/events/native-decoder.js';
import type { Hashers } from '../router/hashing/block-hasher.js';
import type { IndexStats, PrefixIndexWriter } from '../router/index/contract.js';
import type { Addon } from '../runtime/addon.js';
import type { Clock } from '../runtime/clock.js';
import type { Random } from '../runtime/random.js';
import type { IndexCounts } from './ingest-side.js';

/** What the sink is made of. */
export interface IndexSinkOptions extends Pick<IndexApplierOptions, 'writer' | 'log' | 'onBlockSize'> {
  readonly addon: Addon | null;
  /** Made by `createHashers` of the same addon. */
  readonly hashers: Hashers;
  readonly clock: Clock;
  readonly limits: Limits;
  readonly random: Random;
}

/** Makes the sink. */
export function createIndexSink(options: IndexSinkOptions): IndexApplier {
  const { writer, addon, hashers, clock, limits, random, log, onBlockSize } = options;
  return new IndexApplier({
    writer,
    decoder: addon === null ? createEventDecoder() : createNativeDecoder(addon),
    hashers,
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
