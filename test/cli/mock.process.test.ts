// Promise: `millrace mock` serves what it announces, ends with its parent or a signal, and explains wrong flags.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import t, { type Test } from 'tap';
import { command } from '#millrace/cli/mock.js';
import { startMockChildren } from '#millrace/cli/mock-children.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { needsAddon } from '../transfer/two-agents.js';

const module = import.meta.resolve('#millrace/cli/mock.js');
const script = `const { command } = await import(${JSON.stringify(module)});
process.exitCode = await command.run(process.argv.slice(1));`;

const launchWith = (t: Test, env: NodeJS.ProcessEnv, flags: readonly string[]): ChildProcess => {
  const child = spawn(process.execPath, ['--input-type=module', '-e', script, '--', ...flags], {
    env: { ...process.env, ...env },
  });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
};
const launch = (t: Test, ...flags: string[]): ChildProcess => launchWith(t, {}, flags);

const BY_MILLRACE = ['--tiny', '--disagg', '--kv-transfer', 'millrace'];

/** The first `count` lines of a child's stdout. */
async function lines(child: ChildProcess, count: number): Promise<string[]> {
  let text = '';
  for await (const bytes of child.stdout!.iterator({ destroyOnReturn: false })) {
    text += String(bytes);
    if (text.split('\n').length > count) break;
  }
  return text.split('\n').slice(0, count);
}

t.test('several engines, announced as JSON, end when stdin closes', async t => {
  const child = launch(
    t,
    '--count',
    '3',
    '--speed',
    'unlimited',
    '--model',
    'm',
    '--json',
    '--exit-with-stdin',
  );
  const announced = (await lines(child, 3)).map(line => JSON.parse(line) as { url: string });
  t.equal(new Set(announced.map(one => one.url)).size, 3);
  const texts: string[] = [];
  for (const { url, ...rest } of announced) {
    t.same(rest, { event: 'listening', model: 'm', kvEvents: null, kvEventsReplay: null });
    const body = JSON.stringify({ model: 'm', prompt: 'hi', max_tokens: 5 });
    const answer = await fetch(`${url}/v1/completions`, { method: 'POST', body });
    texts.push(((await answer.json()) as { choices: { text: string }[] }).choices[0]!.text);
  }
  t.equal(new Set(texts).size, 1, 'all engines of a fleet give the same text');
  child.stdin!.end();
  t.same(await once(child, 'exit'), [0, null]);
});

t.test('KV events: the endpoints are announced, on the ports that were asked for', async t => {
  const child = launch(t, '--count', '2', '--events', '--event-form', 'map', '--event-loss', '0.5');
  const shape = /^mock engine .* on http:\S+, KV events on (tcp:\S+), replay on (tcp:\S+)$/;
  const [[, publish, replay], other] = (await lines(child, 2)).map(line => shape.exec(line)!) as string[][];
  t.equal(new Set([publish, replay, ...other!.slice(1)]).size, 4);
  child.kill('SIGTERM');
  t.same(await once(child, 'exit'), [0, null]);
  const [port, replayPort] = [publish, replay].map(endpoint => endpoint!.split(':')[2]!);
  const again = launch(t, '--events', '--events-port', port!, '--events-replay-port', replayPort!, '--json');
  t.match(JSON.parse((await lines(again, 1))[0]!), { kvEvents: publish, kvEventsReplay: replay });
  const children = await startMockChildren(new Array(2).fill('both'), 'unlimited', systemClock);
  t.teardown(() => children.close());
  const endpoints = children.addresses.flatMap(({ kvEvents, kvEventsReplay }) => [kvEvents, kvEventsReplay]);
  t.equal(new Set(endpoints).size, 4);
  for (const endpoint of endpoints) t.match(endpoint, /^tcp:\/\/127\.0\.0\.1:[1-9]\d+$/);
});

for (const signal of ['SIGTERM', 'SIGINT'] as const)
  t.test(`${signal} ends it cleanly, also with an answer under way`, async t => {
    const child = launch(t);
    const [line] = await lines(child, 1);
    const url = /http:\S+$/.exec(line!)![0];
    const body = JSON.stringify({ prompt: 'hi', max_tokens: 30_000, stream: true });
    const answer = await fetch(`${url}/v1/completions`, { method: 'POST', body });
    t.equal(answer.status, 200);
    child.kill(signal);
    t.same(await once(child, 'exit'), [0, null]);
    await t.rejects(answer.text());
  });

