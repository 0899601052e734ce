/**
 * A unary answer in relayIds mode: the engine streams its frames, which are folded into one body. Like every answer
 * that comes as a stream it can be told from a dead one by the pauses between its tokens. Its memory is bounded by
 * `unaryAnswerBytesMax`. Pure besides its own state; the request that owns it does the I/O.
 */
import { strict as assert } from 'node:assert';
import type { FrameBatch } from '../engines/contract.js';
import { errorOf, frameObject, rowStart, usageOf } from '../engines/event-rows.js';
import { FRAME, FRAME_FLAG } from '../engines/frame-descriptor.js';
import { ChunkFold } from '../frontend/openai/chunk-fold.js';
import type { Usage } from '../messages/delta.js';
import type { Plan } from '../messages/records.js';
import type { Answer } from './answer.js';
import { type BatchOutcome, emptyOutcome } from './batch-outcome.js';
import { tokensOf } from './frame-tokens.js';

/** See the head of the file. */
export class FoldAnswer implements Answer {
  readonly #plan: Plan;
  readonly #answerBytesMax: number;
  readonly #fold: ChunkFold;
  #bytes = 0;
  #tokens = 0;
  #done = false;
  #usage: Usage | null = null;

  constructor(plan: Plan, answerBytesMax: number) {
    this.#plan = plan;
    this.#answerBytesMax = answerBytesMax;
    this.#fold = new ChunkFold({ api: plan.api, keepsIds: !plan.idsInjected });
  }

  get isComplete(): boolean {
    return this.#done;
  }

  usage(): Usage {
    const { promptTokens } = this.#plan;
    return this.#usage ?? { promptTokens, completionTokens: this.#tokens, cachedTokens: null };
  }

  take(batch: FrameBatch): BatchOutcome {
    const outcome = emptyOutcome();
    for (let row = 0; row < batch.count; row++) {
      this.#takeFrame(batch, row, outcome);
      if (outcome.malformed || outcome.engineError !== null) break;
    }
    this.#tokens += outcome.tokens;
    return outcome;
  }

  takeUnary(): number {
    assert.fail('in relayIds mode every engine answer is a stream');
  }

  endStream(): void {
    assert.fail('a folded answer is no stream');
  }

  unaryBody(): string {
    return this.#fold.body();
  }

  #takeFrame(batch: FrameBatch, row: number, outcome: BatchOutcome): void {
    const at = rowStart(row);
    const flags = batch.table[at + FRAME.flags]!;
    this.#bytes += batch.table[at + FRAME.end]! - batch.table[at + FRAME.start]!;
    if (this.#bytes > this.#answerBytesMax) {
      outcome.engineError = {
        code: 'MILLRACE_WORKER_PROTOCOL',
        message: `the worker's answer is longer than ${this.#answerBytesMax} bytes`,
        param: null,
        httpStatus: 502,
        retryable: false,
      };
    } else if ((flags & FRAME_FLAG.error) !== 0) outcome.engineError = errorOf(batch, row);
    else if ((flags & FRAME_FLAG.malformed) !== 0) outcome.malformed = true;
    else if ((flags & FRAME_FLAG.done) !== 0) this.#done = true;
    else if ((flags & FRAME_FLAG.comment) === 0) {
      if ((flags & FRAME_FLAG.usage) !== 0) this.#usage = usageOf(batch, row) ?? this.#usage;
      if ((flags & FRAME_FLAG.noChoices) === 0) outcome.tokens += tokensOf(batch, row);
      const chunk = frameObject(batch, row);
      if (chunk === null || !this.#fold.add(chunk)) outcome.malformed = true;
    }
  }
}
