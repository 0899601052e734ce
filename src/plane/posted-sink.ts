/**
 * The sink of an ingest thread without the addon (R4): passes everything on to the index in the pool thread. That thread
 * may die and come again, with an empty index; the new one is told the workers, and learns their blocks from events that
 * follow. Between two of them events are dropped. Owned by the ingest thread.
 */
import type { MessagePort } from 'node:worker_threads';
import type { HolderFacts, IndexSink, RoutedPrompt } from '../router/events/contract.js';
import { PostingSink } from '../router/events/posting-sink.js';
import type { LogFields } from '../runtime/logger.js';
import type { PostedNews } from './posted-index.js';

/** What the index in the pool thread tells. */
export interface PostedListener {
  learn(slot: number, generation: number, blockSize: number): void;
  warn(message: string, fields: LogFields): void;
}

/** See the head of the file. */
export class PostedSink implements IndexSink {
  readonly #holders = new Map<number, HolderFacts>();
  readonly #listener: PostedListener;
  #port: MessagePort | null = null;
  #sink: PostingSink | null = null;
  #numbers: (PostedNews & { kind: 'counts' }) | null = null;

  constructor(listener: PostedListener) {
    this.#listener = listener;
  }

  /** What the index told last of itself; null: nothing yet. */
  get numbers(): (PostedNews & { kind: 'counts' }) | null {
    return this.#numbers;
  }

  /** A new incarnation of the pool thread listens at this port. */
  attach(port: MessagePort): void {
    this.detach();
    this.#port = port;
    this.#sink = new PostingSink(port);
    port.on('message', (news: PostedNews) => this.#take(news));
    for (const [holder, facts] of this.#holders) this.#sink.addHolder(holder, facts);
  }

  /** The incarnation is gone, or nothing more is to be told to it. */
  detach(): void {
    this.#port?.close();
    this.#port = null;
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

  #take(news: PostedNews): void {
    if (news.kind === 'counts') this.#numbers = news;
    else if (news.kind === 'warn') this.#listener.warn(news.message, news.fields);
    else this.#listener.learn(news.slot, news.generation, news.blockSize);
  }
}
