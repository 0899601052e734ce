/** `least-requests` (R4): the worker with the fewest requests reserved on it; ties at random. Keeps nothing. */
import type { Selector } from '../contract.js';
import { lowest, tiesText } from './lowest.js';

/** Makes the selector. */
export function createLeastRequests(): Selector {
  return {
    policy: 'least-requests',
    usesPrefix: false,
    usesTiming: false,
    pick(_request, { requests, count }, random) {
      const { row, score, ties } = lowest(requests, count, random);
      return { row, reason: `least-requests: ${score} reserved${tiesText(ties)}` };
    },
    explain: (_request, { requests }) => requests,
  };
}
