// Promise: a prompt goes back to the worker that computed its beginning, whoever makes the ids, salts keep tenants apart, and a
// fleet that makes no ids is routed by load and says so once.
import t from 'tap';
import type { Decision } from '#millrace/plane/decision-log.js';
import { DONE, type FakeCall, textFrame, usageFrame } from '../fake-engine.js';
import {
  CHAT,
  COMPLETIONS,
  FAKE_MODEL,
  jsonOf,
  MOCK_MODEL,
  type PlaneFixture,
  type Reply,
  startPlane,
  TOKENIZER,
} from '../plane-fixture.js';

const words = (name: string): string => Array.from({ length: 200 }, (_, at) => `${name} ${at}`).join(' ');
const workerOf = (reply: Reply): string => reply.headers.get('x-millrace-worker')!;
const expectedOf = (reply: Reply): number => Number(reply.headers.get('x-millrace-expected-cached-tokens'));
const newest = async (fixture: PlaneFixture): Promise<Decision> =>
  jsonOf(await fixture.get('/debug/decisions?limit=1')).decisions[0];

for (const [source, tokenizer] of [
  ['tokenizer', TOKENIZER],
  ['worker', null],
] as const) {
  t.test(`ids of the ${source}`, async t => {
    const fixture = await startPlane(t, { mocks: [{}, {}], tokenizer, policy: 'kv' });
    const chat = (
      content: string,
      more: object = {},
      headers: Record<string, string> = {},
    ): Promise<Reply> => {
      const messages = [{ role: 'user', content }];
      return fixture.post(CHAT, { model: MOCK_MODEL, messages, max_tokens: 2, ...more }, headers);
    };

    await fixture.step(t, 'the second time the prefix is where it was', async t => {
      for (const name of ['a', 'b', 'c', 'd']) {
        const first = await chat(words(name));
        t.equal(first.status, 200);
        t.ok(expectedOf(first) < 32, `only the begin of the template: ${expectedOf(first)}`);
        const again = await chat(words(name), { stream: true });
        t.equal(workerOf(again), workerOf(first));
        const { promptTokens, expectedCachedTokens, ids } = await newest(fixture);
        t.equal(ids, source);
        t.equal(expectedOf(again), expectedCachedTokens);
        t.ok(expectedCachedTokens > 0.9 * promptTokens && expectedCachedTokens < promptTokens);
      }
    });
    await fixture.step(t, 'the cost of the others, for who asks', async t => {
      const reply = await chat(words('a'), {}, { 'x-millrace-debug': 'routing' });
      const told = JSON.parse(reply.headers.get('x-millrace-candidates')!);
      t.equal(told.length, 2);
      t.equal(told[0].worker, workerOf(reply));
      t.ok(told[0].cost < told[1].cost && told[0].cachedTokens > told[1].cachedTokens);
      t.match(reply.headers.get('x-millrace-reason'), /^kv: cost .* overlap/);
    });
    await fixture.step(t, 'a salt shares with nobody but itself', async t => {
      const salted = (cache_salt: string): Promise<Reply> => chat(words('a'), { cache_salt });
      t.equal(expectedOf(await salted('one')), 0);
      t.ok(expectedOf(await salted('one')) > 0);
      t.equal(expectedOf(await salted('two')), 0);
    });
    await fixture.step(t, 'ids of the client', async t => {
      const body = {
        model: MOCK_MODEL,
        prompt: Array.from({ length: 150 }, (_, at) => at + 50),
        max_tokens: 2,
      };
      const first = await fixture.post(COMPLETIONS, body);
      const again = await fixture.post(COMPLETIONS, body);
      t.same([workerOf(again), expectedOf(first), expectedOf(again)], [workerOf(first), 0, 128]);
      t.equal((await newest(fixture)).ids, 'client');
    });
  });
}

t.test('workers without /tokenize', async t => {
  const script = (call: FakeCall): void => {
    call
      .stream()
      .send(textFrame('x', [1], 'length') + usageFrame(1, 1) + DONE)
      .end();
  };
  const fakes = [{ script }, { script }];
  const fixture = await startPlane(t, { fakes, policy: 'kv', poolThreads: 2 });
  for (let at = 0; at < 12; at += 1) {
    const reply = await fixture.post(COMPLETIONS, {
      model: FAKE_MODEL,
      prompt: words(`${at}`),
      max_tokens: 2,
    });
    t.equal(reply.status, 200);
    t.equal((await newest(fixture)).ids, 'missing');
  }
  const said = fixture.log.filter(line => line.includes('makes no prompt ids'));
  t.equal(said.length, 1);
  t.match(said[0], /status 404/);
  t.notMatch(fixture.log.join(), /0 1 0 2/, 'no prompt in the log');
});
