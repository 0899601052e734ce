/**
 * Prompt ids that a worker makes (R3), for a model whose tokenizer we do not hold: they serve routing by prefix only, so
 * every way in which they may be missing (late, failing, busy) means that the request is routed by load, and never that it
 * fails or waits longer than a deadline. Equal prompts are asked for once and kept within a bound. Owned by a pool thread.
 */
import { createHash } from 'node:crypto';
import type { EngineAdapter, Poster, TokenizeSample } from '../engines/contract.js';
import type { Limits } from '../limits.js';
import type { WorkerView } from '../messages/records.js';
import type { Clock } from '../runtime/clock.js';

/** Prompts that are asked for at one time; over it a request is routed by load. */
const ASKING_MAX = 32;
/** A worker that failed is left alone for so long, twice as long after each further failure, up to the second figure. */
const BACK_OFF_MS = 1000;
const BACK_OFF_MS_MAX = 60_000;
/** Bytes that an entry of the cache takes besides its ids: key, map and array. */
const ENTRY_BYTES = 256;
/** An answer is at most as long as the decimal ids of a prompt that has one for every byte. */
const ANSWER_BYTES_PER_BYTE = 12;
const ANSWER_BYTES_MIN = 65_536;
/** The worker has judged this prompt, not failed: the request itself will be told so by the engine. */
const PROMPT_REFUSED = new Set([400, 413, 422]);

/** `EngineClient.post`: a POST that rejects with a MillraceError. */
export type WorkerPost = (
  origin: string,
  path: string,
  json: string,
  deadlineMs: number,
  bytesMax: number,
) => Promise<{ status: number; body: string }>;

/** Why a model's prompts are routed by load only. */
export interface MissingIds {
  readonly model: string;
  /** Origin of the worker that failed. */
  readonly worker: string;
  readonly reason: string;
}

/** What it needs of its pool thread. */
export interface RemoteIdsOptions {
  readonly limits: Pick<Limits, 'tokenizeDeadlineMs' | 'tokenizeBytesMax' | 'tokenizeCacheBytesMax'>;
  readonly clock: Pick<Clock, 'nowMs'>;
  readonly adapters: ReadonlyMap<string, EngineAdapter>;
  readonly post: WorkerPost;
  /** Told of a worker's failure, once per model. */
  readonly onMissing: (missing: MissingIds) => void;
}

interface BackOff {
  readonly untilMs: number;
  readonly delayMs: number;
}

/** See the head of the file. */
export class RemoteIds {
  readonly #options: RemoteIdsOptions;
  /** Least recently used first. */
  readonly #kept = new Map<string, Uint32Array>();
  readonly #asking = new Map<string, Promise<Uint32Array | null>>();
  readonly #backOffs = new Map<string, BackOff>();
  readonly #told = new Set<string>();
  #keptBytes = 0;
  #turn = 0;

  constructor(options: RemoteIdsOptions) {
    this.#options = options;
  }

  /** Prompts that workers are asked for now. */
  get asking(): number {
    return this.#asking.size;
  }

  /** Bytes of the cache. */
  get keptBytes(): number {
    return this.#keptBytes;
  }

  /** Forgets the failures of workers and models that are gone. */
  setWorld(workers: readonly WorkerView[]): void {
    const urls = new Set(workers.map(({ url }) => url));
    const models = new Set(workers.flatMap(worker => worker.models.map(({ id }) => id)));
    for (const url of this.#backOffs.keys()) if (!urls.has(url)) this.#backOffs.delete(url);
    for (const model of this.#told) if (!models.has(model)) this.#told.delete(model);
  }

  /**
   * The ids of `sample` under `model`: at once where they are kept, else from one of `workers`; null, at once or by
   * promise, where there are none in time. Never rejects. The array is shared: do not write to it.
   */
  idsOf(
    model: string,
    sample: TokenizeSample,
    workers: readonly WorkerView[],
  ): Uint32Array | null | Promise<Uint32Array | null> {
    const key = createHash('sha256')
      .update(JSON.stringify([model, sample]))
      .digest('base64');
    const kept = this.#kept.get(key);
    if (kept !== undefined) {
      this.#kept.delete(key);
      this.#kept.set(key, kept);
      return kept;
    }
    const running = this.#asking.get(key);
    if (running !== undefined) return running;
    const worker = this.#asking.size < ASKING_MAX ? this.#choose(workers) : null;
    if (worker === null) return null;
    const asked = this.#ask(worker, model, sample, key).finally(() => this.#asking.delete(key));
    this.#asking.set(key, asked);
    return asked;
  }

  /** The workers in turn, but for those that have failed a short while ago. */
  #choose(workers: readonly WorkerView[]): WorkerView | null {
    const nowMs = this.#options.clock.nowMs();
    const willing = workers.filter(({ url }) => (this.#backOffs.get(url)?.untilMs ?? 0) <= nowMs);
    return willing.length === 0 ? null : willing[this.#turn++ % willing.length]!;
  }

  async #ask(
    worker: WorkerView,
    model: string,
    sample: TokenizeSample,
    key: string,
  ): Promise<Uint32Array | null> {
    const { limits, adapters, post } = this.#options;
    const bytesMax = ANSWER_BYTES_MIN + ANSWER_BYTES_PER_BYTE * limits.tokenizeBytesMax;
    let status = 0;
    const toWorker: Poster = async (path, json) => {
      const answer = await post(worker.url, path, json, limits.tokenizeDeadlineMs, bytesMax);
      status = answer.status;
      return answer;
    };
    try {
      const ids = await adapters.get(worker.engine)!.tokenize(toWorker, model, sample);
      if (ids !== null) {
        this.#backOffs.delete(worker.url);
        this.#keep(key, ids);
        return ids;
      }
      if (!PROMPT_REFUSED.has(status)) this.#failed(worker.url, model, `status ${status}`);
    } catch (error) {
      this.#failed(worker.url, model, (error as Error).message);
    }
    return null;
  }

  #failed(url: string, model: string, reason: string): void {
    const nowMs = this.#options.clock.nowMs();
    const before = this.#backOffs.get(url);
    // What was asked together fails together: that is one failure.
    if (before === undefined || before.untilMs <= nowMs) {
      const delayMs = Math.min(before === undefined ? BACK_OFF_MS : 2 * before.delayMs, BACK_OFF_MS_MAX);
      this.#backOffs.set(url, { untilMs: nowMs + delayMs, delayMs });
    }
    if (this.#told.has(model)) return;
    this.#told.add(model);
    this.#options.onMissing({ model, worker: url, reason });
  }

  #keep(key: string, ids: Uint32Array): void {
    const bytesMax = this.#options.limits.tokenizeCacheBytesMax;
    const bytes = ids.byteLength + ENTRY_BYTES;
    if (bytes > bytesMax) return;
    this.#kept.set(key, ids);
    this.#keptBytes += bytes;
    for (const [oldest, { byteLength }] of this.#kept) {
      if (this.#keptBytes <= bytesMax) return;
      this.#kept.delete(oldest);
      this.#keptBytes -= byteLength + ENTRY_BYTES;
    }
  }
}
