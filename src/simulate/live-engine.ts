/**
 * Runs an EngineCore in real time: one pass after the other while there is work, tokens handed to their owners when the
 * pass ends. Waits for moments, not for spans, so late timers and the scheduler's own CPU time do not add up. Clock
 * and yield come in from outside. Owned by the thread that runs the mock engine.
 */
import assert from 'node:assert';
import type { Clock, Timer } from '../runtime/clock.js';
import type { EngineCore, PassResult } from './engine-core.js';
import type { EngineSequence, LoadOutcome, SequenceRequest } from './sequence.js';

/** Who asked for sequences. Called on the thread of the engine, only at the end of a pass. */
export interface SequenceOwner {
  /** `sequence` has `fresh` tokens, and has ended with the last of them if it has a `finish`. */
  onTokens(sequence: EngineSequence<SequenceOwner>): void;
  /** The prompt's KV did not come from the other engine, and `sequence` has ended without a token. Followed by `flush`. */
  onLoadFailed(sequence: EngineSequence<SequenceOwner>): void;
  /** The pass told all it had to tell. Called once per sequence of the owner: only the first call finds anything. */
  flush(): void;
}

/** What a live engine needs from its process. */
export interface LiveEngineOptions {
  readonly clock: Clock;
  /** Runs a function in a later turn of the event loop, without waiting (`setImmediate`). */
  readonly defer: (fn: () => void) => void;
  /** Told when a pass is scheduled and its blocks are resident; its tokens come later. */
  readonly onPass?: () => void;
}

/** Behind by more than this, the schedule starts anew from the present: the machine was too busy to keep it. */
const LAG_MS_MAX = 50;

/** Waits shorter than this are only a yield: timers of the platform have a grain of 1 ms. */
const WAIT_MS_MIN = 0.5;

/** See the head of the file. */
export class LiveEngine {
  readonly core: EngineCore<SequenceOwner>;
  readonly #clock: Clock;
  readonly #defer: (fn: () => void) => void;
  readonly #onPass: (() => void) | undefined;
  #pass: PassResult<SequenceOwner> | null = null;
  #scheduled = false;
  #timer: Timer | null = null;
  #closed = false;
  /** When the next pass should start, by the schedule. */
  #nextMs = 0;

  constructor(core: EngineCore<SequenceOwner>, options: LiveEngineOptions) {
    this.core = core;
    this.#clock = options.clock;
    this.#defer = options.defer;
    this.#onPass = options.onPass;
  }

  /** Queues one choice, which must fit the engine. Its first token comes in a later turn of the event loop. */
  submit(request: SequenceRequest<SequenceOwner>): EngineSequence<SequenceOwner> {
    assert(this.core.fits(request.prompt.length, request.maxTokens));
    const nowMs = this.#clock.nowMs();
    const sequence = this.core.add(request, nowMs);
    request.handover?.queued();
    this.wake();
    return sequence;
  }

  /** Tries again what had to wait: room was made. */
  wake(): void {
    if (this.#scheduled || this.#closed) return;
    this.#nextMs = this.#clock.nowMs();
    this.#waitUntil(this.#nextMs);
  }

  /** Ends a sequence without another word to its owner. */
  abort(sequence: EngineSequence<SequenceOwner>): void {
    const { live } = sequence;
    this.core.abort(sequence);
    if (!live) return;
    sequence.request.handover?.aborted();
    this.wake();
  }

  /** Stops the passes. Nobody is told anything any more. */
  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
    this.#pass = null;
  }

  #waitUntil(atMs: number): void {
    this.#scheduled = true;
    const turn = (): void => this.#turn();
    const waitMs = atMs - this.#clock.nowMs();
    if (waitMs < WAIT_MS_MIN) this.#defer(turn);
    else this.#timer = this.#clock.after(waitMs, turn);
  }

  /** Hands out the pass that has ended, then starts the next one. */
  #turn(): void {
    if (this.#closed) return;
    if (this.#pass !== null) this.#deliver(this.#pass);
    this.#pass = null;
    if (this.core.running + this.core.waiting === 0) {
      this.#scheduled = false;
      return;
    }
    const nowMs = this.#clock.nowMs();
    if (nowMs - this.#nextMs > LAG_MS_MAX) this.#nextMs = nowMs;
    this.#pass = this.core.executePass(this.#nextMs);
    this.#onPass?.();
    this.#scheduled = !this.#pass.stuck;
    for (const sequence of this.#pass.loading) this.#load(sequence);
    if (this.#pass.stuck) return;
    this.#nextMs = this.#pass.endMs;
    this.#waitUntil(this.#nextMs);
  }

  #load(sequence: EngineSequence<SequenceOwner>): void {
    const { handover } = sequence.request;
    handover!.load(sequence.blocks, sequence.published, outcome => this.#loaded(sequence, outcome));
  }

  #loaded(sequence: EngineSequence<SequenceOwner>, outcome: LoadOutcome): void {
    this.core.loaded(sequence, outcome);
    if (sequence.state === 'failed') {
      sequence.owner.onLoadFailed(sequence);
      sequence.owner.flush();
    }
    this.wake();
  }

  #deliver(pass: PassResult<SequenceOwner>): void {
    for (const sequence of pass.emitted) {
      const { handover } = sequence.request;
      if (sequence.state === 'finished' && handover?.keeps === true)
        handover.offer(sequence.blocks, sequence.computed);
    }
    // An owner that ends one sequence may abort others of the same pass: those have nothing to say any more.
    for (const sequence of pass.emitted) if (sequence.state !== 'aborted') sequence.owner.onTokens(sequence);
    for (const sequence of pass.emitted) sequence.owner.flush();
  }
}
