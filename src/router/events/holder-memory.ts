/**
 * What the applier remembers of one holder besides its blocks (R4, thread of the sink): its facts, which of its KV cache
 * groups count, and which blocks belong to salted sequences. An engine names the salt only with the first block of a
 * sequence and the kind of a group only in stores; later stores and removals must be read with what was said before.
 */
import { ENGINE_HASH_WORDS } from '../index/contract.js';
import type { HolderFacts, SinkCounter } from './contract.js';
import { EVENT_GROUP } from './event-tables.js';

/** Most salted blocks remembered per holder; the oldest go. */
const SALTED_BLOCKS_MAX = 16_384;
/** Longer salts are not remembered: what continues them is hashed without, and so is never found. */
const SALT_LENGTH_MAX = 1024;
/** Most KV cache groups of a holder whose kind is remembered; models have a handful. */
const GROUPS_MAX = 256;

/** One holder; belongs to one applier. */
export class HolderMemory {
  readonly facts: HolderFacts;
  /** Tokens per block; null until known. */
  blockSize: number | null;
  /** Anomalies that were logged. */
  readonly logged = new Set<SinkCounter>();
  /** EVENT_GROUP by group number. */
  readonly #groups = new Map<number, number>();
  /** Salt by engine hash. */
  readonly #salts = new Map<string, string>();

  constructor(facts: HolderFacts) {
    this.facts = facts;
    this.blockSize = facts.blockSize;
  }

  /**
   * Forgets what hung on the blocks. The block size that the first store said goes too, since an engine that began anew
   * may have another one; the kinds of the groups stay, because stores say them again and removals need them.
   */
  clear(): void {
    this.blockSize = this.facts.blockSize;
    this.#salts.clear();
  }

  /** Notes the kind of a group, as a store says it. */
  learnGroup(group: number, groupKind: number): void {
    if (group < 0 || groupKind === EVENT_GROUP.unsaid) return;
    if (this.#groups.size < GROUPS_MAX || this.#groups.has(group)) this.#groups.set(group, groupKind);
  }

  /** Whether blocks of a group count. Without a kind, said now or before, only the first group does. */
  countsGroup(group: number, groupKind: number): boolean {
    const known = groupKind === EVENT_GROUP.unsaid ? this.#groups.get(group) : groupKind;
    return known === undefined ? group <= 0 : known === EVENT_GROUP.full;
  }

  /** The salt of the sequence that a block belongs to; '' for none. */
  saltOf(engineHashes: Uint32Array, block: number): string {
    return this.#salts.size === 0 ? '' : (this.#salts.get(nameOf(engineHashes, block)) ?? '');
  }

  /** Notes that `count` blocks belong to a salted sequence; any of them may be the parent of a later store. */
  learnSalt(engineHashes: Uint32Array, count: number, salt: string): void {
    if (salt.length > SALT_LENGTH_MAX) return;
    for (let block = 0; block < count; block += 1) {
      const name = nameOf(engineHashes, block);
      this.#salts.delete(name);
      this.#salts.set(name, salt);
      if (this.#salts.size > SALTED_BLOCKS_MAX) this.#salts.delete(this.#salts.keys().next().value!);
    }
  }
}

function nameOf(engineHashes: Uint32Array, block: number): string {
  const at = block * ENGINE_HASH_WORDS;
  return `${engineHashes[at]},${engineHashes[at + 1]},${engineHashes[at + 2]},${engineHashes[at + 3]}`;
}
