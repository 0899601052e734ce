// Promise: under random faults of workers, clients and planning threads nothing leaks, nothing hangs, every request is
// counted once, and every answer that ends well is exactly the answer of an undisturbed engine.

import t, { type Test } from 'tap';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import { RawClient } from '../frontend/http/raw-client.js';
import {
  CHAT,
  COMPLETIONS,
  jsonOf,
  MOCK_MODEL,
  type PlaneFixture,
  type Reply,
  type ServerKind,
  startPlane,
  streamedText,
  TOKENIZER,
} from '../plane-fixture.js';

const LONG = process.env.MILLRACE_TEST_LONG === '1';
const REQUESTS = LONG ? 22_500 : 750;
const CLIENTS = 24;
const FAULTS = {
  refuse: 0.03,
  error500: 0.03,
  halfFrame: 0.02,
  stall: 0.005,
  dieBefore: 0.03,
  dieAfter: 0.02,
  reset: 0.02,
};
const CAUSES = [
  'completed',
  'rejected',
  'client_gone',
  'slow_client',
  'deadline',
  'worker_failed',
  'drained',
  'internal',
];

interface Sent {
  readonly path: string;
  readonly stream: boolean;
  readonly prompt: string;
  readonly maxTokens: number;
}

interface Tally {
  completed: number;
  errors: number;
  poolLost: number;
  left: number;
  wrong: string[];
}

const bodyOf = ({ path, stream, prompt, maxTokens }: Sent): object => ({
  model: MOCK_MODEL,
  stream,
  max_tokens: maxTokens,
  ...(path === CHAT ? { messages: [{ role: 'user', content: prompt }] } : { prompt }),
});

const textOf = (reply: Reply, sent: Sent): string => {
  if (sent.stream) return streamedText(reply);
  const choice = jsonOf(reply).choices[0];
  return sent.path === CHAT ? choice.message.content : choice.text;
};

function draw(random: Random): Sent {
  return {
    path: random() < 0.5 ? CHAT : COMPLETIONS,
    stream: random() < 0.6,
    prompt: `chapter ${randomInteger(random, 12)} ${'of many words '.repeat(randomInteger(random, 3) * 20)}`,
    maxTokens: [1, 5, 17, 40][randomInteger(random, 4)]!,
  };
}

/** Texts of an engine that nothing happens to. */
async function startReference(t: Test): Promise<(sent: Sent) => Promise<string>> {
  const engine = await startMockEngine({ speed: 'unlimited', eosRate: 0.02 });
  t.teardown(() => engine.close());
  const texts = new Map<string, Promise<string>>();
  const ask = async (sent: Sent): Promise<string> => {
    const init = { method: 'POST', headers: { 'content-type': 'application/json' } };
    const response = await fetch(engine.url + sent.path, { ...init, body: JSON.stringify(bodyOf(sent)) });
    const { choices } = (await response.json()) as {
      choices: { text?: string; message?: { content: string } }[];
    };
    return choices[0]!.message?.content ?? choices[0]!.text!;
  };
  return sent => {
    const whole = { ...sent, stream: false };
    const key = JSON.stringify(whole);
    const known = texts.get(key) ?? ask(whole);
    texts.set(key, known);
    return known;
  };
}

