/**
 * The prefix index of a plane without the addon (R4): it lives in the one pool thread, is made anew with each incarnation,
 * and is fed through a port by the ingest thread, which is told the numbers of the index on the same way. Owned by the
 * pool thread.
 */
import type { Limits } from '../limits.js';
import type { HolderFacts, IndexSink, RoutedPrompt } from '../router/events/contract.js';
import { receiveSink } from '../router/events/posting-sink.js';
import type { PrefixIndexReader } from '../router/index/contract.js';
import { createSimpleIndex } from '../router/index/simple-index.js';
import type { Clock } from '../runtime/clock.js';
import type { LogFields } from '../runtime/logger.js';
import type { Random } from '../runtime/random.js';
import { createIndexSink, indexCounts, loadIndexTools } from './index-sink.js';
import type { IndexCounts, PrefixLink } from './ingest-side.js';

/** Heap of one block in Maps with two or three holders; with one it takes 560 bytes. */
const BLOCK_HEAP_BYTES = 1024;
/** Share of the pool thread's heap that the index may take. */
const HEAP_SHARE = 0.5;

/** What the index tells the ingest thread. */
export type PostedNews =
  | {
      readonly kind: 'counts';
      readonly events: Readonly<Record<string, number>>;
      readonly index: IndexCounts;
    }
  | {
      readonly kind: 'blockSize';
      readonly slot: number;
      readonly generation: number;
      readonly blockSize: number;
    }
  | { readonly kind: 'warn'; readonly message: string; readonly fields: LogFields };

/** What it is made with. */
export interface PostedIndexServices {
  readonly limits: Limits;
  readonly clock: Clock;
  readonly random: Random;
}

/** Opens the index that a link brings the events of; `close` closes its ports. */
export async function openPostedIndex(
  { port, news }: PrefixLink & { kind: 'posted' },
  { limits, clock, random }: PostedIndexServices,
): Promise<{ reader: PrefixIndexReader; routed: (prompt: RoutedPrompt) => void; close: () => void }> {
  const heapBytes = Math.min(limits.indexBytes, limits.poolHeapBytesMax * HEAP_SHARE);
  const index = createSimpleIndex({
    blocksMax: Math.floor(heapBytes / BLOCK_HEAP_BYTES),
    predictionsMax: limits.indexPredictionsMax,
  });
  const tell = (told: PostedNews): void => news.postMessage(told);
  const generations = new Map<number, number>();
  const applier = createIndexSink({
    writer: index,
    tools: await loadIndexTools(null),
    clock,
    limits,
    random,
    log: { warn: (message, fields = {}) => tell({ kind: 'warn', message, fields }) },
    onBlockSize: (slot, blockSize) =>
      tell({ kind: 'blockSize', slot, generation: generations.get(slot)!, blockSize }),
  });
  const sink: IndexSink = {
    addHolder: (slot: number, facts: HolderFacts) => {
      generations.set(slot, facts.generation);
      applier.addHolder(slot, facts);
    },
    removeHolder: slot => applier.removeHolder(slot),
    clear: slot => applier.clear(slot),
    apply: (slot, payload) => applier.apply(slot, payload),
    route: prompt => applier.route(prompt),
    tend: nowMs => {
      applier.tend(nowMs);
      tell({ kind: 'counts', events: { ...applier.counters }, index: indexCounts(index) });
    },
  };
  receiveSink(port, sink);
  const close = (): void => {
    port.close();
    news.close();
  };
  return { reader: index, routed: prompt => applier.route(prompt), close };
}
