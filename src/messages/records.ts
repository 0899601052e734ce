/**
 * The records that cross between a socket thread and a pool thread, and their version. ASK and DONE go to the pool,
 * PLAN and REJECT come back, WORLD tells a pool thread which workers and models exist. `record-codec.ts` gives each
 * its bytes. A record is a value: the reader owns its copy.
 */
import type { ErrorCode } from '../errors.js';
import type { DisaggProtocolName, DisaggView, SplitReason, WorkerSplit } from './disagg.js';
import type { Api, Stop } from './token-request.js';

/** Raised when any record changes its bytes; both sides of a ring run the same build, so a mismatch is a bug. */
export const RECORD_VERSION = 6;

/** The kind of a ring record; part of the ring's record header. */
export const RECORD_KIND = { ask: 1, plan: 2, reject: 3, done: 4, world: 5, close: 6 } as const;
/** The number of a record kind. */
export type RecordKind = (typeof RECORD_KIND)[keyof typeof RECORD_KIND];

/** Why an ASK is sent: the metric `millrace_asks_total{reason}`. */
export const ASK_REASONS = [
  'first',
  'pool_lost',
  'worker_failed',
  'adoption_failed',
  'migrated',
  'hedged',
] as const;
/** One of ASK_REASONS. */
export type AskReason = (typeof ASK_REASONS)[number];

/** What a client says about where its request should go; '' for what it does not say. */
export interface RoutingHints {
  /** Name of the only worker that may serve it; see plane/routing-hints.ts. */
  readonly worker: string;
  /** Requests of one session go to one worker while it is there. */
  readonly session: string;
  /** The PLAN is to tell its candidates. */
  readonly explains: boolean;
}

/** A request without hints. */
export const NO_HINTS: RoutingHints = Object.freeze({ worker: '', session: '', explains: false });

/** A choice that is to go on, and the ids that it has so far. */
export interface ContinuedChoice {
  readonly choice: number;
  readonly ids: Uint32Array;
}

/** What is known of an answer whose worker failed in the middle: enough to go on with it at another one. */
export interface Continuation {
  /** The mode that the answer began in; it stays. */
  readonly mode: 'token' | 'relayIds';
  /** Ids of the prompt as the first worker had it. */
  readonly promptIds: Uint32Array;
  /** Those that have not finished and run nowhere, at least one. */
  readonly choices: readonly ContinuedChoice[];
}

/** Socket thread → pool thread: plan this request. The only way to a plan, first or repeated. */
export interface Ask {
  /** Names the request on its socket thread; never reused while the request lives. */
  readonly request: number;
  /** 0 for the first ASK, one more for each later one: answers to older attempts are dropped. */
  readonly attempt: number;
  readonly api: Api;
  readonly reason: AskReason;
  /** Wall-clock milliseconds at which the whole request ends. */
  readonly deadlineWallMs: number;
  /** Slots that must not be chosen again. */
  readonly excludedSlots: readonly number[];
  /** Slots that are chosen only where there is no other: their workers have failed often of late. */
  readonly avoidedSlots: readonly number[];
  /** Null: the answer has not begun. */
  readonly continuation: Continuation | null;
  /** The prompt is not to be handed over: the worker that answers computes it, where the model's rules allow that. */
  readonly computesLocally: boolean;
  /** Request headers that planning may look at, lower-case names. */
  readonly headers: readonly (readonly [string, string])[];
  readonly hints: RoutingHints;
  /** The request body exactly as it came. */
  readonly body: Uint8Array;
}

/**
 * token: ids in, ids out, Millrace makes the text. relayIds: the engine's frames pass through, with ids asked for and
 * taken out again; a unary answer is streamed by the engine and folded. relay: frames and bodies pass through.
 */
export const ANSWER_MODES = ['token', 'relayIds', 'relay'] as const;
/** One of ANSWER_MODES. */
export type AnswerMode = (typeof ANSWER_MODES)[number];

/**
 * What a step is for. generate: all of an answer. prefill and decode: the two parts of one, see `PlanCall.protocol`.
 */
