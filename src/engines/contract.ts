/**
 * EngineAdapter (R5): what Millrace knows of one kind of engine, as pure functions. `encode` runs on a pool thread,
 * `openStream` on a socket thread; neither does I/O. All I/O of a socket thread is in EngineClient (client.ts).
 * Every adapter runs test/contract/engine-adapter.
 */
import type { AnswerMode, WorkerModel } from '../messages/records.js';
import type { TokenRequest } from '../messages/token-request.js';
import type { EngineControl } from './control-contract.js';

/** What an engine says of handing KV over; null: it does not say. */
export interface HandoverFacts {
  /** The one part of a request that it was started for; null: any, or it does not say. */
  readonly role: 'prefill' | 'decode' | null;
  /** Data type of its KV cache in the engine's words; `auto`: that of its model. */
  readonly kvDtype: string | null;
  /** Port of its bootstrap server. */
  readonly bootstrapPort: number | null;
  /** TensorRT-LLM: where it tells of its transceiver. */
  readonly infoEndpoint: string | null;
}

/** What probing a worker taught us; becomes its WorkerView. */
export interface WorkerCapabilities {
  readonly engine: string;
  readonly version: string | null;
  readonly models: readonly WorkerModel[];
  readonly blockSize: number | null;
  readonly totalBlocks: number | null;
  readonly returnsTokenIds: boolean;
  /** What `encode` may be asked for with this worker; never empty. */
  readonly answerModes: readonly AnswerMode[];
  /** Data-parallel ranks behind the worker's URL; null: it does not say. */
  readonly dpRanks: number | null;
  /** Where each rank publishes its KV events, by rank; null: it publishes none that it tells of. */
  readonly events: readonly RankEvents[] | null;
  /** Absent: it says nothing of it. */
  readonly handover?: HandoverFacts;
  /** For operators: what works less well than it could, and what to change. One sentence each, without a period. */
  readonly notices: readonly string[];
}

/** The KV events of one data-parallel rank, as this host reaches them: ZeroMQ endpoints, or a URL that is polled. */
export interface RankEvents {
  readonly publish: string;
  /** Null: batches that were lost cannot be asked for again. */
  readonly replay: string | null;
  readonly topic: string;
}

/** Load that an engine reports of itself; null: the metric is absent, which is not 0. */
export interface EngineLoad {
  readonly running: number | null;
  readonly waiting: number | null;
  /** Share of the KV cache in use, 0 to 1. */
  readonly kvUsage: number | null;
  readonly prefixCacheQueries: number | null;
  readonly prefixCacheHits: number | null;
}

/** POST of a JSON text for a small answer under a deadline; given to `tokenize` for the same reason. */
export type Poster = (path: string, json: string) => Promise<{ status: number; body: string }>;

/**
 * What a worker is asked to make ids of: a completion's prompt, or a chat, by default with the begin of an answer behind
 * it. `shaping`: further fields of the request that decide about the ids, under the engine's own names.
 */
export type TokenizeSample = ({ readonly prompt: string } | { readonly messages: readonly unknown[] }) & {
  readonly shaping?: Readonly<Record<string, unknown>>;
};

/** GET of a small answer under a deadline; given to `probe` so that adapters do no I/O of their own. */
export type Fetcher = (path: string) => Promise<{ status: number; body: string }>;

/** What an adapter makes one call from. Built by the pool thread from a TokenRequest and the decision; read only. */
export interface EncodeInput {
  readonly request: TokenRequest;
  readonly mode: AnswerMode;
  /** Model id as the worker knows it. */
  readonly workerModel: string;
  /** Prompt ids, present in token mode. */
  readonly promptIds: Uint32Array | null;
  /** Resolved `max_tokens`; null leaves it to the engine. */
  readonly maxTokens: number | null;
  /** Tokenizer's end-of-sequence ids (token mode). */
  readonly eosIds: Uint32Array;
  /** Request id for the engine's logs. */
  readonly requestId: string;
  /** Data-parallel rank of the worker that shall take it; null: the server is one worker. */
  readonly rank: number | null;
  /** Present: `workerModel` is this LoRA adapter on another model of the worker. */
  readonly adapter?: Pick<WorkerModel, 'parent' | 'path'>;
}

