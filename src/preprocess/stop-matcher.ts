/**
 * Finds stop strings in the text of one choice as it streams (R6, socket thread). It withholds every tail that could
 * still become a stop string, so no part of one is ever sent, and lets it go when it turns out to be something else.
 * One instance per choice owns its state. The answer does not depend on how the text was cut into pushes.
 *
 * Which match counts: the one that ends first in the text, as if each character came alone; of several that end together
 * the first in the list. So does vLLM (`check_stop_strings` of its detokenizer).
 */
import assert from 'node:assert';

/** One stop string and how much of it the text ends with (Knuth, Morris, Pratt). */
interface Pattern {
  readonly text: string;
  /** `fallback[k]`: length of the longest proper prefix that is also a suffix of the first k units. */
  readonly fallback: Uint16Array;
  /** Units of `text` that the end of what was pushed so far equals. */
  state: number;
}

function patternOf(text: string): Pattern {
  const fallback = new Uint16Array(text.length + 1);
  let length = 0;
  for (let at = 1; at < text.length; at++) {
    const unit = text.charCodeAt(at);
    while (length > 0 && text.charCodeAt(length) !== unit) length = fallback[length]!;
    if (text.charCodeAt(length) === unit) length++;
    fallback[at + 1] = length;
  }
  return { text, fallback, state: 0 };
}

/** Moves `pattern` over one UTF-16 unit; true when the whole string now ends here. */
function advance(pattern: Pattern, unit: number): boolean {
  const { text, fallback } = pattern;
  let state = pattern.state;
  while (state > 0 && text.charCodeAt(state) !== unit) state = fallback[state]!;
  if (text.charCodeAt(state) === unit) state++;
  const whole = state === text.length;
  pattern.state = whole ? fallback[state]! : state;
  return whole;
}

/** What a push releases. */
export interface StopResult {
  /** Text that may be sent now. */
  readonly text: string;
  /** The stop string that was found, or null. After a match the choice is over: nothing may be pushed. */
  readonly matched: string | null;
}

/** Finds stop strings in the text of one choice as it grows; owned by that choice. */
export class StopMatcher {
  readonly #patterns: Pattern[];
  readonly #includeStopString: boolean;
  #held = '';
  #matched = false;

  /** `strings` must not be empty strings; with `includeStopString` the matched string is part of the text. */
  constructor(strings: readonly string[], includeStopString: boolean) {
    assert(!strings.includes(''), 'a stop string is not empty');
    this.#patterns = strings.map(patternOf);
    this.#includeStopString = includeStopString;
  }

  /**
   * Takes the next text of the choice, which must not end inside a surrogate pair. With `armed` false (`min_tokens` is
   * not reached) a match that ends in this text is ignored, but the text may still begin a later one.
   */
  push(text: string, armed: boolean): StopResult {
    if (this.#patterns.length === 0) return { text, matched: null };
    assert(!this.#matched, 'nothing may follow a match');
    const whole = this.#held + text;
    for (let at = this.#held.length; at < whole.length; at++) {
      const found = this.#advanceAll(whole.charCodeAt(at));
      if (found === null || !armed) continue;
      this.#matched = true;
      this.#held = '';
      const end = at + 1;
      const shown = this.#includeStopString ? end : end - found.length;
      return { text: whole.slice(0, shown), matched: found };
    }
    let withheld = 0;
    for (const pattern of this.#patterns) withheld = Math.max(withheld, pattern.state);
    this.#held = whole.slice(whole.length - withheld);
    return { text: whole.slice(0, whole.length - withheld), matched: null };
  }

  /** The choice ends without a match: what was withheld is text after all. Empty after a match. */
  end(): string {
    const held = this.#held;
    this.#held = '';
    for (const pattern of this.#patterns) pattern.state = 0;
    return held;
  }

  /** Moves all patterns over one unit; the first of the list that ends here, or null. */
  #advanceAll(unit: number): string | null {
    let first: string | null = null;
    for (const pattern of this.#patterns) {
      if (advance(pattern, unit) && first === null) first = pattern.text;
    }
    return first;
  }
}
