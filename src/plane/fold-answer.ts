/**
 * A unary answer in relayIds mode: the engine streams its frames, which are folded into one body. Like every answer
 * that comes as a stream it can be told from a dead one by the pauses between its tokens. Its memory is bounded by
 * `unaryAnswerBytesMax`. Pure besides its own state; the request that owns it does the I/O.
 */
import { strict as assert } from 'node:assert';
import type { FrameBatch } from '../engines/contract.js';
import type { EngineError } from '../engines/engine-error.js';
import { errorOf, finishReasonOf, frameObject, rowStart, usageOf } from '../engines/event-rows.js';
import { FRAME, FRAME_FLAG } from '../engines/frame-descriptor.js';
import { ChunkFold } from '../frontend/openai/chunk-fold.js';
import { usageJson } from '../frontend/openai/usage-json.js';
import type { Plan } from '../messages/records.js';
import { ABORTED, type BatchOutcome, emptyOutcome } from './batch-outcome.js';
import { type ContinuedOutput, takeContinued } from './continued-relay.js';
import { tokensOf } from './frame-tokens.js';
import type { RelayRecord } from './relay-record.js';
import { RelayedAnswer } from './relayed-answer.js';
import type { CallRange } from './token-answer.js';

/** See the head of the file. */
export class FoldAnswer extends RelayedAnswer {
  readonly #answerBytesMax: number;
  readonly #fold: ChunkFold;
  #bytes = 0;

  constructor(plan: Plan, answerBytesMax: number, record: RelayRecord | null) {
    super(plan, record);
    this.#answerBytesMax = answerBytesMax;
    this.#fold = new ChunkFold({ api: plan.api, keepsIds: !plan.idsInjected });
  }

  override take(batch: FrameBatch, call: CallRange): BatchOutcome {
    if (this.continued !== null) return this.#takeContinued(batch, call, this.continued);
    const outcome = emptyOutcome();
    for (let row = 0; row < batch.count; row++) {
      this.#takeFrame(batch, row, outcome);
      if (outcome.malformed || outcome.engineError !== null) break;
    }
    this.tokens += outcome.tokens;
    return outcome;
  }

  override takeUnary(): number {
    assert.fail('in relayIds mode every engine answer is a stream');
  }

  override endStream(): void {
    assert.fail('a folded answer is no stream');
  }

  override unaryBody(): string {
    // Where the last worker died before it told the usage, or never had it whole.
    const isOurs = !this.isDone || this.continued !== null || this.plan.prefillCachedTokens !== undefined;
    if (isOurs) this.#fold.add({ usage: JSON.parse(usageJson(this.usage())) as unknown });
    return this.#fold.body();
  }

  #takeContinued(batch: FrameBatch, call: CallRange, output: ContinuedOutput): BatchOutcome {
    for (let row = 0; row < batch.count; row++) {
      const at = rowStart(row);
      this.#bytes += batch.table[at + FRAME.end]! - batch.table[at + FRAME.start]!;
    }
    const outcome = takeContinued(batch, call, this.record!, output);
    if (this.#bytes > this.#answerBytesMax) outcome.engineError = this.#tooLong();
    return outcome;
  }

  protected override openContinued(): ContinuedOutput {
    const isChat = this.plan.api === 'chat';
    const add = (index: number, text: string, end: object): void =>
      void this.#fold.add({
        choices: [{ index, ...(isChat ? { delta: { content: text } } : { text }), ...end }],
      });
    return {
      text: (choice, text) => add(choice, text, {}),
      finish: (choice, reason, stopReason) =>
        add(choice, '', { finish_reason: reason, stop_reason: stopReason }),
    };
  }

  #tooLong(): EngineError {
    return {
      code: 'MILLRACE_WORKER_PROTOCOL',
      message: `the worker's answer is longer than ${this.#answerBytesMax} bytes`,
      param: null,
      httpStatus: 502,
      retryable: false,
    };
  }

  #takeFrame(batch: FrameBatch, row: number, outcome: BatchOutcome): void {
    const at = rowStart(row);
    const flags = batch.table[at + FRAME.flags]!;
    this.#bytes += batch.table[at + FRAME.end]! - batch.table[at + FRAME.start]!;
    if (this.#bytes > this.#answerBytesMax) {
      outcome.engineError = this.#tooLong();
    } else if ((flags & FRAME_FLAG.error) !== 0) outcome.engineError = errorOf(batch, row);
    else if ((flags & FRAME_FLAG.malformed) !== 0) outcome.malformed = true;
    else if ((flags & FRAME_FLAG.done) !== 0) this.isDone = true;
    else if ((flags & FRAME_FLAG.finish) !== 0 && finishReasonOf(batch, row) === 'aborted')
      outcome.engineError = ABORTED;
    else if ((flags & FRAME_FLAG.comment) === 0) {
      if (this.record?.note(batch, row, flags) === false) {
        outcome.malformed = true;
        return;
      }
      if ((flags & FRAME_FLAG.usage) !== 0) this.toldUsage = usageOf(batch, row) ?? this.toldUsage;
      if ((flags & FRAME_FLAG.noChoices) === 0) outcome.tokens += tokensOf(batch, row);
      const chunk = frameObject(batch, row);
      if (chunk === null || !this.#fold.add(chunk)) outcome.malformed = true;
    }
  }
}
