/**
 * Seeds of block hashing (R3, pool thread; R4, ingest thread). What makes equal tokens mean different KV cache, the LoRA
 * adapter and the cache salt, goes into the seed of the block hashes and not into their bytes, as in ai-dynamo/dynamo
 * `lib/kv-hashing`:
 *
 *     seed = 1337 (+ xxh3_64(adapter, seed 0)) (+ xxh3_64(salt, seed 1))   modulo 2^64; an empty string is absent
 */
import { hash64, type Xxh3 } from './xxh3.js';

/** An unsigned 64-bit value as its two 32-bit words. */
export interface Hash64 {
  readonly low: number;
  readonly high: number;
}

/** Seeds of one hasher. */
export interface HashSeeds {
  /** Seed of the block hashes. */
  readonly block: Hash64;
  /** Seed of the chain over them. */
  readonly chain: Hash64;
}

/** Dynamo's XXH3_SEED. Of the chain too, as `compute_seq_hash_for_block` in ai-dynamo-runtime 1.6.1 is compiled. */
const DYNAMO_SEED: Hash64 = { low: 1337, high: 0 };
const ADAPTER_SEED: Hash64 = { low: 0, high: 0 };
const SALT_SEED: Hash64 = { low: 1, high: 0 };

/** The seeds of a request without adapter and salt. */
export const DEFAULT_SEEDS: HashSeeds = { block: DYNAMO_SEED, chain: DYNAMO_SEED };

/** The seeds of requests with this adapter and salt: `base` with their hashes added to the block seed. */
export function identitySeeds(xxh3: Xxh3, base: HashSeeds, adapter: string, salt: string): HashSeeds {
  let block = base.block;
  if (adapter !== '') block = sum(block, hash64(xxh3.under(ADAPTER_SEED)(adapter)));
  if (salt !== '') block = sum(block, hash64(xxh3.under(SALT_SEED)(salt)));
  return { block, chain: base.chain };
}

function sum(a: Hash64, b: Hash64): Hash64 {
  const low = a.low + b.low;
  const carry = low > 0xffff_ffff ? 1 : 0;
  return { low: low >>> 0, high: (a.high + b.high + carry) >>> 0 };
}
