/**
 * JSON as Python writes it: `NaN`, `Infinity` and `-Infinity` occur in config.json of real models (R3, at start). They
 * become null, which every reader here takes for "not said". Pure.
 */

/** A string, kept as it is, or one of the three words that JSON does not have. */
const STRING_OR_WORD = /"(?:[^"\\]|\\.)*"|-?\bInfinity\b|\bNaN\b/g;

/** Parses `text`. Throws SyntaxError for what is no JSON even so. */
export function parseLenientJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const strict = text.replace(STRING_OR_WORD, found => (found.startsWith('"') ? found : 'null'));
    if (strict === text) throw error;
    return JSON.parse(strict);
  }
}
