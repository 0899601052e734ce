/**
 * Seeds of block hashing (R3, pool thread). What makes equal tokens mean different KV cache, the LoRA adapter and the
 * cache salt, goes into the seed of the block hashes and not into their bytes, as in ai-dynamo/dynamo `lib/kv-hashing`:
 *
 *     seed = 1337 (+ xxh3_64(adapter, seed 0)) (+ xxh3_64(salt, seed 1))   modulo 2^64; an empty string is absent
 */
import { xxhash3 } from 'hash-wasm';

/** An unsigned 64-bit value as its two 32-bit words. */
export interface Hash64 {
  readonly low: number;
  readonly high: number;
}

/** Seeds of one hasher; both are settings, because Dynamo's releases differ in the seed of the chain. */
export interface HashSeeds {
  /** Seed of the block hashes. */
  readonly block: Hash64;
  /** Seed of the chain over them. */
  readonly chain: Hash64;
}

/** Dynamo's XXH3_SEED. */
const DYNAMO_SEED: Hash64 = { low: 1337, high: 0 };
const ADAPTER_SEED = 0;
const SALT_SEED = 1;

/** The seeds of a request without adapter and salt. */
export const DEFAULT_SEEDS: HashSeeds = { block: DYNAMO_SEED, chain: DYNAMO_SEED };

/** The seeds of requests with this adapter and salt: `base` with their hashes added to the block seed. */
export async function identitySeeds(base: HashSeeds, adapter: string, salt: string): Promise<HashSeeds> {
  let block = base.block;
  if (adapter !== '') block = sum(block, await hashText(adapter, ADAPTER_SEED));
  if (salt !== '') block = sum(block, await hashText(salt, SALT_SEED));
  return { block, chain: base.chain };
}

async function hashText(text: string, seed: number): Promise<Hash64> {
  const hex = await xxhash3(text, seed, 0);
  return { low: Number.parseInt(hex.slice(8), 16), high: Number.parseInt(hex.slice(0, 8), 16) };
}

function sum(a: Hash64, b: Hash64): Hash64 {
  const low = a.low + b.low;
  const carry = low > 0xffff_ffff ? 1 : 0;
  return { low: low >>> 0, high: (a.high + b.high + carry) >>> 0 };
}
