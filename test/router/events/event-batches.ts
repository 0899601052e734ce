/**
 * Event batches as engines pack them, for the tests of decoder and applier; packed by msgpackr, which shares nothing with
 * the decoder under test. Events are written with the field names of the engine and packed as maps or arrays.
 */
import { createXXHash3, type IHasher } from 'hash-wasm';
import { Packr } from 'msgpackr';
import { EVENT_MEDIA_WORDS } from '#millrace/router/events/event-tables.js';
import type { BlockHasher } from '#millrace/router/hashing/block-hasher.js';

const packr = new Packr({ useRecords: false, variableMapSize: true, encodeUndefinedAsNil: true });

export interface StoredEvent {
  type: 'BlockStored';
  block_hashes: unknown;
  parent_block_hash?: unknown;
  token_ids: unknown;
  block_size: unknown;
  lora_id?: unknown;
  medium?: unknown;
  lora_name?: unknown;
  extra_keys?: unknown;
  group_idx?: unknown;
  kv_cache_spec_kind?: unknown;
}
export interface RemovedEvent {
  type: 'BlockRemoved';
  block_hashes: unknown;
  medium?: unknown;
  group_idx?: unknown;
}
export type WireEvent = StoredEvent | RemovedEvent | { type: 'AllBlocksCleared' } | { type: 'Other' };

const STORED = [
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
];
const POSITIONS: Readonly<Record<string, readonly string[]>> = {
  BlockStored: STORED,
  BlockRemoved: ['type', 'block_hashes', 'medium', 'group_idx'],
};

/** The array form: trailing fields that are absent are left out. */
export function asArray(event: WireEvent): unknown[] {
  const values = (POSITIONS[event.type] ?? ['type']).map(
    name => (event as unknown as Record<string, unknown>)[name],
  );
  while (values.at(-1) === undefined) values.pop();
  return values.map(value => value ?? null);
}

export const pack = (value: unknown): Uint8Array => packr.pack(value);

export type Form = 'arrays' | 'mapEvents' | 'maps';
export const FORMS: readonly Form[] = ['arrays', 'mapEvents', 'maps'];

/** A whole batch in one of the forms that are in the field. */
export function packBatch(events: readonly WireEvent[], form: Form = 'arrays'): Uint8Array {
  const packed = form === 'arrays' ? events.map(asArray) : events;
  return pack(form === 'maps' ? { ts: 1.5, events: packed, data_parallel_rank: 0 } : [1.5, packed, 0]);
}

/** `count` ids, different for every `from`. */
export const ids = (from: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => from * 7 + i);

/** The wire forms of an engine hash: as vLLM and SGLang have it by default, and whole digests. */
export type HashForm = 'unsigned' | 'signed' | 'bytes';
export function hashAs(hash: bigint, form: HashForm): bigint | Buffer {
  if (form === 'unsigned') return BigInt.asUintN(64, hash);
  if (form === 'signed') return BigInt.asIntN(64, hash);
  const digest = Buffer.alloc(32, 0xab);
  digest.writeBigUInt64BE(BigInt.asUintN(64, hash), 24);
  return digest;
}

const digestOf = (hasher: IHasher, bytes: Uint8Array): bigint =>
  Buffer.from(hasher.init().update(bytes).digest('binary')).readBigUInt64BE();

/** Of hashers, what appliers use. */
export interface ReferenceHashers {
  of(adapter: string, salt: string): Pick<BlockHasher, 'hashAfter'>;
}

/** Hashers made of the formulas of kv-routing and nothing else, for the identities that a test names. */
export async function referenceHashers(
  identities: readonly [adapter: string, salt: string][],
): Promise<ReferenceHashers> {
  const chain = await createXXHash3(1337);
  const forAdapters = await createXXHash3(0);
  const forSalts = await createXXHash3(1);
  const hashers = new Map<string, IHasher>();
  for (const [adapter, salt] of identities) {
    let seed = 1337n;
    if (adapter !== '') seed += digestOf(forAdapters, Buffer.from(adapter));
    if (salt !== '') seed += digestOf(forSalts, Buffer.from(salt));
    const [low, high] = [Number(seed & 0xffff_ffffn), Number(BigInt.asUintN(64, seed) >> 32n)];
    hashers.set(`${adapter}|${salt}`, await createXXHash3(low, high));
  }
  return {
    of(adapter, salt) {
      const hasher = hashers.get(`${adapter}|${salt}`);
      if (hasher === undefined) throw new Error(`no hasher for adapter '${adapter}', salt '${salt}'`);
      return {
        hashAfter(parent, tokens, from, blocks, blockSize, media, out) {
          let before = parent === null ? null : (BigInt(parent.high) << 32n) | BigInt(parent.low);
          for (let block = 0; block < blocks; block += 1) {
            const local = digestOf(
              hasher,
              blockBytes(tokens, from + block * blockSize, blockSize, media, block),
            );
            const link = Buffer.alloc(16);
            link.writeBigUInt64LE(before ?? 0n);
            link.writeBigUInt64LE(local, 8);
            before = before === null ? local : digestOf(chain, link);
            out[block * 2] = Number(before & 0xffff_ffffn);
            out[block * 2 + 1] = Number(before >> 32n);
          }
        },
      };
    },
  };
}

function blockBytes(
  tokens: Uint32Array,
  from: number,
  count: number,
  media: Uint32Array | null,
  block: number,
): Buffer {
  const hashes: bigint[] = [];
  for (let i = 0; media !== null && i < media.length; i += EVENT_MEDIA_WORDS)
    if (media[i] === block) hashes.push((BigInt(media[i + 2]!) << 32n) | BigInt(media[i + 1]!));
  hashes.sort((a, b) => (a < b ? -1 : 1));
  const bytes = Buffer.alloc(count * 4 + hashes.length * 8);
  for (let i = 0; i < count; i += 1) bytes.writeUInt32LE(tokens[from + i]!, i * 4);
  hashes.forEach((hash, i) => {
    bytes.writeBigUInt64LE(hash, count * 4 + i * 8);
  });
  return bytes;
}
