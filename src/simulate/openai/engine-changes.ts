/**
 * What changes a mock engine while it serves: its LoRA adapters, and the memory that it gives back while it sleeps. A skin
 * turns its engine's routes into calls of this; the surface asks it what a request may have. One per engine, on its thread.
 */
import type { EngineCore } from '../engine-core.js';
import type { SequenceOwner } from '../live-engine.js';

/** What an engine can give back. */
export const MEMORY_TAGS = ['weights', 'kv_cache'] as const;
/** One of MEMORY_TAGS. */
export type MemoryTag = (typeof MEMORY_TAGS)[number];

/** In the place of an adapter's name: weights that nobody has read again give another text. */
const NO_WEIGHTS = '\0';

/** See the head of the file. */
export class EngineChanges {
  /** Paths by the names of the adapters. */
  readonly adapters: Map<string, string>;
  readonly #released = new Set<MemoryTag>();
  readonly #core: EngineCore<SequenceOwner>;
  #weightsLost = false;
  /** Requests that came while it slept, canaries among them. */
  requestsAsleep = 0;

  constructor(core: EngineCore<SequenceOwner>, adapters: Readonly<Record<string, string>>) {
    this.#core = core;
    this.adapters = new Map(Object.entries(adapters));
  }

  get isAsleep(): boolean {
    return this.#released.size > 0;
  }

  /** False: it runs requests, and stays awake. `losesWeights`: nothing keeps them. */
  release(tags: readonly MemoryTag[], losesWeights: boolean): boolean {
    if (this.#core.running + this.#core.waiting > 0) return false;
    for (const tag of tags) this.#released.add(tag);
    if (tags.includes('kv_cache')) this.#core.pool.reset();
    if (tags.includes('weights') && losesWeights) this.#weightsLost = true;
    return true;
  }

  /** False: some of it was not released, or, for `kv_cache`, the weights are not there yet. */
  resume(tags: readonly MemoryTag[]): boolean {
    if (!tags.every(tag => this.#released.has(tag))) return false;
    for (const tag of tags) this.#released.delete(tag);
    return true;
  }

  /** False: there is no memory for them. */
  reloadWeights(): boolean {
    if (this.#released.has('weights')) return false;
    this.#weightsLost = false;
    return true;
  }

  /** The adapter that a request's text comes from. */
  textOf(adapter: string): string {
    return this.#weightsLost ? adapter + NO_WEIGHTS : adapter;
  }
}
