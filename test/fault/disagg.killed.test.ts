// Promise: prefill workers that are killed and hand-overs that fail are invisible: every stream is whole and the same, and no
// engine keeps a block.
import t from 'tap';
import { startMockChildren } from '#millrace/cli/mock-children.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { LocalEngines } from '#millrace/simulate/disagg/local-carrier.js';
import {
  COMPLETIONS,
  MOCK_MODEL,
  type PlaneFixture,
  type Reply,
  startPlane,
  streamedText,
  TOKENIZER,
  until,
} from '../plane-fixture.js';
import { leakOf } from '../simulate/disagg-probe.js';

const ROLES = ['prefill', 'prefill', 'decode', 'decode'] as const;
const MODELS = { [MOCK_MODEL]: { disaggregation: { policy: 'always' } } };
/** Each is asked several times. */
const PROMPTS = 20;
/** A worker that is gone is seen to be so by the requests that it fails. */
const LIMITS = { attemptsMax: 6, breakerFailuresMax: 1000 };

const ask = (round: number): object => ({
  model: MOCK_MODEL,
  prompt: `${'river '.repeat(1 + 5 * (round % PROMPTS))}sea`,
  max_tokens: 20,
  stream: true,
});

/** What is wrong with answers, by the first one that a prompt got; several rounds have the same prompt. */
function faultsOf(replies: readonly Reply[]): string[] {
  const texts = new Map<number, string>();
  return replies.flatMap((reply, round) => {
    const text = streamedText(reply);
    const first = texts.get(round % PROMPTS) ?? text;
    texts.set(round % PROMPTS, first);
    if (reply.status !== 200 || !reply.done || reply.broken)
      return [`${round}: ${reply.status} ${reply.text.slice(-300)}`];
    return text === first && text.length > 20 ? [] : [`${round}: ${text} is not ${first}`];
  });
}

/** Sends `count` requests, `width` at a time; `at` is called as each of them begins. */
async function load(
  plane: PlaneFixture,
  count: number,
  width: number,
  at: (round: number) => void,
): Promise<Reply[]> {
  const replies: Reply[] = [];
  let next = 0;
  const one = async (): Promise<void> => {
    while (next < count) {
      const round = next++;
      at(round);
      replies[round] = await plane.post(COMPLETIONS, ask(round));
    }
  };
  await Promise.all(Array.from({ length: width }, one));
  return replies;
}

t.test('hand-overs that fail, and some that stall', async t => {
  const engines = new LocalEngines();
  const faults = { handoverFailure: 0.05, handoverStall: 0.01 };
  const mocks = ROLES.map((_, at) => ({
    tiny: true,
    numGpuBlocks: 512,
    blockSize: 16,
    disagg: { engines, leaseMs: 2000, pullDeadlineMs: 500 },
    faults,
    faultSeed: 11 + at,
  }));
  const plane = await startPlane(t, {
    mocks,
    roles: ROLES,
    models: MODELS,
    tokenizer: TOKENIZER,
    limits: LIMITS,
    clock: 'real',
  });
  const replies = await load(plane, 150, 10, () => {});
  t.strictSame(faultsOf(replies), []);
  const fired = plane.mocks.map(({ faults }) => faults.fired.handoverFailure + faults.fired.handoverStall);
  t.ok(fired.reduce((a, b) => a + b) > 3, `${fired} faults took place`);
  await plane.expectIdle(t);
  await until(() => plane.mocks.every(mock => leakOf(mock) === null), 'every block is free');
});

t.test('SIGKILL of one prefill worker in the middle of the load, then of the other', async t => {
  const children = await startMockChildren(ROLES, 10, systemClock);
  t.teardown(() => children.close());
  const workers = children.addresses.map(({ url, role }) => ({ url, role }));
  const plane = await startPlane(t, {
    workers,
    models: MODELS,
    tokenizer: TOKENIZER,
    limits: LIMITS,
    clock: 'real',
  });
  await until(() => plane.plane.workers.every(({ state }) => state === 'ready'), 'the workers are ready');
  const replies = await load(plane, 160, 16, round => {
    if (round === 40) process.kill(children.pids[0]!, 'SIGKILL');
    if (round === 100) process.kill(children.pids[1]!, 'SIGKILL');
  });
  t.strictSame(faultsOf(replies), []);
  const used = new Set(replies.map(({ headers }) => headers.get('x-millrace-worker')));
  t.strictSame([...used].sort(), [children.addresses[2]!.url, children.addresses[3]!.url].sort());
  await plane.expectIdle(t);
});
