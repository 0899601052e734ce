/**
 * A streamed answer whose text the engine makes (relay and relayIds mode), and the unary body of relay mode. The
 * engine's frames pass through as byte slices; every frame is looked at for errors, ids and usage, and loses those that
 * we asked for and the client did not. Pure besides its own state; the request that owns it does the I/O.
 */
import { strict as assert } from 'node:assert';
import type { FrameBatch } from '../engines/contract.js';
import { withCachedTokens } from '../engines/disagg/prefill-answer.js';
import { errorOf, finishReasonOf, rowStart, usageOf } from '../engines/event-rows.js';
import { type FrameCuts, isCut, KEPT_WORDS_MAX, keptRanges, rewriteFrame } from '../engines/frame-cuts.js';
import { FRAME, FRAME_FLAG, FRAMES_MAX } from '../engines/frame-descriptor.js';
import { createStreamFormat, type StreamFormat } from '../frontend/openai/stream-format.js';
import type { Usage } from '../messages/delta.js';
import type { Plan } from '../messages/records.js';
import type { AnswerStream } from './answer-port.js';
import { ABORTED, type BatchOutcome, emptyOutcome } from './batch-outcome.js';
import { type ContinuedOutput, takeContinued } from './continued-relay.js';
import { DeltaStream } from './delta-stream.js';
import { tokensOf } from './frame-tokens.js';
import type { RelayRecord } from './relay-record.js';
import { RelayedAnswer } from './relayed-answer.js';
import type { CallRange } from './token-answer.js';

const SPECIAL =
  FRAME_FLAG.done | FRAME_FLAG.malformed | FRAME_FLAG.usage | FRAME_FLAG.error | FRAME_FLAG.finish;
const NO_TEXT = FRAME_FLAG.done | FRAME_FLAG.noChoices | FRAME_FLAG.comment;
/** Unary bodies above this are not parsed for their usage: the socket thread does no long work. */
const USAGE_BODY_BYTES_MAX = 262_144;

/** Ranges of the batch at hand that are passed on, (start, end); a module is loaded once per thread. */
const kept = new Int32Array(FRAMES_MAX * KEPT_WORDS_MAX);
const ofFrame = new Int32Array(KEPT_WORDS_MAX);

/** See the head of the file. */
export class RelayAnswer extends RelayedAnswer {
  readonly #client: AnswerStream | null;
  readonly #cuts: FrameCuts;
  readonly #cutsAny: boolean;
  /** Words of `kept` in use. */
  #keptWords = 0;

  /** @param client the client's stream, or null for a unary answer */
  constructor(plan: Plan, client: AnswerStream | null, record: RelayRecord | null) {
    super(plan, record);
    this.#client = client;
    this.#cuts = { ids: plan.idsInjected, usage: plan.usageInjected };
    this.#cutsAny = plan.idsInjected || plan.usageInjected;
  }

  override take(batch: FrameBatch, call: CallRange): BatchOutcome {
    if (this.continued !== null) return takeContinued(batch, call, this.record!, this.continued);
    const { table, count } = batch;
    const outcome = emptyOutcome();
    const countsIds = this.plan.mode === 'relayIds';
    const tellsCached = this.plan.prefillCachedTokens !== undefined;
    this.#keptWords = 0;
    for (let row = 0; row < count; row++) {
      const at = rowStart(row);
      const flags = table[at + FRAME.flags]!;
      if ((flags & SPECIAL) !== 0) {
        this.#takeSpecial(batch, row, flags, outcome);
        if (outcome.malformed || outcome.engineError !== null) break;
      }
      if (this.record?.note(batch, row, flags) === false) {
        outcome.malformed = true;
        break;
      }
      if ((flags & NO_TEXT) === 0) outcome.tokens += countsIds ? tokensOf(batch, row) : 1;
      if (this.#cutsAny && isCut(batch, row, this.#cuts)) this.#keepPart(batch, row, flags, outcome);
      else if (tellsCached && (flags & FRAME_FLAG.usage) !== 0) this.#keepWithCached(batch, row);
      else this.#keep(table[at + FRAME.start]!, table[at + FRAME.end]!);
      if (outcome.malformed) break;
    }
    this.#passKept(batch);
    this.tokens += outcome.tokens;
    return outcome;
  }

  override takeUnary(body: Buffer): number {
    this.isDone = true;
    if (body.length <= USAGE_BODY_BYTES_MAX) this.toldUsage = unaryUsage(body);
    return this.usage().completionTokens;
  }

  /** The engine's own end was relayed already, unless it died before; an iterator is told the totals, wherever the engine put them. */
  override endStream(): void {
    if (this.#client instanceof DeltaStream) this.#client.usage(this.usage());
    else if (!this.isDone && this.#client !== null) {
      const format = this.#format();
      const usage = this.plan.includeUsage ? format.usage(this.usage()) : '';
      this.#client.pushText(usage + format.done);
    }
  }

  override unaryBody(): string {
    assert.fail('a relayed body is passed on as it came');
  }

  #takeSpecial(batch: FrameBatch, row: number, flags: number, outcome: BatchOutcome): void {
    if ((flags & FRAME_FLAG.error) !== 0) outcome.engineError = errorOf(batch, row);
    else if ((flags & FRAME_FLAG.malformed) !== 0) outcome.malformed = true;
    else if ((flags & FRAME_FLAG.finish) !== 0 && finishReasonOf(batch, row) === 'aborted')
      outcome.engineError = ABORTED;
    if ((flags & FRAME_FLAG.usage) !== 0) this.toldUsage = usageOf(batch, row) ?? this.toldUsage;
    if ((flags & FRAME_FLAG.done) !== 0) this.isDone = true;
  }

  /** The client's frames, as the first worker named them. */
  #format(): StreamFormat {
    const { api, model: name, includeUsage, continuousUsage } = this.plan;
    const { id, created, model } = this.record?.identity ?? { id: '', created: 0, model: name };
    return createStreamFormat({ api, id, created, model, includeUsage, continuousUsage });
  }

