/**
 * An answer in relay mode: the engine's frames pass through as byte slices. Every frame is looked at for errors,
 * finish and usage; the usage chunk that we asked for and the client did not is taken out. Pure besides its own state.
 */
import { strict as assert } from 'node:assert';
import type { FrameBatch } from '../engines/contract.js';
import { errorOf, rowStart, usageOf } from '../engines/event-rows.js';
import { FRAME, FRAME_FLAG } from '../engines/frame-descriptor.js';
import type { Usage } from '../messages/delta.js';
import type { Plan } from '../messages/records.js';
import type { Answer } from './answer.js';
import type { AnswerStream } from './answer-port.js';
import { type BatchOutcome, emptyOutcome } from './batch-outcome.js';
import { DeltaStream } from './delta-stream.js';

const SPECIAL = FRAME_FLAG.done | FRAME_FLAG.malformed | FRAME_FLAG.usage | FRAME_FLAG.error;
const NO_TEXT = FRAME_FLAG.done | FRAME_FLAG.noChoices | FRAME_FLAG.comment;
/** A chunk that carries usage and no choice. */
const USAGE_CHUNK = FRAME_FLAG.usage | FRAME_FLAG.noChoices;
/** Unary bodies above this are not parsed for their usage: the socket thread does no long work. */
const USAGE_BODY_BYTES_MAX = 262_144;

/** A relayed answer; see the top of this file. */
export class RelayAnswer implements Answer {
  readonly #plan: Plan;
  readonly #client: AnswerStream | null;
  #textFrames = 0;
  #done = false;
  #usage: Usage | null = null;

  /** @param client the client's stream, or null for a unary answer */
  constructor(plan: Plan, client: AnswerStream | null) {
    this.#plan = plan;
    this.#client = client;
  }

  get isComplete(): boolean {
    return this.#done;
  }

  /** The engine's usage; until it has come, one frame counts as one token. */
  usage(): Usage {
    const { promptTokens } = this.#plan;
    return this.#usage ?? { promptTokens, completionTokens: this.#textFrames, cachedTokens: null };
  }

  take(batch: FrameBatch): BatchOutcome {
    const { table, count } = batch;
    const outcome = emptyOutcome();
    // Frames that pass unchanged leave as one slice.
    let sliceStart = table[rowStart(0) + FRAME.start]!;
    let sliceEnd = sliceStart;
    for (let row = 0; row < count; row++) {
      const at = rowStart(row);
      const flags = table[at + FRAME.flags]!;
      if ((flags & SPECIAL) !== 0) {
        this.#takeSpecial(batch, row, flags, outcome);
        if (outcome.malformed || outcome.engineError !== null) break;
        if (this.#plan.usageInjected && (flags & USAGE_CHUNK) === USAGE_CHUNK) {
          this.#pass(batch, sliceStart, sliceEnd);
          sliceStart = table[at + FRAME.end]!;
        }
      }
      if ((flags & NO_TEXT) === 0) outcome.tokens++;
      sliceEnd = table[at + FRAME.end]!;
    }
    this.#pass(batch, sliceStart, sliceEnd);
    this.#textFrames += outcome.tokens;
    return outcome;
  }

  takeUnary(body: Buffer): number {
    this.#done = true;
    if (body.length <= USAGE_BODY_BYTES_MAX) this.#usage = unaryUsage(body);
    return this.usage().completionTokens;
  }

  /** The engine's own end was relayed already; an iterator is told the totals, wherever the engine put them. */
  endStream(): void {
    if (this.#client instanceof DeltaStream) this.#client.usage(this.usage());
  }

  unaryBody(): string {
    assert.fail('a relayed body is passed on as it came');
  }

  #takeSpecial(batch: FrameBatch, row: number, flags: number, outcome: BatchOutcome): void {
    if ((flags & FRAME_FLAG.error) !== 0) outcome.engineError = errorOf(batch, row);
    else if ((flags & FRAME_FLAG.malformed) !== 0) outcome.malformed = true;
    if ((flags & FRAME_FLAG.usage) !== 0) this.#usage = usageOf(batch, row) ?? this.#usage;
    if ((flags & FRAME_FLAG.done) !== 0) this.#done = true;
  }

  #pass(batch: FrameBatch, start: number, end: number): void {
    if (end > start) this.#client?.pushBytes(batch.bytes.subarray(start, end));
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
