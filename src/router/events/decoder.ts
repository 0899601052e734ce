/**
 * The event decoder without the addon (R4): msgpack batches of vLLM and SGLang into the tables of event-tables.ts, on
 * the thread of the sink. Batch and events may each be an array (positions) or a map (names); keys and trailing
 * elements that are not known are passed over, trailing fields may be absent. Wire form: msgspec structs of
 * `vllm/distributed/kv_events.py` and `sglang/srt/disaggregation/kv_events.py`. Not with msgpackr: see
 * msgpack-cursor.ts. It answers a batch with rows or one fault, and never throws for bytes.
 */
import { createXXHash3, type IHasher } from 'hash-wasm';
import { ENGINE_HASH_WORDS } from '../index/contract.js';
import {
  DECODE_FAULT,
  EVENT_BLOCKS_MAX,
  EVENT_GROUP,
  EVENT_KIND,
  EVENT_MEDIA_MAX,
  EVENT_MEDIA_WORDS,
  EVENT_ROW,
  EVENT_ROW_WORDS,
  EVENT_ROWS_MAX,
  EVENT_TIER,
  EVENT_TOKENS_MAX,
  type EventDecoder,
  type EventTables,
} from './event-tables.js';
import { ExtraKeys } from './extra-keys.js';
import { DecodeError, KIND, MsgpackCursor, sameBytes, WordTable } from './msgpack-cursor.js';

const INT32_MAX = 0x7fff_ffff;
const UINT32_MAX = 0xffff_ffff;

const FIELDS = [
  'type',
  'block_hashes',
  'parent_block_hash',
  'token_ids',
  'block_size',
  'lora_id',
  'medium',
  'lora_name',
  'extra_keys',
  'group_idx',
  'kv_cache_spec_kind',
] as const;
type Field = (typeof FIELDS)[number];
const FIELD = Object.fromEntries(FIELDS.map((name, i) => [name, i])) as Readonly<Record<Field, number>>;
const FIELD_NAMES = new WordTable(FIELDS);
const BATCH_FIELDS = new WordTable(['events']);

const TAGS = new WordTable(['BlockStored', 'BlockRemoved', 'AllBlocksCleared']);
const TAG_KINDS = [EVENT_KIND.store, EVENT_KIND.remove, EVENT_KIND.clear];
/** Field of each position behind the tag, by tag. */
const POSITIONS = [
  FIELDS.slice(1).map(name => FIELD[name]),
  [FIELD.block_hashes, FIELD.medium, FIELD.group_idx],
  [],
];

/** Tiers by `medium`; other names are unknown. CPU_TIER2 is what an SGLang of 2026 called its shared pool. */
const MEDIA = {
  GPU: EVENT_TIER.device,
  CPU: EVENT_TIER.host,
  CPU_PINNED: EVENT_TIER.host,
  CPU_TIER1: EVENT_TIER.host,
  DISK: EVENT_TIER.disk,
  CPU_TIER2: EVENT_TIER.external,
  EXTERNAL: EVENT_TIER.external,
  NETWORK: EVENT_TIER.external,
  REMOTE: EVENT_TIER.external,
  SHARED: EVENT_TIER.external,
} as const;
const MEDIUM_NAMES = new WordTable(Object.keys(MEDIA));
const MEDIUM_TIERS = Object.values(MEDIA);
const FULL_GROUPS = new WordTable(['full_attention', 'mla_attention', 'sink_full_attention']);

/** Columns in which stores that continue each other are equal. */
const MERGE_EQUAL = [
  EVENT_ROW.kind,
  EVENT_ROW.tier,
  EVENT_ROW.groupKind,
  EVENT_ROW.group,
  EVENT_ROW.blockSize,
  EVENT_ROW.adapterBytes,
  EVENT_ROW.hasAdapterId,
];
/** Columns that are 0 in both of them. */
const MERGE_ZERO = [EVENT_ROW.isBigram, EVENT_ROW.saltBytes, EVENT_ROW.media];

/** Makes the decoder that needs no addon; about 8 MiB of tables, committed as they are used. */
export async function createEventDecoder(): Promise<EventDecoder> {
  return new CursorDecoder(await createXXHash3(0, 0));
}

