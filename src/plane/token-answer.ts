/**
 * An answer in token mode (R6): ids from the engine's frames become text, stop strings and end-of-sequence ids are
 * applied, and each choice finishes exactly once. Pure besides its own state; the request that owns it does the I/O.
 */
import { strict as assert } from 'node:assert';
import type { FrameBatch } from '../engines/contract.js';
import { type DrawnLogprob, logprobsOf, readLogprobs } from '../engines/event-logprobs.js';
import {
  type EngineFinish,
  errorOf,
  explodeFrame,
  finishReasonOf,
  rowStart,
  usageOf,
} from '../engines/event-rows.js';
import { FRAME, FRAME_FLAG } from '../engines/frame-descriptor.js';
import type { FinishReason, TokenLogprobs, Usage } from '../messages/delta.js';
import type { Continuation, Plan, PlanCall } from '../messages/records.js';
import { type DetokenizerTable, StreamDetokenizer, startsText } from '../preprocess/detokenizer.js';
import { StopMatcher } from '../preprocess/stop-matcher.js';
import { ABORTED, type BatchOutcome, emptyOutcome } from './batch-outcome.js';
import { ChoiceLogprobs } from './choice-logprobs.js';
import type { KeptIds } from './kept-ids.js';

/** Where the text goes: a stream format or a unary fold. */
export interface TokenOutput {
  /** `logprobs`: of the tokens whose text begins to be shown here; undefined when the client wants none. */
  text(choice: number, text: string, logprobs?: readonly TokenLogprobs[]): void;
  /** Ids that were taken, before their text comes; part of it may come later. The view is only lent. */
  ids?(choice: number, ids: Uint32Array): void;
  /** `stopReason`: the stop string or id that ended the choice; null for end of sequence and length. */
  finish(choice: number, reason: FinishReason, stopReason: string | number | null): void;
}

/** Tokens of one choice in one frame. */
interface FrameTokens {
  readonly ids: Uint32Array;
  readonly first: number;
  readonly count: number;
  /** One for each; null where the client wants none or the engine sends none. */
  readonly drawn: readonly DrawnLogprob[] | null;
}

/** Which choices of an answer a call generates. */
export type CallRange = Pick<PlanCall, 'choiceBase' | 'choices'>;

interface Choice {
  readonly detokenizer: StreamDetokenizer;
  readonly stops: StopMatcher | null;
  /** Null: the client wants none. */
  readonly logprobs: ChoiceLogprobs | null;
  tokens: number;
  finished: boolean;
  /** The engine itself has finished this choice. */
  engineFinished: boolean;
}

/** A token-mode answer; see the top of this file. */
export class TokenAnswer {
  readonly #plan: Plan;
  readonly #output: TokenOutput;
  /** Null: the answer cannot migrate. */
  readonly #kept: KeptIds | null;
  readonly #choices: readonly Choice[];
  readonly #eosIds: ReadonlySet<number>;
  readonly #endIds: ReadonlySet<number>;
  #open: number;
  #completionTokens = 0;
  #engineUsage: Usage | null = null;
  /** Text of the batch that is being taken, all of one choice: what comes together leaves in one frame. */
  #held = '';
  #heldChoice = 0;
  /** A continuation's engine counts the tokens before it as prompt: its usage says nothing of this request. */
  #hasMigrated = false;

