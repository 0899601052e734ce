// Promise: only a peer with the secret and a version in common is admitted, and whoever is not is told why.
import { once } from 'node:events';
import { mkdtempSync, renameSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import t from 'tap';
import { encodeHello } from '#millrace/engines/link/link-messages.js';
import {
  LANES_MAX,
  LINK_CAPABILITIES,
  LINK_KIND,
  LINK_LIMITS,
} from '#millrace/engines/link/link-protocol.js';
import {
  checkProof,
  isLocalAddress,
  laneAddress,
  makeProof,
  parseLinkAddress,
  parseSecret,
  requireTrust,
  showLinkAddress,
} from '#millrace/engines/link/link-secret.js';
import { LinkServer } from '#millrace/engines/link/link-server.js';
import { ManualClock, systemClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import {
  LOOPBACK,
  makeNonce,
  QUIET,
  SECRET,
  signal,
  startPlane,
  startWorker,
  WORKER,
} from './link-fixture.js';
import { connectRaw, linkRaw, listenRaw, type RawPeer } from './raw-peer.js';

const ENGINE = 'http://127.0.0.1:1';
const OTHER = Buffer.from('another secret of sixteen bytes');

t.test('a wrong or missing secret: refused by whichever side sees it first, and never linked', async t => {
  for (const [plane, worker] of [
    [SECRET, OTHER],
    [SECRET, null],
    [null, SECRET],
  ]) {
    const { address, server } = await startPlane(t, { secret: plane! });
    const { link } = startWorker(t, address, ENGINE, { secret: worker! });
    const peer = await connectRaw(t, address);
    const hello = {
      versionMin: 1,
      versionMax: 1,
      capabilities: 3,
      hasSecret: worker !== null,
      nonce: makeNonce(),
    };
    peer.send(LINK_KIND.hello, 0, encodeHello(hello));
    if ((plane === null) !== (worker === null)) {
      await peer.closed;
      t.match(peer.refusal, { kind: 'auth', message: /has a secret and .* has none/ });
    } else {
      // A peer that does not know the secret cannot answer the challenge, whatever proof it makes up.
      await peer.until(LINK_KIND.challenge);
      peer.send(LINK_KIND.register, 0, Buffer.alloc(200, 7));
      await peer.closed;
      t.match(peer.refusal, { kind: 'auth', message: /does not know the secret/ });
    }
    t.same(server.links, []);
    t.notOk(link.isUp);
    await link.drain(0);
  }
});

t.test('a plane without the secret is refused by the worker side, which says so in its log', async t => {
  const lines: string[] = [];
  const logged = signal<void>();
  const logger = createLogger({
    level: 'warn',
    format: 'text',
    write: line => {
      lines.push(line);
      logged.set();
    },
  });
  const { address } = await startPlane(t, { secret: OTHER });
  startWorker(t, address, ENGINE, { logger });
  await logged.done;
  t.match(
    lines[0],
    /no link to a data plane; trying again .*fault=auth reason=the plane does not know the secret/,
  );
});

t.test('no version in common: both sides name what they speak', async t => {
  const { address } = await startPlane(t);
  const peer = await connectRaw(t, address);
  const hello = { versionMin: 7, versionMax: 9, capabilities: 0, hasSecret: true, nonce: makeNonce() };
  peer.send(LINK_KIND.hello, 0, encodeHello(hello));
  await peer.closed;
  t.match(peer.refusal, { kind: 'version', message: /versions 7 to 9 .* this plane 1 to 1/ });
});

t.test('a frame out of turn, too long or no frame at all ends the handshake', async t => {
  const { address, server } = await startPlane(t);
  const cases: [string, (peer: RawPeer) => void, RegExp][] = [
    ['STEP first', peer => peer.send(LINK_KIND.step), /kind 17 came where kind 1/],
    [
      'long',
      peer => peer.send(LINK_KIND.hello, 0, Buffer.alloc(LINK_LIMITS.handshakeBytesMax + 1)),
      /are allowed/,
    ],
    ['http', peer => peer.socket.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n'), /are allowed/],
    ['short', peer => peer.send(LINK_KIND.hello, 0, Buffer.alloc(3)), /HELLO\.magic/],
    ['magic', peer => peer.send(LINK_KIND.hello, 0, Buffer.alloc(64)), /magic of|not that of a worker link/],
  ];
  for (const [name, speak, message] of cases) {
    const peer = await connectRaw(t, address);
    speak(peer);
    await peer.closed;
    t.match(peer.refusal?.message, message, name);
  }
  t.same(server.links, []);
});

t.test('a handshake that takes too long', async t => {
  const clock = new ManualClock();
  const { address } = await startPlane(t, { clock });
  const peer = await connectRaw(t, address);
  peer.send(
    LINK_KIND.hello,
    0,
    encodeHello({ versionMin: 1, versionMax: 1, capabilities: 0, hasSecret: true, nonce: makeNonce() }),
  );
  await peer.until(LINK_KIND.challenge);
  clock.advance(LINK_LIMITS.handshakeDeadlineMs);
  await peer.closed;
  t.match(peer.refusal, { kind: 'handshake', message: /took longer than 5000 ms/ });
});

t.test('more connections than allowed are closed at once', async t => {
  const { address, linked } = await startPlane(t, { connectionsMax: 1 });
  await linkRaw(t, address);
  await linked;
  const second = await connectRaw(t, address);
  await second.closed;
  t.same(second.got, []);
});

t.test('the newest link to an engine counts', async t => {
  const { address, server, linked } = await startPlane(t);
  const first = await linkRaw(t, address);
  const link = await linked;
  const second = await linkRaw(t, address);
  await first.closed;
  t.equal(server.links.length, 1);
  t.not(server.links[0], link);
  t.notOk(second.socket.closed);
});

t.test('a WELCOME with a window too small for one STEP, or lanes that are none, is refused', async t => {
  const window = LINK_LIMITS.answerWindowBytes;
  const wrong: [welcome: number[], message: RegExp][] = [
    [[100], /window of 100 bytes/],
    [[], /WELCOME with 0 bytes/],
    [[window, 65_536], /lanes at 65536/],
    [[window, ...new Array<number>(LANES_MAX + 1).fill(1)], /WELCOME with 264 bytes/],
  ];
  for (const [welcome, message] of wrong) {
    const linked = signal<RawPeer>();
    const address = await listenRaw(t, peer => linked.set(peer), welcome);
    startWorker(t, address, ENGINE);
    const peer = await linked.done;
    await peer.closed;
    t.match(peer.refusal, { kind: 'protocol', message });
  }
});

t.test('lanes are told to a worker side that knows of them', async t => {
  const { address } = await startPlane(t, { lanes: [7001, 7002] });
  const up = signal<readonly number[]>();
  startWorker(t, address, ENGINE, { onUp: lanes => up.set(lanes) });
  t.same(await up.done, [7001, 7002]);
  const bytesOf = (peer: RawPeer): number =>
    peer.got.find(({ kind }) => kind === LINK_KIND.welcome)!.payload.length;
  t.equal(bytesOf(await linkRaw(t, address, { ...WORKER, url: 'http://other:1' }, LINK_CAPABILITIES)), 12);
  t.equal(bytesOf(await linkRaw(t, address)), 4, 'an older one is told the window alone');
  const { isTls } = address;
  t.same(laneAddress(address, 1, 7002), { ...address, port: 7002, isTls });
  const local = parseLinkAddress('unix:/run/a.sock', 'x');
  t.equal(showLinkAddress(laneAddress(local, 0, 0)), 'unix:/run/a.sock.1');
  t.throws(() => laneAddress(address, 0, 65_536), {
    code: 'MILLRACE_CONFIG',
    message: /there is no port 65536/,
  });
  const longest = parseLinkAddress(`unix:/${'a'.repeat(106)}`, 'x');
  t.throws(() => laneAddress(longest, 0, 0), { code: 'MILLRACE_CONFIG', message: /longer than 107 bytes/ });
});

t.test('a socket that a dead process left is replaced, one that is in use is not', async t => {
  const folder = mkdtempSync(`${tmpdir()}/link-`);
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = `${folder}/left.sock`;
  const dead = createServer().listen(`${folder}/dead.sock`);
  await once(dead, 'listening');
  renameSync(`${folder}/dead.sock`, path);
  dead.close();
  const address = { path, host: null, port: 0, isTls: false } as const;
  await startPlane(t, { address });
  await t.rejects(startPlane(t, { address }), {
    code: 'MILLRACE_CONFIG',
    message: /cannot listen .* EADDRINUSE/,
  });
});

t.test('addresses and secrets', async t => {
  t.same(parseLinkAddress('unix:/run/a.sock', 'x'), {
    path: '/run/a.sock',
    host: null,
    port: 0,
    isTls: false,
  });
  t.same(parseLinkAddress('[::1]:80', 'x'), { path: null, host: '::1', port: 80, isTls: false });
  for (const text of ['h:1', 'unix:/a', '[::2]:65535', 'tls://h:1', 'tls://[::2]:0'])
    t.equal(showLinkAddress(parseLinkAddress(text, 'x')), text);
  for (const text of [
    '',
    'h',
    'h:',
    'h:65536',
    'unix:a',
    `unix:/${'a'.repeat(107)}`,
    ':80',
    'a b:1',
    'http://h:1',
    'tls:h:1',
    'tls://unix:/a',
  ])
    t.throws(
      () => parseLinkAddress(text, '--plane'),
      { code: 'MILLRACE_CONFIG', message: /--plane is/ },
      text,
    );
  for (const text of ['127.0.0.1:1', '127.8.9.1:1', 'localhost:1', '[::1]:1', 'unix:/a'])
    t.ok(isLocalAddress(parseLinkAddress(text, 'x')), text);
  for (const text of ['10.0.0.1:1', '0.0.0.0:1', 'engine:1', '127.0.0.1.evil:1', '[::]:1']) {
    t.notOk(isLocalAddress(parseLinkAddress(text, 'x')), text);
    const plain = parseLinkAddress(text, 'x');
    const secured = parseLinkAddress(`tls://${text}`, 'x');
    for (const side of ['worker', 'plane'] as const) {
      const message = /leaves this host/;
      t.throws(() => requireTrust(side, plain, null, null), { code: 'MILLRACE_CONFIG', message });
      requireTrust(side, plain, SECRET, null);
      requireTrust(side, secured, SECRET, null);
    }
    requireTrust('worker', secured, null, null);
    requireTrust('plane', secured, null, { cert: 'c', key: 'k', ca: 'ca' });
    t.throws(() => requireTrust('plane', secured, null, { cert: 'c', key: 'k', ca: null }), {
      code: 'MILLRACE_CONFIG',
      message: /does not know who connects: name the CA/,
    });
  }
  t.throws(
    () =>
      new LinkServer({
        address: { ...LOOPBACK, host: '0.0.0.0' } as typeof LOOPBACK,
        secret: null,
        tls: null,
        lanes: [],
        makeNonce,
        clock: systemClock,
        logger: QUIET,
        connectionsMax: 1,
        events: { onLinked() {}, onEvents() {}, onHealth() {}, onUnlinked() {} },
      }),
    { code: 'MILLRACE_CONFIG' },
  );
  t.same(parseSecret('0123456789abcdef\n', 'f'), Buffer.from('0123456789abcdef'));
  t.throws(() => parseSecret('short', 'f'), { message: /f holds a secret of 5 bytes; allowed: 16 to 4096/ });
  const said = [Buffer.from('a'), Buffer.from('bc')];
  const proof = makeProof(SECRET, 'plane', said);
  t.ok(checkProof(SECRET, 'plane', said, proof));
  t.notOk(checkProof(SECRET, 'worker', said, proof), 'of the other side');
  t.notOk(
    checkProof(SECRET, 'plane', [Buffer.from('ab'), Buffer.from('c')], proof),
    'the same bytes cut elsewhere',
  );
  t.notOk(checkProof(OTHER, 'plane', said, proof), 'of another secret');
});
