// Promise: from real sockets of libzmq a ZmqSource takes exactly topic, 8-byte sequence and payload, over TCP and IPC,
// says when an engine is there again, binds where an engine connects to us and closes at once in every state.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Publisher, Subscriber } from 'zeromq';
import { SOURCE_COUNTERS, type SourceCounts } from '#millrace/router/events/contract.js';
import { readSequence, ZmqSource } from '#millrace/router/events/zmq-source.js';
import { readEndpoint } from '#millrace/router/events/zmtp/endpoint.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { freeEndpoint, sequenceBytes } from './ingest-publisher.js';

async function startSource(publish: string, messageBytesMax = 1_000_000) {
  const counts = Object.fromEntries(SOURCE_COUNTERS.map(kind => [kind, 0])) as SourceCounts;
  const clock = new ManualClock();
  const batches: [number, number][] = [];
  const lines: string[] = [];
  /** Batches heard before each return. */
  const returns: number[] = [];
  let hasLogged: () => void = () => {};
  const logged = new Promise<void>(resolve => {
    hasLogged = resolve;
  });
  const source = new ZmqSource({
    endpoints: { publish, replay: null, topic: '' },
    name: 'http://worker',
    messageBytesMax,
    counts,
    clock,
    random: seededRandom(1),
    logger: createLogger({
      level: 'info',
      format: 'text',
      write: line => {
        lines.push(line);
        hasLogged();
      },
    }),
    onBatch: (sequence, payload) => batches.push([sequence, payload.length]),
    onReturn: () => returns.push(batches.length),
  });
  return { source, counts, clock, batches, lines, logged, returns };
}

t.test('sequence numbers are 8 bytes, big-endian, below 2^53', async t => {
  const read = (bytes: Uint8Array): number => readSequence(bytes, 0, bytes.length);
  for (const sequence of [0, 1, 255, 2 ** 31, 2 ** 32 + 5, 2 ** 53 - 1])
    t.equal(read(sequenceBytes(sequence)), sequence);
  t.equal(read(sequenceBytes(2 ** 53)), -1);
  for (const bytes of [0, 7, 9]) t.equal(read(Buffer.alloc(bytes)), -1);
});

t.test('endpoints are checked before a socket is made', async t => {
  for (const [endpoint, address] of [
    ['tcp://10.0.0.7:5557', { host: '10.0.0.7', port: 5557 }],
    ['tcp://[::1]:5557', { host: '::1', port: 5557 }],
    ['tcp://[fe80::1%eth0]:65535', { host: 'fe80::1%eth0', port: 65_535 }],
    ['tcp://pod-0.svc_a:1', { host: 'pod-0.svc_a', port: 1 }],
    ['ipc:///run/kv', { path: '/run/kv' }],
  ] as const)
    t.same(readEndpoint('publish', endpoint), address, endpoint);
  t.same(readEndpoint('publish', 'tcp://*:5557', true), { host: undefined, port: 5557 });
  for (const wrong of [
    '',
    '10.0.0.7:5557',
    'tcp://',
    'tcp://host',
    'tcp://host:port',
    'tcp://h:0',
    'tcp://::1:5557',
    'tcp://*:5557',
    'ipc://',
    'ipc://@kv',
    'inproc://kv',
    'udp://h:1',
  ])
    t.throws(() => readEndpoint('publish', wrong), { code: 'MILLRACE_CONFIG', message: /^publish: / }, wrong);
  for (const wrong of ['tcp://h:65536', 'tcp://a b:1', 'tcp://a!b:1', 'bind:', 'bind:tcp://*:0x1'])
    await t.rejects(startSource(wrong), { code: 'MILLRACE_CONFIG' }, wrong);
});

/** A path for a socket, in a folder that goes with the test. */
function socketPath(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'millrace-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  return join(folder, 'kv');
}

/** A subscriber that has just connected misses messages: sends numbers from `from` on until one is heard. */
async function hearFrom(engine: Publisher, heard: readonly [number, number][], from: number): Promise<void> {
  const before = heard.length;
  for (let n = from; heard.length === before; n += 1) {
    await engine.send(['kv', sequenceBytes(n), Buffer.alloc(300)]);
    await new Promise(setImmediate);
  }
}

