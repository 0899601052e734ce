/** `random` (R4): any candidate, each with the same chance. Keeps nothing. */
import { randomInteger } from '../../runtime/random.js';
import type { Candidate, Selector } from '../contract.js';

/** Makes the selector. */
export function createRandomPolicy(): Selector {
  return {
    policy: 'random',
    pick(_request, candidates, random) {
      const chosen = candidates[randomInteger(random, candidates.length)] as Candidate;
      return {
        slot: chosen.slot,
        generation: chosen.generation,
        reason: `random: one of ${candidates.length}`,
      };
    },
  };
}
