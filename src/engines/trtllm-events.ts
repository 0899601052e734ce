/**
 * Reading the KV cache events of a TensorRT-LLM server: the JSON array that POST /kv_cache_events answers, which also
 * empties the server's buffer. Block hashes are 64-bit numbers, of which JSON.parse would lose digits, or hex strings
 * (`v2_sha256`). Pure; for the thread that polls. Format: `KVCacheEventSerializer` of tensorrt_llm/_utils.py.
 */
import { isPositive, isRecord, protocolError } from './probe-answers.js';

/** A block's name: a 64-bit number exactly as written, or the server's string. */
export type TrtllmBlockHash = bigint | string;

/** A block that became resident. */
export interface TrtllmBlock {
  readonly hash: TrtllmBlockHash;
  readonly tokens: readonly number[];
  /** 0: GPU, 1: host memory. */
  readonly cacheLevel: number;
}

/** What happened. A type that is not known here is `unknown`: its id counts, and there is nothing to do. */
export type TrtllmChange =
  | { readonly type: 'created'; readonly blocksPerCacheLevel: readonly number[] }
  /** Blocks in the order of the sequence, each the child of the one before; `parent` null: from its first token. */
  | {
      readonly type: 'stored';
      readonly parent: TrtllmBlockHash | null;
      readonly blocks: readonly TrtllmBlock[];
    }
  | { readonly type: 'removed'; readonly hashes: readonly TrtllmBlockHash[] }
  /** `cacheLevel` null: the block stays where it is. */
  | { readonly type: 'updated'; readonly hash: TrtllmBlockHash; readonly cacheLevel: number | null }
  | { readonly type: 'unknown' };

/** One event. */
export interface TrtllmEvent {
  /** Counts up by one; a step of more means that the server's buffer ran over and events are lost. */
  readonly id: number;
  readonly change: TrtllmChange;
  /** Tokens of the attention window whose blocks these are; null where the server does not say. */
  readonly windowSize: number | null;
  /** Null: the server runs without attention data parallelism. */
  readonly attentionRank: number | null;
}

/** A string, which is passed over, or a number. */
const STRING_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const INTEGER = /^-?\d+$/;
/** Integers of fewer digits are exact in a double. */
const EXACT_DIGITS = 15;
const U64 = 64;
const U32_MAX = 0xffff_ffff;

/** Reads the answer. Throws WorkerError for anything that is not a list of events; fields that are not known are ignored. */
export function parseTrtllmEvents(text: string): TrtllmEvent[] {
  let list: unknown;
  try {
    list = JSON.parse(text.replace(STRING_OR_NUMBER, quoteLongInteger));
  } catch {
    list = null;
  }
  if (!Array.isArray(list)) throw wrong('it is no JSON array');
  return list.map(readEvent);
}

/**
 * The blocks of a store that are full, which alone can be found again. A partial one ends the chain: what stands behind
 * it cannot be reached.
 */
export function fullBlocks(blocks: readonly TrtllmBlock[], tokensPerBlock: number): readonly TrtllmBlock[] {
  const end = blocks.findIndex(block => block.tokens.length !== tokensPerBlock);
  return end === -1 ? blocks : blocks.slice(0, end);
}

/** Whether events are missing within `events`, or between them and `lastId`, the last one of before (null: the first poll). */
export function hasGap(events: readonly TrtllmEvent[], lastId: number | null): boolean {
  let expected = lastId === null ? (events[0]?.id ?? 0) : lastId + 1;
  return events.some(event => event.id !== expected++);
}

function quoteLongInteger(part: string): string {
  return part.length > EXACT_DIGITS && INTEGER.test(part) ? `"${part}"` : part;
}

function wrong(why: string): Error {
  return protocolError(`the answer of /kv_cache_events cannot be read: ${why}`);
}

function readEvent(value: unknown): TrtllmEvent {
  if (!isRecord(value) || !isCount(value.event_id) || !isRecord(value.data)) {
    throw wrong('an event has no event_id or no data');
  }
  const { event_id: id, window_size: window, attention_dp_rank: rank } = value;
  return {
    id,
    change: readChange(value.data),
    windowSize: isPositive(window) ? window : null,
    attentionRank: isCount(rank) ? rank : null,
  };
}

function readChange(data: Readonly<Record<string, unknown>>): TrtllmChange {
  if (data.type === 'stored') {
    const parent = data.parent_hash ?? null;
    return {
      type: 'stored',
      parent: parent === null ? null : readHash(parent),
      blocks: listOf(data.blocks, 'blocks').map(readBlock),
    };
  }
  if (data.type === 'removed') {
    return { type: 'removed', hashes: listOf(data.block_hashes, 'block_hashes').map(readHash) };
  }
  if (data.type === 'updated') {
    const level = isRecord(data.cache_level) ? data.cache_level.new_value : null;
    return { type: 'updated', hash: readHash(data.block_hash), cacheLevel: isCount(level) ? level : null };
  }
  if (data.type !== 'created') return { type: 'unknown' };
  const levels = listOf(data.num_blocks_per_cache_level, 'num_blocks_per_cache_level');
  if (!levels.every(isCount)) throw wrong('num_blocks_per_cache_level holds what is no number of blocks');
  return { type: 'created', blocksPerCacheLevel: levels };
}

function readBlock(value: unknown): TrtllmBlock {
  if (!isRecord(value)) throw wrong('a stored block is no object');
  const tokens = listOf(value.tokens, 'tokens').map(token => (isRecord(token) ? token.token_id : token));
  if (!tokens.every(isTokenId)) throw wrong('a stored block holds what is no token id');
  return {
    hash: readHash(value.block_hash),
    tokens,
    cacheLevel: isCount(value.cache_level) ? value.cache_level : 0,
  };
}

/** Long numbers are strings by now; a string of digits alone is a number, for no hex digest of 64 places is one. */
function readHash(value: unknown): TrtllmBlockHash {
  if (typeof value === 'number' && Number.isSafeInteger(value)) return BigInt.asUintN(U64, BigInt(value));
  if (typeof value !== 'string' || value === '') throw wrong('a block hash is neither a number nor a string');
  return INTEGER.test(value) && value.length <= '-9223372036854775808'.length
    ? BigInt.asUintN(U64, BigInt(value))
    : value;
}

function listOf(value: unknown, name: string): readonly unknown[] {
  if (!Array.isArray(value)) throw wrong(`${name} is no list`);
  return value;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isTokenId(value: unknown): value is number {
  return isCount(value) && value <= U32_MAX;
}
