/**
 * The network between the workers of a replay: how long the KV of a prompt is under way. Each worker sends and receives one
 * hand-over at a time, in order, as one network card does; a hand-over occupies both ends. Also the two parts of a request
 * that is handed over, as engine cores see them. Owned by one run.
 */
import assert from 'node:assert';
import type { SequenceHandover } from '../sequence.js';
import { PassQueue } from './pass-queue.js';

/** What a hand-over costs. */
export interface HandoverCost {
  readonly kvBytesPerToken: number;
  /** Of one worker's link, each way. */
  readonly linkBytesPerSecond: number;
  /** From the ask to the first byte; occupies no link. */
  readonly latencyMs: number;
}

interface Handover {
  readonly endMs: number;
  readonly onEnd: () => void;
}

/** See the head of the file. Times are virtual milliseconds. */
export class HandoverLinks {
  readonly #cost: HandoverCost;
  readonly #sendsFromMs: Float64Array;
  readonly #receivesFromMs: Float64Array;
  /** Those under way to each worker, in order of their ends. */
  readonly #arriving: Handover[][];
  readonly #queue: PassQueue;

  constructor(workers: number, cost: HandoverCost) {
    this.#cost = cost;
    this.#sendsFromMs = new Float64Array(workers);
    this.#receivesFromMs = new Float64Array(workers);
    this.#arriving = Array.from({ length: workers }, () => []);
    this.#queue = new PassQueue(workers);
  }

  /** When the next hand-over ends; Infinity when none is under way. */
  get nextMs(): number {
    return this.#queue.nextMs;
  }

  /** Sends `tokens` tokens of KV, at least 1; `onEnd` is called by `endNext`. */
  send(from: number, to: number, tokens: number, nowMs: number, onEnd: () => void): void {
    const { kvBytesPerToken, linkBytesPerSecond, latencyMs } = this.#cost;
    const startMs = Math.max(nowMs, this.#sendsFromMs[from]!, this.#receivesFromMs[to]!);
    const freeMs = startMs + (1000 * tokens * kvBytesPerToken) / linkBytesPerSecond;
    this.#sendsFromMs[from] = freeMs;
    this.#receivesFromMs[to] = freeMs;
    const arriving = this.#arriving[to]!;
    arriving.push({ endMs: freeMs + latencyMs, onEnd });
    if (arriving.length === 1) this.#queue.push(to, freeMs + latencyMs);
  }

  /** Ends the hand-over that is next. */
  endNext(): void {
    const to = this.#queue.pop();
    const arriving = this.#arriving[to]!;
    const { onEnd } = arriving.shift()!;
    if (arriving.length > 0) this.#queue.push(to, arriving[0]!.endMs);
    onEnd();
  }
}

const never = (): never => assert.fail('a replay aborts nothing, and each part of a hand-over has one step');

/** The part of a request's prefill worker: `onOffer` is given the blocks when the prompt is computed. */
export function keepingPart(onOffer: (blocks: number[]) => void): SequenceHandover {
  return { keeps: true, pulls: false, queued: () => {}, load: never, offer: onOffer, aborted: never };
}

/** The part of its decode worker: `onLoad` is to fill the blocks. */
export function pullingPart(onLoad: SequenceHandover['load']): SequenceHandover {
  return { keeps: false, pulls: true, queued: () => {}, load: onLoad, offer: never, aborted: never };
}
