/**
 * Turns what the block pool tells into batches of KV events as vLLM and SGLang pack them: one batch per pass, its events
 * in the order in which they happened. Fields, forms and hashes are those of vLLM's `kv_events.py` and of SGLang's
 * `disaggregation/kv_events.py`. One per mock engine, on its thread; the publisher takes the batches.
 */
import type { BlockEvents, CachedSequence } from '../block-pool.js';
import { mix32 } from '../token-source.js';
import { MsgpackWriter } from './msgpack-writer.js';

/**
 * How an event looks. `array`: vLLM before 0.24, fields by position. `map`: later ones, fields by name, with the cache
 * group. `sglang`: by position, without vLLM's later fields, and one store per block.
 */
export const EVENT_FORMS = ['array', 'map', 'sglang'] as const;
/** One of EVENT_FORMS. */
export type EventForm = (typeof EVENT_FORMS)[number];

/** How a block hash looks: an unsigned or a signed integer of 64 bits, or a digest of 32 bytes that ends with them. */
export const EVENT_HASHES = ['int', 'signed', 'bytes'] as const;
/** One of EVENT_HASHES. */
export type EventHashes = (typeof EVENT_HASHES)[number];

/** What the batches of one engine look like. */
export interface KvEventFormat {
  readonly form: EventForm;
  readonly hashes: EventHashes;
  /** Tokens per block. */
  readonly blockSize: number;
  /** 64 random bits per engine, as `NONE_HASH` of vLLM: nobody can guess the hashes. */
  readonly hashSeed: readonly [number, number];
}

const MEDIUM = 'GPU';
const DIGEST_WORDS = 8;
/** `lora_id` counts in the engine; readers go by the name. */
const ADAPTER_ID = 1;

/** Fields of an event by its form, the tag among them. */
const STORED_FIELDS = { array: 9, map: 11, sglang: 7 } as const;
const REMOVED_FIELDS = { array: 3, map: 4, sglang: 3 } as const;

/** See the head of the file. */
export class KvEventEncoder implements BlockEvents {
  readonly #format: KvEventFormat;
  readonly #body = new MsgpackWriter();
  readonly #head = new MsgpackWriter();
  /** The last digest; its last two words are the hash as an integer, high and low. */
  readonly #digest = new Uint32Array(DIGEST_WORDS);
  #events = 0;

  constructor(format: KvEventFormat) {
    this.#format = format;
  }

  stored(sequence: CachedSequence, from: number, to: number): void {
    if (this.#format.form !== 'sglang') this.#store(sequence, from, to);
    else for (let at = from; at < to; at++) this.#store(sequence, at, at + 1);
  }

  removed(key: number): void {
    this.#open('BlockRemoved', REMOVED_FIELDS);
    this.#name('block_hashes').array(1);
    this.#hash(key);
    this.#name('medium').text(MEDIUM);
    this.#group();
  }

  cleared(): void {
    this.#open('AllBlocksCleared', { array: 1, map: 1, sglang: 1 });
  }

  /** The events since the last call as one batch of rank 0, or null when there are none. `wallMs` is its time stamp. */
  takeBatch(wallMs: number): Buffer | null {
    if (this.#events === 0) return null;
    this.#head.array(3);
    this.#head.float64(wallMs / 1000);
    this.#head.array(this.#events);
    this.#body.unsigned(0);
    const batch = Buffer.concat([this.#head.written, this.#body.written]);
    this.#head.clear();
    this.#body.clear();
    this.#events = 0;
    return batch;
  }

  #store(sequence: CachedSequence, from: number, to: number): void {
    const { form, blockSize } = this.#format;
    const { keys } = sequence;
    const out = this.#body;
    this.#open('BlockStored', STORED_FIELDS);
    this.#name('block_hashes').array(to - from);
    for (let at = from; at < to; at++) this.#hash(keys[at]!);
    this.#name('parent_block_hash');
    if (from === 0) out.nil();
    else this.#hash(keys[from - 1]!);
    this.#name('token_ids').array((to - from) * blockSize);
    for (let at = from * blockSize; at < to * blockSize; at++) out.unsigned(sequence.tokenAt(at));
    this.#name('block_size').unsigned(blockSize);
    const { adapter = '' } = sequence;
    const hasAdapter = adapter !== '' && form !== 'sglang';
    // SGLang's events tell nothing of adapters.
    if (hasAdapter) this.#name('lora_id').unsigned(ADAPTER_ID);
    else this.#name('lora_id').nil();
    this.#name('medium').text(MEDIUM);
    if (form === 'sglang') return;
    if (hasAdapter) this.#name('lora_name').text(adapter);
    else this.#name('lora_name').nil();
    this.#name('extra_keys').array(to - from);
    for (let at = from; at < to; at++) {
      // vLLM salts the first block only: the others are chained to it.
      const extra = [adapter, at > 0 ? '' : sequence.cacheSalt].filter(text => text !== '');
      if (extra.length === 0) out.nil();
      else {
        out.array(extra.length);
        for (const text of extra) out.text(text);
      }
    }
    this.#group();
    if (form === 'map') this.#name('kv_cache_spec_kind').text('full_attention');
  }

  #open(tag: string, fields: Readonly<Record<EventForm, number>>): void {
    const { form } = this.#format;
    this.#events++;
    if (form === 'map') this.#body.map(fields[form]);
    else this.#body.array(fields[form]);
    this.#name('type').text(tag);
  }

  /** Writes the name of the next field where names are written. */
  #name(name: string): MsgpackWriter {
    if (this.#format.form === 'map') this.#body.text(name);
    return this.#body;
  }

  #group(): void {
    if (this.#format.form === 'map') this.#name('group_idx').unsigned(0);
  }

  /** One-to-one from key to hash, so hashes are as good as the pool's keys, which stand for all tokens before. */
  #hash(key: number): void {
    const { hashes, hashSeed } = this.#format;
    const [seedHigh, seedLow] = hashSeed;
    const low = mix32(key ^ seedLow);
    const high = mix32(Math.floor(key / 4294967296) ^ low ^ seedHigh);
    if (hashes !== 'bytes') {
      this.#body.integer64(high, low, hashes === 'signed');
      return;
    }
    const digest = this.#digest;
    digest[DIGEST_WORDS - 2] = high;
    digest[DIGEST_WORDS - 1] = low;
    for (let word = DIGEST_WORDS - 3; word >= 0; word--)
      digest[word] = mix32(digest[word + 1]! ^ digest[word + 2]! ^ word);
    this.#body.binary(digest);
  }
}
