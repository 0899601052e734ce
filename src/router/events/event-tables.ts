/**
 * The decoded form of one event batch: typed arrays that a decoder fills and an applier reads, used again for every
 * batch. The C++ decoder and the one in TypeScript fill the same words. Native constants are made from this file.
 *
 * A *row* is one event, or several stores that continue each other (SGLang sends a store per page). Hashes are engine
 * hashes: ENGINE_HASH_WORDS words, lowest first. An integer hash takes two of them, sign-extended bits as they are, the
 * others are 0; of a byte string the last 16 bytes count, as a big-endian number.
 */

/** Kinds of a row. */
export const EVENT_KIND = { store: 1, remove: 2, clear: 3, unknown: 4 } as const;

/** Tiers of a row, by the `medium` of the event: absent or GPU; CPU, CPU_PINNED, CPU_TIER1; DISK; the rest. */
export const EVENT_TIER = { device: 0, host: 1, disk: 2, external: 3, unknown: 4 } as const;

/** KV cache group kinds of a row: what counts is full attention, its MLA form and the one with sinks. */
export const EVENT_GROUP = { unsaid: 0, full: 1, other: 2 } as const;

/** Words of one row in `rows`. Text is a range of the payload's bytes: (0, 0) when absent. */
export const EVENT_ROW = {
  kind: 0,
  tier: 1,
  /** EVENT_GROUP of `kv_cache_spec_kind`. */
  groupKind: 2,
  /** `group_idx`, or −1. */
  group: 3,
  /** Its blocks in `hashes`. */
  firstBlock: 4,
  blocks: 5,
  /** Its ids in `tokens`. */
  firstToken: 6,
  tokens: 7,
  blockSize: 8,
  /** 1: the first block has a parent, at row × ENGINE_HASH_WORDS in `parents`. */
  hasParent: 9,
  /** 1: `token_ids` were pairs (EAGLE): one id more than blocks × blockSize. */
  isBigram: 10,
  /** `lora_name`. */
  adapterAt: 11,
  adapterBytes: 12,
  /** 1: `lora_id` without a name. */
  hasAdapterId: 13,
  /** The cache salt among the first block's extra keys: the text that is neither adapter nor media. */
  saltAt: 14,
  saltBytes: 15,
  /** Media of its blocks in `media`. */
  firstMedia: 16,
  media: 17,
} as const;
/** Words from one row to the next. */
export const EVENT_ROW_WORDS = 18;

/** Words of one entry of `media`: block within the row, hash low, hash high. */
export const EVENT_MEDIA_WORDS = 3;

/** Most rows of one batch. */
export const EVENT_ROWS_MAX = 16_384;
/** Most blocks of one batch. */
export const EVENT_BLOCKS_MAX = 131_072;
/** Most token ids of one batch. */
export const EVENT_TOKENS_MAX = 1_048_576;
/** Most media entries of one batch. */
export const EVENT_MEDIA_MAX = 65_536;

/** Why a batch has no rows: cut off, not of the known shape, or over one of the bounds above. */
export const DECODE_FAULT = { truncated: -1, malformed: -2, oversized: -3 } as const;
/** A value of DECODE_FAULT. */
export type DecodeFault = (typeof DECODE_FAULT)[keyof typeof DECODE_FAULT];

/** The tables of one decoder; over shared memory for the addon's sake. Sizes as above. */
export interface EventTables {
  readonly rows: Int32Array;
  readonly parents: Uint32Array;
  readonly hashes: Uint32Array;
  readonly tokens: Uint32Array;
  readonly media: Uint32Array;
}

/** Decodes batches; belongs to one thread. */
export interface EventDecoder {
  /** Filled by `decode`, valid until the next one. */
  readonly tables: EventTables;
  /** Decodes a batch into the tables. Returns the number of rows, or a DecodeFault below 0. Never throws for bytes. */
  decode(payload: Uint8Array): number;
}
