// Promise: `millrace worker` links its engine with events and health, drains on SIGTERM, and explains wrong flags.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import { showLinkAddress } from '#millrace/engines/link/link-secret.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';
import {
  ask,
  DONE,
  idsFrame,
  Recorded,
  SECRET,
  SSE,
  signal,
  startEngine,
  startPlane,
} from '../engines/link/link-fixture.js';
import { MAIN, runMillrace, until } from './serve-process.js';

function launch(t: Test, args: readonly string[]): ChildProcess {
  const env = { ...process.env, MILLRACE_LINK_SECRET: SECRET.toString() };
  const child = spawn(process.execPath, [MAIN, 'worker', ...args], {
    env,
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

const QUIET = ['--log-level', 'error'];
const prompt = (length: number): string =>
  JSON.stringify({
    model: 'mock-model',
    prompt: Array.from({ length }, (_, at) => 100 + at),
    max_tokens: 8,
    stream: true,
    return_token_ids: true,
  });

t.test(
  'an engine with events: what it published before is there too; it dies, and the plane is told',
  async t => {
    const engine = await startMockEngine({ speed: 1000, blockSize: 16, eosRate: 0, events: {} });
    let isOpen = true;
    const close = async (): Promise<void> => {
      if (isOpen) await engine.close();
      isOpen = false;
    };
    t.teardown(close);
    await (await fetch(`${engine.url}/v1/completions`, { method: 'POST', body: prompt(64) })).text();
    const plane = await startPlane(t);
    const { publish, replay } = engine.events!;
    const child = launch(t, [
      ...['--engine', engine.url, '--plane', showLinkAddress(plane.address), '--id', 'gpu-0'],
      ...['--kv-events', publish, '--kv-events-replay', replay, '--canary-ms', '100', ...QUIET],
    ]);
    const link = await plane.linked;
    t.match(link.worker, {
      id: 'gpu-0',
      url: engine.url,
      capabilities: { engine: 'vllm', blockSize: 16, models: [{ id: 'mock-model' }], returnsTokenIds: true },
    });
    await until('the events of before are replayed', () => plane.events.length > 0);
    t.ok(plane.events.every(([rank, batch]) => rank === 0 && batch !== null));
    const before = plane.events.length;
    const answer = new Recorded();
    link.send({ ...ask('/v1/completions', prompt(256)), origin: engine.url }, answer);
    await answer.over;
    t.match(answer, { status: 200, fault: null, finish: ['length'] });
    t.equal(answer.linkIds, 8, 'all ids came as rows');
    await until('the events of the request come', () => plane.events.length > before);
    await until('a canary was sent', () => plane.healths.some(({ canaryMs }) => canaryMs !== null));
    t.match(plane.healths.at(-1), { state: 'ready' });
    await close();
    await until('the engine is down', () => plane.healths.at(-1)!.state === 'down');
    t.ok(link.isAccepting, 'the link stays');
    child.kill('SIGTERM');
    t.same(await once(child, 'exit'), [0, null]);
  },
);

t.test('SIGTERM waits for what runs; kill -9 resets it', async t => {
  const folder = mkdtempSync(`${tmpdir()}/worker-`);
  t.teardown(() => rmSync(folder, { recursive: true }));
  writeFileSync(`${folder}/secret`, `${SECRET}\n`);
  const release = signal<void>();
  const origin = await startEngine(t, (request, response) => {
    if (request.url === '/v1/models') response.end('{"data":[{"id":"m"}]}');
    else if (request.url === '/run') {
      response.writeHead(200, SSE).write(idsFrame([1]));
      void release.done.then(() => response.end(idsFrame([2]) + DONE));
    } else response.end('');
  });
  for (const end of ['SIGKILL', 'SIGTERM'] as const) {
    const address = { path: `${folder}/${end}`, host: null, port: 0, isTls: false } as const;
    const plane = await startPlane(t, { address });
    const child = launch(t, [
      ...[
        '--engine',
        origin,
        '--plane',
        `unix:${address.path}`,
        '--secret-file',
        `${folder}/secret`,
        ...QUIET,
      ],
    ]);
    const link = await plane.linked;
    const begun = signal<void>();
    const running = new Recorded(() => begun.set());
    link.send(ask('/run'), running);
    await begun.done;
    const exited = once(child, 'exit');
    child.kill(end);
    if (end === 'SIGTERM') {
      await until('the plane is told', () => !link.isAccepting);
      t.equal(running.ends, 0);
      release.set();
    }
    await running.over;
    if (end === 'SIGTERM') {
      t.match(running, { ids: [[1, 2]], fault: null });
      t.same(await exited, [0, null]);
    } else t.match(running, { ids: [[1]], fault: { kind: 'reset' } });
    await plane.unlinked;
    t.equal(plane.server.linkTo(origin), null);
  }
});

t.test('--help and wrong flags', async t => {
  const { code, stdout } = await runMillrace(t, ['worker', '--help']);
  t.equal(code, 0);
  t.match(stdout, /^Usage: millrace worker[\s\S]*Examples:\n {2}millrace worker --engine/);
  const wrong: [args: string[], message: RegExp][] = [
    [[], /--engine is missing/],
    [['--engine', 'x', '--plane', 'h:1'], /--engine: url is "x"; allowed: http:\/\/host:port/],
    [['--engine', 'http://h:1'], /--plane is given 0 times/],
    [['--engine', 'http://h:1', '--plane', 'h'], /--plane is 'h'; allowed: HOST:PORT/],
    [['--engine', 'http://h:1', '--plane', 'h:1'], /leaves this host: give both sides one secret/],
    [['--engine', 'http://localhost:1', '--plane', 'h:1'], /say with --url how the plane reaches/],
    [['--engine', 'http://h:1', '--plane', '[::1]:1', '--kv-events-topic', 'a'], /need --kv-events/],
    [['--engine', 'http://h:1', '--plane', '[::1]:1', '--canary-ms', '5'], /--canary-ms is '5'; allowed/],
    [
      ['--engine', 'http://h:1', '--plane', '[::1]:1', '--secret-file', '/'],
      /--secret-file \/ cannot be read: EISDIR/,
    ],
    [
      ['--engine', 'http://h:1', '--plane', 'tls://h:1', '--tls-cert', '/c'],
      /--tls-cert \/c cannot be read: ENOENT/,
    ],
    [
      ['--engine', 'http://h:1', '--plane', 'tls://h:1', '--tls-key', '/'],
      /--tls-key \/ cannot be read: EISDIR/,
    ],
    [
      ['--engine', 'http://h:1', '--plane', '[::1]:1', '--log-level', 'x'],
      /--log-level is 'x'; allowed: debug/,
    ],
    [['--planes', 'x'], /there is no flag --planes; did you mean --plane\?/],
  ];
  const { command } = await import('#millrace/cli/worker.js');
  for (const [args, message] of wrong)
    await t.rejects(command.run(args), { code: 'MILLRACE_CONFIG', message }, args.join(' '));
});
