/**
 * KV events (R4): what engines publish about their caches, on its way into the prefix index. A *source* is one worker
 * rank with its event socket; its holder in the index is the worker's slot.
 *
 *     engine ─ZMQ─▶ EventSource ─(sequence, payload)─▶ RankStream ─in order, without gaps─▶ IndexSink ─▶ PrefixIndexWriter
 *                        ▲ replay socket ◀── gap ──────────┘ (no replay: clear)           decode, translate, hash, apply
 *     engine ◀─POST─ PolledSource ─in order, a gap clears─────────────────────────────────────▲
 *
 * Sources and streams run on the ingest thread. The sink does too where the addon gives a shared index; without it the
 * index lives in the one pool thread and a sink that posts messages stands in its place.
 */

/** Where a worker rank publishes its events; ZMQ endpoints such as `tcp://10.0.0.7:5557`, or a URL that is polled. */
export interface EventEndpoints {
  /**
   * Of its PUB socket. `bind:tcp://0.0.0.0:5557`: we bind and the engine connects. `http://10.0.0.7:8000/path`: each POST
   * there answers what has happened since the one before, to whoever asks; it repeats nothing.
   */
  readonly publish: string;
  /** Of its replay ROUTER socket; null: it has none, and a gap clears the rank. */
  readonly replay: string | null;
  /** Prefix of the topic to subscribe to; '' takes all. */
  readonly topic: string;
}

/** Whether events are polled for at an endpoint. */
export function isPolled({ publish }: EventEndpoints): boolean {
  return publish.startsWith('http://');
}

/** An engine's name of a block: a 64-bit number, or a digest as text. */
export type EngineBlockHash = bigint | string;

/** Blocks that became resident, in the order of their sequence, each full and the child of the one before. */
export interface StoredBlocks {
  /** Null: the first block begins a sequence. */
  readonly parent: EngineBlockHash | null;
  readonly blocks: readonly { readonly hash: EngineBlockHash; readonly tokens: readonly number[] }[];
  /** Tokens of each block. */
  readonly blockSize: number;
  /** LoRA adapter; null: none, or the engine has only a number for it. */
  readonly adapter: string | null;
  readonly adapterId: number | null;
  /** Cache salt of the sequence; null: none, or it is said with its first block. */
  readonly salt: string | null;
}

/** Makes batches, in the form that sinks apply, of events that came in another form. */
export interface EventWriter {
  store(stored: StoredBlocks): void;
  remove(hashes: readonly EngineBlockHash[]): void;
  clear(): void;
}

/** One event of a server that is polled. */
export interface PolledEvent {
  /** Counts up by one within its rank: a greater step means that events are lost, a lower id that the server began anew. */
  readonly id: number;
  /** Rank within the server that counts for itself; 0 where there is one. */
  readonly rank: number;
}

/** Knows what the events of one polled server mean together; used for one life of the server. */
export interface PolledTranslator {
  /** Writes what follows from an event for the index, if anything. */
  write(event: PolledEvent, writer: EventWriter): void;
}

/** A connection to one polled server, which it makes and keeps by itself. */
export interface PollConnection {
  /** Polls once. Rejects within `deadlineMs`, and for an answer of more than `bytesMax` bytes. */
  poll(deadlineMs: number, bytesMax: number): Promise<{ status: number; body: string }>;
  /** Ends the poll that runs, which rejects. */
  close(): Promise<void>;
}

/** How servers are polled; a stage border: `plane/` joins it with the engines. */
export interface PolledProtocol {
  /** Opens nothing yet. */
  connect(url: string): PollConnection;
  /** Events of an answer, in order. Throws for what is no answer of such a server. */
  read(body: string): readonly PolledEvent[];
  /** `blockSize`: tokens per block; null: the events say it. */
  createTranslator(blockSize: number | null): PolledTranslator;
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
  /** Messages that are not topic, 8-byte sequence, payload, and polls whose answer cannot be read; dropped. */
  'badFrames',
  /** Polls, and those that failed: without an answer in time, with one that is no list of events or is too long. */
  'polls',
  'pollFailures',
  /** Sequence numbers (of polled servers: event ids) that were missing, and how often. */
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