/** The HTTP call to a worker, without its host: the plan carries it to the socket thread. */
export interface EncodedCall {
  readonly method: string;
  readonly path: string;
  readonly head: readonly (readonly [string, string])[];
  readonly body: Uint8Array;
  /** Usage was asked for although the client did not ask. */
  readonly usageInjected: boolean;
  /** Token ids were asked for although the client did not ask. */
  readonly idsInjected: boolean;
}

/** The HTTP call that ends a request without its connection. */
export type AbortCall = Pick<EncodedCall, 'method' | 'path' | 'head' | 'body'>;

/** The HTTP call of a canary: see EngineAdapter.canary. */
export type CanaryCall = AbortCall;

/**
 * Frames found by one push. `table` and `ids` are valid until the next push on any stream of this thread; slices of
 * `bytes` may be kept, their memory is not used again. Rows as in frame-descriptor.ts, starting at word SCAN_HEADER_WORDS.
 */
export interface FrameBatch {
  readonly bytes: Uint8Array;
  readonly count: number;
  readonly table: Int32Array;
  readonly ids: Uint32Array;
}

/**
 * Why a stream is unusable: a frame over its limit, a frame that is not what the engine promised, or an end too
 * early.
 */
export type StreamFault = 'frameTooLong' | 'malformed' | 'truncated';

/** Decoder of one answer. Pure: bytes in, batches out. */
export interface EngineStream {
  /**
   * Feeds received bytes. `onBatch` is called once or more, in order, with at least one frame each.
   * Returns a fault when the stream broke the protocol; nothing may be pushed after that.
   */
  push(bytes: Uint8Array, onBatch: (batch: FrameBatch) => void): StreamFault | null;
  /** The engine ended its answer: 'truncated' when a frame was open or the end marker never came. */
  end(): StreamFault | null;
}

/** One kind of engine. An adapter keeps no state between calls, so one instance serves a whole thread. */
export interface EngineAdapter {
  readonly engine: string;
  /** `owned_by` of the models that its servers list, by which `engine: auto` knows them; absent: it does not. */
  readonly modelOwner?: string;
  /**
   * Learns what the worker can do. `origin` is where we reach it: endpoints that it names with a wildcard are on that
   * host. Throws WorkerError with a message for operators.
   */
  probe(get: Fetcher, origin: string): Promise<WorkerCapabilities>;
  /**
   * The ids that the worker itself makes of `sample`; null when it has no way to say. Rejects with WorkerError when it
   * does not answer or answers nonsense.
   */
  tokenize(post: Poster, model: string, sample: TokenizeSample): Promise<Uint32Array | null>;
  /**
   * What to ask `tokenize` for the ids that the engine will make of a request with text; null where it has no way to make
   * them without the request itself (media, and what its route does not take). Runs on a pool thread. Pure.
   */
  sampleOf(request: TokenRequest): TokenizeSample | null;
  /**
   * A streamed answer in token mode has OpenAI's frames, each of which can be read without those before it. False: it has
   * frames of its own, which only `openStream` at the plane can read.
   */
  readonly hasOpenAiFrames: boolean;
  /** Path of the health route. */
  readonly healthPath: string;
  /** Path of the metrics route and its parser. */
  readonly metricsPath: string;
  parseMetrics(text: string): EngineLoad;
  /**
   * The field of a request that the engine honours in its OpenAI routes alone, so that the request cannot go to it in
   * token mode; null: there is none. Runs on a pool thread. Pure.
   */
  tokenModeGap(request: TokenRequest): string | null;
  /** Builds the call for a request, in one of the worker's `answerModes`. Runs on a pool thread. */
  encode(input: EncodeInput): EncodedCall;
  /**
   * The call that ends the request with this `requestId`, for a connection that must stay open; null: the engine has
   * none. Closing the connection ends a request on every engine.
   */
  abortCall(requestId: string): AbortCall | null;
  /** Loading adapters, sleep and wake. Used on the core's thread. */
  readonly control: EngineControl;
  /**
   * The smallest request that makes the engine generate: one token after a prompt of one id, not streamed, so that status
   * 200 means that a token was made. `rank` as in EncodeInput. Runs on the registry's thread. Pure.
   */
  canary(model: string, rank: number | null): CanaryCall;
  /**
   * Decoder for a streamed answer that `encode` asked for in this mode; an engine with a protocol of its own in token mode
   * must be told it, others take OpenAI's frames in all modes.
   */
  openStream(limits: { firstFrameBytesMax: number; frameBytesMax: number }, mode?: AnswerMode): EngineStream;
}
