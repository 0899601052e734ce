// Promise: every policy picks only from its candidates, repeats itself from the same random numbers, and is fair to equal
// workers.
import t from 'tap';
import { ConfigError } from '#millrace/errors.js';
import type { RequestView } from '#millrace/router/contract.js';
import { createSelector, POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { type CandidateRow, candidateColumns } from '../router/candidate-rows.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`seed ${SEED}`);

const request: RequestView = { model: 'm', promptTokens: 100, excludedSlots: [] };
const candidate = (slot: number, requests = 0): CandidateRow => ({ slot, requests });

for (const policy of POLICY_NAMES) {
  t.test(policy, async t => {
    t.equal(createSelector(policy).policy, policy, 'knows its name');

    const random = seededRandom(SEED);
    const rounds = Array.from({ length: 3000 }, () => {
      const slots = [...Array(20).keys()].filter(() => random() < 0.4);
      return (slots.length > 0 ? slots : [7]).map(slot => candidate(slot, randomInteger(random, 4)));
    });
    const play = (): { row: number; reason: string }[] => {
      const selector = createSelector(policy);
      const stream = seededRandom(SEED + 1);
      return rounds.map(rows => selector.pick(request, candidateColumns(rows), stream));
    };
    const first = play();
    const strangers = first.filter(
      ({ row }, round) => !(Number.isInteger(row) && row >= 0 && row < rounds[round]!.length),
    );
    t.same(strangers, [], 'picks only rows of candidates');
    t.same(play(), first, 'same inputs and random numbers, same picks');
    t.ok(
      first.every(({ reason }) => reason.startsWith(policy)),
      'the reason names the policy',
    );

    const equal = candidateColumns([3, 5, 8, 13].map(slot => candidate(slot)));
    const selector = createSelector(policy);
    const counts = new Uint32Array(4);
    const draws = 8000;
    for (let draw = 0; draw < draws; draw += 1) counts[selector.pick(request, equal, random).row]! += 1;
    const worst = Math.max(...[...counts].map(count => Math.abs(count - draws / 4)));
    // Standard deviation of one count is 39: 6 of them are passed once in 10^8 runs.
    t.ok(worst < 235, `equal workers get equal shares (worst deviation ${worst} of ${draws / 4})`);
  });
}

t.test('round-robin keeps one order per model, whatever comes and goes', async t => {
  const selector = createSelector('round-robin');
  const pick = (model: string, slots: number[]): number =>
    slots[
      selector.pick({ ...request, model }, candidateColumns(slots.map(slot => candidate(slot))), () => 0).row
    ]!;
  t.same([pick('a', [9, 2, 4]), pick('a', [9, 2, 4]), pick('b', [9, 2, 4])], [2, 4, 2]);
  t.equal(pick('a', [2, 3]), 2, 'wraps when nothing is behind the cursor');
  t.equal(pick('a', [2, 3, 4]), 3);
});

t.test('an unknown policy is a ConfigError that lists the known ones', async t => {
  for (const name of ['least-request', 'toString', '']) {
    t.throws(() => createSelector(name), ConfigError);
    t.throws(() => createSelector(name), { message: /ttft, kv, .*least-requests, .*round-robin, random/ });
  }
});
