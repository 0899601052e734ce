/**
 * `power-of-two` (R4): of two workers drawn at random, the one with fewer requests reserved. Needs no sight of the whole
 * fleet, so threads and hosts with old figures do not all run to one worker. Keeps nothing.
 */
import { randomInteger } from '../../runtime/random.js';
import type { Selector } from '../contract.js';

/** Makes the selector. */
export function createPowerOfTwo(): Selector {
  return {
    policy: 'power-of-two',
    usesPrefix: false,
    usesTiming: false,
    pick(_request, { slots, requests, count }, random) {
      const first = randomInteger(random, count);
      if (count === 1) return { row: first, reason: 'power-of-two: one worker' };
      const drawn = randomInteger(random, count - 1);
      const second = drawn < first ? drawn : drawn + 1;
      const row = requests[second]! < requests[first]! ? second : first;
      const other = row === first ? second : first;
      return {
        row,
        reason: `power-of-two: ${requests[row]} reserved, slot ${slots[other]} has ${requests[other]}`,
      };
    },
    explain: (_request, { requests }) => requests,
  };
}
