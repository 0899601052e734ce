/**
 * Reading the KV cache events of a TensorRT-LLM server: the JSON array that POST /kv_cache_events answers, which also
 * empties the server's buffer. Block hashes are 64-bit numbers, of which JSON.parse would lose digits, or hex strings
 * (`v2_sha256`). Pure; for the thread that polls. Format: `KVCacheEventSerializer` of tensorrt_llm/_utils.py.
 */
import type { EngineBlockHash, PolledEvent } from '../router/events/contract.js';
import { isPositive, isRecord, protocolError } from './probe-answers.js';

/** A block that became resident. */
export interface TrtllmBlock {
  /** A 64-bit number exactly as written, or the server's string. */
  readonly hash: EngineBlockHash;
  readonly tokens: readonly number[];
  /** Its tokens are text alone; false: they stand for media as well, or are not all numbers. */
  readonly isPlain: boolean;
  /** 0: GPU, 1: host memory. */
  readonly cacheLevel: number;
  /** LoRA adapter by name or by number, and cache salt; null where the server does not say. */
  readonly adapter: string | null;
  readonly adapterId: number | null;
  readonly salt: string | null;
}

/** What happened. A type that is not known here is `unknown`: its id counts, and there is nothing to do. */
export type TrtllmChange =
  | { readonly type: 'created'; readonly blocksPerCacheLevel: readonly number[] }
  /** Blocks in the order of the sequence, each the child of the one before; `parent` null: from its first token. */
  | {
      readonly type: 'stored';
      readonly parent: EngineBlockHash | null;
      readonly blocks: readonly TrtllmBlock[];
    }
  | { readonly type: 'removed'; readonly hashes: readonly EngineBlockHash[] }
  /** `cacheLevel` null: the block stays where it is. */
  | { readonly type: 'updated'; readonly hash: EngineBlockHash; readonly cacheLevel: number | null }
  | { readonly type: 'unknown' };

/** One event. Its rank is that of attention data parallelism, 0 without: each rank counts its ids for itself. */
export interface TrtllmEvent extends PolledEvent {
  readonly change: TrtllmChange;
  /** Tokens of the attention window whose blocks these are; null where the server does not say. */
  readonly windowSize: number | null;
}

/** Digits of an integer that is not exact in a double, or of a part of a string or of another number. */
const LONG_DIGITS = /-?\d{16,}/g;
const BEFORE_VALUE = new Set([':', ',', '[', ' ', '\n']);
const BEHIND_VALUE = new Set([',', ']', '}', ' ', '\n']);
/** A string, which is passed over, or a number. */
const STRING_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const INTEGER = /^-?\d+$/;
/** Integers of fewer digits are exact in a double. */
const EXACT_DIGITS = 15;
const U64 = 64;
const U32_MAX = 0xffff_ffff;

/** Reads the answer. Throws WorkerError for anything that is not a list of events; fields that are not known are ignored. */
export function parseTrtllmEvents(text: string): TrtllmEvent[] {
  // What stood in a string is no JSON with quotes around it: the exact way is for that alone, as it is three times slower.
  const list =
    parseJson(text.replace(LONG_DIGITS, quoteBetween)) ??
    parseJson(text.replace(STRING_OR_NUMBER, quoteLongInteger));
  if (!Array.isArray(list)) throw wrong('it is no JSON array');
  return list.map(readEvent);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function quoteBetween(digits: string, at: number, text: string): string {
  const isValue = BEFORE_VALUE.has(text.charAt(at - 1)) && BEHIND_VALUE.has(text.charAt(at + digits.length));
  return isValue ? `"${digits}"` : digits;
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
    rank: isCount(rank) ? rank : 0,
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
  const {
    mm_keys: media,
    cache_level: level,
    lora_name: adapter,
    lora_id: adapterId,
    cache_salt: salt,
  } = value;
  let isPlain = !Array.isArray(media) || media.length === 0;
  const tokens: number[] = [];
  for (const token of listOf(value.tokens, 'tokens')) {
    const id = isRecord(token) ? token.token_id : token;
    // Where there are media, newer servers put a digest in the place of an id.
    const isDigest = typeof id === 'string' || (isRecord(token) && (token.token_extra_id ?? 0) !== 0);
    if (isDigest) isPlain = false;
    else if (!isTokenId(id)) throw wrong('a stored block holds what is no token id');
    tokens.push(isDigest ? 0 : (id as number));
  }
  return {
    hash: readHash(value.block_hash),
    tokens,
    isPlain,
    cacheLevel: isCount(level) ? level : 0,
    adapter: nameOf(adapter),
    adapterId: isTokenId(adapterId) ? adapterId : null,
    salt: nameOf(salt),
  };
}

function nameOf(value: unknown): string | null {
  return typeof value === 'string' && value !== '' ? value : null;
}

/** Long numbers are strings by now; a string of digits alone is a number, for no hex digest of 64 places is one. */
function readHash(value: unknown): EngineBlockHash {
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
