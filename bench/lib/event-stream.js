/**
 * Event streams for bench/route.js, recorded before any clock runs: mock engines work off a made workload (conversations)
 * with less memory than it needs, so that they evict as engines do.
 */
import { EngineCore } from '#millrace/simulate/engine-core.js';
import { resolveEngineSettings } from '#millrace/simulate/engine-settings.js';
import { prepare, writeHash } from '#millrace/simulate/replay/workload.js';
import { makeWorkload } from '#millrace/simulate/replay/workloads.js';
import { digestPrompt, mix32 } from '#millrace/simulate/token-source.js';
import { KvEventEncoder } from '#millrace/simulate/vllm/kv-event-encoder.js';

const BLOCK_SIZE = 64;
const VOCABULARY = { ids: Uint32Array.from({ length: 1024 }, (_, id) => id), eosId: 1024 };
const DECODED = 16;

const engineSettings = engineBlocks =>
  resolveEngineSettings({
    numGpuBlocks: engineBlocks,
    blockSize: BLOCK_SIZE,
    maxModelLen: engineBlocks * BLOCK_SIZE,
    speed: 'unlimited',
  });

/** The engine's own names of blocks. */
export function namesOf(hashes) {
  const names = new Uint32Array(hashes.length * 2);
  for (let at = 0; at < hashes.length; at += 2)
    names.set([hashes[at + 1], hashes[at], ~hashes[at], 5], at * 2);
  return names;
}

/** Hears one engine and appends what it hears to a stream. */
class Recorder {
  constructor(stream, holder) {
    this.stream = stream;
    this.holder = holder;
    this.removals = [];
  }

  stored({ keys }, from, to) {
    this.flush();
    const hashes = hashesOf(keys.slice(from, to));
    const parent = from === 0 ? null : hashesOf([keys[from - 1]]);
    this.stream.push({
      kind: 'store',
      holder: this.holder,
      parent: parent && { low: parent[0], high: parent[1] },
      hashes,
      names: namesOf(hashes),
      count: to - from,
    });
  }

  removed(key) {
    this.removals.push(key);
  }

  cleared() {}

  /** Removals of one pass go together, as in an engine's batch. */
  flush() {
    if (this.removals.length === 0) return;
    const names = namesOf(hashesOf(this.removals));
    this.stream.push({ kind: 'remove', holder: this.holder, names, count: this.removals.length });
    this.removals = [];
  }
}

function hashesOf(keys) {
  const hashes = new Uint32Array(2 * keys.length);
  for (const [at, key] of keys.entries()) writeHash(key, hashes, at);
  return hashes;
}

function finish(core, afterPass) {
  while (core.running + core.waiting > 0) {
    core.executePass(0);
    afterPass();
  }
}

/**
 * Requests and events in the order in which they happen, as Dynamo's mooncake_bench merges them: each request is looked
 * up and then computed by a worker drawn at random.
 * @param {{ workers: number, engineBlocks: number, requests: number, seed: number }} options
 */
export function mergedStream({ workers, engineBlocks, requests, seed }) {
  const stream = [];
  const recorders = Array.from({ length: workers }, (_, holder) => new Recorder(stream, holder));
  const cores = recorders.map(recorder => new EngineCore(engineSettings(engineBlocks), VOCABULARY, recorder));
  const workload = prepare(makeWorkload('cold-join', requests, seed), BLOCK_SIZE);
  for (const [n, { prompt, outputTokens, blocks }] of workload.requests.entries()) {
    stream.push({ kind: 'query', hashes: blocks.hashes, count: blocks.count });
    const holder = mix32(n ^ seed) % workers;
    cores[holder].add(sequenceOf(prompt, outputTokens), 0);
    finish(cores[holder], () => recorders[holder].flush());
  }
  return stream;
}

const sequenceOf = (prompt, maxTokens) => ({
  prompt,
  maxTokens,
  minTokens: 0,
  ignoreEos: true,
  stopTokenIds: [],
  choice: 0,
  owner: null,
});

/** Token ids of a request of a trace: those of a hash id are always the same. */
function idsOf({ promptTokens, hashIds }, traceBlockTokens) {
  return Uint32Array.from({ length: promptTokens }, (_, at) => {
    const block = hashIds[Math.floor(at / traceBlockTokens)];
    return mix32(Math.imul(block + 1, 0x9e3779b1) ^ (at % traceBlockTokens)) % 128_000;
  });
}

/**
 * Batches as engines send them, msgpack with token ids, each of `batchBlocks` blocks in stores and removals or more.
 * @param {{ workers: number, engineBlocks: number, blocks: number, batchBlocks: number, seed: number }} options
 * @returns {{ holder: number, payload: Buffer, blocks: number }[]}
 */
export function recordedFrames({ workers, engineBlocks, blocks, batchBlocks, seed }) {
  const frames = [];
  const waiting = new Float64Array(workers);
  const encoders = Array.from({ length: workers }, (_, at) => {
    const format = { form: 'map', hashes: 'bytes', blockSize: BLOCK_SIZE, hashSeed: [seed, at] };
    return new KvEventEncoder(format);
  });
  const cores = encoders.map((encoder, at) => {
    const counted = {
      stored: (sequence, from, to) => {
        waiting[at] += to - from;
        encoder.stored(sequence, from, to);
      },
      removed: key => {
        waiting[at] += 1;
        encoder.removed(key);
      },
      cleared: () => encoder.cleared(),
    };
    return new EngineCore(engineSettings(engineBlocks), VOCABULARY, counted);
  });
  let recorded = 0;
  for (let round = 0; recorded < blocks; round += 1) {
    const { requests, traceBlockTokens } = makeWorkload('cold-join', 500, seed + round);
    for (const [n, request] of requests.entries()) {
      if (recorded >= blocks) break;
      const holder = mix32(n ^ seed) % workers;
      // Another round has other text.
      const hashIds = request.hashIds.map(id => id + round * 1_000_000);
      const ids = idsOf({ ...request, hashIds }, traceBlockTokens);
      cores[holder].add(sequenceOf(digestPrompt(ids, BLOCK_SIZE), DECODED), 0);
      finish(cores[holder], () => {
        if (waiting[holder] < batchBlocks) return;
        frames.push({ holder, payload: encoders[holder].takeBatch(0), blocks: waiting[holder] });
        recorded += waiting[holder];
        waiting[holder] = 0;
      });
    }
  }
  return frames;
}

/** Tokens per block of `smallFrames`: vLLM's own default. */
export const SMALL_BLOCK_SIZE = 16;
/** Blocks of one sequence of `smallFrames`. */
const SMALL_SEQUENCE_BLOCKS = 64;

/**
 * Batches of the smallest kind: one block each, as a stream that decodes alone fills them.
 * @param {{ messages: number, seed: number }} options
 * @returns {{ holder: number, payload: Buffer, blocks: number }[]}
 */
export function smallFrames({ messages, seed }) {
  const format = { form: 'map', hashes: 'bytes', blockSize: SMALL_BLOCK_SIZE, hashSeed: [seed, 0] };
  const encoder = new KvEventEncoder(format);
  return Array.from({ length: messages }, (_, n) => {
    const block = n % SMALL_SEQUENCE_BLOCKS;
    const first = n - block;
    const sequence = {
      keys: Array.from({ length: block + 1 }, (_, at) => first + at + 1),
      tokenAt: at => mix32(Math.imul(first + 1, 0x9e3779b1) ^ at) % 128_000,
      cacheSalt: '',
    };
    encoder.stored(sequence, block, block + 1);
    return { holder: 0, payload: encoder.takeBatch(n), blocks: 1 };
  });
}