export const STEP_STAGES = ['generate', 'prefill', 'decode'] as const;
/** One of STEP_STAGES. */
export type StepStage = (typeof STEP_STAGES)[number];

/** What becomes of a step's answer. stream: the client's. feed: it completes a later step. drain: it is read and dropped. */
export const STEP_ANSWERS = ['stream', 'feed', 'drain'] as const;
/** One of STEP_ANSWERS. */
export type StepAnswer = (typeof STEP_ANSWERS)[number];

/** One HTTP call to one worker. */
export interface PlanStep {
  readonly stage: StepStage;
  /** Step whose answer must come first, or null: starts at once. */
  readonly after: number | null;
  readonly answer: StepAnswer;
  readonly slot: number;
  readonly generation: number;
  /** Ledger reservation that the socket thread adopts with the PLAN; see router/ledger.ts. */
  readonly reservation: number;
  readonly method: string;
  readonly path: string;
  readonly head: readonly (readonly [string, string])[];
  readonly body: Uint8Array;
  /** Place in `body` for the bytes that an earlier step's answer gives; null: it is whole. */
  readonly spliceAt: number | null;
}

/** One engine request of a plan; an answer that goes on has one for each choice. All of a plan's calls run at once. */
export interface PlanCall {
  /** Added to the engine's choice index. */
  readonly choiceBase: number;
  /** Choices that the engine is asked for. */
  readonly choices: number;
  /** Prompt token ids in token mode; else empty, as in a continuation. */
  readonly promptIds: Uint32Array;
  /** How the KV goes from its prefill step, the first, to its decode step, the second; null: it has one step. */
  readonly protocol: DisaggProtocolName | null;
  /** Why its prompt is computed by a prefill worker, or by the one that answers; null: its model has no prefill workers. */
  readonly split: SplitReason | null;
  readonly steps: readonly PlanStep[];
}

/** A worker that a request could have gone to, as the policy saw it; see router/explain.ts. */
export interface PlanCandidate {
  /** Name of the worker; see plane/routing-hints.ts. */
  readonly worker: string;
  /** In the policy's own unit, lowest best; null: the policy has no cost. */
  readonly cost: number | null;
  readonly cachedTokens: number;
  readonly queuedTokens: number;
  readonly requests: number;
}

/**
 * Where the prompt ids came from by which a request was routed. unused: the policy asks no index, or the prompt has no ids
 * to ask by. client: the request brought them. tokenizer: ours. worker: a worker's /tokenize. missing: a worker should have
 * made them and did not in time, so the request was routed by load only.
 */
export const IDS_SOURCES = ['unused', 'client', 'tokenizer', 'worker', 'missing'] as const;
/** One of IDS_SOURCES. */
export type IdsSource = (typeof IDS_SOURCES)[number];

/** Why the worker of a PLAN was chosen; the worker itself is in its step. */
export interface PlanPlacement {
  readonly policy: string;
  /** In words: the policy and the figures that decided. */
  readonly reason: string;
  /** Data-parallel rank of the worker; null: its server is one worker. */
  readonly rank: number | null;
  readonly ids: IdsSource;
  /** Tokens of the prompt that the worker is expected to have in its cache. */
  readonly cachedTokens: number;
  /** Best first, 16 at most; null unless the request asked for them. */
  readonly candidates: readonly PlanCandidate[] | null;
}