t.test('KV by the transfer engine is shown, and without the addon it is said what to do', async t => {
  const refused = launchWith(t, { MILLRACE_NO_ADDON: '1' }, BY_MILLRACE);
  let said = '';
  refused.stderr!.on('data', bytes => {
    said += bytes;
  });
  t.same(await once(refused, 'close'), [2, null]);
  t.match(said, /addon, which is not loaded: disabled by MILLRACE_NO_ADDON=1\. Build it with npm rebuild/);
  if (needsAddon.skip !== undefined) return;
  const [line] = await lines(launch(t, ...BY_MILLRACE, '--blocks', '32'), 1);
  const shown = await fetch(/its transfers at (http:\S+\/transfer)$/.exec(line!)![1]!);
  t.match(await shown.json(), {
    leases: 0,
    inFlight: 0,
    blocks: { free: 32 },
    agent: { pools: 1, peers: 0 },
  });
});

t.test('wrong flags are explained', async t => {
  const cases: [string[], RegExp][] = [
    [['--sped', '2'], /there is no flag --sped; did you mean --speed\?/],
    [['--blokcs=3'], /did you mean --blocks\?/],
    [['--speed', '0'], /--speed must be a number from 0.001 to 1000000; got '0'/],
    [['--block-size', 'x'], /--block-size must be an integer from 1 to 1024; got 'x'/],
    [['--count', '65'], /--count must be an integer from 1 to 64/],
    [['--count', '2', '--port', '65535'], /--port must be an integer from 0 to 65534/],
    [['--blocks', '2', '--max-model-len', '1000'], /maxModelLen must be at most .* = 128/],
    [['--faults', 'boom=1'], /unknown kind 'boom'/],
    [['--event-loss', '0.1'], /--event-loss needs --events/],
    [['--events', '--event-loss', '1.1'], /--event-loss must be a number from 0 to 1; got '1.1'/],
    [['--events', '--event-form', 'json'], /--event-form must be one of array, map, sglang; got 'json'/],
    [['--events', '--event-hashes', 'hex'], /--event-hashes must be one of int, signed, bytes/],
    [['--events', '--events-port', '65536'], /--events-port must be an integer from 0 to 65535/],
    [['--kv-lease-ms', '5'], /--kv-lease-ms needs --disagg/],
    [['--disagg', '--kv-lease-ms', '0'], /--kv-lease-ms must be an integer from 1 to 3600000/],
    [['--disagg', '--kv-connector', 'lmcache'], /--kv-connector must be one of nixl, mooncake/],
    [['--disagg', '--kv-role', 'prefill'], /disagg.role is for sglang; got vllm/],
    [
      ['--engine', 'trtllm', '--disagg', '--kv-connector', 'nixl'],
      /disagg.connector is for vllm; got trtllm/,
    ],
    [['--tiny', '--blocks', '4194304'], /tiny: numGpuBlocks . blockSize/],
    [['--kv-transfer', 'millrace'], /--kv-transfer needs --disagg/],
    [['--disagg', '--kv-transfer', 'nixl'], /--kv-transfer must be one of http, millrace; got 'nixl'/],
    [['--disagg', '--kv-transfer', 'millrace'], /--kv-transfer millrace needs --tiny/],
    [['--disagg', '--kv-transport', 'shm'], /--kv-transport needs --kv-transfer millrace/],
    [['--disagg', '--kv-layout', 'hnd'], /--kv-layout needs --kv-transfer millrace/],
    [[...BY_MILLRACE, '--kv-transport', 'shm,udp'], /--kv-transport must be one of .*shm.*tcp.*; got 'udp'/],
    [[...BY_MILLRACE, '--kv-layout', 'hdn'], /--kv-layout must be one of nhd, hnd; got 'hdn'/],
    [[...BY_MILLRACE, '--blocks', '4194304'], /tiny: numGpuBlocks . blockSize/],
    [['extra'], /extra/],
    [['--model'], /--model/],
  ];
  for (const [flags, wanted] of cases) {
    const written: string[] = [];
    const write = t.capture(process.stderr, 'write', (text: string) => written.push(text) > 0);
    t.equal(await command.run(flags), 2, flags.join(' '));
    write.restore();
    t.match(written.join(''), wanted, flags.join(' '));
  }
  for (const flag of [
    '--count',
    '--faults',
    '--events',
    '--event-loss',
    '--exit-with-stdin',
    '--max-batched-tokens',
  ])
    t.ok(command.help.includes(flag), flag);
});
