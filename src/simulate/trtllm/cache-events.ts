/**
 * The KV cache events of a mock engine that plays TensorRT-LLM: kept in a buffer of fixed size until somebody takes them
 * all. Hashes are random 64-bit numbers per engine, as long as those of real servers. Can lose what was taken on purpose,
 * counted, as if another client had polled. One per engine, on its thread. Format: `KVCacheEventSerializer` of
 * tensorrt_llm/_utils.py; order and overflow as in cpp/tensorrt_llm/batch_manager/kvCacheEventManager.cpp.
 */
import type { Random } from '../../runtime/random.js';
import type { BlockEvents, CachedSequence } from '../block-pool.js';
import { mix32 } from '../token-source.js';

/** Of one engine. */
export interface CacheEventOptions {
  /** Tokens per block. */
  readonly blockSize: number;
  /** `event_buffer_max_size`: the oldest event goes when one more comes. */
  readonly eventsMax: number;
  readonly hashSeed: readonly [number, number];
  /** Attention window of the model: its context length. */
  readonly windowSize: number;
  /** Blocks of the pool. */
  readonly blocks: number;
  /** Probability that the events of a poll go to somebody else: the answer is empty. */
  readonly loss: number;
  /** Draws the losses. */
  readonly random: Random;
}

/** What a buffer did since its start. */
export interface CacheEventCounters {
  /** Polls, and events that their answers had. */
  polls: number;
  taken: number;
  /** Events that went by `loss`, and those that found the buffer full. */
  stolen: number;
  overrun: number;
}

const PRIORITY = 35;

/** See the head of the file. */
export class CacheEvents implements BlockEvents {
  readonly counters: CacheEventCounters = { polls: 0, taken: 0, stolen: 0, overrun: 0 };
  readonly #options: CacheEventOptions;
  #events: string[] = [];
  #nextId = 0;

  constructor(options: CacheEventOptions) {
    this.#options = options;
    this.#add(`{"type":"created","num_blocks_per_cache_level":[${options.blocks},0]}`);
  }

  stored(sequence: CachedSequence, from: number, to: number): void {
    const parent = from === 0 ? 'null' : this.#hash(sequence.keys[from - 1]!);
    const blocks = Array.from({ length: to - from }, (_, at) => this.#block(sequence, from + at));
    this.#add(`{"type":"stored","parent_hash":${parent},"blocks":[${blocks.join(',')}]}`);
  }

  removed(key: number): void {
    this.#add(`{"type":"removed","block_hashes":[${this.#hash(key)}]}`);
  }

  /** The server has no event for it: its buffer begins anew, and the gap in the ids shows. */
  cleared(): void {
    this.#events = [];
    this.#nextId++;
  }

  /** All events since the last call as a JSON array. */
  drain(): string {
    const { loss, random } = this.#options;
    const { counters } = this;
    const events = this.#events;
    this.#events = [];
    counters.polls += 1;
    const isStolen = events.length > 0 && random() < loss;
    counters[isStolen ? 'stolen' : 'taken'] += events.length;
    return isStolen ? '[]' : `[${events.join(',')}]`;
  }

  #add(data: string): void {
    const { eventsMax, windowSize } = this.#options;
    this.#events.push(`{"event_id":${this.#nextId++},"data":${data},"window_size":${windowSize}}`);
    if (this.#events.length <= eventsMax) return;
    this.#events.shift();
    this.counters.overrun += 1;
  }

  #block(sequence: CachedSequence, at: number): string {
    const { blockSize } = this.#options;
    const tokens = Array.from(
      { length: blockSize },
      (_, token) =>
        `{"type":"unique_token","token_id":${sequence.tokenAt(at * blockSize + token)},"token_extra_id":0}`,
    );
    return `{"type":"stored_block","block_hash":${this.#hash(sequence.keys[at]!)},"tokens":[${tokens.join(',')}],"cache_level":0,"priority":${PRIORITY}}`;
  }

  /** One-to-one from key to hash, as digits: most are above 2^53. */
  #hash(key: number): string {
    const [seedHigh, seedLow] = this.#options.hashSeed;
    const low = mix32(key ^ seedLow);
    const high = mix32(Math.floor(key / 4294967296) ^ low ^ seedHigh);
    return String((BigInt(high) << 32n) | BigInt(low));
  }
}
