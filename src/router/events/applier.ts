/**
 * Applies KV events to the prefix index (R4): decodes a batch, leaves out what the index does not keep, translates the
 * engine's name of the parent into our sequence hash, hashes the token ids of the blocks and writes. Lookups never
 * depend on how an engine hashes. It runs on the thread that owns the writer (ingest thread; without the addon the pool
 * thread) and owns what is remembered of the holders.
 */
import type { LogFields } from '../../runtime/logger.js';
import { HASH_WORDS, type Hashers } from '../hashing/block-hasher.js';
import type { Hash64 } from '../hashing/seeds.js';
import { ENGINE_HASH_WORDS, type PrefixIndexWriter, TIER, type Tier } from '../index/contract.js';
import { ANOMALY_TEXT, type Anomaly } from './anomalies.js';
import {
  type HolderFacts,
  type IndexSink,
  type RoutedPrompt,
  SINK_COUNTERS,
  type SinkCounts,
} from './contract.js';
import {
  DECODE_FAULT,
  EVENT_BLOCKS_MAX,
  EVENT_KIND,
  EVENT_MEDIA_WORDS,
  EVENT_ROW,
  EVENT_ROW_WORDS,
  EVENT_TIER,
  type EventDecoder,
} from './event-tables.js';
import { HolderMemory } from './holder-memory.js';
import { RepeatedHash, sameHash } from './repeated-hash.js';

/** Index entries that one `tend` looks at to give back memory: well below a millisecond of work. */
const SWEEP_STEPS = 8192;

/** Guesses what holders without events have from the requests that are sent to them. */
export interface Residency {
  /** Begins to guess for a holder of that many blocks; null: it does not say. */
  add(holder: number, totalBlocks: number | null): void;
  /** Forgets a holder. */
  remove(holder: number): void;
  /** A request was sent to a holder. `nowMs` is monotonic. */
  route(prompt: RoutedPrompt, nowMs: number): void;
  /** Drops what is too old. */
  tend(nowMs: number): void;
}

/** What an applier needs. */
export interface IndexApplierOptions {
  readonly writer: PrefixIndexWriter;
  readonly decoder: EventDecoder;
  readonly hashers: Hashers;
  readonly residency: Residency;
  readonly log: { warn(message: string, fields?: LogFields): void };
  /** Monotonic milliseconds of the process. */
  readonly now: () => number;
  /** The first store of a holder whose block size was not known said it. */
  readonly onBlockSize: (holder: number, blockSize: number) => void;
}

/** The sink that writes the index; see IndexSink. */
export class IndexApplier implements IndexSink {
  /** Since the start. */
  readonly counters = Object.fromEntries(SINK_COUNTERS.map(name => [name, 0])) as SinkCounts;
  readonly #options: IndexApplierOptions;
  readonly #holders = new Map<number, HolderMemory>();
  readonly #repeated = new RepeatedHash();
  readonly #hashes = new Uint32Array(EVENT_BLOCKS_MAX * HASH_WORDS);
  readonly #parent = new Uint32Array(HASH_WORDS);

  constructor(options: IndexApplierOptions) {
    this.#options = options;
  }