  constructor(plan: Plan, table: DetokenizerTable, output: TokenOutput, kept: KeptIds | null) {
    this.#plan = plan;
    this.#output = output;
    this.#kept = kept;
    for (const { promptIds } of plan.calls) kept?.charge(promptIds.byteLength);
    this.#open = plan.choices;
    this.#eosIds = new Set(plan.eosIds);
    this.#endIds = new Set([...plan.eosIds, ...plan.stop.tokenIds]);
    const { strings, includeStopString } = plan.stop;
    // Completions show what the engine gives, which is one more where the drawn token is not among the likeliest.
    const topMax = plan.api === 'chat' ? plan.logprobs : Number.POSITIVE_INFINITY;
    const isStart = plan.skipSpecialTokens && plan.calls.every(call => startsText(table, call.promptIds));
    this.#choices = Array.from({ length: plan.choices }, () => ({
      detokenizer: new StreamDetokenizer(table, plan.skipSpecialTokens, isStart),
      stops: strings.length === 0 ? null : new StopMatcher(strings, includeStopString),
      logprobs: plan.logprobs === null ? null : new ChoiceLogprobs(table, topMax ?? 0),
      tokens: 0,
      finished: false,
      engineFinished: false,
    }));
  }

  get isComplete(): boolean {
    return this.#open === 0;
  }

  /** Counts so far; `cachedTokens` is known once the engine has sent its usage. */
  usage(): Usage {
    return {
      promptTokens: this.#plan.promptTokens,
      completionTokens: this.#completionTokens,
      cachedTokens: this.#plan.prefillCachedTokens ?? this.#engineUsage?.cachedTokens ?? null,
    };
  }

  /** Choices of a call that have not finished. One with all its tokens, of which only that was not said, finishes now. */
  openChoices({ choiceBase, choices }: CallRange): number[] {
    const { maxTokens } = this.#plan;
    const open: number[] = [];
    for (let index = choiceBase; index < choiceBase + choices; index++) {
      const choice = this.#choices[index]!;
      if (choice.finished) continue;
      if (maxTokens !== null && choice.tokens >= maxTokens) this.#finish(index, choice, 'length', null);
      else open.push(index);
    }
    return open;
  }

  /** What another worker needs to go on with these choices; null: it was given up or never kept. */
  continuation(choices: readonly number[]): Continuation | null {
    const kept = this.#kept;
    if (kept === null || kept.isGone) return null;
    const { promptIds } = this.#plan.calls[0]!;
    return { mode: 'token', promptIds, choices: choices.map(choice => ({ choice, ids: kept.of(choice) })) };
  }

  /** See Answer. Text that is held back stays: it belongs to ids that are kept. */
  cutOff(): void {
    this.#hasMigrated = true;
    this.#engineUsage = null;
  }

  /** Gives back what was kept for a continuation. */
  release(): void {
    this.#kept?.release();
  }

  take(batch: FrameBatch, call: CallRange): BatchOutcome {
    const before = this.#completionTokens;
    const outcome = emptyOutcome();
    for (let row = 0; row < batch.count; row++) {
      const flags = batch.table[rowStart(row) + FRAME.flags]!;
      if ((flags & FRAME_FLAG.error) !== 0) outcome.engineError = errorOf(batch, row);
      else if ((flags & FRAME_FLAG.malformed) !== 0) outcome.malformed = true;
      else if ((flags & (FRAME_FLAG.done | FRAME_FLAG.comment)) === 0)
        this.#takeFrame(batch, row, flags, call, outcome);
      if (outcome.engineError !== null || outcome.malformed) break;
    }
    this.#letOut();
    outcome.tokens = this.#completionTokens - before;
    // Where the engine finished all choices itself its usage is still to come, and its connection can be kept.
    outcome.engineNotNeeded = this.#isNotNeeded(call);
    return outcome;
  }

  #isNotNeeded({ choiceBase, choices }: CallRange): boolean {
    let cuts = false;
    for (let index = choiceBase; index < choiceBase + choices; index++) {
      const { finished, engineFinished } = this.#choices[index]!;
      if (!finished) return false;
      cuts ||= !engineFinished;
    }
    return cuts;
  }

  #takeFrame(batch: FrameBatch, row: number, flags: number, call: CallRange, outcome: BatchOutcome): void {
    if ((flags & FRAME_FLAG.usage) !== 0 && !this.#hasMigrated) this.#engineUsage = usageOf(batch, row);
    if ((flags & FRAME_FLAG.noChoices) !== 0) return;
    if ((flags & (FRAME_FLAG.severalChoices | FRAME_FLAG.idsOverflow)) !== 0) {
      for (const event of explodeFrame(batch, row) ?? [null]) {
        if (event === null) outcome.malformed = true;
        else {
          const ids = Uint32Array.from(event.ids ?? []);
          const drawn = this.#plan.logprobs === null ? null : readLogprobs(event.logprobs);
          this.#takeChoice(
            call,
            event.choice,
            { ids, first: 0, count: ids.length, drawn },
            event.finish,
            outcome,
          );
        }
      }
      return;
    }
    const at = rowStart(row);
    const { table, ids } = batch;
    const finish = (flags & FRAME_FLAG.finish) === 0 ? null : finishReasonOf(batch, row);
    const count = Math.max(0, table[at + FRAME.idsCount]!);
    const drawn = this.#plan.logprobs === null ? null : logprobsOf(batch, row);
    const tokens = { ids, first: table[at + FRAME.idsFirst]!, count, drawn };
    this.#takeChoice(call, table[at + FRAME.choice]!, tokens, finish, outcome);
  }

  #takeChoice(
    { choiceBase, choices }: CallRange,
    ofCall: number,
    tokens: FrameTokens,
    finish: EngineFinish | null,
    outcome: BatchOutcome,
  ): void {
    const index = choiceBase + ofCall;
    const choice = ofCall >= 0 && ofCall < choices ? this.#choices[index] : undefined;
    const lacksLogprobs = this.#plan.logprobs !== null && (tokens.drawn?.length ?? 0) !== tokens.count;
    if (choice === undefined || lacksLogprobs) {
      outcome.malformed = true;
      return;
    }
    if (finish === 'aborted') {
      outcome.engineError = ABORTED;
      return;
    }
    if (!choice.finished) this.#takeIds(index, choice, tokens);
    if (finish === null) return;
    choice.engineFinished = true;
    if (!choice.finished) this.#finish(index, choice, finish, null);
  }

  #takeIds(index: number, choice: Choice, tokens: FrameTokens): void {
    const { ids, first, count } = tokens;
    // What none of our stops can end is one piece; else each id is looked at before the next one counts.
    if (choice.stops === null && choice.logprobs === null && !this.#hasEnd(tokens)) {
      this.#count(choice, count);
      this.#kept?.add(index, ids, first, count);
      this.#output.ids?.(index, ids.subarray(first, first + count));
      this.#emit(index, choice, choice.detokenizer.push(ids, first, count));
      return;
    }
    for (let at = 0; at < count && !choice.finished; at++) this.#takeId(index, choice, tokens, at);
  }

  #hasEnd({ ids, first, count }: FrameTokens): boolean {
    for (let at = first; at < first + count; at++) if (this.#endIds.has(ids[at]!)) return true;
    return false;
  }

  #takeId(index: number, choice: Choice, tokens: FrameTokens, at: number): void {
    this.#count(choice, 1);
    this.#kept?.add(index, tokens.ids, tokens.first + at, 1);
    this.#output.ids?.(index, tokens.ids.subarray(tokens.first + at, tokens.first + at + 1));
    const { minTokens, includeStopString } = this.#plan.stop;
    const id = tokens.ids[tokens.first + at]!;
    const armed = choice.tokens >= minTokens;
    const ends = armed && this.#endIds.has(id);
    const stopReason = ends && !this.#eosIds.has(id) ? id : null;
    if (ends && !includeStopString) {
      this.#finish(index, choice, 'stop', stopReason);
      return;
    }
    const text = choice.detokenizer.push(tokens.ids, tokens.first + at, 1);
    choice.logprobs?.push(id, tokens.drawn![at]!, text);
    this.#emitChecked(index, choice, text);
    if (ends && !choice.finished) this.#finish(index, choice, 'stop', stopReason);
  }

  /** Lets text out as far as the stop matcher allows; a match finishes the choice. */
  #emitChecked(index: number, choice: Choice, text: string): void {
    if (choice.stops === null) {
      this.#emit(index, choice, text);
      return;
    }
    // As in vLLM, one token later than a stop id.
    const armed = choice.tokens > this.#plan.stop.minTokens;
    const { text: released, matched } = choice.stops.push(text, armed);
    this.#emit(index, choice, released);
    if (matched !== null) this.#close(index, choice, 'stop', matched);
  }

  #count(choice: Choice, tokens: number): void {
    choice.tokens += tokens;
    this.#completionTokens += tokens;
  }

  #emit(index: number, choice: Choice, text: string): void {
    if (text === '') return;
    if (index !== this.#heldChoice || choice.logprobs !== null) this.#letOut();
    if (choice.logprobs !== null) {
      this.#output.text(index, text, choice.logprobs.show(text));
      return;
    }
    this.#heldChoice = index;
    this.#held += text;
  }

  #letOut(): void {
    if (this.#held === '') return;
    const text = this.#held;
    this.#held = '';
    this.#output.text(this.#heldChoice, text);
  }

  /** Lets out what detokenizer and stop matcher still hold, then finishes. */
  #finish(index: number, choice: Choice, reason: FinishReason, stopReason: string | number | null): void {
    this.#emitChecked(index, choice, choice.detokenizer.end());
    if (choice.finished) return;
    if (choice.stops !== null) this.#emit(index, choice, choice.stops.end());
    const rest = choice.logprobs?.rest() ?? [];
    if (rest.length > 0) this.#output.text(index, '', rest);
    this.#close(index, choice, reason, stopReason);
  }

  #close(index: number, choice: Choice, reason: FinishReason, stopReason: string | number | null): void {
    assert(!choice.finished, 'a choice finishes once');
    this.#letOut();
    choice.finished = true;
    this.#open--;
    this.#output.finish(index, reason, stopReason);
  }
}
