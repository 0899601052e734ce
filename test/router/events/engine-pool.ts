/**
 * A mock of an engine's block pool and the naive model of what its events mean, for the oracle test of the applier. Blocks
 * are named by their path from the root (`identity/symbol/symbol/…`), so that the model needs no hash at all.
 */
import { createHash } from 'node:crypto';
import { type Random, randomInteger } from '#millrace/runtime/random.js';
import {
  FORMS,
  type Form,
  type HashForm,
  hashAs,
  packBatch,
  type StoredEvent,
  type WireEvent,
} from './event-batches.js';

export const BLOCK_SIZE = 4;
export const DEPTH_MAX = 8;
export const IDENTITIES: readonly [adapter: string, salt: string][] = [
  ['', ''],
  ['lora', ''],
  ['', 'salt'],
  ['lora', 'salt'],
];
/** Wire names of each tier; [tier][i]. */
const MEDIA = [[undefined, 'GPU'], ['CPU', 'CPU_PINNED', 'CPU_TIER1'], ['DISK']] as const;
const DEVICE = 0;

/** A prompt: an identity and what its blocks are made of; few symbols, so that prompts share beginnings. */
export interface Prompt {
  readonly identity: number;
  readonly symbols: readonly number[];
}

export function randomPrompt(random: Random): Prompt {
  const length = 1 + randomInteger(random, DEPTH_MAX);
  return {
    identity: randomInteger(random, IDENTITIES.length),
    symbols: Array.from({ length }, () => randomInteger(random, 2)),
  };
}

export const idsOf = (symbols: readonly number[]): number[] =>
  symbols.flatMap(symbol => Array.from({ length: BLOCK_SIZE }, (_, i) => symbol * 100_000 + i));

const keyOf = ({ identity, symbols }: Prompt, blocks: number): string =>
  [identity, ...symbols.slice(0, blocks)].join('/');

/** One engine: makes batches, and knows what they leave. */
export class EnginePool {
  readonly #random: Random;
  readonly #hashForms: readonly HashForm[];
  readonly #seed: number;
  /** Tiers by key. */
  readonly #held = new Map<string, Set<number>>();
  /** What happened, to prove that all kinds did. */
  readonly seen = { merged: 0, continued: 0, removed: 0, cleared: 0, ignored: 0, damaged: 0 };

  constructor(random: Random, hashForms: readonly HashForm[], seed: number) {
    this.#random = random;
    this.#hashForms = hashForms;
    this.#seed = seed;
  }

