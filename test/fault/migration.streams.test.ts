// Promise: an answer whose worker dies in the middle goes on at another one, and its client cannot tell: every byte of
// text, every count, every log-probability and the end are those of an undisturbed run.

import t, { type Test } from 'tap';
import {
  CHAT,
  COMPLETIONS,
  jsonOf,
  type PlaneFixture,
  startPlane,
  streamedText,
  TOKENIZER,
  until,
} from '../plane-fixture.js';
import {
  APIS,
  bodyOf,
  countsOf,
  expectOneStream,
  firedOf,
  type Json,
  substancesOf,
} from './migration-lib.js';

const MIGRATED = 'millrace_asks_total{reason="migrated"}';
const CONTINUED = 'millrace_migrations_total{cause="reset",outcome="continued"}';

/** Asks once undisturbed and once with both workers failing once, and compares. */
async function compare(
  t: Test,
  fixture: PlaneFixture,
  path: string,
  body: Json,
  kind: 'dieAfter' | 'halfFrame' = 'dieAfter',
  after = 3,
): Promise<void> {
  const choices = Number(body.n ?? 1);
  const whole = await fixture.post(path, body);
  const [asks, continued, fired] = [
    await fixture.metric(MIGRATED),
    await fixture.metric(CONTINUED),
    firedOf(fixture),
  ];
  for (const mock of fixture.mocks) mock.faults.next(kind, after);
  const reply = await fixture.post(path, body);
  t.equal(firedOf(fixture) - fired, 2, 'both workers failed once');
  t.equal(reply.status, 200);
  t.same(substancesOf(reply, choices), substancesOf(whole, choices), 'the same answer');
  t.same(countsOf(reply), countsOf(whole), 'the same counts');
  if (body.stream === true) expectOneStream(t, reply, path, choices);
  else t.match(jsonOf(reply), { object: jsonOf(whole).object, model: jsonOf(whole).model });
  t.equal((await fixture.metric(MIGRATED)) - asks, 2, 'asked for the rest twice');
  // Of several choices each one counts by itself.
  t.equal((await fixture.metric(CONTINUED)) - continued, choices + 1);
}

const limits = { breakerFailuresMax: 1000 };

