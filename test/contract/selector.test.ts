// Promise: every policy picks only from its candidates, repeats itself from the same random numbers, and is fair to equal
// workers.
import t from 'tap';
import { ConfigError } from '#millrace/errors.js';
import type { Candidate, RequestView } from '#millrace/router/contract.js';
import { createSelector, POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
t.comment(`seed ${SEED}`);

const request: RequestView = { model: 'm', promptTokens: 100, excludedSlots: [] };
const candidate = (slot: number, requests = 0): Candidate => ({
  slot,
  generation: slot + 100,
  requests,
  activePrefillTokens: 0,
  decodeBlocks: 0,
});

for (const policy of POLICY_NAMES) {
  t.test(policy, async t => {
    t.equal(createSelector(policy).policy, policy, 'knows its name');

    const random = seededRandom(SEED);
    const rounds = Array.from({ length: 3000 }, () => {
      const slots = [...Array(20).keys()].filter(() => random() < 0.4);
      return (slots.length > 0 ? slots : [7]).map(slot => candidate(slot, randomInteger(random, 4)));
    });
    const play = (): { slot: number; generation: number; reason: string }[] => {
      const selector = createSelector(policy);
      const stream = seededRandom(SEED + 1);
      return rounds.map(candidates => selector.pick(request, candidates, stream));
    };
    const first = play();
    const strangers = first.filter(
      ({ slot, generation }, round) =>
        !rounds[round]!.some(c => c.slot === slot && c.generation === generation),
    );
    t.same(strangers, [], 'picks only candidates, with their generation');
    t.same(play(), first, 'same inputs and random numbers, same picks');
    t.ok(
      first.every(({ reason }) => reason.startsWith(policy)),
      'the reason names the policy',
    );

    const equal = [3, 5, 8, 13].map(slot => candidate(slot));
    const selector = createSelector(policy);
    const counts = new Map<number, number>();
    const draws = 8000;
    for (let draw = 0; draw < draws; draw += 1) {
      const { slot } = selector.pick(request, equal, random);
      counts.set(slot, (counts.get(slot) ?? 0) + 1);
    }
    const worst = Math.max(...equal.map(({ slot }) => Math.abs((counts.get(slot) ?? 0) - draws / 4)));
    // Standard deviation of one count is 39: 6 of them are passed once in 10^8 runs.
    t.ok(worst < 235, `equal workers get equal shares (worst deviation ${worst} of ${draws / 4})`);
  });
}

t.test('round-robin keeps one order per model, whatever comes and goes', async t => {
  const selector = createSelector('round-robin');
  const pick = (model: string, slots: number[]): number =>
    selector.pick(
      { ...request, model },
      slots.map(slot => candidate(slot)),
      () => 0,
    ).slot;
  t.same([pick('a', [9, 2, 4]), pick('a', [9, 2, 4]), pick('b', [9, 2, 4])], [2, 4, 2]);
  t.equal(pick('a', [2, 3]), 2, 'wraps when nothing is behind the cursor');
  t.equal(pick('a', [2, 3, 4]), 3);
});

t.test('least-requests takes the fewest', async t => {
  const random = seededRandom(SEED + 2);
  const selector = createSelector('least-requests');
  let wrong = 0;
  for (let round = 0; round < 2000; round += 1) {
    const candidates = Array.from({ length: 6 }, (_, slot) => candidate(slot, randomInteger(random, 5)));
    const { slot } = selector.pick(request, candidates, random);
    const fewest = Math.min(...candidates.map(({ requests }) => requests));
    if (candidates[slot]!.requests !== fewest) wrong += 1;
  }
  t.equal(wrong, 0);
});

t.test('an unknown policy is a ConfigError that lists the known ones', async t => {
  for (const name of ['least-request', 'toString', '']) {
    t.throws(() => createSelector(name), ConfigError);
    t.throws(() => createSelector(name), { message: /round-robin, random, least-requests/ });
  }
});
