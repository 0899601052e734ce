/**
 * Two agents joined by one transport for bench/transfer.js, and what is timed between them: rounds of batches, the cost of
 * posting, and the way of a completion to the event loop. `memory` joins two agents of this process; every other
 * transport goes to a child process, as between engines.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readlinkSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { createAgent } from '#millrace/transfer/index.js';
import { median, percentile } from './report.js';

const IN_FLIGHT = 4;
const FAR_ANSWER_MS = 60_000;

/** Monotonic nanoseconds, on the clock that the engine stamps completions with. */
export const nowNs = () => Number(process.hrtime.bigint());

/**
 * Numbers of `blocks` blocks in an order that no prefetcher guesses; native/bench/yardsticks/memory.cc makes the same.
 * @param {number} blocks
 * @param {number} seed
 */
function scattered(blocks, seed) {
  const order = Uint32Array.from({ length: blocks }, (_, i) => i);
  let state = seed;
  for (let i = blocks - 1; i > 0; i--) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    const other = (state >>> 8) % (i + 1);
    [order[i], order[other]] = [order[other], order[i]];
  }
  return order;
}

/** Path by which another process can open the memory of a pool. @param {number} pid @param {string} name */
function memoryPath(pid, name) {
  const folder = `/proc/${pid}/fd`;
  const found = readdirSync(folder).find(number => {
    try {
      return readlinkSync(`${folder}/${number}`).startsWith(`/memfd:${name}`);
    } catch {
      return false; // closed since it was listed
    }
  });
  if (found === undefined) throw new Error(`process ${pid} has no memory named ${name}`);
  return `${folder}/${found}`;
}

/** @typedef {{ transport: string, blockBytes: number, blocks: number, batchBlocks: number }} Shape */

/** Two agents with a pool each; plans of batches between them. */
export class Pair {
  #agent;
  #far;
  #peer;
  #plans = [];
  /** Bytes of a page of the near pool. */
  pageBytes;

  /** @param {Shape} shape @param {'read' | 'write'} op */
  static async open(shape, op) {
    const pair = new Pair();
    const { transport, blockBytes, blocks } = shape;
    const isRegistered = transport === 'cma';
    const layout = { kind: 'opaque', blockBytes };
    pair.shape = shape;
    pair.#agent = createAgent({ transports: [transport], operationsMax: 8192 });
    const buffer = isRegistered ? new ArrayBuffer(blockBytes * blocks) : null;
    pair.pool =
      buffer === null
        ? pair.#agent.createPool({ layout, blocks, name: 'bench-near' })
        : pair.#agent.registerPool({ layout, blocks, buffer });
    if (buffer !== null) new Uint8Array(buffer).fill(2);
    pair.pageBytes = pair.pool.pageBytes;
    pair.#far = await pair.#openFar(isRegistered);
    pair.#peer = pair.#agent.connect(pair.#far.metadata);
    pair.#plan(op);
    await pair.#settle();
    return pair;
  }

  async #openFar(isRegistered) {
    const { transport, blockBytes, blocks } = this.shape;
    if (transport === 'memory') {
      const agent = createAgent({ transports: [transport] });
      const pool = agent.createPool({ layout: { kind: 'opaque', blockBytes }, blocks, name: 'bench-far' }).id;
      agent.connect(this.#agent.metadata());
      return {
        metadata: agent.metadata(),
        pool,
        pid: process.pid,
        cpuSeconds: async () => 0,
        close: () => agent.close(),
      };
    }
    const child = fork(fileURLToPath(new URL('./transfer-far.js', import.meta.url)), [], {
      serialization: 'advanced',
    });
    const answer = async () =>
      (await once(child, 'message', { signal: AbortSignal.timeout(FAR_ANSWER_MS) }))[0];
    child.send({
      transport,
      blockBytes,
      blocks,
      isRegistered,
      name: 'bench-far',
      metadata: this.#agent.metadata(),
    });
    return {
      ...(await answer()),
      pid: child.pid,
      async cpuSeconds() {
        child.send('cpu');
        return answer();
      },
      async close() {
        child.send('close');
        await once(child, 'exit');
      },
    };
  }

  #planOf(op, local, remote) {
    return this.#peer.plan({
      direction: op,
      local: { pool: this.pool, blocks: local },
      remote: { pool: this.#far.pool, blocks: remote },
    });
  }

  #plan(op) {
    const { blocks, batchBlocks } = this.shape;
    const [sources, targets] = [scattered(blocks, 1), scattered(blocks, 2)];
    const [locals, remotes] = op === 'read' ? [targets, sources] : [sources, targets];
    this.op = op;
    for (let at = 0; at + batchBlocks <= blocks; at += batchBlocks)
      this.#plans.push(
        this.#planOf(op, locals.subarray(at, at + batchBlocks), remotes.subarray(at, at + batchBlocks)),
      );
    this.one = this.#planOf(op, locals.subarray(0, 1), remotes.subarray(0, 1));
  }

  /** Moves every block once, so that all pages are where they have to be; the far end connects meanwhile. */
  async #settle() {
    for (const plan of this.#plans) await plan.post();
  }

  /** Paths of the two memories, for another process: where the bytes come from and where they go. */
  memories() {
    const near = memoryPath(process.pid, 'bench-near');
    const far = memoryPath(this.#far.pid, 'bench-far');
    return this.op === 'read' ? [far, near] : [near, far];
  }

  /** One transfer of a run of neighbouring blocks from the first on. @param {number} blocks */
  contiguous(blocks) {
    const list = Uint32Array.from({ length: blocks }, (_, i) => i);
    return this.#planOf(this.op, list, list);
  }

  /** The processor seconds of both ends so far. */
  async cpuSeconds() {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6 + (await this.#far.cpuSeconds());
  }

  /**
   * Posts batches, several in flight, and waits for all.
   * @param {number} first  Number of the first batch.
   * @param {number} count
   * @param {object} options  Of every post.
   * @returns {Promise<{ seconds: number, postUs: number }>} `postUs` is the median of a post.
   */
  async move(first, count, options) {
    const posts = [];
    let next = first;
    const lane = async () => {
      while (next < first + count) {
        const plan = this.#plans[next++ % this.#plans.length];
        const startNs = nowNs();
        const posted = plan.post(options);
        posts.push((nowNs() - startNs) / 1000);
        await posted;
      }
    };
    const startNs = nowNs();
    await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
    return { seconds: (nowNs() - startNs) / 1e9, postUs: median(posts) };
  }

  async close() {
    await this.#agent.close();
    await this.#far.close();
  }
}

/** Percentiles as a row has them. @param {number[]} values */
export const percentiles = values => ({
  p50: percentile(values, 50),
  p99: percentile(values, 99),
  p999: percentile(values, 99.9),
});

/**
 * Microseconds from post to promise and from the engine's completion to the event loop, of transfers of one block.
 * @param {Pair} pair
 * @param {number} transfers
 */
export async function latencies(pair, transfers) {
  const [whole, wakeUp] = [[], []];
  for (let i = 0; i < transfers; i++) {
    const startNs = nowNs();
    const { doneNs } = await pair.one.post();
    const endNs = nowNs();
    whole.push((endNs - startNs) / 1000);
    wakeUp.push((endNs - doneNs) / 1000);
  }
  return { latencyUs: percentiles(whole), completionUs: percentiles(wakeUp) };
}

/** The delay of the event loop while `during` runs: its 99th percentile in milliseconds. @param {() => Promise<void>} during */
export async function loopDelayMs(during) {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  await during();
  delay.disable();
  return delay.percentile(99) / 1e6;
}