/** Sends one request the way a well-behaved, an impatient or a confused client does. */
async function one(
  fixture: PlaneFixture,
  random: Random,
  expected: (sent: Sent) => Promise<string>,
  tally: Tally,
): Promise<void> {
  const sent = draw(random);
  const manner = random();
  if (manner < 0.06) {
    const client = await RawClient.connect(fixture.port);
    const body = JSON.stringify(bodyOf(sent));
    await client.send(
      `POST ${sent.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body.slice(0, random() < 0.5 ? body.length : 20)}`,
    );
    client.destroy();
    tally.left++;
    return;
  }
  if (manner < 0.12) {
    const reply = await fixture.post(sent.path, { ...bodyOf(sent), max_tokens: -1 });
    if (reply.status === 400) tally.errors++;
    else tally.wrong.push(`a wrong request got ${reply.status}`);
    return;
  }
  const open = await fixture.open(sent.path, bodyOf(sent));
  if (manner < 0.2) {
    await open.readUntil(text => text.length > 100);
    open.leave();
    tally.left++;
    return;
  }
  const reply = await open.rest();
  const error =
    reply.status === 200 && sent.stream
      ? reply.frames.at(-1)?.error
      : reply.status === 200
        ? undefined
        : jsonOf(reply).error;
  if (reply.broken || (sent.stream && reply.status === 200 && !reply.done))
    tally.wrong.push(`cut: ${reply.text.slice(-200)}`);
  else if (error !== undefined) {
    tally.errors++;
    if (error.code === 'MILLRACE_POOL_LOST') tally.poolLost++;
    if (typeof error.code !== 'string' || reply.status === 500)
      tally.wrong.push(`${reply.status}: ${reply.text}`);
  } else {
    tally.completed++;
    const [got, wanted] = [textOf(reply, sent), await expected(sent)];
    if (got !== wanted)
      tally.wrong.push(
        `${JSON.stringify(sent)}: got ${JSON.stringify(got)}, wanted ${JSON.stringify(wanted)}`,
      );
  }
}

async function chaos(t: Test, server: ServerKind, tokenizer: string | null): Promise<void> {
  const seed = Number(process.env.SEED ?? Date.now() % 1e6);
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  const limits = { firstTokenDeadlineMs: 700, betweenTokensDeadlineMs: 700, totalDeadlineMs: 3000 };
  const mocks = [1, 2, 3].map(() => ({ eosRate: 0.02, faults: FAULTS }));
  const fixture = await startPlane(t, { server, tokenizer, limits, mocks, poolThreads: 2, clock: 'real' });
  const expected = await startReference(t);
  const tally: Tally = { completed: 0, errors: 0, poolLost: 0, left: 0, wrong: [] };
  let next = 0;
  const client = async (): Promise<void> => {
    while (next < REQUESTS) {
      const at = next++;
      if (at === REQUESTS >> 1) await fixture.plane.supervisor.threads[0]!.terminate();
      await one(fixture, random, expected, tally);
    }
  };
  await Promise.all(Array.from({ length: CLIENTS }, client));
  await fixture.expectIdle(t);
  t.same(tally.wrong.slice(0, 5), [], `${tally.wrong.length} wrong answers`);
  t.equal(tally.completed + tally.errors + tally.left, REQUESTS, 'every client came to an end');

  const ended: Record<string, number> = {};
  for (const cause of CAUSES)
    ended[cause] = await fixture.metric(`millrace_requests_ended_total{cause="${cause}"}`);
  t.comment(JSON.stringify({ tally, ended }));
  const total = Object.values(ended).reduce((sum, count) => sum + count, 0);
  t.equal(total, REQUESTS, 'every request was counted once');
  t.ok(ended.completed! >= tally.completed && ended.completed! <= tally.completed + tally.left);
  const failed = ended.rejected! + ended.worker_failed! + ended.deadline! + ended.internal!;
  t.ok(failed >= tally.errors && failed <= tally.errors + tally.left);
  t.equal(ended.internal, tally.poolLost, 'nothing failed of itself');
  t.equal(fixture.plane.supervisor.state.restarts, 1, 'the thread was killed');
  for (const kind of ['refuse', 'error500', 'halfFrame', 'dieBefore', 'dieAfter', 'reset'] as const)
    t.ok(
      fixture.mocks.some(mock => mock.faults.fired[kind] > 0),
      `${kind} took place`,
    );
  t.ok(tally.completed > REQUESTS / 2, 'most requests end well');
}

t.test('uws, token mode', t => chaos(t, 'uws', TOKENIZER));
t.test('node, relay mode', t => chaos(t, 'node', null));
