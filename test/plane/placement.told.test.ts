// Promise: a client can pin its request or name a session, every answer says where it was made, and /debug/decisions tells the
// last decisions and what became of them, without a word of any prompt.
import t from 'tap';
import type { Plan } from '#millrace/messages/records.js';
import { DECISIONS_KEPT, type Decision, DecisionLog, mergedDecisions } from '#millrace/plane/decision-log.js';
import { DONE, type FakeCall, textFrame, usageFrame } from '../fake-engine.js';
import {
  CHAT,
  COMPLETIONS,
  errorOf,
  FAKE_MODEL,
  jsonOf,
  type PlaneFixture,
  type Reply,
  SERVERS,
  startPlane,
  TOKENIZER,
} from '../plane-fixture.js';

const HELLO = 9906;
const SECRET = 'my secret prompt';
const ask = { model: FAKE_MODEL, prompt: SECRET, max_tokens: 8 };
const withCached = usageFrame(4, 1).replace(
  '"usage":{',
  '"usage":{"prompt_tokens_details":{"cached_tokens":3},',
);
const good = (call: FakeCall): void => {
  call
    .stream()
    .send(textFrame('Hello', [HELLO], 'length') + withCached + DONE)
    .end();
};
const bad = (call: FakeCall): void => call.respond(500, 'application/json', '{}');

const workerOf = (reply: Reply): string | null => reply.headers.get('x-millrace-worker');
const decisions = async (fixture: PlaneFixture, query = ''): Promise<Decision[]> =>
  jsonOf(await fixture.get(`/debug/decisions${query}`)).decisions;

