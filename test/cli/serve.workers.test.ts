/** Promise: a worker process that is stopped for good leaves the rotation and comes back when it goes on; SIGHUP carries out a changed list of workers, and a wrong file changes nothing. */
import { readFileSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import { isGone, postChat, Serve, until } from './serve-process.js';

const TOKEN = 'not-to-be-guessed-0123';
const PROBES = { probePeriodMs: 200, probeDeadlineMs: 300, probeFailuresMax: 3 };
const BOUND_MS = (PROBES.probePeriodMs + PROBES.probeDeadlineMs) * PROBES.probeFailuresMax + 1000;

/** Whether a process is stopped by a signal, which is more than the signal having been sent. Linux only. */
function isStopped(pid: number): boolean {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  return /^T/.test(stat.slice(stat.lastIndexOf(')') + 2));
}

t.test('SIGSTOP', { skip: process.platform === 'linux' ? false : 'needs /proc' }, async t => {
  const limits = Object.entries({ ...PROBES, canaryAfterMs: 0 }).flatMap(([name, value]) => [
    '--limit',
    `${name}=${value}`,
  ]);
  const serve = await Serve.start(t, ['--json', '--mock-workers', '2', ...limits]);
  const { listening } = serve;
  const [pid] = listening.mockPids;
  const [stopped, other] = listening.workers.map(({ url }) => url);
  const ready = async () => (await serve.health()).body.workers.ready;
  await until('both are ready', async () => (await ready()) === 2);
  t.teardown(() => isGone(pid!) || process.kill(pid!, 'SIGCONT'));

  const pinned = await fetch(`${listening.url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-millrace-worker': stopped! },
    body: JSON.stringify({
      model: 'mock-model',
      messages: [{ role: 'user', content: 'Hello' }],
      max_tokens: 40,
      stream: true,
    }),
  });
  process.kill(pid!, 'SIGSTOP');
  await until('it is stopped', () => isStopped(pid!));
  process.kill(pid!, 'SIGCONT');
  t.match(
    await pinned.text(),
    /"finish_reason":"length"[\s\S]*data: \[DONE\]\n\n$/,
    'a short stop breaks no stream',
  );
  t.equal(await ready(), 2, 'and takes nothing out');

  process.kill(pid!, 'SIGSTOP');
  const startMs = performance.now();
  await until('it is stopped', () => isStopped(pid!));
  await until('it is out', async () => (await ready()) === 1);
  t.comment(`out after ${Math.round(performance.now() - startMs)} ms; the bound is ${BOUND_MS} ms`);
  t.ok(isStopped(pid!), 'and was stopped all the time');
  for (let request = 0; request < 4; request++) {
    const answer = await postChat(listening.url, { max_tokens: 2 });
    t.equal(answer.headers.get('x-millrace-worker'), other);
    await answer.text();
  }
  process.kill(pid!, 'SIGCONT');
  await until('it is back', async () => (await ready()) === 2);
  serve.child.kill('SIGTERM');
  t.same(await serve.exited(), [0, null]);
});

t.test('SIGHUP', async t => {
  const engines = await Promise.all([1, 2].map(() => startMockEngine({ speed: 'unlimited' })));
  t.teardown(() => Promise.all(engines.map(engine => engine.close())));
  const [first, second] = engines.map(({ url }) => url) as [string, string];
  const file = `${t.testdir({})}/millrace.yaml`;
  const write = (text: string) => writeFileSync(file, text);
  write(`workers: [${first}]\n`);
  const serve = await Serve.start(t, ['--json', '--config', file], { MILLRACE_ADMIN_TOKEN: TOKEN });
  const workers = async () => {
    const headers = { authorization: `Bearer ${TOKEN}` };
    const answer = await fetch(`${serve.listening.url}/admin/workers`, { headers });
    const told = (await answer.json()) as { workers: { url: string; state: string }[] };
    return told.workers.map(({ url, state }) => `${url} ${state}`);
  };
  const hangUp = () => serve.child.kill('SIGHUP');
  await until('the first is ready', async () => (await workers()).includes(`${first} ready`));

  write(`# a comment\nworkers: [${first}, {url: "${second}", engine: vllm}]\npolicy: random\n`);
  hangUp();
  await until('the second is ready', async () => (await workers()).includes(`${second} ready`));
  await serve.logged('they count from the next start');
  const before = await workers();

  for (const [text, reason] of [
    ['workers: [\n  "x', /not valid YAML: .* line 2/],
    [`policy: random\nworkers: [${first}, nonsense]\n`, /line 2\) is "nonsense"/],
    [`prot: 1\nworkers: [${first}]\n`, /line 1: there is no setting "prot"/],
    ['policy: random\n', /names no worker/],
  ] as const) {
    write(text);
    serve.stderr = '';
    hangUp();
    await serve.logged('nothing was changed');
    await until(`its reason: ${reason}`, () => reason.test(serve.stderr.replaceAll('\\"', '"')));
    t.same(await workers(), before);
  }

  write(`workers: [${second}]\n`);
  hangUp();
  await until('the first has left', async () => (await workers()).join() === `${second} ready`);
  await serve.logged('worker has left');
  t.equal((await postChat(serve.listening.url, { max_tokens: 1 })).status, 200);
  t.notOk(serve.stderr.includes(TOKEN), 'the token is in no log');
  serve.child.kill('SIGTERM');
  t.same(await serve.exited(), [0, null]);
});
