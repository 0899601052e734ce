/**
 * What is written down of a relayed answer as its frames pass (R5, relayIds mode), so that another worker can go on with
 * it: the frame that names the prompt's ids, each choice's ids, and which choices have begun and finished. Owned by the
 * answer of one request; socket thread.
 */
import type { FrameBatch } from '../engines/contract.js';
import { explodeFrame, isIdList, isObject, rowStart } from '../engines/event-rows.js';
import { FRAME, FRAME_FLAG } from '../engines/frame-descriptor.js';
import type { Continuation } from '../messages/records.js';
import type { KeptIds } from './kept-ids.js';

const NO_CHOICE = FRAME_FLAG.done | FRAME_FLAG.comment | FRAME_FLAG.noChoices;
const EXPLODES = FRAME_FLAG.severalChoices | FRAME_FLAG.idsOverflow;
const NO_IDS: readonly number[] = [];
const EMPTY_TEXT_BYTES = '""'.length;

/** One choice of a relayed answer. */
export interface RelayedChoice {
  hasBegun: boolean;
  hasFinished: boolean;
  /** Tokens that have come, and those of them whose text has been passed on. */
  seen: number;
  tokens: number;
}

/** What the frames of an answer have in common. */
export interface RelayedIdentity {
  readonly id: string;
  /** Unix seconds. */
  readonly created: number;
  readonly model: string;
  /** Null: the worker did not tell them. */
  readonly promptIds: Uint32Array | null;
}

/** See the head of the file. */
export class RelayRecord {
  readonly choices: readonly RelayedChoice[];
  readonly #kept: KeptIds;
  #firstFrame: Uint8Array | null = null;
  #identity: RelayedIdentity | null = null;
  #isParsed = false;

  constructor(choices: number, kept: KeptIds) {
    this.#kept = kept;
    this.choices = Array.from({ length: choices }, () => ({
      hasBegun: false,
      hasFinished: false,
      seen: 0,
      tokens: 0,
    }));
  }

  /** Tokens of all choices whose text has been passed on. */
  get tokens(): number {
    return this.choices.reduce((sum, choice) => sum + choice.tokens, 0);
  }

  get hasFinished(): boolean {
    return this.choices.every(choice => choice.hasFinished);
  }

  /** Writes down a frame that is passed on; false: it must not be, as it goes on with a choice that has finished. */
  note(batch: FrameBatch, row: number, flags: number): boolean {
    if ((flags & NO_CHOICE) !== 0) return true;
    const { table, ids } = batch;
    const at = rowStart(row);
    if (this.#firstFrame === null) this.#keepFirst(batch, at);
    if ((flags & EXPLODES) !== 0) {
      const events = explodeFrame(batch, row) ?? [];
      if (events.some(({ choice, ids, finish }) => this.#isOver(choice, ids?.length ?? 0, finish !== null)))
        return false;
      for (const event of events) {
        const own = event.ids ?? NO_IDS;
        if (own.length > 0 && event.text === null) this.#isParsed = true;
        this.take(
          event.choice,
          own,
          0,
          own.length,
          event.text ? event.text !== '' : false,
          event.finish !== null,
        );
      }
      return true;
    }
    const count = table[at + FRAME.idsCount]!;
    const text = table[at + FRAME.textStart]!;
    // Tokens without text of their own: the engine makes reasoning or tool calls of them.
    if (text < 0 && count > 0) this.#isParsed = true;
    const hasText = text >= 0 && table[at + FRAME.textEnd]! - text > EMPTY_TEXT_BYTES;
    const hasFinished = (flags & FRAME_FLAG.finish) !== 0;
    const choice = table[at + FRAME.choice]!;
    if (this.#isOver(choice, count, hasFinished)) return false;
    this.take(choice, ids, table[at + FRAME.idsFirst]!, count, hasText, hasFinished);
    return true;
  }

  /** Tokens after the finish, or a second one; an empty frame does no harm. */
  #isOver(index: number, count: number, finishes: boolean): boolean {
    return this.choices[index]?.hasFinished === true && (count > 0 || finishes);
  }

  /** Takes what a frame brought of a choice of the answer. */
  take(
    index: number,
    ids: ArrayLike<number>,
    first: number,
    count: number,
    hasText: boolean,
    hasFinished: boolean,
  ): void {
    const choice = this.choices[index];
    if (choice === undefined) return;
    choice.hasBegun = true;
    if (count > 0) this.#kept.add(index, ids, first, count);
    // An engine holds the text of half a character back; a continuation has to begin before it.
    choice.seen += count;
    if (hasText || hasFinished) choice.tokens = choice.seen;
    choice.hasFinished ||= hasFinished;
  }

  /** As the worker's first frame says it; null: none has come. */
  get identity(): RelayedIdentity | null {
    if (this.#identity === null && this.#firstFrame !== null) this.#identity = readIdentity(this.#firstFrame);
    return this.#identity;
  }

  /** What another worker needs to go on with these choices; else why there is none, in words. */
  continuation(choices: readonly number[]): Continuation | string {
    if (this.#kept.isGone) return 'it is too long to be kept';
    if (this.#isParsed) return 'its text was parsed by the worker';
    const promptIds = this.identity?.promptIds ?? null;
    if (promptIds === null) return 'the worker did not tell the ids of the prompt';
    return {
      mode: 'relayIds',
      promptIds,
      choices: choices.map(index => ({
        choice: index,
        ids: this.#kept.of(index).subarray(0, this.choices[index]!.tokens),
      })),
    };
  }

  /** The worker of these choices is gone, and the text that it held back with it. */
  cutOff(choices: readonly number[]): void {
    for (const index of choices) {
      const choice = this.choices[index]!;
      choice.seen = choice.tokens;
      this.#kept.cut(index, choice.tokens);
    }
  }

  /** Gives back what was kept. */
  release(): void {
    this.#firstFrame = null;
    this.#kept.release();
  }

  #keepFirst({ bytes, table }: FrameBatch, at: number): void {
    const start = table[at + FRAME.start]!;
    const end = table[at + FRAME.end]!;
    if (this.#kept.charge(end - start)) this.#firstFrame = bytes.slice(start, end);
  }
}

/** Read only when it is needed: a prompt of many ids takes a while. */
function readIdentity(frame: Uint8Array): RelayedIdentity | null {
  const text = Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength).toString('utf8');
  let value: unknown;
  try {
    value = JSON.parse(text.slice(text.indexOf('{')));
  } catch {
    return null;
  }
  if (!isObject(value)) return null;
  const { id, created, model, choices } = value;
  const first: unknown = Array.isArray(choices) ? choices[0] : null;
  const promptIds = value.prompt_token_ids ?? (isObject(first) ? first.prompt_token_ids : null);
  if (typeof id !== 'string' || typeof created !== 'number' || typeof model !== 'string') return null;
  return { id, created, model, promptIds: isIdList(promptIds) ? Uint32Array.from(promptIds) : null };
}