class CursorDecoder implements EventDecoder {
  readonly tables: EventTables = {
    rows: new Int32Array(EVENT_ROWS_MAX * EVENT_ROW_WORDS),
    parents: new Uint32Array(EVENT_ROWS_MAX * ENGINE_HASH_WORDS),
    hashes: new Uint32Array(EVENT_BLOCKS_MAX * ENGINE_HASH_WORDS),
    tokens: new Uint32Array(EVENT_TOKENS_MAX),
    media: new Uint32Array(EVENT_MEDIA_MAX * EVENT_MEDIA_WORDS),
  };
  readonly #cursor = new MsgpackCursor();
  readonly #extraKeys: ExtraKeys;
  #payload: Uint8Array = new Uint8Array(0);
  /** Offset of each field of the event in hand; 0 when absent, since no field is at the start of a batch. */
  readonly #fields = new Uint32Array(FIELDS.length);
  /** What is in the tables. */
  #rows = 0;
  #blocks = 0;
  #tokens = 0;

  constructor(xxh3: IHasher) {
    this.#extraKeys = new ExtraKeys(this.#cursor, xxh3, this.tables.media);
  }

  decode(payload: Uint8Array): number {
    this.#payload = payload;
    this.#cursor.open(payload);
    this.#extraKeys.open(payload);
    this.#rows = 0;
    this.#blocks = 0;
    this.#tokens = 0;
    try {
      this.#batch();
      return this.#rows;
    } catch (error) {
      if (error instanceof DecodeError) return error.fault;
      throw error;
    }
  }