/** Pool thread → socket thread: the answer to an ASK. Whoever consumes it owns its reservations from then on. */
export interface Plan {
  readonly request: number;
  readonly attempt: number;
  /** Number of the decision on its pool thread, for logs and debugging. */
  readonly decision: number;
  readonly mode: AnswerMode;
  readonly api: Api;
  /** The client asked for a stream. */
  readonly stream: boolean;
  /** Model name that the answer reports. */
  readonly model: string;
  readonly choices: number;
  /** Exact in token mode, for a prompt of ids and where a worker has counted them; else an estimate (bytes ÷ 4). */
  readonly promptTokens: number;
  readonly includeUsage: boolean;
  readonly continuousUsage: boolean;
  /** We asked the engine for usage and the client did not: usage frames are taken out of a relayed stream. */
  readonly usageInjected: boolean;
  /** We asked the engine for token ids and the client did not: they are taken out of relayed frames. */
  readonly idsInjected: boolean;
  /** Token mode: alternatives per token that the client wants beside the log-probability of each; null: wants none. */
  readonly logprobs: number | null;
  readonly skipSpecialTokens: boolean;
  readonly stop: Stop;
  /** `max_tokens` as it was sent, per choice; null: the engine decides. */
  readonly maxTokens: number | null;
  /** Why the answer cannot go on at another worker once it has begun, in words; '': it can. */
  readonly cannotMigrate: string;
  /** Ids that end a choice without being shown; empty but in token mode. */
  readonly eosIds: Uint32Array;
  /** Key of the text model whose table makes text of ids; '' but in token mode. */
  readonly tokenizer: string;
  readonly placement: PlanPlacement;
  readonly calls: readonly PlanCall[];
  /** Set by the socket thread, never sent: tokens of the prompt that were cached where it was computed for decode. */
  readonly prefillCachedTokens?: number;
}

/** Pool thread → socket thread: the request cannot be served; becomes an HTTP error. */
export interface Reject {
  readonly request: number;
  readonly attempt: number;
  readonly code: ErrorCode;
  readonly message: string;
  readonly param: string | null;
  /** 0: none. */
  readonly retryAfterMs: number;
  /** What prefill workers have to do with it; null: nothing. */
  readonly split: SplitReason | null;
}

/** How a request ended: the `cause` of DONE and the label of `millrace_requests_ended_total`. */
export const END_CAUSES = [
  'completed',
  'rejected',
  'client_gone',
  'slow_client',
  'deadline',
  'worker_failed',
  'drained',
  'internal',
] as const;
/** One of END_CAUSES. */
export type EndCause = (typeof END_CAUSES)[number];

/** Tells the pool thread that planned it how a request ended. */
export interface Done {
  readonly request: number;
  readonly model: string;
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** -1: the engine did not say. */
  readonly cachedTokens: number;
  readonly cause: EndCause;
}

/** A model that a worker lists. */
export interface WorkerModel {
  readonly id: string;
  /** Tokens of prompt and answer together; null: the worker does not say. */
  readonly contextLength: number | null;
  /** Present: a LoRA adapter on another model of the worker; `id` is its name, which the worker's KV events carry. */
  readonly adapter?: true;
  /** Of an adapter: the model that it sits on, and where the worker has it from. Absent: not known. */
  readonly parent?: string;
  readonly path?: string;
}

/** A worker as the pool threads know it. */
export interface WorkerView {
  readonly slot: number;
  readonly generation: number;
  readonly url: string;
  /** Data-parallel rank behind the URL that requests name; null: the server is one worker. */
  readonly rank: number | null;
  readonly engine: string;
  readonly models: readonly WorkerModel[];
  /** Tokens per KV block and blocks in all; null when the engine does not say. */
  readonly blockSize: number | null;
  readonly totalBlocks: number | null;
  /** Its answers can carry token ids, which token and relayIds mode need. */
  readonly returnsTokenIds: boolean;
  /** What its adapter can be asked for; absent: all modes, or relay alone where it returns no ids. */
  readonly answerModes?: readonly AnswerMode[];
  /** Models of this worker whose token ids are not ours: our tokenizer or template differs, so no token mode there. */
  readonly foreignIds: readonly string[];
  /** Absent: it does both prefill and decode, for nobody but itself. */
  readonly split?: WorkerSplit;
}

/** A served model as the pool threads know it. */
export interface ModelView {
  readonly name: string;
  readonly policy: string;
  /** Key of the text model (preprocess/text-model.ts): a tokenizer's name or a model folder's path; null: no token mode. */
  readonly tokenizer: string | null;
  readonly contextLength: number | null;
  /** Absent: every worker serves whole requests. */
  readonly disaggregation?: DisaggView;
}

/** All that a pool thread knows of the fleet; each WORLD replaces the one before. */
export interface World {
  readonly version: number;
  readonly workers: readonly WorkerView[];
  readonly models: readonly ModelView[];
}
