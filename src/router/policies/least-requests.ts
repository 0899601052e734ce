/**
 * `least-requests` (R4): the worker with the fewest requests reserved on it. Ties are broken at random, because threads that
 * read the same counts at the same moment would all take the same worker if the order decided. Keeps nothing.
 */
import { randomInteger } from '../../runtime/random.js';
import type { Candidate, Selector } from '../contract.js';

/** Makes the selector. */
export function createLeastRequests(): Selector {
  return {
    policy: 'least-requests',
    pick(_request, candidates, random) {
      let fewest = Number.POSITIVE_INFINITY;
      let ties = 0;
      for (const { requests } of candidates) {
        if (requests < fewest) {
          fewest = requests;
          ties = 1;
        } else if (requests === fewest) {
          ties += 1;
        }
      }
      let skip = randomInteger(random, ties);
      const chosen = candidates.find(({ requests }) => requests === fewest && skip-- === 0) as Candidate;
      return {
        slot: chosen.slot,
        generation: chosen.generation,
        reason: `least-requests: ${fewest} reserved, ${ties} equal`,
      };
    },
  };
}