t.test('an engine that restarts is heard again, over TCP and over IPC', async t => {
  for (const endpoint of [
    await freeEndpoint(),
    (await freeEndpoint()).replace('127.0.0.1', 'localhost'),
    `ipc://${socketPath(t)}`,
  ]) {
    const start = async (): Promise<Publisher> => {
      const engine = new Publisher({ linger: 0 });
      while ((await engine.bind(endpoint).catch(() => 'taken')) === 'taken') await new Promise(setImmediate);
      return engine;
    };
    const first = await start();
    const { source, batches, returns, logged, lines, clock } = await startSource(endpoint);
    await hearFrom(first, batches, 500);
    t.ok(batches.every(([sequence, bytes]) => sequence >= 500 && bytes === 300));
    first.close();
    await logged;
    t.match(
      lines[0],
      /has no connection; is retried worker=http:\/\/worker endpoint=.*closed the connection/,
    );
    t.same(returns, []);
    const second = await start();
    const before = batches.length;
    while (returns.length === 0) {
      clock.advance(100);
      await new Promise(setImmediate);
    }
    await hearFrom(second, batches, 0);
    t.same(returns, [before], 'told before its first batch');
    t.ok(batches[before]![0] < 500);
    second.close();
    await source.close();
    t.equal(clock.nextInMs(), null, 'no timer is left');
  }
});

t.test('the file of a listener that was killed does not keep the next one away', async t => {
  const path = socketPath(t);
  const killed = `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
  spawnSync(process.execPath, ['-e', killed]);
  t.ok(existsSync(path));
  const { source, batches, clock, lines, logged } = await startSource(`bind:ipc://${path}`);
  await logged;
  const engine = new Publisher({ linger: 0, reconnectInterval: 1 });
  engine.connect(`ipc://${path}`);
  for (let n = 0; batches.length === 0; n += 1) {
    clock.advance(200);
    await engine.send(['', sequenceBytes(n), Buffer.alloc(3)]);
    await new Promise(setImmediate);
  }
  t.match(lines[0], /EADDRINUSE/);
  engine.close();
  await source.close();
  t.notOk(existsSync(path), 'it leaves no file itself');
});

t.test('an engine may connect to us, once the port is free', async t => {
  const endpoint = await freeEndpoint();
  const squatter = new Subscriber({ linger: 0 });
  await squatter.bind(endpoint);
  const { source, clock, batches, logged, lines } = await startSource(`bind:${endpoint}`);
  await logged;
  t.match(lines[0], /cannot listen; is retried.*worker=http:\/\/worker.*endpoint=bind:tcp.*EADDRINUSE/);
  await squatter.unbind(endpoint);
  squatter.close();
  const engine = new Publisher({ linger: 0 });
  engine.connect(endpoint);
  for (let n = 0; batches.length === 0; n += 1) {
    clock.advance(200);
    await engine.send(['', sequenceBytes(n), Buffer.alloc(300)]);
    await new Promise(setImmediate);
  }
  t.equal(batches[0]![1], 300);
  t.equal(lines.length, 1, 'logged once');
  engine.close();
  await source.close();
});

t.test('a connection that ended over a message too long is made anew', async t => {
  const endpoint = await freeEndpoint();
  const engine = new Publisher({ linger: 0 });
  await engine.bind(endpoint);
  const { source, batches, clock, lines } = await startSource(endpoint, 1000);
  const hear = async (from: number): Promise<void> => {
    for (let n = from; (batches.at(-1)?.[0] ?? -1) < from; n += 1) {
      clock.advance(10);
      await engine.send(['', sequenceBytes(n), Buffer.alloc(300)]);
      await new Promise(setImmediate);
    }
  };
  await hear(0);
  await engine.send(['', sequenceBytes(7), Buffer.alloc(2000)]);
  await hear(1_000_000);
  t.notOk(batches.some(([, bytes]) => bytes > 1000));
  t.match(lines.join(), /has no connection; is retried.*sent a frame of 2000 bytes; at most 1000/);
  engine.close();
  await source.close();
  t.equal(clock.nextInMs(), null, 'no timer is left');
});

t.test(
  'it closes at once: unconnected, while it binds, while it waits to bind again, under load',
  async t => {
    const endpoint = await freeEndpoint();
    await (await startSource(endpoint)).source.close();
    await (await startSource(`bind:${endpoint}`)).source.close();
    const squatter = new Subscriber({ linger: 0 });
    const taken = await freeEndpoint();
    await squatter.bind(taken);
    const waiting = await startSource(`bind:${taken}`);
    await waiting.logged;
    await waiting.source.close();
    t.equal(waiting.clock.nextInMs(), null);
    squatter.close();

    const busy = await freeEndpoint();
    const engine = new Publisher({ linger: 0 });
    await engine.bind(busy);
    const { source, batches } = await startSource(busy);
    for (let n = 0; batches.length === 0; n += 1) {
      await engine.send(['', sequenceBytes(n), Buffer.alloc(1)]);
      await new Promise(setImmediate);
    }
    for (let n = 0; n < 500; n += 1) await engine.send(['', sequenceBytes(n), Buffer.alloc(1)]);
    const closed = source.close();
    const heard = batches.length;
    await closed;
    await new Promise(setImmediate);
    t.equal(batches.length, heard, 'nothing is handed on after the close');
    engine.close();
  },
);
