/** `random` (R4): any candidate, each with the same chance. Keeps nothing. */
import { randomInteger } from '../../runtime/random.js';
import type { Selector } from '../contract.js';

/** Makes the selector. */
export function createRandomPolicy(): Selector {
  return {
    policy: 'random',
    usesPrefix: false,
    usesTiming: false,
    pick(_request, { count }, random) {
      return { row: randomInteger(random, count), reason: `random: one of ${count}` };
    },
  };
}
