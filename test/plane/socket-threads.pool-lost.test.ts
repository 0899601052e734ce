// Promise: with two socket threads a killed pool thread loses no request of either, and no reservation stays behind.
import t from 'tap';
import { loadConfig } from '#millrace/config.js';
import { Plane } from '#millrace/plane/plane.js';
import { TOKENIZER_NAMES } from '#millrace/preprocess/tokenizers/load.js';
import { POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { addonStatus } from '#millrace/runtime/addon.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import { CHAT, MOCK_MODEL, TOKENIZER, until } from '../plane-fixture.js';

const skip = addonStatus().loaded ? false : 'several socket threads need the addon';
const REQUESTS = 120;
/** Requests in flight at which the thread is killed. */
const KILL_AT = 40;
/** Words that no cache of the tokenizer knows keep the pool thread busy, so that requests wait for it as it is killed. */
const prompt = (request: number): string =>
  Array.from({ length: 4000 }, (_, word) => `w${(request * 4001 + word) * 7919}`).join(' ');

t.test('a killed pool thread', { skip }, async t => {
  const engines = await Promise.all([1, 2].map(() => startMockEngine({ speed: 'unlimited' })));
  t.teardown(() => Promise.all(engines.map(engine => engine.close())));
  const options = {
    workers: engines.map(engine => engine.url),
    tokenizer: TOKENIZER,
    socketThreads: 2,
    poolThreads: 1,
    policy: 'round-robin',
  };
  const names = { policies: POLICY_NAMES, tokenizers: TOKENIZER_NAMES };
  const logger = createLogger({ level: 'silent', format: 'text' });
  const plane = await Plane.start({
    config: loadConfig(names, { options }),
    clock: systemClock,
    logger,
    seed: 1,
  });
  const { port } = await plane.listen('127.0.0.1', 0);
  await plane.workersAnswered(10_000);
  const answers: { status: number; text: string }[] = [];
  const sent = Array.from({ length: REQUESTS }, async (_, request) => {
    const headers = { 'content-type': 'application/json' };
    const messages = [{ role: 'user', content: prompt(request) }];
    const body = JSON.stringify({ model: MOCK_MODEL, messages, max_tokens: 4, stream: true });
    const response = await fetch(`http://127.0.0.1:${port}${CHAT}`, { method: 'POST', headers, body });
    answers.push({ status: response.status, text: await response.text() });
  });
  await until(() => plane.health().requestsInFlight >= KILL_AT, 'requests are in flight');
  await plane.supervisor.threads[0]!.terminate();
  await Promise.all(sent);
  const page = await fetch(`http://127.0.0.1:${port}/debug/decisions?limit=256`);
  const { decisions } = (await page.json()) as { decisions: { request: number; end: string }[] };
  t.equal(
    new Set(decisions.map(({ request }) => request)).size,
    REQUESTS,
    'any thread tells the decisions of all',
  );
  t.ok(decisions.every(({ end }) => end === 'completed'));

  t.equal(answers.length, REQUESTS);
  t.same(
    answers.filter(({ status, text }) => status !== 200 || !text.endsWith('data: [DONE]\n\n')),
    [],
    'every request was answered whole',
  );
  const metrics = await plane.metrics();
  t.match(metrics, /^millrace_pool_thread_restarts_total 1$/m);
  t.match(
    metrics,
    /^millrace_asks_total\{reason="pool_lost"\} [1-9]/m,
    'requests waited for the dead thread',
  );
  const accepted = [...metrics.matchAll(/accepted_total\{thread="socket-\d"\} (\d+)/g)].map(match =>
    Number(match[1]),
  );
  t.equal(accepted.filter(count => count > 0).length, 2, `both threads had requests: ${accepted.join(', ')}`);
  await until(() => plane.ledger.held() === 0, 'no reservation is held');
  for (const slot of [0, 1])
    t.match(plane.loadTable.snapshot(slot), { requests: 0, activePrefillTokens: 0, decodeBlocks: 0 });
  t.equal(plane.health().requestsInFlight, 0);
  await plane.close(1000);
  await t.rejects(fetch(`http://127.0.0.1:${port}/live`), 'nothing listens any more');
});
