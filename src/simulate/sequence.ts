/**
 * One sequence inside the simulated engine: one choice of one request, from arrival to its end. A plain record that
 * the core (engine-core.ts) changes; whoever submitted it reads `fresh` and `finish` after each pass and keeps its own
 * things in `owner`.
 */
import assert from 'node:assert';
import type { CachedSequence } from './block-pool.js';
import {
  advanceDigest,
  blockKey,
  type PromptDigest,
  type SequenceDigest,
  type TokenInput,
} from './token-source.js';

/** How the loading of a prompt's KV ended; 'recompute': it failed, and the engine computes it itself. */
export type LoadOutcome = 'loaded' | 'recompute' | 'failed';

/**
 * What other engines have to do with the KV of a request's sequences. Called by whoever drives the core, on its thread;
 * implemented by disagg/, which knows where the other engine is.
 */
export interface SequenceHandover {
  /** After a normal end the blocks stay pinned, and `offer` is given them. */
  readonly keeps: boolean;
  /** The prompt's KV comes from elsewhere: the sequence is `loading` before it runs. */
  readonly pulls: boolean;
  /** The sequence waits in the queue of this engine. */
  queued(): void;
  /** Fills `blocks` from index `from` on. `settle` is called exactly once; until then the blocks may be written. */
  load(blocks: readonly number[], from: number, settle: (outcome: LoadOutcome) => void): void;
  /** Owns the pinned `blocks` from here on; the first `tokens` positions of the sequence are in them. */
  offer(blocks: number[], tokens: number): void;
  /** The sequence was aborted; a load under way settles soon. */
  aborted(): void;
}

/** What one choice asks for. */
export interface SequenceRequest<Owner> {
  readonly prompt: PromptDigest;
  /** Tokens to generate at most, ≥ 1. */
  readonly maxTokens: number;
  /** No end and no stop id before this many tokens. */
  readonly minTokens: number;
  readonly ignoreEos: boolean;
  readonly stopTokenIds: readonly number[];
  /** Index of the choice within its request. */
  readonly choice: number;
  /** Tokens that the answer begins with, drawn by another engine; absent: none. */
  readonly firstTokens?: readonly number[];
  /** Absent: its KV stays here. */
  readonly handover?: SequenceHandover;
  readonly owner: Owner;
}

/**
 * Where a sequence is. `preempted` waits too, and keeps what it has generated. `loading` has blocks that another engine's
 * KV goes to, and no slot; `failed` is one whose load failed.
 */
export type SequenceState =
  | 'waiting'
  | 'loading'
  | 'running'
  | 'preempted'
  | 'finished'
  | 'rejected'
  | 'aborted'
  | 'failed';

/** See the head of the file. All counts are tokens. */
export class EngineSequence<Owner> implements CachedSequence, TokenInput {
  readonly request: SequenceRequest<Owner>;
  readonly owner: Owner;
  /** Physical KV blocks held, in order of the sequence. */
  readonly blocks: number[] = [];
  /** Keys of the full blocks of prompt and answer. */
  readonly keys: number[];
  readonly digest: SequenceDigest;
  /** End-of-sequence and stop ids, which `minTokens` masks; null when nothing is masked. */
  readonly masked: ReadonlySet<number> | null;
  readonly arrivedMs: number;
  /** Kept where the prompt's ids are. */
  readonly #generatedIds: number[] = [];
  state: SequenceState = 'waiting';
  /** Prompt and generated tokens. The newest generated one has no KV yet. */
  length: number;
  generated = 0;
  /** Tokens whose KV is in `blocks`, counting those of the pass in progress. */
  computed = 0;
  /** Where the pass in progress began: the positions up to `computed` are its work. */
  passFrom = 0;
  /** Tokens that this pass may accept beyond the first one; they have room in `blocks`. */
  drafts = 0;
  /** Full blocks that were made findable, or found. */
  published = 0;
  /** It is in the totals of prompts. */
  counted = false;
  /** The prompt's KV was asked for elsewhere, whatever came of it. */
  pulled = false;
  /** Prompt tokens found in the cache, or transferred, when it was first admitted. */
  cachedTokens = 0;
  preemptions = 0;
  /** The newest token, −1 before the first. */
  lastToken = -1;
  /** Tokens of its last pass, in order. */
  readonly fresh: number[] = [];
  finish: 'stop' | 'length' | null = null;
  /** The stop id that ended it; null for end-of-sequence and for a length. */
  stopReason: number | null = null;

  constructor(request: SequenceRequest<Owner>, eosId: number, nowMs: number) {
    this.request = request;
    this.owner = request.owner;
    this.keys = [...request.prompt.keys];
    this.digest = { ...request.prompt.digest };
    this.length = request.prompt.length;
    this.arrivedMs = nowMs;
    this.masked =
      request.minTokens > 0
        ? new Set(request.ignoreEos ? request.stopTokenIds : [eosId, ...request.stopTokenIds])
        : null;
  }

  /** True until it has ended in any way. */
  get live(): boolean {
    const { state } = this;
    return state === 'waiting' || state === 'running' || state === 'preempted' || state === 'loading';
  }

  get cacheSalt(): string {
    return this.request.prompt.cacheSalt;
  }

  get adapter(): string {
    return this.request.prompt.adapter ?? '';
  }

  tokenAt(position: number): number {
    const { ids, length } = this.request.prompt;
    assert(ids !== null && position < this.length);
    return position < length ? ids[position]! : this.#generatedIds[position - length]!;
  }

  /** Takes in the token that a pass generated, and decides whether it was the last one (vLLM's `check_stop`). */
  append(token: number, eosId: number, blockSize: number): void {
    const { request } = this;
    advanceDigest(this.digest, token);
    this.lastToken = token;
    this.fresh.push(token);
    if (request.prompt.ids !== null) this.#generatedIds.push(token);
    this.length++;
    this.generated++;
    if (this.length % blockSize === 0) this.keys.push(blockKey(this.digest, request.prompt.salt));
    if (this.generated >= request.minTokens) {
      if (token === eosId && !request.ignoreEos) this.finish = 'stop';
      else if (request.stopTokenIds.includes(token)) {
        this.finish = 'stop';
        this.stopReason = token;
      }
    }
    if (this.finish === null && this.generated >= request.maxTokens) this.finish = 'length';
  }
}
