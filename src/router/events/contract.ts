/**
 * KV events (R4): what engines publish about their caches, on its way into the prefix index. A *source* is one worker
 * rank with its event socket; its holder in the index is the worker's slot.
 *
 *     engine ─ZMQ─▶ EventSource ─(sequence, payload)─▶ RankStream ─in order, without gaps─▶ IndexSink ─▶ PrefixIndexWriter
 *                        ▲ replay socket ◀── gap ──────────┘ (no replay: clear)           decode, translate, hash, apply
 *
 * Sources and streams run on the ingest thread. The sink does too where the addon gives a shared index; without it the
 * index lives in the one pool thread and a sink that posts messages stands in its place.
 */

/** Where a worker rank publishes its events; ZMQ endpoints such as `tcp://10.0.0.7:5557`. */
export interface EventEndpoints {
  /** Of its PUB socket. `bind:tcp://0.0.0.0:5557`: we bind and the engine connects. */
  readonly publish: string;
  /** Of its replay ROUTER socket; null: it has none, and a gap clears the rank. */
  readonly replay: string | null;
  /** Prefix of the topic to subscribe to; '' takes all. */
  readonly topic: string;
}

/** What the sink knows of a holder. */
export interface HolderFacts {
  readonly generation: number;
  /** Tokens per block that its events must have; null: the first store says it. */
  readonly blockSize: number | null;
  /** Blocks of its KV memory; null: it does not say. Only for holders without events. */
  readonly totalBlocks: number | null;
  /** False: residency is guessed from the requests that are routed there. */
  readonly hasEvents: boolean;
  /** For log lines: the worker's origin. */
  readonly name: string;
}

/** A request that a pool thread has sent to a worker; its blocks will be there soon. */
export interface RoutedPrompt {
  readonly slot: number;
  readonly generation: number;
  /** Sequence hashes, two words per block; valid during the call. */
  readonly hashes: Uint32Array;
  readonly blocks: number;
  /** Leading blocks that the worker is expected to hold already. */
  readonly cachedBlocks: number;
  /** Whole milliseconds on the monotonic clock of the process until which the prediction counts. */
  readonly expiresMs: number;
}

/**
 * Takes what sources deliver, in order per holder. One thread calls it; no call throws for what an engine sent. All
 * anomalies are counted in `counters` and logged once per kind and holder with what to do.
 */
export interface IndexSink {
  /** Makes a holder known, empty; a holder that is known is emptied and gets the new facts. */
  addHolder(holder: number, facts: HolderFacts): void;
  removeHolder(holder: number): void;
  /** The events of the holder are lost from here back: its blocks are forgotten. */
  clear(holder: number): void;
  /** One batch, as the engine packed it (msgpack). The bytes are valid during the call. */
  apply(holder: number, payload: Uint8Array): void;
  route(prompt: RoutedPrompt): void;
  /** Expires predictions, gives back memory; called a few times a second. */
  tend(nowMs: number): void;
}

/** Anomalies and work of one sink since its start; whole numbers. Each is a series of `millrace_kv_events_total{kind}`. */
export const SINK_COUNTERS = [
  /** Batches and events that were applied; blocks in their stores and removals. */
  'batches',
  'events',
  'storedBlocks',
  'removedBlocks',
  /** AllBlocksCleared. */
  'clears',
  /** Batches that are no msgpack of the known shape; the holder was cleared. */
  'malformed',
  /** Batches over a limit of the decoder; the holder was cleared. */
  'oversized',
  /** Events of another block size than the holder's; ignored. */
  'blockSizeMismatch',
  /** Stores whose ids do not fill their blocks; ignored. */
  'tokenCountMismatch',
  /** Stores whose parent the holder does not have: ignored, a later look-up finds less than there is. */
  'orphans',
  /** Stores that name themselves or a block twice; ignored. */
  'selfParent',
  /** Events of KV cache groups other than full attention; ignored. */
  'otherGroup',
  /** Events of a tier that is not known; ignored. */
  'unknownTier',
  /** Events of an adapter known only by number; ignored. */
  'unnamedAdapter',
  /** Events of a kind that is not known; ignored. */
  'unknownEvent',
] as const;
/** One of SINK_COUNTERS. */
export type SinkCounter = (typeof SINK_COUNTERS)[number];
/** The counts of a sink. */
export type SinkCounts = Record<SinkCounter, number>;

/** Anomalies and work of the sources; series of `millrace_kv_events_total{kind}` too. */
export const SOURCE_COUNTERS = [
  /** Messages received live. */
  'messages',
  /** Messages that are not topic, 8-byte sequence, payload; dropped. */
  'badFrames',
  /** Sequence numbers that were missing, and how often. */
  'lostBatches',
  'gaps',
  /** Batches seen before; dropped. */
  'duplicates',
  /** The engine began anew at a lower sequence number; its rank was cleared. */
  'restarts',
  /** Replays asked for; batches they brought; those that did not answer in time or came too late for the gap. */
  'replays',
  'replayedBatches',
  'replayFailures',
  /** Ranks cleared because a gap could not be filled. */
  'clearedRanks',
  /** Batches dropped because too many waited for a replay. */
  'overflows',
] as const;
/** One of SOURCE_COUNTERS. */
export type SourceCounter = (typeof SOURCE_COUNTERS)[number];
/** The counts of the sources. */
export type SourceCounts = Record<SourceCounter, number>;