for (const tokenizer of [TOKENIZER, null]) {
  const mode = tokenizer === null ? 'relayIds' : 'token';

  t.test(`${mode}: two migrations in one answer`, async t => {
    const fixture = await startPlane(t, { mocks: [{}, {}], tokenizer, limits });
    for (const [path, prompt] of APIS) {
      for (const stream of [true, false]) {
        for (const n of [1, 3]) {
          const usage = stream ? { stream_options: { include_usage: true } } : {};
          const name = `${path} stream ${stream} n ${n}`;
          await fixture.step(t, name, t =>
            compare(t, fixture, path, bodyOf(prompt, { stream, n, ...usage })),
          );
        }
      }
    }
    await fixture.step(t, 'a connection that breaks inside a frame', t =>
      compare(t, fixture, CHAT, bodyOf(APIS[0][1], { stream: true }), 'halfFrame'),
    );
    await fixture.step(t, 'usage on every frame', async t => {
      const options = { include_usage: true, continuous_usage_stats: true };
      await compare(t, fixture, CHAT, bodyOf(APIS[0][1], { stream: true, stream_options: options }));
    });
    await fixture.step(t, 'sampling fields do no harm', async t => {
      const more = { seed: 7, temperature: 0.3, top_k: 1, cache_salt: 'abc', presence_penalty: 0 };
      await compare(t, fixture, COMPLETIONS, bodyOf(APIS[1][1], { stream: true, ...more }));
    });
  });

  t.test(`${mode}: an end that only the first tokens decide`, async t => {
    // One token in seven ends an answer, where min_tokens lets it.
    const fixture = await startPlane(t, { mocks: [{ eosRate: 0.15 }, { eosRate: 0.15 }], tokenizer, limits });
    for (const minTokens of [8, 9, 12, 14]) {
      await fixture.step(t, `min_tokens ${minTokens}`, async t => {
        const body = bodyOf(APIS[1][1], { stream: true, min_tokens: minTokens });
        await compare(t, fixture, COMPLETIONS, body);
      });
    }
  });

  t.test(`${mode}: a worker that falls silent`, async t => {
    const silent = { betweenTokensDeadlineMs: 3000 };
    const fixture = await startPlane(t, { mocks: [{}, {}], tokenizer, limits: silent });
    await fixture.step(t, 'stall', async t => {
      const body = bodyOf(APIS[1][1], { stream: true });
      const whole = streamedText(await fixture.post(COMPLETIONS, body));
      for (const mock of fixture.mocks) mock.faults.next('stall', 3);
      const open = await fixture.open(COMPLETIONS, body);
      for (const count of [1, 2]) {
        await until(() => firedOf(fixture) === count, 'a worker stalls');
        await until(() => {
          fixture.tick(500);
          return fixture.mocks.reduce((sum, mock) => sum + mock.counters.aborted, 0) === count;
        }, 'the engine hears of it');
      }
      const reply = await open.rest();
      t.equal(streamedText(reply), whole);
      t.equal(await fixture.metric('millrace_migrations_total{cause="stalled",outcome="continued"}'), 2);
    });
  });

  t.test(`${mode}: the end of the rope`, async t => {
    const fixture = await startPlane(t, {
      mocks: [{}, {}],
      tokenizer,
      limits: { migrationsMax: 1, attemptsMax: 1 },
    });
    for (const stream of [true, false]) {
      await fixture.step(t, `migrationsMax, stream ${stream}`, async t => {
        for (const mock of fixture.mocks) mock.faults.next('dieAfter', 3);
        const reply = await fixture.post(COMPLETIONS, bodyOf(APIS[1][1], { stream }));
        const { error } = stream ? reply.frames.at(-1) : jsonOf(reply);
        t.equal(error.code, 'MILLRACE_WORKER_DIED');
        // A unary answer could still begin anew; that it may not, says nothing about migrations.
        if (stream) t.match(error.message, /1 times \(migrationsMax\)/);
        t.ok(stream ? reply.done : reply.status === 502);
      });
    }
    t.equal(await fixture.metric('millrace_migrations_total{cause="reset",outcome="limit"}'), 2);
  });

  t.test(`${mode}: switched off, and too long to be kept`, async t => {
    for (const [limits, told] of [
      [{ migrationsMax: 0 }, { code: 'MILLRACE_WORKER_DIED' }],
      [{ migrateTokensMax: 8 }, { code: 'MILLRACE_CANNOT_MIGRATE', message: /too long/ }],
    ] as const) {
      const fixture = await startPlane(t, { mocks: [{}, {}], tokenizer, limits });
      await fixture.step(t, JSON.stringify(limits), async t => {
        for (const mock of fixture.mocks) mock.faults.next('dieAfter', 6);
        const reply = await fixture.post(COMPLETIONS, bodyOf(APIS[1][1], { stream: true }));
        t.match(reply.frames.at(-1), { error: told });
        const givenUp = await fixture.metric('millrace_migrations_total{cause="tokens",outcome="given_up"}');
        t.equal(givenUp, 'migrateTokensMax' in limits ? 1 : 0);
      });
    }
  });
}

t.test('token: stop strings and log-probabilities over the seam', async t => {
  const fixture = await startPlane(t, { mocks: [{}, {}], tokenizer: TOKENIZER, limits });
  for (const [path, prompt] of APIS) {
    const isChat = path === CHAT;
    const whole = await fixture.post(path, bodyOf(prompt, { stream: true }));
    const pieces = whole.frames
      .flatMap(frame => frame.choices)
      .map(choice => choice.text ?? choice.delta?.content ?? '')
      .filter(piece => piece !== '');
    // Two workers die after their third token: the seams are behind the third and the sixth.
    for (const at of [3, 6]) {
      const stop = pieces[at - 1]!.slice(-2) + pieces[at]!.slice(0, 2);
      for (const included of [false, true]) {
        await fixture.step(t, `${path} stop at token ${at}, included ${included}`, async t => {
          const body = bodyOf(prompt, { stream: true, stop: [stop], include_stop_str_in_output: included });
          if (at === 6) await compare(t, fixture, path, body);
          else {
            const wanted = substancesOf(await fixture.post(path, body), 1);
            fixture.mocks[0]!.faults.next('dieAfter', 3);
            fixture.mocks[1]!.faults.next('dieAfter', 3);
            const fired = firedOf(fixture);
            const reply = await fixture.post(path, body);
            t.same(substancesOf(reply, 1), wanted);
            t.equal(wanted[0]!.finish, 'stop');
            // The stop string ends with the first token of the second worker, before that one could die.
            t.equal(firedOf(fixture) - fired, 1);
          }
        });
      }
    }
    for (const stream of [true, false]) {
      await fixture.step(t, `${path} logprobs, stream ${stream}`, t =>
        compare(t, fixture, path, bodyOf(prompt, { stream, logprobs: isChat ? true : 3, n: 2 })),
      );
    }
  }
});