  addHolder(holder: number, facts: HolderFacts): void {
    const { writer, residency } = this.#options;
    if (this.#holders.get(holder)?.facts.hasEvents === false) residency.remove(holder);
    this.#holders.set(holder, new HolderMemory(facts));
    if (!writer.addHolder(holder)) writer.clear(holder);
    if (!facts.hasEvents) residency.add(holder, facts.totalBlocks);
  }

  removeHolder(holder: number): void {
    const memory = this.#holders.get(holder);
    if (memory === undefined) return;
    if (!memory.facts.hasEvents) this.#options.residency.remove(holder);
    this.#holders.delete(holder);
    this.#options.writer.removeHolder(holder);
  }

  clear(holder: number): void {
    const memory = this.#holders.get(holder);
    if (memory === undefined) return;
    memory.clear();
    this.#options.writer.clear(holder);
    if (memory.facts.hasEvents) return;
    this.#options.residency.remove(holder);
    this.#options.residency.add(holder, memory.facts.totalBlocks);
  }

  /** Batches of holders that are not known, or have no events, are dropped: their source is on its way out. */
  apply(holder: number, payload: Uint8Array): void {
    const memory = this.#holders.get(holder);
    if (memory === undefined || !memory.facts.hasEvents) return;
    const rows = this.#options.decoder.decode(payload);
    if (rows < 0) {
      // Removals may have been among them: what is left could be too much, and too much must not be.
      this.#count(holder, memory, rows === DECODE_FAULT.oversized ? 'oversized' : 'malformed');
      this.clear(holder);
      return;
    }
    this.counters.batches += 1;
    for (let row = 0; row < rows; row += 1) {
      const anomaly = this.#event(holder, memory, row, payload);
      if (anomaly === null) this.counters.events += 1;
      else this.#count(holder, memory, anomaly);
    }
  }

  route(prompt: RoutedPrompt): void {
    const { slot, generation, hashes, blocks, cachedBlocks, expiresMs } = prompt;
    const facts = this.#holders.get(slot)?.facts;
    if (facts?.generation !== generation) return;
    if (facts.hasEvents) this.#options.writer.predict(slot, hashes, cachedBlocks, blocks, expiresMs);
    else this.#options.residency.route(prompt, this.#options.now());
  }

  tend(nowMs: number): void {
    const { writer, residency } = this.#options;
    writer.expire(nowMs);
    writer.sweep(SWEEP_STEPS);
    residency.tend(nowMs);
  }

  /** Applies one row of the decoder's tables; returns why it was ignored, or null. */
  #event(holder: number, memory: HolderMemory, row: number, payload: Uint8Array): Anomaly | null {
    const kind = this.#word(row, EVENT_ROW.kind);
    if (kind === EVENT_KIND.unknown) return 'unknownEvent';
    if (kind === EVENT_KIND.clear) {
      this.counters.clears += 1;
      this.clear(holder);
      return null;
    }
    const groupKind = this.#word(row, EVENT_ROW.groupKind);
    const group = this.#word(row, EVENT_ROW.group);
    if (kind === EVENT_KIND.store) memory.learnGroup(group, groupKind);
    const tier = tierOf(this.#word(row, EVENT_ROW.tier));
    if (tier === null) return 'unknownTier';
    if (!memory.countsGroup(group, groupKind)) return 'otherGroup';
    if (kind === EVENT_KIND.remove) {
      this.#remove(holder, row, tier);
      return null;
    }
    return this.#storeAnomaly(holder, memory, row, tier) ?? this.#store(holder, memory, row, tier, payload);
  }

  #remove(holder: number, row: number, tier: Tier): void {
    const blocks = this.#word(row, EVENT_ROW.blocks);
    this.#options.writer.removeEngine(holder, this.#engineHashes(row), blocks, tier);
    this.counters.removedBlocks += blocks;
  }

