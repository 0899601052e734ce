/**
 * The log-probabilities of one choice in token mode (R6): tokens come by id from the engine and leave with the text of
 * our tokenizer, each together with the first of its text that is shown. So what a stop string hides is hidden here
 * too. Owned by the choice of a TokenAnswer, on its socket thread.
 */
import type { DrawnLogprob } from '../engines/event-logprobs.js';
import type { TokenLogprob, TokenLogprobs } from '../messages/delta.js';
import type { DetokenizerTable } from '../preprocess/detokenizer.js';

interface Waiting {
  /** UTF-16 units of the choice's text before this token. */
  readonly start: number;
  readonly entry: TokenLogprobs;
}

const NO_BYTES = new Uint8Array(0);

/** See the head of the file. */
export class ChoiceLogprobs {
  readonly #table: DetokenizerTable;
  readonly #topMax: number;
  #waiting: Waiting[] = [];
  /** Length of the text so far, shown or not: in UTF-16 units, and in characters as `text_offset` counts them. */
  #units = 0;
  #characters = 0;
  #shownUnits = 0;

  /** `topMax`: alternatives that are shown per token. */
  constructor(table: DetokenizerTable, topMax: number) {
    this.#table = table;
    this.#topMax = topMax;
  }

  /** Takes a token and the text that it completed. */
  push(id: number, drawn: DrawnLogprob, text: string): void {
    const top = drawn.top.slice(0, this.#topMax).map(one => this.#token(one.id, one.logprob));
    const entry = { ...this.#token(id, drawn.logprob), top, textOffset: this.#characters };
    this.#waiting.push({ start: this.#units, entry });
    this.#units += text.length;
    this.#characters += charactersOf(text);
  }

  /** This text is shown now. Gives the tokens of which something has been shown with it. */
  show(text: string): TokenLogprobs[] {
    this.#shownUnits += text.length;
    let count = 0;
    while (count < this.#waiting.length && this.#waiting[count]!.start < this.#shownUnits) count++;
    return this.#waiting.splice(0, count).map(one => one.entry);
  }

  /** The choice ends with all of its text shown: gives the tokens that added none. */
  rest(): TokenLogprobs[] {
    return this.#waiting.splice(0).map(one => one.entry);
  }

  #token(id: number, logprob: number): TokenLogprob {
    const { texts, fragments } = this.#table;
    const text = texts[id];
    if (text !== undefined) return { text, bytes: Buffer.from(text), logprob };
    const bytes = fragments.get(id) ?? NO_BYTES;
    return { text: Buffer.from(bytes).toString('utf8'), bytes, logprob };
  }
}

function charactersOf(text: string): number {
  let characters = 0;
  for (const _ of text) characters++;
  return characters;
}
