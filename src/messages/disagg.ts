/**
 * What records say about prefill and decode on two workers: roles of workers, the protocols by which KV goes from one to the
 * other, and when a model's prompts are computed elsewhere. Part of WORLD and PLAN; the settings have the same names.
 */

/** What a worker is for. prefill: computes prompts for others. decode: answers, and computes prompts where it pays. */
export const WORKER_ROLES = ['prefill', 'decode', 'both'] as const;
/** One of WORKER_ROLES. */
export type WorkerRole = (typeof WORKER_ROLES)[number];

/** A worker's part in models that are served by prefill and decode workers. */
export interface WorkerSplit {
  readonly role: WorkerRole;
  /** Where decode workers reach its bootstrap server, without brackets around an IPv6 address. */
  readonly bootstrapHost: string;
  readonly bootstrapPort: number;
  /** Mooncake: id of its engine; null: not known. */
  readonly engineId: string | null;
  /** TensorRT-LLM, generation first: where it tells of its transceiver; null: not known. */
  readonly infoEndpoint: string | null;
}

/** Protocols of a hand-over; see engines/disagg. */
export const DISAGG_PROTOCOLS = [
  'nixl',
  'mooncake',
  'sglang-rooms',
  'trtllm-context-first',
  'trtllm-generation-first',
] as const;
/** One of DISAGG_PROTOCOLS. */
export type DisaggProtocolName = (typeof DISAGG_PROTOCOLS)[number];

/** Rules by which prompts are computed elsewhere; see router/disagg.ts. */
export const DISAGG_POLICIES = [
  'cost',
  'always',
  'isl-bounding',
  'prefill-load',
  'isl-bounding-or-prefill-load',
] as const;
/** One of DISAGG_POLICIES. */
export type DisaggPolicy = (typeof DISAGG_POLICIES)[number];

/**
 * Why the prompt of a request is computed where it is, in a model with prefill workers.
 * - default: by a prefill worker, as nothing speaks against it. cost: the cheaper way. isl: few enough tokens are left to
 *   compute. prefill_busy, decode_busy: the one or the other has too much to do. same_worker: one is the best for both parts.
 * - no_prefill: no prefill worker is ready. prefill_full: each has all that it may have.
 * - not_splittable: what is asked for cannot be handed over. no_protocol: the workers cannot hand over to each other.
 *   named_worker: the client named the worker. last_attempt: hand-overs of the request failed before.
 */
export const SPLIT_REASONS = [
  'default',
  'cost',
  'isl',
  'prefill_busy',
  'decode_busy',
  'same_worker',
  'no_prefill',
  'prefill_full',
  'not_splittable',
  'no_protocol',
  'named_worker',
  'last_attempt',
] as const;
/** One of SPLIT_REASONS. */
export type SplitReason = (typeof SPLIT_REASONS)[number];

/** When prompts are computed by prefill workers. */
export interface DisaggRules {
  readonly policy: DisaggPolicy;
  /** isl-bounding: a prompt with fewer tokens to compute than this, and … */
  readonly effIslMax: number;
  /** … with at most this share of its tokens to compute, stays where it is answered. */
  readonly effIslRatioMax: number;
  /** prefill-load: a prefill worker with more outstanding prompt tokens is busy. */
  readonly prefillBusyTokens: number;
  /** Share of its KV blocks above which a decode worker is too busy to compute a prompt; overrules every rule. */
  readonly decodeKvBusy: number;
  /** Outstanding prompt tokens from which on a prefill worker gets no more. */
  readonly prefillQueueTokensMax: number;
  /** When no prefill worker has room: decode computes the prompt, or the request is refused. */
  readonly whenPrefillFull: 'local' | 'shed';
  /** When there is no prefill worker: decode computes the prompt, or the request is refused. */
  readonly whenNoPrefill: 'local' | 'refuse';
  /** cost: milliseconds of a hand-over, and of each token that is handed over. */
  readonly handoverMs: number;
  readonly handoverMsPerToken: number;
  /** cost: weight of a millisecond for which one running answer stands still; one of the request itself weighs 1. */
  readonly decodeWeight: number;
}

/** A model that is served by prefill and decode workers. */
export interface DisaggView extends DisaggRules {
  /** Null: its workers cannot hand over to each other; those that answer do all of it. */
  readonly protocol: DisaggProtocolName | null;
}
