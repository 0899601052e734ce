// Promise: modelled times equal the published check values of the polynomial model, and never break its clamps.

import t, { type Test } from 'tap';
import { decodeMs, prefillBatchTokens, prefillMs } from '#millrace/simulate/timing.js';

/** The published values are cut, not rounded, after their last digit. */
const near = (t: Test, got: number, want: number, digits: number): void =>
  void t.ok(Math.abs(got - want) < 10 ** -digits, `${got} is ${want}`);

t.test('prefill check values', async t => {
  t.equal(prefillMs(0), 0, 'the floor is not charged for nothing');
  near(t, prefillMs(1000), 32.106, 3);
  near(t, prefillMs(8192), 169.136, 3);
});

t.test('decode check values and clamps', async t => {
  near(t, decodeMs(0.5), 26.31, 2);
  near(t, decodeMs(1), 34.01, 2);
  near(t, decodeMs(0), 5.74, 2);
  t.equal(decodeMs(7), decodeMs(1), 'shared prefixes may count more than the capacity');
  const loads = Array.from({ length: 101 }, (_, at) => decodeMs(at / 100));
  t.same(
    loads,
    [...loads].sort((a, b) => a - b),
    'never faster under more load',
  );
});

t.test('batch statistics use integer means', async t => {
  t.equal(prefillBatchTokens(0, 0, 0), 0);
  t.equal(prefillBatchTokens(1, 100, 36), 64);
  t.equal(prefillBatchTokens(3, 100, 10), 3 * (33 - 3));
});