  /**
   * Why a store cannot be applied, as far as its own words and the holder tell; learns the block size. Stores that the
   * decoder joined are judged as one: what continues a store with a repeated block goes with it.
   */
  #storeAnomaly(holder: number, memory: HolderMemory, row: number, tier: Tier): Anomaly | null {
    const blocks = this.#word(row, EVENT_ROW.blocks);
    const blockSize = this.#word(row, EVENT_ROW.blockSize);
    const ids = blocks * blockSize + this.#word(row, EVENT_ROW.isBigram);
    if (this.#word(row, EVENT_ROW.tokens) !== ids) return 'tokenCountMismatch';
    // Connectors may store larger blocks than the engine: only what lies on the device tells its block size.
    const isTold = memory.blockSize === null && tier === TIER.device;
    if (!isTold && memory.blockSize !== blockSize) return 'blockSizeMismatch';
    if (this.#word(row, EVENT_ROW.hasAdapterId) === 1) return 'unnamedAdapter';
    const hashes = this.#engineHashes(row);
    const { parents } = this.#options.decoder.tables;
    const hasParent = this.#word(row, EVENT_ROW.hasParent) === 1;
    for (let i = 0; hasParent && i < blocks; i += 1)
      if (sameHash(parents, row, hashes, i)) return 'selfParent';
    if (this.#repeated.find(hashes, blocks)) return 'selfParent';
    if (isTold && blocks > 0) {
      memory.blockSize = blockSize;
      this.#options.onBlockSize(holder, blockSize);
    }
    return null;
  }

  #store(holder: number, memory: HolderMemory, row: number, tier: Tier, payload: Uint8Array): Anomaly | null {
    const { writer, decoder, hashers } = this.#options;
    const { parents, tokens } = decoder.tables;
    const blocks = this.#word(row, EVENT_ROW.blocks);
    if (blocks === 0) return null;
    let parent: Hash64 | null = null;
    let salt = this.#text(payload, row, EVENT_ROW.saltAt, EVENT_ROW.saltBytes);
    if (this.#word(row, EVENT_ROW.hasParent) === 1) {
      const parentName = parents.subarray(row * ENGINE_HASH_WORDS, (row + 1) * ENGINE_HASH_WORDS);
      if (writer.translate(holder, parentName, 1, this.#parent) !== 1) return 'orphans';
      parent = { low: this.#parent[0]!, high: this.#parent[1]! };
      if (salt === '') salt = memory.saltOf(parentName, 0);
    }
    const engineHashes = this.#engineHashes(row);
    if (salt !== '') memory.learnSalt(engineHashes, blocks, salt);
    const adapter = this.#text(payload, row, EVENT_ROW.adapterAt, EVENT_ROW.adapterBytes);
    // Of an EAGLE window the first blockSize ids are hashed. Its KV depends on the id after them too, so the last block
    // that a prompt has in common with it may count although the engine computes it again: one block at most.
    hashers
      .of(adapter, salt)
      .hashAfter(
        parent,
        tokens,
        this.#word(row, EVENT_ROW.firstToken),
        blocks,
        this.#word(row, EVENT_ROW.blockSize),
        this.#media(row),
        this.#hashes,
      );
    writer.store(holder, parent, this.#hashes, blocks, tier, engineHashes);
    this.counters.storedBlocks += blocks;
    return null;
  }

  #media(row: number): Uint32Array | null {
    const count = this.#word(row, EVENT_ROW.media);
    if (count === 0) return null;
    const at = this.#word(row, EVENT_ROW.firstMedia) * EVENT_MEDIA_WORDS;
    return this.#options.decoder.tables.media.subarray(at, at + count * EVENT_MEDIA_WORDS);
  }

  #engineHashes(row: number): Uint32Array {
    const at = this.#word(row, EVENT_ROW.firstBlock);
    const end = at + this.#word(row, EVENT_ROW.blocks);
    return this.#options.decoder.tables.hashes.subarray(at * ENGINE_HASH_WORDS, end * ENGINE_HASH_WORDS);
  }

  #text(payload: Uint8Array, row: number, atColumn: number, bytesColumn: number): string {
    const bytes = this.#word(row, bytesColumn);
    if (bytes === 0) return '';
    const at = payload.byteOffset + this.#word(row, atColumn);
    return Buffer.from(payload.buffer, at, bytes).toString();
  }

  #word(row: number, column: number): number {
    return this.#options.decoder.tables.rows[row * EVENT_ROW_WORDS + column]!;
  }

  #count(holder: number, memory: HolderMemory, anomaly: Anomaly): void {
    this.counters[anomaly] += 1;
    if (memory.logged.has(anomaly)) return;
    memory.logged.add(anomaly);
    this.#options.log.warn(ANOMALY_TEXT[anomaly], {
      worker: memory.facts.name,
      holder,
      anomaly,
      blockSize: memory.blockSize,
    });
  }
}

/** The index's tier; null for those that it does not keep. */
function tierOf(eventTier: number): Tier | null {
  if (eventTier === EVENT_TIER.device) return TIER.device;
  if (eventTier === EVENT_TIER.host) return TIER.host;
  return eventTier === EVENT_TIER.disk ? TIER.disk : null;
}
