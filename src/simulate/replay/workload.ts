/**
 * A workload for replay: requests with their arrival, lengths and the identity of their prompts' blocks, from a trace file
 * (trace-reader.ts) or made (workloads.ts). `prepare` turns it into what engines and router take; tokens are never made,
 * because a block's key is a function of the trace's prefix-unique hash id and stands for tokens that nobody reads.
 */
import type { PromptBlocks } from '../../router/decide.js';
import { KeyTable } from '../key-table.js';
import { EMPTY_DIGEST, mix32, type PromptDigest } from '../token-source.js';

/** One request as a trace has it. */
export interface WorkloadRequest {
  /** Milliseconds on the trace's own clock. */
  readonly arrivalMs: number;
  /** Tokens, ≥ 1. */
  readonly promptTokens: number;
  /** Tokens, ≥ 1. */
  readonly outputTokens: number;
  /** One id for each `traceBlockTokens` tokens of the prompt, the last one perhaps for fewer; an id names its whole prefix. */
  readonly hashIds: readonly number[];
}

/** Requests in order of arrival. */
export interface Workload {
  readonly name: string;
  /** Tokens that one hash id stands for. */
  readonly traceBlockTokens: number;
  readonly requests: readonly WorkloadRequest[];
  /** The last worker joins, with an empty cache, after this share of the arrival span; null: it is there from the start. */
  readonly joinsAtShare: number | null;
}

/** A request as engines and router take it; shared by the runs of all policies. */
export interface PreparedRequest {
  readonly arrivalMs: number;
  readonly outputTokens: number;
  /** For the engine. */
  readonly prompt: PromptDigest;
  /** For the router. */
  readonly blocks: PromptBlocks;
}

/** A workload for engines of one block size. */
export interface PreparedWorkload {
  readonly workload: Workload;
  readonly requests: readonly PreparedRequest[];
  /** Milliseconds on the trace's clock between the first and the last arrival. */
  readonly spanMs: number;
  /** Cached ÷ prompt tokens that one cache of infinite size in front of all workers would reach. */
  readonly infiniteHitRate: number;
}

/** Keys of all blocks for engines with blocks of `blockSize` tokens. */
export function prepare(workload: Workload, blockSize: number): PreparedWorkload {
  const { requests, traceBlockTokens } = workload;
  const prepared = requests.map(request => prepareRequest(request, traceBlockTokens, blockSize));
  const first = requests[0]?.arrivalMs ?? 0;
  const spanMs = (requests.at(-1)?.arrivalMs ?? first) - first;
  return { workload, requests: prepared, spanMs, infiniteHitRate: infiniteHitRate(prepared, blockSize) };
}

function prepareRequest(
  request: WorkloadRequest,
  traceBlockTokens: number,
  blockSize: number,
): PreparedRequest {
  const { promptTokens, hashIds } = request;
  const count = Math.floor(promptTokens / blockSize);
  const keys: number[] = new Array(count);
  const hashes = new Uint32Array(count * 2);
  for (let block = 0; block < count; block += 1) {
    const lastToken = (block + 1) * blockSize - 1;
    const at = Math.floor(lastToken / traceBlockTokens);
    const key = blockKeyOf(hashIds[at]!, lastToken - at * traceBlockTokens);
    keys[block] = key;
    writeHash(key, hashes, block);
  }
  const digest = { ...EMPTY_DIGEST };
  digest.a ^= mix32(hashIds.at(-1)!);
  digest.b ^= promptTokens;
  return {
    arrivalMs: request.arrivalMs,
    outputTokens: request.outputTokens,
    prompt: { length: promptTokens, keys, digest, salt: 0, cacheSalt: '', ids: null },
    blocks: { hashes, count, blockSize },
  };
}

/** Key of the block that ends with token `offset` of the trace block `hashId`: 53 bits, as the engine's own keys. */
function blockKeyOf(hashId: number, offset: number): number {
  const low = hashId >>> 0;
  const high = Math.floor(hashId / 4294967296);
  const first = mix32(low ^ Math.imul(offset + 1, 0x9e3779b1));
  const second = mix32(first + high + Math.imul(low, 0x85ebca6b));
  return (mix32(second ^ low) & 0x1fffff) * 4294967296 + mix32(first + second);
}

/** Writes an engine's key as the sequence hash `index` of `into`: the 53 bits are the hash. */
export function writeHash(key: number, into: Uint32Array, index: number): void {
  into[2 * index] = key >>> 0;
  into[2 * index + 1] = Math.floor(key / 4294967296);
}

function infiniteHitRate(requests: readonly PreparedRequest[], blockSize: number): number {
  const seenKeys = new Float64Array(requests.reduce((sum, { prompt }) => sum + prompt.keys.length, 0));
  const seen = new KeyTable(seenKeys);
  let count = 0;
  let cached = 0;
  let total = 0;
  for (const { prompt } of requests) {
    const { keys, length } = prompt;
    let depth = 0;
    while (depth < keys.length && seen.get(keys[depth]!) >= 0) depth += 1;
    cached += Math.min(depth * blockSize, length - 1);
    total += length;
    for (let at = depth; at < keys.length; at += 1) {
      if (seen.get(keys[at]!) >= 0) continue;
      seenKeys[count] = keys[at]!;
      seen.set(count++);
    }
  }
  return total === 0 ? 0 : cached / total;
}
