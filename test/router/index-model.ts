/**
 * The naive model of the prefix index and a stream of random operations, for the oracle and the thread test: a small tree
 * of blocks, few holders, one flags byte per (holder, block). Depth is what the words say: the leading blocks of a path
 * that a holder has.
 */
import type { Hash64 } from '#millrace/router/hashing/seeds.js';
import { ENGINE_HASH_WORDS, type PrefixIndexWriter, type Tier } from '#millrace/router/index/contract.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';

/** Numbers in shared memory, which the shared index binds to the addon. */
export function sharedOf(values: readonly number[]): Uint32Array {
  const shared = new Uint32Array(new SharedArrayBuffer(values.length * 4));
  shared.set(values);
  return shared;
}

/** Holders far apart and close together: alone in their group of 16 and not. */
export const HOLDERS = sharedOf([0, 1, 2, 17, 300, 2047, 2048, 4095]);
const PREDICTED = 8;
const DEVICE = 1 | PREDICTED;
const TTL_MS = 40;

export type OpKind =
  | 'store'
  | 'storeNamed'
  | 'remove'
  | 'removeNamed'
  | 'clear'
  | 'leave'
  | 'join'
  | 'predict'
  | 'expire'
  | 'sweep';

/** One operation; the object is used again for the next one. */
export interface Op {
  kind: OpKind;
  /** Index in HOLDERS. */
  holder: number;
  path: number;
  from: number;
  to: number;
  tier: Tier;
  nowMs: number;
}

/** A random tree of blocks and all its root-to-leaf paths. */
export class Forest {
  readonly paths: number[][] = [];
  /** Sequence hashes of each path. */
  readonly hashes: Uint32Array[] = [];
  readonly blocks: number;

  constructor(seed: number, blocks: number, depthMax: number) {
    const random = seededRandom(seed);
    const words = Uint32Array.from({ length: blocks * 2 }, () => randomInteger(random, 2 ** 32));
    const parents: number[] = [];
    const depths: number[] = [];
    for (let block = 0; block < blocks; block += 1) {
      // Mostly below the block before: long chains with some branches.
      const near = random() < 0.8 ? block - 1 : randomInteger(random, block + 1) - 1;
      const parent = near >= 0 && depths[near]! < depthMax && random() > 0.03 ? near : -1;
      parents.push(parent);
      depths.push(parent < 0 ? 1 : depths[parent]! + 1);
    }
    for (let block = 0; block < blocks; block += 1) {
      if (parents.includes(block)) continue;
      const path: number[] = [];
      for (let at = block; at >= 0; at = parents[at]!) path.unshift(at);
      this.paths.push(path);
      this.hashes.push(sharedOf(path.flatMap(at => [words[at * 2]!, words[at * 2 + 1]!])));
    }
    this.blocks = blocks;
  }

  parentOf(path: number, from: number): Hash64 | null {
    const hashes = this.hashes[path]!;
    return from === 0 ? null : { low: hashes[from * 2 - 2]!, high: hashes[from * 2 - 1]! };
  }

  /** The engine's names of a path's blocks: other than those of any other holder. */
  engineHashes(path: number, from: number, to: number, holder: number): Uint32Array {
    const names = new Uint32Array((to - from) * ENGINE_HASH_WORDS);
    for (let i = from; i < to; i += 1) {
      const hashes = this.hashes[path]!;
      names.set(
        [hashes[i * 2]! ^ holder, hashes[i * 2 + 1]!, hashes[i * 2]!, 7],
        (i - from) * ENGINE_HASH_WORDS,
      );
    }
    return names;
  }
}

/** Endless random operations, the same for the same seed. */
export class OpStream {
  readonly #random: Random;
  readonly #forest: Forest;
  readonly #kinds: readonly OpKind[];
  #nowMs = 0;
  readonly op: Op = { kind: 'store', holder: 0, path: 0, from: 0, to: 0, tier: 0, nowMs: 0 };

  /** `kinds` holds each kind as often as it is likely. */
  constructor(seed: number, forest: Forest, kinds: readonly OpKind[]) {
    this.#random = seededRandom(seed);
    this.#forest = forest;
    this.#kinds = kinds;
  }

