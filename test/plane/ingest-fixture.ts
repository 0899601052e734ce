/**
 * An ingest thread as the core has it, with an index that the test reads as a pool thread would: shared where there is an
 * addon, else posted to an index in the test's own thread.
 */
import { MessageChannel } from 'node:worker_threads';
import type { Test } from 'tap';
import { DEFAULT_LIMITS, type Limits } from '#millrace/limits.js';
import type { IngestCore } from '#millrace/plane/ingest-side.js';
import { openPrefixes, type PoolPrefixes } from '#millrace/plane/pool-prefixes.js';
import { createBoardMemory, ProcessBoard } from '#millrace/plane/process-board.js';
import { RemoteIngest } from '#millrace/plane/remote-ingest.js';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import { createBell } from '#millrace/ring/bell.js';
import { createRing } from '#millrace/ring/spsc-ring.js';
import { createHashers } from '#millrace/router/hashing/block-hasher.js';
import { createIndexMemory } from '#millrace/router/index/shared-index.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { MOCK_MODEL, type MockEngine } from '#millrace/simulate/mock-engine.js';
import { TOKENIZER } from '../plane-fixture.js';

/** The kinds of index that this machine can have. */
export const INDEX_KINDS = loadAddon() === null ? (['posted'] as const) : (['shared', 'posted'] as const);
export type IndexKind = 'shared' | 'posted';

export const BLOCK_SIZE = 16;
const RING_BYTES = 65_536;

/** Token ids and block hashes of a prompt. */
export interface HashedPrompt {
  readonly ids: readonly number[];
  readonly hashes: Uint32Array;
  readonly blocks: number;
}

/** The ids of `count` words and their hashes. */
export async function hashedPrompt(words: readonly string[]): Promise<HashedPrompt> {
  const tokenizer = await loadTokenizer(TOKENIZER);
  const ids = await tokenizer.encode(words.join(' '));
  const hashes = new Uint32Array(ids.length * 2);
  const blocks = (await createHashers(loadAddon())).of('', '').hash(ids, BLOCK_SIZE, null, hashes);
  return { ids: Array.from(ids), hashes, blocks };
}

/** Sends a prompt to a mock engine and reads the answer. */
export async function compute(engine: MockEngine, { ids }: HashedPrompt): Promise<void> {
  const body = JSON.stringify({ model: MOCK_MODEL, prompt: ids, max_tokens: 1 });
  const headers = { 'content-type': 'application/json' };
  const answer = await fetch(`${engine.url}/v1/completions`, { method: 'POST', headers, body });
  if (answer.status !== 200) throw new Error(`${answer.status}: ${await answer.text()}`);
  await answer.text();
}

/** See the head of the file. */
export class IngestFixture {
  readonly ingest: RemoteIngest;
  readonly board = new ProcessBoard(createBoardMemory(1));
  readonly faults: string[] = [];
  readonly log: string[] = [];
  readonly learned: (readonly [slot: number, generation: number, blockSize: number])[] = [];
  readonly #limits: Limits;
  readonly #indexMemory: SharedArrayBuffer | null;
  readonly #bellMemory = createBell('ingest');
  #epoch = 0;
  #pool: PoolPrefixes | null = null;

  private constructor(kind: IndexKind, limits: Limits) {
    this.#limits = limits;
    const { indexBytes: bytes, indexPredictionsMax: predictionsMax } = limits;
    this.#indexMemory =
      kind === 'posted' ? null : createIndexMemory({ bytes, predictionsMax, random: seededRandom(1) });
    const core: IngestCore = {
      learnBlockSize: (...what) => this.learned.push(what),
      log: (level, message) => this.log.push(`${level} ${message}`),
      fault: text => this.faults.push(text),
    };
    this.board.setIndex('serving');
    const task = {
      limits,
      seed: 1,
      indexMemory: this.#indexMemory,
      bellMemory: this.#bellMemory,
    };
    this.ingest = new RemoteIngest(task, core, systemClock);
  }

  /** Starts the thread and the first incarnation of a pool thread; closed with the test. */
  static async start(t: Test, kind: IndexKind, limits: Partial<Limits> = {}): Promise<IngestFixture> {
    const small = { indexBytes: 16 << 20, indexPredictionsMax: 4096 };
    const fixture = new IngestFixture(kind, { ...DEFAULT_LIMITS, ...small, ...limits });
    t.teardown(() => fixture.close());
    await fixture.renewPool();
    return fixture;
  }

  /** What the pool thread has. */
  get pool(): PoolPrefixes {
    return this.#pool!;
  }

  /** The pool thread dies, where there is one, and comes again. */
  async renewPool(): Promise<void> {
    if (this.#pool !== null) this.ingest.poolLost(0);
    this.#pool?.close();
    const services = {
      limits: this.#limits,
      board: this.board,
      clock: systemClock,
      random: seededRandom(2),
    };
    this.#epoch += 1;
    const epoch = this.#epoch;
    if (this.#indexMemory === null) {
      const [batches, news] = [new MessageChannel(), new MessageChannel()];
      this.ingest.attachPort(batches.port1, news.port1);
      this.#pool = await openPrefixes({ kind: 'posted', port: batches.port2, news: news.port2 }, services);
      return;
    }
    const ringMemory = createRing(RING_BYTES, epoch);
    this.ingest.attachRing(0, epoch, ringMemory);
    const link = { indexMemory: this.#indexMemory, ringMemory, epoch, bellMemory: this.#bellMemory };
    this.#pool = await openPrefixes({ kind: 'shared', ...link }, services);
  }

  /** Makes a mock engine, which publishes when it has events, the tenant of a slot. */
  addWorker(
    slot: number,
    generation: number,
    engine: MockEngine,
    blockSize: number | null = BLOCK_SIZE,
  ): void {
    const { events, url } = engine;
    const hasEvents = events !== null;
    const facts = { generation, blockSize, totalBlocks: null, hasEvents, name: url };
    const endpoints = hasEvents ? { publish: events.publish, replay: events.replay, topic: '' } : null;
    this.ingest.addWorker(slot, facts, endpoints);
  }

  /** Leading blocks of the prompt that the worker in the slot has. */
  depth(slot: number, { hashes, blocks }: HashedPrompt): number {
    const depths = new Uint32Array(2);
    this.pool.reader.lookup(hashes, blocks, Uint32Array.of(slot), 1, depths);
    return depths[0]!;
  }

  async close(): Promise<void> {
    await this.ingest.stop();
    this.#pool?.close();
  }
}
