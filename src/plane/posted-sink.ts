/**
 * The sink of an ingest thread without the addon (R4): passes everything on to the index in the pool thread. That thread
 * may die and come again, with an empty index; the new one is told the workers, and learns their blocks from events that
 * follow. Between two of them events are dropped. Owned by the ingest thread.
 */
import type { MessagePort } from 'node:worker_threads';
import type { HolderFacts, IndexSink, RoutedPrompt } from '../router/events/contract.js';
import { PostingSink, type PostingSinkOptions } from '../router/events/posting-sink.js';
import type { PostedNews } from './posted-index.js';

/** What it needs besides the port. */
export interface PostedSinkOptions extends Omit<PostingSinkOptions, 'port'> {
  /** The index has learned the block size of a worker. */
  readonly learn: (slot: number, generation: number, blockSize: number) => void;
}

/** See the head of the file. */
export class PostedSink implements IndexSink {
  readonly #holders = new Map<number, HolderFacts>();
  readonly #options: PostedSinkOptions;
  #ports: readonly MessagePort[] = [];
  #sink: PostingSink | null = null;
  #numbers: (PostedNews & { kind: 'counts' }) | null = null;

  constructor(options: PostedSinkOptions) {
    this.#options = options;
  }

  /** What the index told last of itself; null: nothing yet. */
  get numbers(): (PostedNews & { kind: 'counts' }) | null {
    return this.#numbers;
  }

  /** A new incarnation of the pool thread listens at `port` and tells by `news`. */
  attach(port: MessagePort, news: MessagePort): void {
    this.detach();
    this.#ports = [port, news];
    this.#sink = new PostingSink({ ...this.#options, port });
    news.on('message', (told: PostedNews) => this.#take(told));
    for (const [holder, facts] of this.#holders) this.#sink.addHolder(holder, facts);
  }

  /** The incarnation is gone, or nothing more is to be told to it. */
  detach(): void {
    for (const port of this.#ports) port.close();
    this.#ports = [];
    this.#sink = null;
  }

  addHolder(holder: number, facts: HolderFacts): void {
    this.#holders.set(holder, facts);
    this.#sink?.addHolder(holder, facts);
  }

  removeHolder(holder: number): void {
    this.#holders.delete(holder);
    this.#sink?.removeHolder(holder);
  }

  clear(holder: number): void {
    this.#sink?.clear(holder);
  }

  apply(holder: number, payload: Uint8Array): void {
    this.#sink?.apply(holder, payload);
  }

  route(prompt: RoutedPrompt): void {
    this.#sink?.route(prompt);
  }

  tend(nowMs: number): void {
    this.#sink?.tend(nowMs);
  }

  #take(told: PostedNews): void {
    const { log, learn } = this.#options;
    if (told.kind === 'counts') this.#numbers = told;
    else if (told.kind === 'warn') log.warn(told.message, told.fields);
    else learn(told.slot, told.generation, told.blockSize);
  }
}
