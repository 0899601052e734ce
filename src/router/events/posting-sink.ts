/**
 * An index sink on another thread (R4): without the addon the index lives in the one pool thread, while event sockets are
 * read on the ingest thread. `PostingSink` stands there in its place and posts each call; `receiveSink` carries them out
 * in the pool thread, in the same order. What waits is bounded: over the bound a holder loses its batches and counts
 * as empty, since an index that misses removals would promise blocks that are gone.
 */
import { strict as assert } from 'node:assert';
import type { MessagePort } from 'node:worker_threads';
import type { LogFields } from '../../runtime/logger.js';
import type { HolderFacts, IndexSink, RoutedPrompt } from './contract.js';

/** What a message takes besides its payload; an estimate. */
const MESSAGE_BYTES = 128;
/** The receiver says how much it has done each time it is this much. */
const ACKNOWLEDGE_BYTES = 64 * 1024;

type SinkMessage =
  | { readonly call: 'addHolder'; readonly holder: number; readonly facts: HolderFacts }
  | { readonly call: 'removeHolder'; readonly holder: number }
  | { readonly call: 'clear'; readonly holder: number }
  | { readonly call: 'apply'; readonly holder: number; readonly payload: Uint8Array }
  | { readonly call: 'route'; readonly prompt: RoutedPrompt }
  | { readonly call: 'tend'; readonly nowMs: number };

interface Envelope {
  readonly message: SinkMessage;
  readonly bytes: number;
}

/** What a posting sink needs. */
export interface PostingSinkOptions {
  readonly port: MessagePort;
  /** Most bytes that are posted and not yet done; at least 256 KiB. */
  readonly waitingBytesMax: number;
  readonly log: { warn(message: string, fields?: LogFields): void };
}

/** The near end. Holders come and go at once; the rest waits its turn or is dropped. */
export class PostingSink implements IndexSink {
  readonly #port: MessagePort;
  readonly #waitingBytesMax: number;
  readonly #log: PostingSinkOptions['log'];
  /** Names of the known holders. */
  readonly #names = new Map<number, string>();
  /** Holders for which nothing was posted since they were cleared, and so are clear. */
  readonly #cleared = new Set<number>();
  readonly #logged = new Set<number>();
  #waitingBytes = 0;
  #droppedBatches = 0;

  constructor({ port, waitingBytesMax, log }: PostingSinkOptions) {
    assert(
      waitingBytesMax >= 4 * ACKNOWLEDGE_BYTES,
      'waitingBytesMax leaves room for what is acknowledged late',
    );
    this.#port = port;
    this.#waitingBytesMax = waitingBytesMax;
    this.#log = log;
    port.on('message', (bytes: number) => {
      this.#waitingBytes -= bytes;
    });
  }

  /** Batches dropped for want of room, since the start. */
  get droppedBatches(): number {
    return this.#droppedBatches;
  }

  addHolder(holder: number, facts: HolderFacts): void {
    this.#names.set(holder, facts.name);
    this.#cleared.add(holder);
    this.#logged.delete(holder);
    this.#post({ call: 'addHolder', holder, facts }, 0);
  }

  removeHolder(holder: number): void {
    if (!this.#names.delete(holder)) return;
    this.#cleared.delete(holder);
    this.#logged.delete(holder);
    this.#post({ call: 'removeHolder', holder }, 0);
  }

  clear(holder: number): void {
    if (!this.#names.has(holder) || this.#cleared.has(holder)) return;
    this.#cleared.add(holder);
    this.#post({ call: 'clear', holder }, 0);
  }

  /** Copies the payload, which may be a part of a larger buffer. */
  apply(holder: number, payload: Uint8Array): void {
    const name = this.#names.get(holder);
    if (name === undefined) return;
    if (this.#isFull(payload.length)) {
      this.#droppedBatches += 1;
      this.clear(holder);
      if (this.#logged.has(holder)) return;
      this.#logged.add(holder);
      this.#log.warn(
        'KV events come faster than the pool thread applies them; the worker counts as empty. Build the addon, whose index has a thread of its own',
        { worker: name, holder, waitingBytesMax: this.#waitingBytesMax },
      );
      return;
    }
    this.#cleared.delete(holder);
    const copy = new Uint8Array(payload);
    this.#post({ call: 'apply', holder, payload: copy }, copy.length, [copy.buffer]);
  }

  /** A prediction for which there is no room is dropped: the index then knows less, which is allowed. */
  route(prompt: RoutedPrompt): void {
    const hashes = prompt.hashes.slice(0, prompt.blocks * 2);
    if (!this.#names.has(prompt.slot) || this.#isFull(hashes.byteLength)) return;
    this.#cleared.delete(prompt.slot);
    this.#post({ call: 'route', prompt: { ...prompt, hashes } }, hashes.byteLength, [hashes.buffer]);
  }

  tend(nowMs: number): void {
    if (!this.#isFull(0)) this.#post({ call: 'tend', nowMs }, 0);
  }

  #isFull(payloadBytes: number): boolean {
    return this.#waitingBytes + MESSAGE_BYTES + payloadBytes > this.#waitingBytesMax;
  }

  #post(message: SinkMessage, payloadBytes: number, transfer: ArrayBuffer[] = []): void {
    const bytes = MESSAGE_BYTES + payloadBytes;
    this.#waitingBytes += bytes;
    this.#port.postMessage({ message, bytes } satisfies Envelope, transfer);
  }
}

/** The far end: carries out on `sink` what a PostingSink at the other end of `port` posts, until the port is closed. */
export function receiveSink(port: MessagePort, sink: IndexSink): void {
  let doneBytes = 0;
  port.on('message', ({ message, bytes }: Envelope) => {
    carryOut(message, sink);
    doneBytes += bytes;
    if (doneBytes < ACKNOWLEDGE_BYTES) return;
    port.postMessage(doneBytes);
    doneBytes = 0;
  });
}

function carryOut(message: SinkMessage, sink: IndexSink): void {
  if (message.call === 'apply') sink.apply(message.holder, message.payload);
  else if (message.call === 'route') sink.route(message.prompt);
  else if (message.call === 'tend') sink.tend(message.nowMs);
  else if (message.call === 'clear') sink.clear(message.holder);
  else if (message.call === 'addHolder') sink.addHolder(message.holder, message.facts);
  else sink.removeHolder(message.holder);
}
