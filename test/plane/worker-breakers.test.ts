// Promise: a worker that keeps failing is avoided for a while, then tried by one request at a time, and trusted again
// after its first success.

import t from 'tap';
import { WorkerBreakers } from '#millrace/plane/worker-breakers.js';
import { ManualClock } from '#millrace/runtime/clock.js';

const limits = { breakerFailuresMax: 3, breakerWindowMs: 1000, breakerOpenMs: 500 };

t.test('closed, open, tried, closed', async t => {
  const clock = new ManualClock();
  const breakers = new WorkerBreakers(limits, clock);
  breakers.failed(4, 1);
  breakers.failed(4, 1);
  t.same(breakers.avoided(), [], 'two are not enough');
  clock.advance(1000);
  breakers.failed(4, 1);
  t.same(breakers.avoided(), [], 'the first two are too long ago');
  breakers.failed(4, 1);
  breakers.failed(4, 1);
  breakers.failed(5, 1);
  t.same(breakers.avoided(), [4]);
  clock.advance(499);
  t.same(breakers.avoided(), [4]);
  clock.advance(1);
  t.same(breakers.avoided(), [], 'one request may try it');
  t.same(breakers.avoided(), [4], 'and no other');
  breakers.failed(4, 1);
  clock.advance(500);
  t.same(breakers.avoided(), [], 'it failed: the next one half a second later');
  t.same(breakers.avoided(), [4]);
  breakers.succeeded(4, 1);
  t.same(breakers.avoided(), []);
  breakers.failed(4, 1);
  breakers.failed(4, 1);
  t.same(breakers.avoided(), [], 'it counts from the start again');
});

t.test(
  'another worker in the slot begins with nothing; a pause that a worker asks for is bounded',
  async t => {
    const clock = new ManualClock();
    const breakers = new WorkerBreakers(limits, clock);
    for (let round = 0; round < 3; round++) breakers.failed(0, 1);
    breakers.succeeded(0, 2);
    t.same(breakers.avoided(), [0], 'news of another generation is no news');
    breakers.failed(0, 2);
    t.same(breakers.avoided(), []);
    breakers.rest(1, 1, 200);
    breakers.rest(2, 1, 1e9);
    t.same(breakers.avoided(), [1, 2]);
    clock.advance(200);
    t.same(breakers.avoided(), [2]);
    clock.advance(300);
    t.same(breakers.avoided(), [1], '2 has had its time; 1 was tried 300 ms ago');
  },
);
