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

/** In the order of their positions behind the tag. */
const STORE_FIELDS = [
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
type Field = (typeof STORE_FIELDS)[number];
const REMOVE_FIELDS: readonly Field[] = ['block_hashes', 'medium', 'group_idx'];

interface EventForm {
  readonly kind: number;
  readonly fields: readonly Field[];
  readonly names: WordTable;
}
const form = (kind: number, fields: readonly Field[]): EventForm => ({
  kind,
  fields,
  names: new WordTable(fields),
});
const TAGS = new WordTable(['BlockStored', 'BlockRemoved', 'AllBlocksCleared']);
const FORMS = [
  form(EVENT_KIND.store, STORE_FIELDS),
  form(EVENT_KIND.remove, REMOVE_FIELDS),
  form(EVENT_KIND.clear, []),
];
const UNKNOWN_FORM = form(EVENT_KIND.unknown, []);
const TYPE = new WordTable(['type']);
const EVENTS = new WordTable(['events']);

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
const MEDIUM_TIERS: readonly number[] = Object.values(MEDIA);
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
  /** The event in hand, before it becomes a row; where its extra keys are, and whether it has what it must have. */
  readonly #row = new Int32Array(EVENT_ROW_WORDS);
  readonly #parent = new Uint32Array(ENGINE_HASH_WORDS);
  #extraKeysAt = 0;
  #hasHashes = false;
  #hasTokens = false;
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
    try {
      this.#batch();
      return this.#rows;
    } catch (error) {
      if (error instanceof DecodeError) return error.fault;
      throw error;
    }
  }

  /** `[ts, events, …]` or `{events: …}`. */
  #batch(): void {
    const cursor = this.#cursor;
    let found = false;
    cursor.next();
    const { kind, size } = cursor;
    if (kind === KIND.array && size >= 2) {
      cursor.skip();
      this.#events();
      cursor.skip(size - 2);
      found = true;
    } else if (kind === KIND.map) {
      for (let entries = size; entries > 0; entries -= 1) {
        if (cursor.key(EVENTS) < 0) cursor.skip();
        else {
          this.#events();
          found = true;
        }
      }
    }
    if (!found || !cursor.isAtEnd) throw new DecodeError(DECODE_FAULT.malformed);
  }

  /** Reads the list of events into the tables, from their beginning. */
  #events(): void {
    this.#rows = 0;
    this.#blocks = 0;
    this.#tokens = 0;
    this.#extraKeys.open(this.#payload);
    for (let events = this.#cursor.expect(KIND.array); events > 0; events -= 1) this.#event();
  }

  #event(): void {
    const cursor = this.#cursor;
    cursor.next();
    const { kind, size } = cursor;
    if (kind !== KIND.map && kind !== KIND.array) throw new DecodeError(DECODE_FAULT.malformed);
    const { kind: rowKind, fields, names } = kind === KIND.map ? this.#typeOf(size) : this.#tagOf(size);
    this.#row.fill(0);
    this.#parent.fill(0);
    this.#row[EVENT_ROW.kind] = rowKind;
    this.#row[EVENT_ROW.group] = -1;
    this.#row[EVENT_ROW.firstBlock] = this.#blocks;
    this.#row[EVENT_ROW.firstToken] = this.#tokens;
    this.#row[EVENT_ROW.firstMedia] = this.#extraKeys.mediaCount;
    this.#extraKeysAt = 0;
    this.#hasHashes = false;
    this.#hasTokens = false;
    if (kind === KIND.map) for (let i = 0; i < size; i += 1) this.#field(fields[cursor.key(names)]);
    else for (let i = 1; i < size; i += 1) this.#field(fields[i - 1]);
    this.#finish();
  }

  /** Form of an event that is an array, by its first element, which is read. */
  #tagOf(elements: number): EventForm {
    if (elements === 0) throw new DecodeError(DECODE_FAULT.malformed);
    this.#cursor.expect(KIND.text);
    return FORMS[this.#cursor.find(TAGS)] ?? UNKNOWN_FORM;
  }

  /** Form of an event that is a map, by its `type`, which may be anywhere; nothing is read. */
  #typeOf(entries: number): EventForm {
    const cursor = this.#cursor;
    const start = cursor.at;
    for (let i = 0; i < entries; i += 1) {
      if (cursor.key(TYPE) < 0) {
        cursor.skip();
        continue;
      }
      cursor.expect(KIND.text);
      cursor.at = start;
      return FORMS[cursor.find(TAGS)] ?? UNKNOWN_FORM;
    }
    throw new DecodeError(DECODE_FAULT.malformed);
  }

  #field(field: Field | undefined): void {
    const cursor = this.#cursor;
    const row = this.#row;
    switch (field) {
      case 'block_hashes':
        this.#blockHashes();
        return;
      case 'parent_block_hash':
        row[EVENT_ROW.hasParent] = cursor.skipNil() ? 0 : 1;
        if (row[EVENT_ROW.hasParent] === 1) this.#hash(this.#parent, 0);
        return;
      case 'token_ids':
        this.#tokenIds();
        return;
      case 'block_size':
        row[EVENT_ROW.blockSize] = cursor.number(1);
        return;
      case 'lora_id':
        row[EVENT_ROW.hasAdapterId] = cursor.skipNil() ? 0 : 1;
        if (row[EVENT_ROW.hasAdapterId] === 1) cursor.expect(KIND.integer);
        return;
      case 'medium':
        row[EVENT_ROW.tier] = EVENT_TIER.device;
        if (cursor.text())
          row[EVENT_ROW.tier] = MEDIUM_TIERS[cursor.find(MEDIUM_NAMES)] ?? EVENT_TIER.unknown;
        return;
      case 'lora_name': {
        const bytes = cursor.text() ? cursor.size : 0;
        row[EVENT_ROW.adapterAt] = bytes === 0 ? 0 : cursor.start;
        row[EVENT_ROW.adapterBytes] = bytes;
        return;
      }
      case 'extra_keys':
        // Read at the end, when the adapter is known, whose name is among them.
        this.#extraKeysAt = cursor.at;
        cursor.skip();
        return;
      case 'group_idx':
        row[EVENT_ROW.group] = cursor.skipNil() ? -1 : cursor.number(0);
        return;
      case 'kv_cache_spec_kind':
        row[EVENT_ROW.groupKind] = EVENT_GROUP.unsaid;
        if (cursor.text())
          row[EVENT_ROW.groupKind] = cursor.find(FULL_GROUPS) < 0 ? EVENT_GROUP.other : EVENT_GROUP.full;
        return;
      default:
        cursor.skip();
    }
  }

  #blockHashes(): void {
    const blocks = this.#cursor.expect(KIND.array);
    if (blocks > EVENT_BLOCKS_MAX - this.#blocks) throw new DecodeError(DECODE_FAULT.oversized);
    for (let i = 0; i < blocks; i += 1)
      this.#hash(this.tables.hashes, (this.#blocks + i) * ENGINE_HASH_WORDS);
    this.#row[EVENT_ROW.blocks] = blocks;
    this.#hasHashes = true;
  }

  /** Reads flat ids, or the pairs `[t(i), t(i+1)]` of an EAGLE engine as the ids that they were made of. */
  #tokenIds(): void {
    const { tokens } = this.tables;
    const cursor = this.#cursor;
    const count = cursor.expect(KIND.array);
    const start = cursor.at;
    if (count > 0) cursor.next();
    const isBigram = count > 0 && cursor.kind === KIND.array;
    cursor.at = start;
    const ids = isBigram ? count + 1 : count;
    if (ids > EVENT_TOKENS_MAX - this.#tokens) throw new DecodeError(DECODE_FAULT.oversized);
    this.#row[EVENT_ROW.tokens] = ids;
    this.#row[EVENT_ROW.isBigram] = isBigram ? 1 : 0;
    this.#hasTokens = true;
    const end = this.#tokens + count;
    if (!isBigram) {
      for (let i = this.#tokens; i < end; i += 1) tokens[i] = cursor.word();
      return;
    }
    for (let i = this.#tokens; i < end; i += 1) {
      if (cursor.expect(KIND.array) !== 2) throw new DecodeError(DECODE_FAULT.malformed);
      tokens[i] = cursor.word();
      // The second id of a pair is the first of the next one; that of the last pair stays.
      tokens[i + 1] = cursor.word();
    }
  }

  /** Reads an engine hash, an integer or bytes, into four words at `at`. */
  #hash(out: Uint32Array, at: number): void {
    const cursor = this.#cursor;
    cursor.next();
    out.fill(0, at, at + ENGINE_HASH_WORDS);
    if (cursor.kind === KIND.integer) {
      out[at] = cursor.low;
      out[at + 1] = cursor.high;
      return;
    }
    if (cursor.kind !== KIND.binary || cursor.size === 0) throw new DecodeError(DECODE_FAULT.malformed);
    const last = cursor.start + cursor.size - 1;
    const bytes = Math.min(cursor.size, ENGINE_HASH_WORDS * 4);
    for (let i = 0; i < bytes; i += 1) out[at + (i >> 2)]! |= this.#payload[last - i]! << ((i & 3) * 8);
  }

  /** Checks that the event is whole and puts it into the rows. */
  #finish(): void {
    const row = this.#row;
    const isStore = row[EVENT_ROW.kind] === EVENT_KIND.store;
    const mustHaveHashes = isStore || row[EVENT_ROW.kind] === EVENT_KIND.remove;
    const isWhole =
      (this.#hasHashes || !mustHaveHashes) &&
      (!isStore || (this.#hasTokens && row[EVENT_ROW.blockSize] !== 0));
    if (!isWhole) throw new DecodeError(DECODE_FAULT.malformed);
    if (row[EVENT_ROW.adapterBytes] !== 0) row[EVENT_ROW.hasAdapterId] = 0;
    if (this.#extraKeysAt !== 0) this.#readExtraKeys();
    if (!this.#merge()) {
      if (this.#rows === EVENT_ROWS_MAX) throw new DecodeError(DECODE_FAULT.oversized);
      this.tables.rows.set(row, this.#rows * EVENT_ROW_WORDS);
      this.tables.parents.set(this.#parent, this.#rows * ENGINE_HASH_WORDS);
      this.#rows += 1;
    }
    this.#blocks += row[EVENT_ROW.blocks]!;
    this.#tokens += row[EVENT_ROW.tokens]!;
  }

  #readExtraKeys(): void {
    const row = this.#row;
    const cursor = this.#cursor;
    const extraKeys = this.#extraKeys;
    const end = cursor.at;
    cursor.at = this.#extraKeysAt;
    if (!cursor.skipNil()) {
      extraKeys.begin(row[EVENT_ROW.adapterAt]!, row[EVENT_ROW.adapterBytes]!);
      extraKeys.read(row[EVENT_ROW.blocks]!);
      row[EVENT_ROW.saltAt] = extraKeys.saltAt;
      row[EVENT_ROW.saltBytes] = extraKeys.saltBytes;
      row[EVENT_ROW.media] = extraKeys.mediaCount - row[EVENT_ROW.firstMedia]!;
    }
    cursor.at = end;
  }

  /** Joins the store in hand with the last row where it continues that one; false when it does not. */
  #merge(): boolean {
    const row = this.#row;
    if (this.#rows === 0 || row[EVENT_ROW.hasParent] !== 1) return false;
    const { rows, hashes } = this.tables;
    const at = (this.#rows - 1) * EVENT_ROW_WORDS;
    for (const column of MERGE_EQUAL) if (rows[at + column] !== row[column]) return false;
    for (const column of MERGE_ZERO) if (rows[at + column] !== 0 || row[column] !== 0) return false;
    if (!isFull(row, 0) || !isFull(rows, at)) return false;
    const last = (this.#blocks - 1) * ENGINE_HASH_WORDS;
    for (let i = 0; i < ENGINE_HASH_WORDS; i += 1) if (this.#parent[i] !== hashes[last + i]) return false;
    const adapterAt = row[EVENT_ROW.adapterAt]!;
    const lastAdapterAt = rows[at + EVENT_ROW.adapterAt]!;
    if (!sameBytes(this.#payload, adapterAt, this.#payload, lastAdapterAt, row[EVENT_ROW.adapterBytes]!))
      return false;
    rows[at + EVENT_ROW.blocks]! += row[EVENT_ROW.blocks]!;
    rows[at + EVENT_ROW.tokens]! += row[EVENT_ROW.tokens]!;
    return true;
  }
}

/** Whether a row has blocks, all of them full: of two stores, one must not make up for the other. */
function isFull(rows: Int32Array, at: number): boolean {
  const blocks = rows[at + EVENT_ROW.blocks]!;
  return blocks > 0 && rows[at + EVENT_ROW.tokens] === blocks * rows[at + EVENT_ROW.blockSize]!;
}