for (const server of SERVERS) {
  t.test(server, async t => {
    const fixture = await startPlane(t, {
      fakes: [{ script: good }, { script: good }],
      tokenizer: TOKENIZER,
      server,
    });
    const urls = fixture.fakes.map(({ url }) => url);

    await fixture.step(t, 'every answer names its worker', async t => {
      const forms = [{}, { stream: true }, { echo: true }, { echo: true, stream: true }];
      const replies = await Promise.all(forms.map(form => fixture.post(COMPLETIONS, { ...ask, ...form })));
      for (const reply of replies) {
        t.equal(reply.status, 200);
        t.ok(urls.includes(workerOf(reply)!));
        t.equal(reply.headers.get('x-millrace-expected-cached-tokens'), '0');
        t.notOk(reply.headers.has('x-millrace-candidates'));
      }
      t.same([...new Set(replies.map(workerOf))].sort(), [...urls].sort(), 'round-robin');
    });
    await fixture.step(t, 'candidates for who asks', async t => {
      for (const stream of [false, true]) {
        const { headers } = await fixture.post(
          COMPLETIONS,
          { ...ask, stream },
          { 'x-millrace-debug': 'routing' },
        );
        const told = JSON.parse(headers.get('x-millrace-candidates')!);
        const row = { cost: null, cachedTokens: 0, queuedTokens: 0, requests: 0 };
        t.same(
          told,
          urls.map(worker => ({ worker, ...row })),
        );
        t.match(headers.get('x-millrace-reason'), /^round-robin: /);
      }
    });
    await fixture.step(t, 'a pin', async t => {
      for (const url of [...urls, urls[0]!]) {
        t.equal(workerOf(await fixture.post(COMPLETIONS, ask, { 'x-millrace-worker': url })), url);
      }
      const unknown = await fixture.post(COMPLETIONS, ask, { 'x-millrace-worker': 'http://127.0.0.1:9' });
      t.match(errorOf(unknown), {
        status: 503,
        code: 'MILLRACE_NO_WORKER',
        message: /^x-millrace-worker names no/,
      });
      t.equal(workerOf(unknown), null);
      const nonsense = await fixture.post(COMPLETIONS, ask, { 'x-millrace-worker': 'worker 5' });
      t.match(errorOf(nonsense), { status: 400, param: 'x-millrace-worker', message: /http:\/\/host:port/ });
    });
    await fixture.step(
      t,
      'a pin to a worker that fails: its own error, and nobody else is asked',
      async t => {
        fixture.fakes[0]!.script = bad;
        const before = fixture.fakes[1]!.calls.length;
        const reply = await fixture.post(COMPLETIONS, ask, { 'x-millrace-worker': urls[0]! });
        t.match(errorOf(reply), { status: 502, code: 'MILLRACE_WORKER_FAILED' });
        t.equal(workerOf(reply), urls[0], 'also an error says where it was made');
        t.equal(fixture.fakes[1]!.calls.length, before);
        fixture.fakes[0]!.script = good;
      },
    );
    await fixture.step(t, 'a session', async t => {
      const session = async (name: string): Promise<string | null> =>
        workerOf(await fixture.post(COMPLETIONS, ask, { 'x-millrace-session-id': name }));
      const home = await session('a');
      for (let round = 0; round < 4; round += 1) t.equal(await session('a'), home);
      const homes = await Promise.all(Array.from({ length: 16 }, (_, name) => session(`s${name}`)));
      t.equal(new Set(homes).size, 2, 'sessions spread');
      const long = await fixture.post(COMPLETIONS, ask, { 'x-millrace-session-id': 'x'.repeat(257) });
      t.match(errorOf(long), { status: 400, param: 'x-millrace-session-id', message: /257 .* 1 to 256/ });
    });
    await fixture.step(t, 'the last decisions', async t => {
      fixture.fakes[0]!.script = bad;
      const headers = { 'x-request-id': 'r-1', 'x-millrace-session-id': 'the session' };
      // The cursor points at either worker: one of two requests meets the one that fails.
      for (const _ of urls)
        await fixture.post(COMPLETIONS, { ...ask, stream: true }, { 'x-request-id': 'r-0' });
      const retried = (await decisions(fixture, '?limit=3')).filter(({ end }) => end === 'retried');
      t.match(retried, [
        { worker: urls[0], reportedCachedTokens: null, ttftMs: null, requestId: 'r-0', attempt: 1 },
      ]);
      const reply = await fixture.post(COMPLETIONS, { ...ask, stream: true }, headers);
      const [last, ...older] = await decisions(fixture);
      t.match(last, {
        requestId: 'r-1',
        model: FAKE_MODEL,
        worker: workerOf(reply)!,
        policy: 'round-robin',
        reason: /^session|^round-robin/,
        expectedCachedTokens: 0,
        reportedCachedTokens: 3,
        ttftMs: 0,
        end: 'completed',
        ids: 'unused',
      });
      t.ok(older.every(({ timeMs }) => timeMs <= last!.timeMs));
      const page = await fixture.get('/debug/decisions?limit=256');
      t.match(page.headers.get('content-type'), /^application\/json/);
      t.notMatch(page.text, /secret|the session|9906/);
      t.equal((await decisions(fixture, '?limit=2')).length, 2);
      for (const limit of ['0', '257', '1.5', 'x', '']) {
        t.match(errorOf(await fixture.get(`/debug/decisions?limit=${limit}`)), {
          status: 400,
          message: /1 to 256/,
        });
      }
      t.equal((await fixture.get('/debug/decisions', 'POST')).status, 405);
      fixture.fakes[0]!.script = good;
    });
    await fixture.step(t, 'expected and reported tokens are counted', async t => {
      const of = (source: string) => fixture.metric(`millrace_cached_tokens_total{source="${source}"}`);
      const before = await of('reported');
      await fixture.post(CHAT, { model: FAKE_MODEL, messages: [{ role: 'user', content: 'x' }] });
      t.equal(await of('reported'), before + 3);
      t.equal(await of('expected'), 0);
    });
  });
}

t.test('the ring: newest first, the oldest go, several threads merged', async t => {
  const placement = { policy: 'p', reason: 'r', ids: 'client', cachedTokens: 1, candidates: null } as const;
  const plan = (request: number): Plan =>
    ({ request, attempt: 1, model: 'm', promptTokens: 9, placement }) as Plan;
  const [odd, even] = [new DecisionLog(), new DecisionLog()];
  t.same(odd.newest(5), []);
  const total = 2 * (DECISIONS_KEPT + 10);
  for (let at = 1; at <= total; at += 1)
    (at % 2 === 1 ? odd : even).add(at, plan(at), 'http://w', 'i'.repeat(200));
  t.equal(odd.newest(1000).length, DECISIONS_KEPT);
  t.equal(odd.newest(1)[0]!.requestId!.length, 128);
  const merged = mergedDecisions([odd.newest(50), even.newest(50)], 50);
  t.same(
    merged.map(({ request }) => request),
    Array.from({ length: 50 }, (_, back) => total - back),
  );
  const open = odd.add(1, plan(1), 'http://w', undefined);
  open.end = 'completed';
  t.match(odd.newest(1), [{ end: 'completed', requestId: null }], 'an entry is written on');
});