  protected override openContinued(): ContinuedOutput {
    const client = this.#client!;
    const format = this.#format();
    const begun = this.record!.choices.map(choice => choice.hasBegun);
    const usage = (): Usage | undefined => (this.plan.continuousUsage ? this.usage() : undefined);
    const begin = (choice: number): string => {
      if (begun[choice] === true) return '';
      begun[choice] = true;
      return format.begin(choice, usage());
    };
    const push = (choice: number, frame: string): void =>
      client.pushBytes(Buffer.from(begin(choice) + frame));
    return {
      text: (choice, text) => push(choice, format.text(choice, text, usage())),
      finish: (choice, reason, stopReason) =>
        push(choice, format.finish(choice, reason, stopReason, usage())),
    };
  }

  /** Neighbouring ranges become one, so that frames which pass unchanged leave as one slice. */
  #keep(start: number, end: number): void {
    const words = this.#keptWords;
    if (words > 0 && kept[words - 1] === start) kept[words - 1] = end;
    else {
      kept[words] = start;
      kept[words + 1] = end;
      this.#keptWords = words + 2;
    }
  }

  #keepPart(batch: FrameBatch, row: number, flags: number, outcome: BatchOutcome): void {
    if ((flags & FRAME_FLAG.severalChoices) === 0) {
      const words = keptRanges(batch, row, this.#cuts, ofFrame);
      for (let word = 0; word < words; word += 2) this.#keep(ofFrame[word]!, ofFrame[word + 1]!);
      return;
    }
    const frame = rewriteFrame(batch, row, this.#cuts);
    this.#passKept(batch);
    if (frame === null) outcome.malformed = true;
    else this.#client?.pushBytes(frame);
  }

  /** The frame with what the prefill worker had in its cache: to decode, all that it was handed is cached. */
  #keepWithCached({ bytes, table }: FrameBatch, row: number): void {
    const at = rowStart(row);
    const [from, to] = [table[at + FRAME.usageStart]!, table[at + FRAME.usageEnd]!];
    this.#keep(table[at + FRAME.start]!, from);
    this.#passKept({ bytes });
    this.#client?.pushBytes(withCachedTokens(bytes.subarray(from, to), this.plan.prefillCachedTokens!));
    this.#keep(to, table[at + FRAME.end]!);
  }

  #passKept({ bytes }: Pick<FrameBatch, 'bytes'>): void {
    const words = this.#keptWords;
    this.#keptWords = 0;
    if (words === 0 || this.#client === null) return;
    if (words === 2) {
      this.#client.pushBytes(bytes.subarray(kept[0], kept[1]));
      return;
    }
    let size = 0;
    for (let word = 0; word < words; word += 2) size += kept[word + 1]! - kept[word]!;
    const joined = Buffer.allocUnsafe(size);
    let at = 0;
    for (let word = 0; word < words; word += 2) {
      joined.set(bytes.subarray(kept[word], kept[word + 1]), at);
      at += kept[word + 1]! - kept[word]!;
    }
    this.#client.pushBytes(joined);
  }
}

function unaryUsage(body: Buffer): Usage | null {
  try {
    const { usage } = JSON.parse(body.toString('utf8')) as { usage?: Record<string, unknown> };
    const details = usage?.prompt_tokens_details as { cached_tokens?: unknown } | null | undefined;
    if (typeof usage?.prompt_tokens !== 'number' || typeof usage.completion_tokens !== 'number') return null;
    return {
      promptTokens: usage.prompt_tokens,
      completionTokens: usage.completion_tokens,
      cachedTokens: typeof details?.cached_tokens === 'number' ? details.cached_tokens : null,
    };
  } catch {
    // A body that is not JSON is the engine's business: it is passed on, only its usage stays unknown.
    return null;
  }
}