  next(): Op {
    const random = this.#random;
    const op = this.op;
    op.kind = this.#kinds[randomInteger(random, this.#kinds.length)]!;
    op.holder = randomInteger(random, HOLDERS.length);
    op.path = randomInteger(random, this.#forest.paths.length);
    const length = this.#forest.paths[op.path]!.length;
    op.from = random() < 0.5 ? 0 : randomInteger(random, length);
    op.to = random() < 0.5 ? length : op.from + 1 + randomInteger(random, length - op.from);
    op.tier = (random() < 0.7 ? 0 : randomInteger(random, 3)) as Tier;
    this.#nowMs += randomInteger(random, 3);
    op.nowMs = this.#nowMs;
    return op;
  }
}

/** Applies an operation to an index. */
export function applyOp(writer: PrefixIndexWriter, forest: Forest, op: Op): void {
  const holder = HOLDERS[op.holder]!;
  const hashes = forest.hashes[op.path]!;
  const part = hashes.subarray(op.from * 2, op.to * 2);
  const count = op.to - op.from;
  const names = (): Uint32Array => forest.engineHashes(op.path, op.from, op.to, holder);
  if (op.kind === 'store')
    writer.store(holder, forest.parentOf(op.path, op.from), part, count, op.tier, null);
  else if (op.kind === 'storeNamed')
    writer.store(holder, forest.parentOf(op.path, op.from), part, count, op.tier, names());
  else if (op.kind === 'remove') writer.remove(holder, part, count, op.tier);
  else if (op.kind === 'removeNamed') writer.removeEngine(holder, names(), count, op.tier);
  else if (op.kind === 'clear') writer.clear(holder);
  else if (op.kind === 'leave') writer.removeHolder(holder);
  else if (op.kind === 'join') writer.addHolder(holder);
  else if (op.kind === 'predict') writer.predict(holder, hashes, 0, op.to, op.nowMs + TTL_MS);
  else if (op.kind === 'expire') writer.expire(op.nowMs);
  else writer.sweep(50);
}

/** What every holder has, by the plainest means. */
export class Model {
  readonly #forest: Forest;
  readonly #flags: Uint8Array[];
  readonly #named: Uint8Array[];
  readonly #expires: Float64Array[];
  readonly #joined = HOLDERS.map(() => 0);

  constructor(forest: Forest) {
    this.#forest = forest;
    this.#flags = Array.from(HOLDERS, () => new Uint8Array(forest.blocks));
    this.#named = Array.from(HOLDERS, () => new Uint8Array(forest.blocks));
    this.#expires = Array.from(HOLDERS, () => new Float64Array(forest.blocks));
  }

  apply(op: Op): void {
    if (op.kind === 'expire') {
      this.#expire(op.nowMs);
      return;
    }
    if (op.kind === 'join') {
      this.#joined[op.holder] = 1;
      return;
    }
    if (this.#joined[op.holder] === 0) return;
    const flags = this.#flags[op.holder]!;
    const named = this.#named[op.holder]!;
    if (op.kind === 'clear' || op.kind === 'leave') {
      flags.fill(0);
      named.fill(0);
      if (op.kind === 'leave') this.#joined[op.holder] = 0;
      return;
    }
    const path = this.#forest.paths[op.path]!;
    const from = op.kind === 'predict' ? 0 : op.from;
    for (let i = from; i < op.to; i += 1) {
      const block = path[i]!;
      const held = flags[block]!;
      if (op.kind === 'store' || op.kind === 'storeNamed')
        flags[block] = (held & ~PREDICTED) | (1 << op.tier);
      if (op.kind === 'storeNamed') named[block] = 1;
      if (op.kind === 'remove') flags[block] = held & ~(1 << op.tier);
      if (op.kind === 'removeNamed' && named[block] === 1) {
        flags[block] = held & ~(1 << op.tier);
        if ((flags[block]! & ~PREDICTED) === 0) named[block] = 0;
      }
      if (op.kind === 'predict' && (held & 1) === 0) {
        flags[block] = held | PREDICTED;
        this.#expires[op.holder]![block] = op.nowMs + TTL_MS;
      }
    }
  }

  #expire(nowMs: number): void {
    this.#flags.forEach((flags, holder) => {
      const expires = this.#expires[holder]!;
      for (let block = 0; block < flags.length; block += 1) {
        if ((flags[block]! & PREDICTED) !== 0 && expires[block]! <= nowMs)
          flags[block] = flags[block]! & ~PREDICTED;
      }
    });
  }

  /** Depth of HOLDERS[holder] for a path, over all tiers or on the device. */
  depth(path: number, holder: number, device: boolean): number {
    const flags = this.#flags[holder]!;
    const blocks = this.#forest.paths[path]!;
    const mask = device ? DEVICE : 0xff;
    let depth = 0;
    while (depth < blocks.length && (flags[blocks[depth]!]! & mask) !== 0) depth += 1;
    return depth;
  }

  /** Blocks of the path that the engine has named and that are found by name. */
  isNamed(path: number, position: number, holder: number): boolean {
    return this.#named[holder]![this.#forest.paths[path]![position]!] === 1;
  }
}
