/**
 * The simulated engine itself: continuous batching with a token budget, chunked prefill, prefix caching and preemption,
 * in the order of vLLM's scheduler as Dynamo's mocker states it. Explicit state and one function, `executePass(nowMs)`:
 * no clock, no timer, no I/O, so one process can drive hundreds of engines under a virtual clock. Owned by its driver.
 */
import assert from 'node:assert';
import { type BlockEvents, BlockPool } from './block-pool.js';
import type { BlockStore } from './block-store.js';
import type { EngineSettings } from './engine-settings.js';
import { EngineSequence, type LoadOutcome, type SequenceRequest } from './sequence.js';
import { decodeMs, prefillBatchTokens, prefillMs } from './timing.js';
import { type TokenModel, TokenSource } from './token-source.js';

/** What one pass did. Valid until the next pass: its lists are used again. */
export interface PassResult<Owner> {
  /** When its tokens are there; equals the start when the pass had nothing to compute or speed is unlimited. */
  endMs: number;
  prefillMs: number;
  decodeMs: number;
  /** Tokens computed, of prompts and of answers. */
  scheduledTokens: number;
  /**
   * Sequences with `fresh` tokens; those with a `finish` have ended and hold no block any more, unless their handover
   * keeps them: whoever drives the core passes those on.
   */
  readonly emitted: EngineSequence<Owner>[];
  /** Sequences that can never fit and have ended without a token. */
  readonly rejected: EngineSequence<Owner>[];
  /** Sequences that have become `loading`: their blocks from `published` on are to be filled, then `loaded` called. */
  readonly loading: EngineSequence<Owner>[];
  /** Nothing was done, and nothing will be until a load, a pin or a request ends. */
  stuck: boolean;
}

/** Totals since the start; all but the preemptions are tokens. */
export interface CoreTotals {
  promptTokens: number;
  generatedTokens: number;
  prefixQueries: number;
  prefixHits: number;
  preemptions: number;
}

