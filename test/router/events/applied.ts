/** An applier over a new index with one holder, and events of one prompt, for the tests of the applier's rules. */
import { IndexApplier, type Residency } from '#millrace/router/events/applier.js';
import type { HolderFacts } from '#millrace/router/events/contract.js';
import { createEventDecoder } from '#millrace/router/events/decoder.js';
import { createHashers } from '#millrace/router/hashing/block-hasher.js';
import { createSimpleIndex } from '#millrace/router/index/simple-index.js';
import type { LogFields } from '#millrace/runtime/logger.js';
import { ids, packBatch, referenceHashers, type StoredEvent, type WireEvent } from './event-batches.js';

const decoder = await createEventDecoder();
export const hashers = await referenceHashers([
  ['', ''],
  ['lora', ''],
  ['', 'salt'],
  ['lora', 'salt'],
]);
export const FACTS: HolderFacts = {
  generation: 3,
  blockSize: 4,
  totalBlocks: null,
  hasEvents: true,
  name: 'http://w',
};
export const HOLDER = 7;

/** An applier over a new index, with one holder. */
export async function setUp(facts: Partial<HolderFacts> = {}) {
  const index = createSimpleIndex({ blocksMax: 100_000, predictionsMax: 1000 });
  const logged: { message: string; fields: LogFields | undefined }[] = [];
  const told: number[][] = [];
  const calls: unknown[][] = [];
  const residency: Residency = {
    add: (...args) => calls.push(['add', ...args]),
    remove: (...args) => calls.push(['remove', ...args]),
    route: ({ slot, blocks }, nowMs) => calls.push(['route', slot, blocks, nowMs]),
    tend: (...args) => calls.push(['tend', ...args]),
  };
  const sink = new IndexApplier({
    writer: index,
    decoder,
    hashers: await createHashers(null),
    residency,
    log: { warn: (message, fields) => logged.push({ message, fields }) },
    now: () => 1234,
    onBlockSize: (...args) => told.push(args),
  });
  sink.addHolder(HOLDER, { ...FACTS, ...facts });
  /** Depths over all tiers and on the device of a prompt. */
  const depths = (prompt: number[], adapter = '', salt = '', media: Uint32Array | null = null): number[] => {
    const blocks = Math.floor(prompt.length / 4);
    const hashes = new Uint32Array(blocks * 2);
    hashers.of(adapter, salt).hashAfter(null, Uint32Array.from(prompt), 0, blocks, 4, media, hashes);
    const out = new Uint32Array(2);
    index.lookup(hashes, blocks, Uint32Array.of(HOLDER), 1, out);
    return [...out];
  };
  const apply = (...events: WireEvent[]): void => sink.apply(HOLDER, packBatch(events));
  return { index, sink, logged, told, calls, depths, apply };
}

export const PROMPT = ids(1, 12);
/** Blocks `from` to `to` of PROMPT, by engine hashes 100 + block. */
export const store = (from: number, to: number, more: Partial<StoredEvent> = {}): StoredEvent => ({
  type: 'BlockStored',
  block_hashes: Array.from({ length: to - from }, (_, i) => 100 + from + i),
  parent_block_hash: from === 0 ? null : 99 + from,
  token_ids: PROMPT.slice(from * 4, to * 4),
  block_size: 4,
  ...more,
});
export const remove = (block: number, more: object = {}): WireEvent => ({
  type: 'BlockRemoved',
  block_hashes: [100 + block],
  ...more,
});