  /** `[ts, events, …]` or `{events: …}`. What follows the batch is not looked at. */
  #batch(): void {
    const cursor = this.#cursor;
    if (cursor.kind() !== KIND.map) {
      const elements = cursor.enter(KIND.array);
      if (elements < 2) throw new DecodeError(DECODE_FAULT.malformed);
      cursor.skip();
      this.#events();
      cursor.skip(elements - 2);
      return;
    }
    let found = false;
    for (let entries = cursor.enter(KIND.map); entries > 0; entries -= 1) {
      if (this.#key(BATCH_FIELDS) < 0) {
        cursor.skip();
        continue;
      }
      if (found) throw new DecodeError(DECODE_FAULT.malformed);
      found = true;
      this.#events();
    }
    if (!found) throw new DecodeError(DECODE_FAULT.malformed);
  }

  #events(): void {
    for (let events = this.#cursor.enter(KIND.array); events > 0; events -= 1) this.#event();
  }

  #event(): void {
    const cursor = this.#cursor;
    const tag = cursor.kind() === KIND.map ? this.#mapEvent() : this.#arrayEvent();
    const end = cursor.at;
    if (this.#rows >= EVENT_ROWS_MAX) throw new DecodeError(DECODE_FAULT.oversized);
    const row = this.#rows * EVENT_ROW_WORDS;
    const kind = TAG_KINDS[tag] ?? EVENT_KIND.unknown;
    this.tables.rows.fill(0, row, row + EVENT_ROW_WORDS);
    this.tables.rows[row + EVENT_ROW.kind] = kind;
    this.tables.rows[row + EVENT_ROW.group] = -1;
    if (kind === EVENT_KIND.store || kind === EVENT_KIND.remove) this.#residence(row);
    if (kind !== EVENT_KIND.store) this.#rows += 1;
    else {
      this.#store(row);
      if (!this.#merge(row)) this.#rows += 1;
    }
    cursor.at = end;
  }

  /** Notes where the fields of an event are that is a map; returns the index of its tag, −1 when that is unknown. */
  #mapEvent(): number {
    const cursor = this.#cursor;
    this.#fields.fill(0);
    for (let entries = cursor.enter(KIND.map); entries > 0; entries -= 1) {
      const field = this.#key(FIELD_NAMES);
      if (field >= 0) this.#fields[field] = cursor.at;
      cursor.skip();
    }
    const end = cursor.at;
    cursor.at = this.#at(FIELD.type);
    const tag = this.#word(TAGS);
    cursor.at = end;
    return tag;
  }

  /** The same for an event that is an array. */
  #arrayEvent(): number {
    const cursor = this.#cursor;
    this.#fields.fill(0);
    const elements = cursor.enter(KIND.array);
    if (elements === 0) throw new DecodeError(DECODE_FAULT.malformed);
    const tag = this.#word(TAGS);
    const positions = POSITIONS[tag] ?? [];
    for (let i = 0; i < elements - 1; i += 1) {
      const field = positions[i];
      if (field !== undefined) this.#fields[field] = cursor.at;
      cursor.skip();
    }
    return tag;
  }

  /** What stores and removals have in common: blocks, tier and group. */
  #residence(row: number): void {
    const { rows, hashes } = this.tables;
    const cursor = this.#cursor;
    cursor.at = this.#at(FIELD.block_hashes);
    const blocks = cursor.enter(KIND.array);
    if (blocks > EVENT_BLOCKS_MAX - this.#blocks) throw new DecodeError(DECODE_FAULT.oversized);
    rows[row + EVENT_ROW.firstBlock] = this.#blocks;
    rows[row + EVENT_ROW.blocks] = blocks;
    for (let i = 0; i < blocks; i += 1) this.#hash(hashes, (this.#blocks + i) * ENGINE_HASH_WORDS);
    this.#blocks += blocks;
    if (this.#goTo(FIELD.medium))
      rows[row + EVENT_ROW.tier] = MEDIUM_TIERS[this.#word(MEDIUM_NAMES)] ?? EVENT_TIER.unknown;
    if (this.#goTo(FIELD.group_idx)) rows[row + EVENT_ROW.group] = cursor.unsigned(INT32_MAX);
    if (this.#goTo(FIELD.kv_cache_spec_kind))
      rows[row + EVENT_ROW.groupKind] = this.#word(FULL_GROUPS) < 0 ? EVENT_GROUP.other : EVENT_GROUP.full;
  }

  #store(row: number): void {
    const { rows, parents } = this.tables;
    const cursor = this.#cursor;
    cursor.at = this.#at(FIELD.block_size);
    rows[row + EVENT_ROW.blockSize] = cursor.unsigned(INT32_MAX);
    if (this.#goTo(FIELD.parent_block_hash)) {
      rows[row + EVENT_ROW.hasParent] = 1;
      this.#hash(parents, this.#rows * ENGINE_HASH_WORDS);
    }
    cursor.at = this.#at(FIELD.token_ids);
    this.#tokenIds(row);
    if (this.#goTo(FIELD.lora_name)) {
      const bytes = cursor.enter(KIND.text);
      if (bytes > 0) rows[row + EVENT_ROW.adapterAt] = cursor.at;
      rows[row + EVENT_ROW.adapterBytes] = bytes;
    }
    const adapterBytes = rows[row + EVENT_ROW.adapterBytes]!;
    if (adapterBytes === 0 && this.#goTo(FIELD.lora_id)) rows[row + EVENT_ROW.hasAdapterId] = 1;
    if (!this.#goTo(FIELD.extra_keys)) return;
    const extraKeys = this.#extraKeys;
    const firstMedia = extraKeys.mediaCount;
    extraKeys.begin(rows[row + EVENT_ROW.adapterAt]!, adapterBytes);
    extraKeys.read(rows[row + EVENT_ROW.blocks]!);
    rows[row + EVENT_ROW.saltAt] = extraKeys.saltAt;
    rows[row + EVENT_ROW.saltBytes] = extraKeys.saltBytes;
    rows[row + EVENT_ROW.firstMedia] = firstMedia;
    rows[row + EVENT_ROW.media] = extraKeys.mediaCount - firstMedia;
  }

  /** Reads flat ids, or the pairs `[t(i), t(i+1)]` of an EAGLE engine as the ids that they were made of. */
  #tokenIds(row: number): void {
    const { rows, tokens } = this.tables;
    const cursor = this.#cursor;
    const count = cursor.enter(KIND.array);
    const isBigram = count > 0 && cursor.kind() === KIND.array;
    const ids = isBigram ? count + 1 : count;
    if (ids > EVENT_TOKENS_MAX - this.#tokens) throw new DecodeError(DECODE_FAULT.oversized);
    rows[row + EVENT_ROW.firstToken] = this.#tokens;
    rows[row + EVENT_ROW.tokens] = ids;
    rows[row + EVENT_ROW.isBigram] = isBigram ? 1 : 0;
    const first = this.#tokens;
    this.#tokens += ids;
    for (let i = first; i < first + count; i += 1) {
      if (isBigram && cursor.enter(KIND.array) !== 2) throw new DecodeError(DECODE_FAULT.malformed);
      tokens[i] = cursor.unsigned(UINT32_MAX);
      // The second id of a pair is the first of the next one; that of the last pair stays.
      if (isBigram) tokens[i + 1] = cursor.unsigned(UINT32_MAX);
    }
  }

  /** Joins the store in `row` with the row before where it continues that one; false when it does not. */
  #merge(row: number): boolean {
    if (this.#rows === 0) return false;
    const { rows, parents, hashes } = this.tables;
    const before = row - EVENT_ROW_WORDS;
    if (rows[row + EVENT_ROW.hasParent] !== 1) return false;
    for (const column of MERGE_EQUAL) if (rows[row + column] !== rows[before + column]) return false;
    for (const column of MERGE_ZERO)
      if (rows[row + column] !== 0 || rows[before + column] !== 0) return false;
    if (!this.#isWhole(row) || !this.#isWhole(before)) return false;
    const last = (rows[row + EVENT_ROW.firstBlock]! - 1) * ENGINE_HASH_WORDS;
    for (let i = 0; i < ENGINE_HASH_WORDS; i += 1)
      if (parents[this.#rows * ENGINE_HASH_WORDS + i] !== hashes[last + i]) return false;
    const adapterAt = rows[row + EVENT_ROW.adapterAt]!;
    const adapterBefore = rows[before + EVENT_ROW.adapterAt]!;
    const adapterBytes = rows[row + EVENT_ROW.adapterBytes]!;
    if (!sameBytes(this.#payload, adapterAt, this.#payload, adapterBefore, adapterBytes)) return false;
    rows[before + EVENT_ROW.blocks]! += rows[row + EVENT_ROW.blocks]!;
    rows[before + EVENT_ROW.tokens]! += rows[row + EVENT_ROW.tokens]!;
    return true;
  }

  /** Whether a store has blocks, all of them full: a short one and a long one must not make up for each other. */
  #isWhole(row: number): boolean {
    const { rows } = this.tables;
    const blocks = rows[row + EVENT_ROW.blocks]!;
    return blocks > 0 && rows[row + EVENT_ROW.tokens] === blocks * rows[row + EVENT_ROW.blockSize]!;
  }

  /** Reads an engine hash, an integer or bytes, into four words at `at`. */
  #hash(out: Uint32Array, at: number): void {
    const cursor = this.#cursor;
    out.fill(0, at, at + ENGINE_HASH_WORDS);
    if (cursor.kind() !== KIND.binary) {
      cursor.integer();
      out[at] = cursor.low;
      out[at + 1] = cursor.high;
      return;
    }
    const length = cursor.enter(KIND.binary);
    cursor.at += length;
    const bytes = Math.min(length, ENGINE_HASH_WORDS * 4);
    for (let i = 0; i < bytes; i += 1)
      out[at + (i >> 2)]! |= this.#payload[cursor.at - 1 - i]! << ((i & 3) * 8);
  }

  /** Offset of a field that must be there. */
  #at(field: number): number {
    const at = this.#fields[field]!;
    if (at === 0) throw new DecodeError(DECODE_FAULT.malformed);
    return at;
  }

  /** Goes to a field; false when it is absent or nil. */
  #goTo(field: number): boolean {
    const at = this.#fields[field]!;
    if (at === 0) return false;
    this.#cursor.at = at;
    return this.#cursor.kind() !== KIND.nil;
  }

  /** Reads a text; its index in `words`, or −1. */
  #word(words: WordTable): number {
    const length = this.#cursor.enter(KIND.text);
    const at = this.#cursor.at;
    this.#cursor.at += length;
    return words.find(this.#payload, at, length);
  }

  /** Reads the key of a map; −1 for one that is no text or not known. */
  #key(words: WordTable): number {
    if (this.#cursor.kind() === KIND.text) return this.#word(words);
    this.#cursor.skip();
    return -1;
  }
}
