/**
 * Where the mock engine's text comes from: each token is a function of all tokens before it, of the seed, and of
 * nothing else. So a prompt that another engine has begun to answer continues with exactly the same tokens, whatever
 * was preempted, migrated or cached in between, and any lost or doubled token changes all that follows. Pure.
 */

/** 64 bits that stand for a sequence of token ids, advanced by one id at a time. */
export interface SequenceDigest {
  a: number;
  b: number;
}

/** Digest of the empty sequence. */
export const EMPTY_DIGEST: Readonly<SequenceDigest> = { a: 0x243f6a88, b: 0x85a308d3 | 0 };

/** Appends one id to the digest, in place. */
export function advanceDigest(digest: SequenceDigest, id: number): void {
  let a = Math.imul(digest.a ^ id, 0x9e3779b1);
  a ^= a >>> 15;
  let b = Math.imul(digest.b ^ id ^ ((a << 13) | (a >>> 19)), 0x85ebca6b);
  b ^= b >>> 13;
  digest.a = a;
  digest.b = b;
}

/** Full avalanche of 32 bits (the finaliser of MurmurHash3). */
export function mix32(value: number): number {
  let mixed = value ^ (value >>> 16);
  mixed = Math.imul(mixed, 0x85ebca6b);
  mixed ^= mixed >>> 13;
  mixed = Math.imul(mixed, 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}

/**
 * Identity of the prefix that a digest stands for, as a key of the block pool: 53 of its 64 bits, shifted by the
 * tenant's salt. Two prefixes of a full pool of 16384 blocks share a key with probability 1.5e-8.
 */
export function blockKey(digest: SequenceDigest, salt: number): number {
  return (mix32(digest.a ^ salt) & 0x1fffff) * 4294967296 + mix32(digest.b + salt);
}

/** A prompt as the core needs it: its length, the keys of its full blocks and its digest. Shared by all its choices. */
export interface PromptDigest {
  readonly length: number;
  readonly keys: readonly number[];
  readonly digest: Readonly<SequenceDigest>;
  readonly salt: number;
  /** What `salt` is made of; empty without one. */
  readonly cacheSalt: string;
  /** Name of the LoRA adapter that the prompt is for; absent: none. */
  readonly adapter?: string;
  /** The prompt itself; null where a trace says no more than which blocks are equal. */
  readonly ids: ArrayLike<number> | null;
}

/** 32 bits of a `cache_salt`; 0 for an empty one. */
function saltOf(cacheSalt: string): number {
  let salt = 0;
  for (let at = 0; at < cacheSalt.length; at++) salt = mix32(salt ^ cacheSalt.charCodeAt(at)) + at + 1;
  return salt | 0;
}

/**
 * Digests a prompt once, O(length), and keeps `ids`, which must not change any more. `cacheSalt` keeps tenants' blocks
 * apart and does not change the text; an `adapter` does both.
 */
export function digestPrompt(
  ids: ArrayLike<number>,
  blockSize: number,
  cacheSalt = '',
  adapter = '',
): PromptDigest {
  const salt = saltOf(cacheSalt);
  const digest = { ...EMPTY_DIGEST };
  for (let at = 0; at < adapter.length; at++) advanceDigest(digest, ~adapter.charCodeAt(at));
  const keys: number[] = [];
  for (let at = 0; at < ids.length; at++) {
    advanceDigest(digest, ids[at]!);
    if ((at + 1) % blockSize === 0) keys.push(blockKey(digest, salt));
  }
  return { length: ids.length, keys, digest, salt, cacheSalt, adapter, ids };
}

/** A sequence as its model sees it. */
export interface TokenInput {
  readonly digest: Readonly<SequenceDigest>;
  /** Physical KV blocks, in order of the sequence. */
  readonly blocks: readonly number[];
  /** Token id at a position of prompt and answer. */
  tokenAt(position: number): number;
}

/** Makes the tokens of one engine. */
export interface TokenModel {
  readonly eosId: number;
  /** Computes the positions `from` to `to − 1`: their KV goes to the sequence's blocks. */
  compute(input: TokenInput, from: number, to: number): void;
  /**
   * Next id of the sequence whose last position was computed just now. `choice` is the choice's index for the first
   * generated token and 0 for all later ones: choices part at once, and yet any of them can be continued elsewhere
   * from its tokens alone. Ids in `masked` are never returned (vLLM masks the stops so below `min_tokens`).
   */
  next(input: TokenInput, choice: number, masked: ReadonlySet<number> | null): number;
}

/** What may be drawn. */
export interface TokenSourceOptions {
  /** Ids to draw from, each once. */
  readonly ids: Uint32Array;
  readonly eosId: number;
  /** Probability of `eosId` at each position. */
  readonly eosRate: number;
  readonly seed: number;
}

/** Draws the next token from the digest alone: no KV. Stateless, so one source serves every sequence of an engine. */
export class TokenSource implements TokenModel {
  readonly eosId: number;
  readonly #ids: Uint32Array;
  readonly #eosBelow: number;
  readonly #seed: number;

  constructor(options: TokenSourceOptions) {
    this.eosId = options.eosId;
    this.#ids = options.ids;
    this.#eosBelow = options.eosRate * 4294967296;
    this.#seed = mix32(options.seed + 0x9e3779b9);
  }

  /** Nothing to do: the digest is kept by the sequence. */
  compute(): void {}

  next({ digest }: TokenInput, choice: number, masked: ReadonlySet<number> | null): number {
    const first = mix32(digest.a ^ this.#seed);
    const second = mix32(digest.b ^ first);
    if (mix32(second + choice + 1) < this.#eosBelow && masked?.has(this.eosId) !== true) return this.eosId;
    const ids = this.#ids;
    let at = (second + choice) % ids.length;
    // Bounded, because a mask could hold every id.
    for (let tries = 0; tries < ids.length && masked?.has(ids[at]!) === true; tries++)
      at = (at + 1) % ids.length;
    return ids[at]!;
  }
}