/** See the head of the file. `drawable` are the ids that answers are made of. */
export class EngineCore<Owner> {
  readonly settings: EngineSettings;
  readonly pool: BlockPool;
  readonly totals: CoreTotals = {
    promptTokens: 0,
    generatedTokens: 0,
    prefixQueries: 0,
    prefixHits: 0,
    preemptions: 0,
  };
  readonly #events: BlockEvents | null;
  readonly #model: TokenModel;
  readonly #running: EngineSequence<Owner>[] = [];
  readonly #waiting: EngineSequence<Owner>[] = [];
  /** Scheduled in the pass in progress, in order. */
  readonly #batch: EngineSequence<Owner>[] = [];
  readonly #hits: number[] = [];
  readonly #prefill = { requests: 0, lengthSum: 0, prefixSum: 0 };
  readonly #result: PassResult<Owner> = {
    endMs: 0,
    prefillMs: 0,
    decodeMs: 0,
    scheduledTokens: 0,
    emitted: [],
    rejected: [],
    loading: [],
    stuck: false,
  };

  /**
   * `events`, when given, hears what becomes resident and what goes, while the pass is scheduled. `model` makes the
   * tokens; by default they are drawn from the `drawable` ones by a digest of the tokens before. `store` has the free
   * blocks; by default plain memory.
   */
  constructor(
    settings: EngineSettings,
    drawable: { ids: Uint32Array; eosId: number },
    events: BlockEvents | null = null,
    model: TokenModel | null = null,
    store?: BlockStore,
  ) {
    this.settings = settings;
    this.#events = events;
    this.pool = new BlockPool(settings.numGpuBlocks, events, store);
    const { eosRate, seed } = settings;
    this.#model = model ?? new TokenSource({ ...drawable, eosRate, seed });
  }

  /** Sequences that hold a running slot. */
  get running(): number {
    return this.#running.length;
  }

  /** Sequences that wait for a slot, preempted ones included. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** Share of the pool that requests hold, 0 to 1. */
  get kvUsage(): number {
    return this.pool.active / this.pool.capacity;
  }

  /** Whether a request can ever run: its prompt and all it may generate are within `maxModelLen`. */
  fits(promptTokens: number, maxTokens: number): boolean {
    return promptTokens > 0 && maxTokens > 0 && promptTokens + maxTokens <= this.settings.maxModelLen;
  }

  /** Queues one choice; it may run from the next pass on. */
  add(request: SequenceRequest<Owner>, nowMs: number): EngineSequence<Owner> {
    const sequence = new EngineSequence(request, this.#model.eosId, nowMs);
    this.#waiting.push(sequence);
    return sequence;
  }

  /**
   * Takes a sequence out at once and frees its blocks; one that has ended stays as it is. The blocks of a `loading` one
   * may still be written, and are freed by `loaded`.
   */
  abort(sequence: EngineSequence<Owner>): void {
    if (!sequence.live) return;
    if (sequence.state === 'loading') {
      sequence.state = 'aborted';
      return;
    }
    const queue = sequence.state === 'running' ? this.#running : this.#waiting;
    queue.splice(queue.indexOf(sequence), 1);
    this.#end(sequence, 'aborted');
  }

  /** Says how a load ended, once per sequence of `loading`: nobody else writes its blocks from here on. */
  loaded(sequence: EngineSequence<Owner>, outcome: LoadOutcome): void {
    if (sequence.state === 'aborted') {
      this.pool.release(sequence.blocks);
      return;
    }
    assert(sequence.state === 'loading');
    if (outcome === 'failed') {
      this.#end(sequence, 'failed');
      return;
    }
    sequence.state = 'waiting';
    // The last token is computed here: its logits were thrown away over there.
    if (outcome === 'loaded') sequence.computed = sequence.length - 1;
    this.#waiting.unshift(sequence);
  }

  /** Schedules and computes one pass that starts at `nowMs`. The caller delivers its tokens at `endMs`. */
  executePass(nowMs: number): PassResult<Owner> {
    const result = this.#result;
    result.emitted.length = 0;
    result.rejected.length = 0;
    result.loading.length = 0;
    this.#batch.length = 0;
    this.#prefill.requests = 0;
    this.#prefill.lengthSum = 0;
    this.#prefill.prefixSum = 0;
    const { maxNumBatchedTokens, speed } = this.settings;
    const preemptions = this.totals.preemptions;
    let budget = this.#continueRunning(maxNumBatchedTokens);
    const settled = this.totals.preemptions === preemptions;
    // Who lost its blocks in this pass must not see another one take them.
    if (settled) budget = this.#admitWaiting(budget);
    const { requests, lengthSum, prefixSum } = this.#prefill;
    const heldTokens = this.#emit();
    const divisor = speed === 'unlimited' ? Number.POSITIVE_INFINITY : speed;
    result.scheduledTokens = maxNumBatchedTokens - budget;
    result.stuck = settled && this.#batch.length + result.rejected.length + result.loading.length === 0;
    result.prefillMs = prefillMs(prefillBatchTokens(requests, lengthSum, prefixSum)) / divisor;
    result.decodeMs = result.emitted.length === 0 ? 0 : decodeMs(this.#load(heldTokens)) / divisor;
    result.endMs = nowMs + result.prefillMs + result.decodeMs;
    return result;
  }

  #load(heldTokens: number): number {
    return heldTokens / (this.settings.numGpuBlocks * this.settings.blockSize);
  }

  /** Step 3: running sequences in order, oldest first. Returns the budget that is left. */
  #continueRunning(budgetMax: number): number {
    let budget = budgetMax;
    for (let at = 0; at < this.#running.length && budget > 0; at++) {
      const sequence = this.#running[at]!;
      const want = Math.min(sequence.length - sequence.computed, budget);
      const drafts = this.#draftsOf(sequence, want, budget);
      if (!this.#grow(sequence, want + drafts)) break;
      this.#schedule(sequence, want, drafts);
      budget -= want + drafts;
    }
    return budget;
  }

  /** Tokens that the pass may accept beyond the next one: a sequence that decodes has drafts of them. */
  #draftsOf(sequence: EngineSequence<Owner>, want: number, budget: number): number {
    const { request, generated } = sequence;
    if (generated === 0 || sequence.computed + want < sequence.length) return 0;
    const { tokensPerStep } = this.settings;
    return Math.max(0, Math.min(tokensPerStep - 1, budget - want, request.maxTokens - generated - 1));
  }

  /** Holds blocks for `want` more tokens, at the expense of the newest running ones. False: it had to go itself. */
  #grow(sequence: EngineSequence<Owner>, want: number): boolean {
    const blocks = Math.ceil((sequence.computed + want) / this.settings.blockSize);
    const fresh = blocks - sequence.blocks.length;
    if (fresh <= 0) return true;
    while (!this.pool.reserve([], fresh, sequence.blocks)) {
      // The newest is never one that this pass has scheduled already: those stand before `sequence`.
      const victim = this.#running.pop()!;
      this.#preempt(victim);
      if (victim === sequence) return false;
    }
    return true;
  }

  #preempt(victim: EngineSequence<Owner>): void {
    this.pool.release(victim.blocks);
    victim.computed = 0;
    victim.published = 0;
    victim.preemptions++;
    victim.state = 'preempted';
    this.totals.preemptions++;
    // Behind those that were loaded: it would hold them up at the head, and they hold the blocks that it waits for.
    let at = 0;
    while ((this.#waiting[at]?.blocks.length ?? 0) > 0) at++;
    this.#waiting.splice(at, 0, victim);
  }

  /** Steps 4 and 5: the head of the queue while it fits; one that must wait holds up those behind it. */
  #admitWaiting(budgetMax: number): number {
    let budget = budgetMax;
    while (this.#waiting.length > 0 && this.#running.length < this.settings.maxNumSeqs && budget > 0) {
      const sequence = this.#waiting[0]!;
      const { prompt, maxTokens } = sequence.request;
      if (!this.fits(prompt.length, maxTokens)) {
        this.#waiting.shift();
        this.#end(sequence, 'rejected');
        this.#result.rejected.push(sequence);
        continue;
      }
      const mustLoad = sequence.request.handover?.pulls === true && !sequence.pulled;
      if (sequence.blocks.length === 0 && !this.#place(sequence, mustLoad ? sequence.length : budget)) break;
      this.#waiting.shift();
      if (mustLoad) {
        sequence.pulled = true;
        sequence.state = 'loading';
        this.#result.loading.push(sequence);
        continue;
      }
      budget -= this.#admit(sequence, budget);
    }
    return budget;
  }

  /** Holds the resident blocks of a sequence, and fresh ones for `room` tokens more; false when there are not so many. */
  #place(sequence: EngineSequence<Owner>, room: number): boolean {
    const { blockSize } = this.settings;
    this.pool.match(sequence.keys, this.#hits);
    // The last token is computed even when its block is resident: the answer needs its logits.
    const cached = Math.min(this.#hits.length * blockSize, sequence.length - 1);
    const want = Math.min(sequence.length - cached, room);
    const fresh = Math.ceil((cached + want) / blockSize) - this.#hits.length;
    if (!this.pool.reserve(this.#hits, fresh, sequence.blocks)) return false;
    sequence.published = this.#hits.length;
    sequence.computed = cached;
    if (!sequence.counted) {
      sequence.counted = true;
      this.totals.promptTokens += sequence.request.prompt.length;
      this.totals.prefixQueries += sequence.request.prompt.length;
      this.totals.prefixHits += cached;
    }
    return true;
  }

  /** Gives a sequence with blocks a slot. Returns the tokens that it computes in this pass. */
  #admit(sequence: EngineSequence<Owner>, budget: number): number {
    if (sequence.state === 'waiting') sequence.cachedTokens = sequence.computed;
    this.#running.push(sequence);
    sequence.state = 'running';
    const want = Math.min(sequence.length - sequence.computed, budget);
    this.#schedule(sequence, want, 0);
    return want;
  }

  /** Books `want` tokens of this pass and step 6: blocks that become full are findable at once. */
  #schedule(sequence: EngineSequence<Owner>, want: number, drafts: number): void {
    const before = sequence.computed;
    const after = before + want;
    sequence.passFrom = before;
    sequence.computed = after;
    sequence.drafts = drafts;
    // Drafts are verified at the price of a decode; so is the last token of a prompt that came from another engine, which
    // vLLM computes in the batch of the decodes. Dynamo's mocker takes no prefill time on a decode worker either.
    if (want > 1 || (before < sequence.request.prompt.length && !sequence.pulled)) {
      this.#prefill.requests++;
      this.#prefill.lengthSum += after;
      this.#prefill.prefixSum += before;
    }
    const full = Math.floor(after / this.settings.blockSize);
    let at = sequence.published;
    while (at < full) {
      const from = at;
      while (at < full && this.pool.publish(sequence.blocks[at]!, sequence.keys[at]!)) at++;
      if (at > from) this.#events?.stored(sequence, from, at);
      if (at < full) at++;
    }
    sequence.published = full;
    this.#batch.push(sequence);
  }

  /**
   * Computes what the pass has scheduled, in its order: one sequence may use blocks that the one before it fills. Step 7:
   * the tokens of each sequence that is computed to its end. Returns the sum of their context lengths.
   */
  #emit(): number {
    let heldTokens = 0;
    let finished = false;
    for (const sequence of this.#batch) {
      this.#model.compute(sequence, sequence.passFrom, sequence.computed);
      if (sequence.computed < sequence.length) continue;
      heldTokens += sequence.length;
      this.#generate(sequence);
      this.#result.emitted.push(sequence);
      if (sequence.finish === null) continue;
      finished = true;
      this.#end(sequence, 'finished');
    }
    if (finished) this.#dropEnded();
    return heldTokens;
  }

  /** One token, and those that its drafts allow; all but the newest have their KV then. */
  #generate(sequence: EngineSequence<Owner>): void {
    const { minTokens, choice, firstTokens } = sequence.request;
    sequence.fresh.length = 0;
    for (;;) {
      const masked = sequence.generated < minTokens ? sequence.masked : null;
      const given = firstTokens?.[sequence.generated];
      const token = given ?? this.#model.next(sequence, sequence.generated === 0 ? choice : 0, masked);
      sequence.append(token, this.#model.eosId, this.settings.blockSize);
      this.totals.generatedTokens++;
      if (sequence.finish !== null || sequence.fresh.length > sequence.drafts) return;
      this.#model.compute(sequence, sequence.computed, sequence.computed + 1);
      sequence.computed++;
    }
  }

  #dropEnded(): void {
    const running = this.#running;
    let kept = 0;
    for (const sequence of running) if (sequence.live) running[kept++] = sequence;
    running.length = kept;
  }

  #end(sequence: EngineSequence<Owner>, state: 'finished' | 'rejected' | 'aborted' | 'failed'): void {
    sequence.state = state;
    if (state === 'finished' && sequence.request.handover?.keeps === true) this.pool.pin(sequence.blocks);
    else this.pool.release(sequence.blocks);
  }
}