  /** The next batch as bytes; sometimes one that cannot be read, which empties the pool in the index's eyes. */
  batch(): Uint8Array {
    const form: Form = this.#pick(FORMS);
    const events: WireEvent[] = [];
    for (let steps = 1 + randomInteger(this.#random, 5); steps > 0; steps -= 1) events.push(...this.#step());
    const payload = packBatch(events, form);
    if (this.#random() > 0.02) return payload;
    this.seen.damaged += 1;
    this.#held.clear();
    return payload.subarray(0, randomInteger(this.#random, payload.length));
  }

  /** Leading blocks of a prompt that are held: in any tier, and on the device. */
  depths(prompt: Prompt): [number, number] {
    const depth = (isHeld: (tiers: Set<number> | undefined) => boolean): number => {
      let blocks = 0;
      while (blocks < prompt.symbols.length && isHeld(this.#held.get(keyOf(prompt, blocks + 1)))) blocks += 1;
      return blocks;
    };
    return [depth(tiers => tiers !== undefined), depth(tiers => tiers?.has(DEVICE) === true)];
  }

  #step(): WireEvent[] {
    const dice = this.#random();
    if (dice < 0.55) return this.#admit(randomPrompt(this.#random));
    if (dice < 0.85) return this.#evict();
    if (dice < 0.99) return this.#ignored();
    this.#held.clear();
    this.seen.cleared += 1;
    return [{ type: 'AllBlocksCleared' }];
  }

  /** A prompt finds its leading blocks somewhere and has the others stored; sometimes all of it, in another tier. */
  #admit(prompt: Prompt): WireEvent[] {
    const isCopy = this.#random() < 0.3;
    const tier = isCopy ? randomInteger(this.#random, MEDIA.length) : DEVICE;
    const from = isCopy ? 0 : this.depths(prompt)[0];
    const to = prompt.symbols.length;
    for (let block = from; block < to; block += 1) this.#tiersOf(keyOf(prompt, block + 1)).add(tier);
    if (from > 0) this.seen.continued += 1;
    const events: WireEvent[] = [];
    const page = this.#random() < 0.5 ? 1 : to;
    for (let at = from; at < to; at += page)
      events.push(this.#stored(prompt, at, Math.min(to, at + page), tier));
    if (events.length > 1) this.seen.merged += 1;
    return events;
  }

  #stored(prompt: Prompt, from: number, to: number, tier: number): StoredEvent {
    const [adapter, salt] = IDENTITIES[prompt.identity]!;
    const texts = [adapter, from === 0 ? salt : ''].filter(text => text !== '');
    const flat = idsOf(prompt.symbols.slice(from, to));
    const isBigram = this.#random() < 0.1;
    return {
      type: 'BlockStored',
      block_hashes: Array.from({ length: to - from }, (_, i) => this.#hash(keyOf(prompt, from + i + 1))),
      parent_block_hash: from === 0 ? null : this.#hash(keyOf(prompt, from)),
      token_ids: isBigram ? flat.map((id, i) => [id, flat[i + 1] ?? 77]) : flat,
      block_size: BLOCK_SIZE,
      medium: this.#pick(MEDIA[tier]!),
      ...(adapter === '' ? {} : { lora_name: adapter, lora_id: 1 }),
      ...(texts.length === 0 ? {} : { extra_keys: [texts, ...Array(to - from - 1).fill(null)] }),
    };
  }

  /** Some blocks leave a tier, wherever they lie in their chains; some removals name what is not there. */
  #evict(): WireEvent[] {
    const tier = randomInteger(this.#random, MEDIA.length);
    const gone = [...this.#held].filter(([, tiers]) => tiers.has(tier) && this.#random() < 0.15);
    for (const [key, tiers] of gone) {
      tiers.delete(tier);
      if (tiers.size === 0) this.#held.delete(key);
    }
    this.seen.removed += gone.length;
    const hashes = gone.map(([key]) => this.#hash(key));
    if (this.#random() < 0.2) hashes.push(this.#hash('nowhere'));
    return [{ type: 'BlockRemoved', block_hashes: hashes, medium: this.#pick(MEDIA[tier]!) }];
  }

  /** An event that must change nothing, though its blocks look like any other. */
  #ignored(): WireEvent[] {
    this.seen.ignored += 1;
    const prompt = randomPrompt(this.#random);
    const whole = this.#stored(prompt, 0, prompt.symbols.length, DEVICE);
    const hashes = whole.block_hashes as unknown[];
    const block_hashes = hashes.map((_, i) => this.#hash(`strange ${i}`));
    return [
      this.#pick<WireEvent>([
        { type: 'Other' },
        { ...whole, medium: 'EXTERNAL' },
        { ...whole, group_idx: 1, kv_cache_spec_kind: 'mamba' },
        { type: 'BlockRemoved', block_hashes: hashes, group_idx: 2 },
        { ...whole, block_size: BLOCK_SIZE * 2 },
        { ...whole, block_size: 1, block_hashes: idsOf(prompt.symbols).map((_, i) => i + 1) },
        { ...whole, token_ids: [1, 2, 3] },
        { ...whole, block_hashes, parent_block_hash: block_hashes[0] },
        { ...whole, block_hashes, parent_block_hash: this.#hash('nowhere') },
        {
          ...whole,
          block_hashes: [...block_hashes, block_hashes[0]],
          token_ids: idsOf([...prompt.symbols, 0]),
        },
      ]),
    ];
  }

  #tiersOf(key: string): Set<number> {
    const tiers = this.#held.get(key) ?? new Set();
    this.#held.set(key, tiers);
    return tiers;
  }

  /** The engine's name of a block: its own, and other than that of another engine. */
  #hash(key: string): bigint | Buffer {
    const digest = createHash('sha256').update(`${this.#seed} ${key}`).digest();
    return hashAs(digest.readBigUInt64BE(), this.#pick(this.#hashForms));
  }

  #pick<T>(values: readonly T[]): T {
    return values[randomInteger(this.#random, values.length)]!;
  }
}
