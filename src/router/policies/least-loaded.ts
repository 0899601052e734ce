/**
 * `least-loaded` (R4): the worker with the fewest outstanding prefill tokens, those reserved whose first token has not
 * come; ties at random. Keeps nothing.
 */
import type { Selector } from '../contract.js';
import { lowest, tiesText } from './lowest.js';

/** Makes the selector. */
export function createLeastLoaded(): Selector {
  return {
    policy: 'least-loaded',
    usesPrefix: false,
    usesTiming: false,
    pick(_request, { activePrefillTokens, count }, random) {
      const { row, score, ties } = lowest(activePrefillTokens, count, random);
      return { row, reason: `least-loaded: ${score} prompt tokens outstanding${tiesText(ties)}` };
    },
    explain: (_request, { activePrefillTokens }) => activePrefillTokens,
  };
}
