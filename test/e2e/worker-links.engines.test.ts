// Promise: over its link every engine answers in every mode as it does over HTTP; a worker that joined by its link and is
// configured after that stays when the link has gone.
import { randomBytes } from 'node:crypto';
import t, { type Test } from 'tap';
import { parseLinkAddress } from '#millrace/engines/link/link-secret.js';
import { LinkedClient } from '#millrace/engines/link/linked-client.js';
import { DEFAULT_LIMITS } from '#millrace/limits.js';
import { LinkAgent } from '#millrace/plane/link-agent.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { plainWorker } from '#millrace/worker-config.js';
import { QUIET } from '../engines/link/link-fixture.js';
import {
  CHAT,
  COMPLETIONS,
  MOCK_MODEL,
  type PlaneFixture,
  type Reply,
  startPlane,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const ENGINES = ['vllm', 'sglang', 'trtllm'] as const;
const TOKEN = 'not-to-be-guessed-0123';

/** A worker side as `millrace worker` has it, in this process. */
function linkUp(t: Test, fixture: PlaneFixture, url: string): LinkAgent {
  const agent = new LinkAgent({
    id: url,
    engine: plainWorker({ url }),
    url,
    planes: [parseLinkAddress(fixture.plane.status.linkAddress!, 'plane')],
    secret: null,
    tls: null,
    extensions: [],
    makeNonce: () => randomBytes(32),
    canaryPeriodMs: 0,
    limits: DEFAULT_LIMITS,
    clock: systemClock,
    random: seededRandom(1),
    logger: QUIET,
  });
  t.teardown(() => agent.close(0));
  agent.start();
  return agent;
}

const linkOf = (fixture: PlaneFixture, url: string): unknown =>
  fixture.plane.workerReports.find(worker => worker.url === url)?.link?.state;
const stateOf = (fixture: PlaneFixture, url: string): string | undefined =>
  fixture.plane.workers.find(worker => worker.url === url)?.state;

/** What of a reply is the same for the same question. */
const told = ({ status, done, broken, frames, text }: Reply): unknown => ({
  status,
  done,
  broken,
  frames: (frames.length > 0 ? frames : [JSON.parse(text)]).map(({ id: _, created: __, usage, ...rest }) => ({
    ...rest,
    usage: usage && { ...usage, prompt_tokens_details: null },
  })),
});

const messages = [{ role: 'user', content: 'tell me of "rivers"' }];
const QUESTIONS = [
  [CHAT, { messages }],
  [COMPLETIONS, { prompt: 'the quick brown fox' }],
] as const;

/** The answers of every worker to every question, streamed and whole, by what was asked. */
async function answers(fixture: PlaneFixture): Promise<Map<string, unknown>> {
  const all = new Map<string, unknown>();
  for (const [at, { url }] of fixture.mocks.entries()) {
    for (const [path, prompt] of QUESTIONS) {
      for (const stream of [true, false]) {
        const body = { model: MOCK_MODEL, ...prompt, max_tokens: 24, stream };
        const reply = await fixture.post(path, body, { 'x-millrace-worker': url });
        all.set(`${ENGINES[at]} ${path} ${stream}`, told(reply));
      }
    }
  }
  return all;
}

const MODES = {
  token: { tokenizer: TOKENIZER, returnsTokenIds: true },
  relayIds: { tokenizer: null, returnsTokenIds: true },
  relay: { tokenizer: null, returnsTokenIds: false },
};

for (const [mode, { tokenizer, returnsTokenIds }] of Object.entries(MODES))
  t.test(`${mode} mode: three engines over HTTP, then over their links`, async t => {
    const mocks = ENGINES.map(engine => ({ engine, returnsTokenIds, eosRate: 0 }));
    const fixture = await startPlane(t, { mocks, tokenizer, linkListen: '127.0.0.1:0', clock: 'real' });
    const { client } = fixture.plane.socket;
    t.ok(client instanceof LinkedClient, 'the plane takes links');
    const { counts } = client as LinkedClient;
    const overHttp = await answers(fixture);
    t.match(counts, { overLink: 0, overHttp: overHttp.size });
    for (const { url } of fixture.mocks) linkUp(t, fixture, url);
    await until(() => fixture.mocks.every(({ url }) => linkOf(fixture, url) === 'up'), 'all are linked');
    const overLink = await answers(fixture);
    t.match(counts, { overLink: overLink.size, overHttp: overHttp.size });
    for (const [asked, answer] of overHttp) t.same(overLink.get(asked), answer, asked);
    t.equal(await fixture.metric('millrace_link_calls_total{way="link"}'), overLink.size);
    t.ok((await fixture.metric('millrace_link_frames_total{direction="in"}')) > overLink.size);
    t.equal(await fixture.metric(`millrace_worker_link_up{worker="${fixture.mocks[0]!.url}"}`), 1);
    await fixture.expectIdle(t);
  });

t.test('a worker that has joined is configured: by SIGHUP, by an operator, or not at all', async t => {
  const fixture = await startPlane(t, {
    mocks: ENGINES.map(engine => ({ engine })),
    linkListen: '127.0.0.1:0',
    adminToken: TOKEN,
    clock: 'real',
    limits: { linkGoneDeadlineMs: 0 },
  });
  const { plane } = fixture;
  const [named, posted, free] = fixture.mocks.map(({ url }) => url) as [string, string, string];
  for (const url of [named, posted, free]) plane.removeWorker(url);
  const agents = [named, posted, free].map(url => linkUp(t, fixture, url));
  await until(
    () => plane.workers.length === 3 && plane.workers.every(({ state }) => state === 'ready'),
    'all have joined',
  );
  const replaced = plane.setWorkers([plainWorker({ url: named })]);
  t.match(
    replaced,
    { added: [], leaving: [], differing: [named] },
    'those that joined by themselves stay too',
  );
  const post = (body: object) => fixture.post('/admin/workers', body, { authorization: `Bearer ${TOKEN}` });
  t.match(await post({ url: posted, dpRanks: 4 }), {
    status: 400,
    text: /joined by its link with other settings/,
  });
  t.equal((await post({ url: posted })).status, 201);
  await Promise.all(agents.map(agent => agent.close(0)));
  await until(() => stateOf(fixture, free) === undefined, 'the one that nobody has configured has left');
  t.equal(linkOf(fixture, named), 'gone');
  t.equal(linkOf(fixture, posted), 'gone');
  for (const url of [named, posted])
    t.equal(
      (
        await fixture.post(
          COMPLETIONS,
          { model: MOCK_MODEL, prompt: 'x', max_tokens: 2 },
          { 'x-millrace-worker': url },
        )
      ).status,
      200,
    );
  t.ok((await post({ url: posted })).status === 400, 'it is there already');
  await fixture.expectIdle(t);
});
