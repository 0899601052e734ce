/**
 * Text of one choice as vLLM's output processor makes it: texts of the ids, cut at the first stop string. Text that
 * could still become part of a stop string is held back until the choice ends. Owned by the answer it belongs to.
 */

/** Grows by one token at a time; `take` gives what may be shown. */
export class ChoiceText {
  readonly #stops: readonly string[];
  readonly #includeStop: boolean;
  readonly #holdBack: number;
  #text = '';
  #taken = 0;

  constructor(stops: readonly string[], includeStop: boolean) {
    this.#stops = stops;
    this.#includeStop = includeStop;
    this.#holdBack = includeStop ? 0 : Math.max(1, ...stops.map(stop => stop.length)) - 1;
  }

  /** Adds a token's text. Returns the stop string that it completed, or null; `mayStop` false: none is looked for. */
  push(piece: string, mayStop: boolean): string | null {
    const before = this.#text.length;
    this.#text += piece;
    if (!mayStop) return null;
    for (const stop of this.#stops) {
      const at = this.#text.indexOf(stop, Math.max(0, before - stop.length + 1));
      if (at < 0) continue;
      this.#text = this.#text.slice(0, this.#includeStop ? at + stop.length : at);
      return stop;
    }
    return null;
  }

  /** Text that was not taken yet; at the `end` with what was held back. */
  take(end: boolean): string {
    const upTo = end ? this.#text.length : Math.max(this.#taken, this.#text.length - this.#holdBack);
    const text = this.#text.slice(this.#taken, upTo);
    this.#taken = upTo;
    return text;
  }
}
