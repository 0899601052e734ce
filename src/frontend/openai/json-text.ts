/** JSON quoting of text deltas (R7): called once per frame on the socket thread, so plain text takes a fast path. Pure. */

// All that needs no escape: no quote, no backslash, no control character, no half of a surrogate pair.
const PLAIN = /^[\x20\x21\x23-\x5b\x5d-\ud7ff\ue000-\uffff]*$/;

/** The JSON string literal of `text`, quotes included; equal to `JSON.stringify(text)`. */
export function quoteJson(text: string): string {
  return PLAIN.test(text) ? `"${text}"` : JSON.stringify(text);
}
