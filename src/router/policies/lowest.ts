/**
 * The row of the lowest score (R4). Ties are broken at random: threads that read the same figures at the same moment would
 * all take the same worker if the order decided.
 */
import type { Random } from '../../runtime/random.js';
import { randomInteger } from '../../runtime/random.js';

/** What `lowest` found: the row, its score, how many rows share that score, and the best score above it. */
export interface Lowest {
  readonly row: number;
  readonly score: number;
  readonly ties: number;
  /** Infinity when all rows share the lowest score. */
  readonly nextScore: number;
}

/** For the end of a reason: how many rows were as good; nothing of the one that was alone. */
export const tiesText = (ties: number): string => (ties > 1 ? `, ${ties} equal` : '');

/** Finds the lowest of the first `count` scores; one random number, drawn only for a tie. */
export function lowest(scores: ArrayLike<number>, count: number, random: Random): Lowest {
  let score = Number.POSITIVE_INFINITY;
  let nextScore = Number.POSITIVE_INFINITY;
  let first = 0;
  let ties = 0;
  for (let row = 0; row < count; row += 1) {
    const at = scores[row]!;
    if (at < score) {
      nextScore = score;
      score = at;
      first = row;
      ties = 1;
    } else if (at === score) ties += 1;
    else if (at < nextScore) nextScore = at;
  }
  let row = first;
  if (ties > 1)
    for (let skip = randomInteger(random, ties); skip > 0; ) if (scores[++row] === score) skip -= 1;
  return { row, score, ties, nextScore };
}
