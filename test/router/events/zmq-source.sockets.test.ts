// Promise: a ZmqSource takes exactly topic, 8-byte sequence and payload, binds where an engine connects to us, tries again
// while its port is taken, and closes at once in every state.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Publisher, Subscriber } from 'zeromq';
import { SOURCE_COUNTERS, type SourceCounts } from '#millrace/router/events/contract.js';
import { checkEndpoint, loadZeroMq, readSequence, ZmqSource } from '#millrace/router/events/zmq-source.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { freeEndpoint, sequenceBytes } from './ingest-publisher.js';

async function startSource(publish: string, messageBytesMax = 1_000_000) {
  const { zmq } = await loadZeroMq();
  const counts = Object.fromEntries(SOURCE_COUNTERS.map(kind => [kind, 0])) as SourceCounts;
  const clock = new ManualClock();
  const batches: [number, number][] = [];
  const lines: string[] = [];
  let hasLogged: () => void = () => {};
  const logged = new Promise<void>(resolve => {
    hasLogged = resolve;
  });
  const source = new ZmqSource({
    zmq: zmq!,
    endpoints: { publish, replay: null, topic: '' },
    name: 'http://worker',
    messageBytesMax,
    counts,
    clock,
    logger: createLogger({
      level: 'info',
      format: 'text',
      write: line => {
        lines.push(line);
        hasLogged();
      },
    }),
    onBatch: (sequence, payload) => batches.push([sequence, payload.length]),
  });
  return { source, counts, clock, batches, lines, logged };
}

t.test('a machine without the binary is told why, in one sentence', async t => {
  t.equal((await loadZeroMq()).reason, null);
  const { zmq, reason } = await loadZeroMq(() => Promise.reject(new Error('no prebuild\nlong trace')));
  t.equal(zmq, null);
  t.equal(reason, 'zeromq did not load: no prebuild');
});

t.test('sequence numbers are 8 bytes, big-endian, below 2^53', async t => {
  for (const sequence of [0, 1, 255, 2 ** 31, 2 ** 32 + 5, 2 ** 53 - 1])
    t.equal(readSequence(sequenceBytes(sequence)), sequence);
  t.equal(readSequence(sequenceBytes(2 ** 53)), -1);
  for (const bytes of [0, 7, 9]) t.equal(readSequence(Buffer.alloc(bytes)), -1);
});

t.test('endpoints are checked before a socket is made', async t => {
  for (const right of [
    'tcp://10.0.0.7:5557',
    'tcp://[::1]:5557',
    'ipc:///run/kv',
    'inproc://kv',
    'tcp://pod-0.svc:1',
  ])
    t.doesNotThrow(() => checkEndpoint('publish', right), right);
  for (const wrong of ['', '10.0.0.7:5557', 'tcp://', 'tcp://host', 'tcp://host:port', 'ipc://', 'udp://h:1'])
    t.throws(
      () => checkEndpoint('publish', wrong),
      { code: 'MILLRACE_CONFIG', message: /^publish: / },
      wrong,
    );
  for (const wrong of ['tcp://h:65536', 'tcp://a b:1', 'bind:', 'bind:tcp://*:0x1'])
    await t.rejects(startSource(wrong), { code: 'MILLRACE_CONFIG' }, wrong);
  await t.rejects(startSource('tcp://a!b:1'), { code: 'MILLRACE_CONFIG' }, 'what libzmq refuses');
});

t.test('an engine may connect to us, once the port is free', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'millrace-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const endpoint = await freeEndpoint();
  const squatter = new Subscriber({ linger: 0 });
  await squatter.bind(endpoint);
  const { source, clock, batches, logged, lines } = await startSource(`bind:${endpoint}`);
  await logged;
  t.match(lines[0], /does not bind to tcp.*is retried.*worker=http:\/\/worker/);
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
  t.match(lines.join(), /given up.*connected anew.*reason=disconnect/);
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
