// Promise: whatever workers do at random, and when one is killed outright, every answer is that of an undisturbed engine,
// to the byte, and nothing is left behind.

import t, { type Test } from 'tap';
import { startMockChildren } from '#millrace/cli/mock-children.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { type MockEngine, startMockEngine } from '#millrace/simulate/mock-engine.js';
import { CHAT, COMPLETIONS, type Reply, startPlane, TOKENIZER, until } from '../plane-fixture.js';
import {
  APIS,
  bodyOf,
  countsOf,
  expectOneStream,
  firedOf,
  type Json,
  substancesOf,
} from './migration-lib.js';

const LONG = process.env.MILLRACE_TEST_LONG === '1';
const REQUESTS = LONG ? 5000 : 150;
const AT_ONCE = 25;
const EOS_RATE = 0.02;

const SEED = Number(process.env.SEED ?? Date.now() % 1e6);
t.comment(`SEED=${SEED}`);

/** The answer of the engine itself. */
async function direct(mock: MockEngine, path: string, body: Json): Promise<Reply> {
  const asked = JSON.stringify({ ...body, stream: false, stream_options: undefined });
  const response = await fetch(mock.url + path, { method: 'POST', body: asked });
  const { status, headers } = response;
  return { status, headers, text: await response.text(), frames: [], done: false, broken: false };
}

function randomBody(random: Random, isToken: boolean): { path: string; body: Json } {
  const [path, prompt] = APIS[randomInteger(random, 2)]!;
  const words = `number ${randomInteger(random, 1e6)}`;
  const own = path === CHAT ? { messages: [{ role: 'user', content: words }] } : { prompt: words };
  const stream = random() < 0.6;
  const more: Json = { ...own, stream, max_tokens: 1 + randomInteger(random, 40) };
  if (stream) more.stream_options = { include_usage: true };
  if (random() < 0.3) more.n = 2 + randomInteger(random, 2);
  if (random() < 0.3) more.min_tokens = Math.min(more.max_tokens as number, randomInteger(random, 20));
  if (isToken && random() < 0.3) more.stop = [' a', 'the'].slice(randomInteger(random, 2));
  return { path, body: bodyOf(prompt, more) };
}

for (const tokenizer of [TOKENIZER, null]) {
  t.test(`${tokenizer === null ? 'relayIds' : 'token'}: many answers, many faults`, async t => {
    const random = seededRandom(SEED);
    const faults = { dieAfter: 0.15, halfFrame: 0.05, reset: 0.01, dieBefore: 0.01, error500: 0.01 };
    // So many that an answer does not fail on all of them in a row, which would be its end.
    const mocks = Array.from({ length: 8 }, (_, at) => ({ faults, faultSeed: SEED + at, eosRate: EOS_RATE }));
    const fixture = await startPlane(t as Test, {
      mocks,
      tokenizer,
      clock: 'real',
      limits: { migrationsMax: 16, attemptsMax: 16 },
    });
    const oracle = await startMockEngine({ speed: 'unlimited', eosRate: EOS_RATE });
    t.teardown(() => oracle.close());
    let wrong = 0;
    let left = REQUESTS;
    const client = async (): Promise<void> => {
      while (left-- > 0) {
        const { path, body } = randomBody(random, tokenizer !== null);
        const [got, wanted] = await Promise.all([fixture.post(path, body), direct(oracle, path, body)]);
        const choices = Number(body.n ?? 1);
        const [mine, its] = [substancesOf(got, choices), substancesOf(wanted, choices)];
        const same = JSON.stringify([mine, countsOf(got)]) === JSON.stringify([its, countsOf(wanted)]);
        if (same && (body.stream !== true || got.done)) continue;
        if (wrong++ > 0) continue;
        const error = got.frames.findLast(frame => 'error' in frame) ?? got.status;
        t.same(
          { mine, counts: countsOf(got), error },
          { mine: its, counts: countsOf(wanted) },
          JSON.stringify(body),
        );
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, client));
    t.equal(wrong, 0, `${REQUESTS} answers`);
    t.ok(firedOf(fixture) > REQUESTS / 6, `${firedOf(fixture)} faults took place`);
    t.ok((await fixture.metric('millrace_asks_total{reason="migrated"}')) > REQUESTS / 10);
    t.equal(await fixture.metric('millrace_requests_ended_total{cause="completed"}'), REQUESTS);
    await fixture.expectIdle(t as Test);
  });
}

t.test('a worker process that is killed, and one that is told to end', async t => {
  const children = await startMockChildren(['both', 'both', 'both'], 4, systemClock);
  t.teardown(() => children.close());
  const fixture = await startPlane(t as Test, {
    workers: children.addresses.map(({ url }) => url),
    tokenizer: TOKENIZER,
    clock: 'real',
  });
  await until(() => fixture.plane.workers.every(({ state }) => state === 'ready'), 'the workers are ready');
  const oracle = await startMockEngine({ speed: 'unlimited' });
  t.teardown(() => oracle.close());
  const bodies = Array.from({ length: 12 }, (_, at) =>
    bodyOf(
      { prompt: `story ${at}` },
      { stream: true, max_tokens: 400, stream_options: { include_usage: true } },
    ),
  );
  const open = await Promise.all(bodies.map(body => fixture.open(COMPLETIONS, body)));
  await Promise.all(open.map(reply => reply.readUntil(text => text.split('\n\n').length > 10)));
  const held = (worker: number): number =>
    open.filter(reply => reply.headers.get('x-millrace-worker') === children.addresses[worker]!.url).length;
  for (const [worker, signal, ending] of [
    [0, 'SIGKILL', 'SIGKILL'],
    [1, 'SIGTERM', 0],
  ] as const) {
    t.ok(held(worker) > 0 && open.some(reply => !reply.ended), 'it has answers to give');
    // Until its exit event the process has its pid, even if it is dead.
    const early = await Promise.race([children.endings[worker], Promise.resolve('runs')]);
    t.equal(early, 'runs', 'it did not end by itself');
    if (early === 'runs') process.kill(children.pids[worker]!, signal);
    t.equal(await children.endings[worker], ending, `${signal} ended it`);
    await until(
      () => isGone(children.addresses[worker]!.url, fixture.plane.workers),
      'the plane has seen it',
    );
  }
  for (const [at, reply] of open.entries()) {
    const got = await reply.rest();
    const wanted = await direct(oracle, COMPLETIONS, bodies[at]!);
    t.same(substancesOf(got, 1), substancesOf(wanted, 1));
    t.same(countsOf(got), countsOf(wanted));
    expectOneStream(t as Test, got, COMPLETIONS, 1);
  }
  t.ok((await fixture.metric('millrace_migrations_total{cause="reset",outcome="continued"}')) >= held(0));
  await fixture.expectIdle(t as Test);
});

/** Nothing listens there any more, as the plane has found by itself. */
function isGone(url: string, workers: readonly { readonly url: string; readonly state: string }[]): boolean {
  return workers.some(worker => worker.url === url && worker.state === 'unavailable');
}
