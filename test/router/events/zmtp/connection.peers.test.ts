// Promise: a connection to a peer that does not do as ZMTP says, does too much or nothing at all ends with the reason, in
// time, and is made anew; one that keeps to it gets what a SUB and a DEALER owe, in both versions.
import t, { type Test } from 'tap';
import { ZmtpConnector } from '#millrace/router/events/zmtp/connector.js';
import { encodeMessage, encodeSubscribe } from '#millrace/router/events/zmtp/wire.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { command, greetingOf, RawPeer, readyOf } from './raw-peer.js';

const PUB = [greetingOf(1), readyOf('PUB')];

function connect(t: Test, address: { host: string; port: number }) {
  const clock = new ManualClock();
  const messages: string[][] = [];
  const reasons: string[] = [];
  let wake: () => void = () => {};
  let minor = -1;
  const until = async (holds: () => boolean): Promise<void> => {
    while (!holds())
      await new Promise<void>(resolve => {
        wake = resolve;
      });
  };
  const connector = new ZmtpConnector({
    type: 'SUB',
    address,
    frameBytesMax: 100_000,
    clock,
    random: () => 1,
    onReady: (connection, version) => {
      minor = version;
      connection.send(encodeSubscribe('kv', version));
      wake();
    },
    onMessage: ({ bytes, frames, starts, ends }) => {
      const texts = Array.from({ length: frames }, (_, i) =>
        Buffer.from(bytes.subarray(starts[i], ends[i])).toString('latin1'),
      );
      messages.push(texts);
      wake();
    },
    onEnd: reason => {
      reasons.push(reason);
      wake();
    },
  });
  t.teardown(() => connector.close());
  return { connector, clock, messages, reasons, until, minor: () => minor };
}

const frames = (...texts: string[]): Buffer => encodeMessage(texts.map(text => Buffer.from(text, 'latin1')));
const before3 = greetingOf(0);
before3[10] = 1;

const WRONG: readonly (readonly [name: string, said: readonly Buffer[], reason: RegExp])[] = [
  ['no ZMTP at all', [Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')], /the peer does not speak ZMTP 3/],
  ['no version', [Buffer.of(0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7e)], /the peer does not speak ZMTP 3/],
  ['an older version', [before3], /the peer speaks a version of ZMTP before 3\.0/],
  ['security', [greetingOf(1, 'CURVE')], /security mechanism "CURVE"; only NULL/],
  ['an endless greeting', [Buffer.alloc(200, 0xff)], /security mechanism "ÿ/],
  ['another type of socket', [PUB[0]!, readyOf('PUSH')], /type "PUSH"; one of PUB, XPUB is needed/],
  ['no type of socket', [PUB[0]!, command('READY')], /type ""; one of/],
  ['broken properties', [PUB[0]!, command('READY', '\x0bSocket')], /handshake is none: "READY"/],
  ['another handshake', [PUB[0]!, command('WELCOME')], /handshake is none: "WELCOME"/],
  ['a refusal', [PUB[0]!, command('ERROR', '\x02no')], /refuses: "no"/],
  ['a refusal afterwards', [...PUB, command('ERROR', '\x04late')], /refuses: "late"/],
  ['a message too early', [PUB[0]!, frames('kv')], /a message before its READY/],
  [
    'a frame too long',
    [...PUB, Buffer.of(2, 0, 0, 0, 0, 0, 1, 0x86, 0xa1)],
    /a frame of 100001 bytes; at most/,
  ],
  [
    'an absurd size',
    [...PUB, Buffer.of(2, 255, 255, 255, 255, 255, 255, 255, 255)],
    /a frame of 1844674\d+ bytes/,
  ],
  ['too many frames', [...PUB, frames(...'123456789')], /a message of more than 8 frames/],
  ['a command with more', [...PUB, Buffer.of(5, 0)], /a command with the flags 5/],
  ['a command without a name', [...PUB, Buffer.of(4, 0)], /a command without a name/],
  [
    'a long command',
    [...PUB, Buffer.of(6, 0, 0, 0, 0, 0, 0, 0x10, 1)],
    /a command of 4097 bytes; at most 4096/,
  ],
  ['reserved flags', [...PUB, Buffer.of(0x48, 0)], /the reserved flags 72/],
];

for (const [name, said, reason] of WRONG) {
  t.test(`a peer with ${name}`, async t => {
    const peer = await RawPeer.start(t, ...said);
    const { clock, reasons, until, messages, connector } = connect(t, peer.address);
    await until(() => reasons.length > 0);
    t.match(reasons[0], reason);
    t.same(messages, []);
    clock.advance(100);
    await until(() => reasons.length > 1);
    t.match(reasons[1], reason, 'it is tried again');
    await connector.close();
    t.equal(clock.nextInMs(), null, 'no timer is left');
  });
}

t.test('a peer that says nothing, or half a handshake, has ten seconds', async t => {
  for (const said of [[], [PUB[0]!.subarray(0, 20)], [PUB[0]!]]) {
    const peer = await RawPeer.start(t, ...said);
    const { clock, reasons, until } = connect(t, peer.address);
    await peer.hears('NULL');
    clock.advance(9999);
    t.same(reasons, []);
    clock.advance(1);
    await until(() => reasons.length > 0);
    t.match(reasons[0], /no ZMTP handshake within 10000 ms/);
  }
});

t.test('a peer that is not there, or hangs up, is tried again after longer and longer pauses', async t => {
  const peer = await RawPeer.start(t);
  await peer.close();
  const { clock, reasons, until } = connect(t, peer.address);
  const pauses: (number | null)[] = [];
  for (let n = 1; n <= 7; n += 1) {
    await until(() => reasons.length === n);
    pauses.push(clock.nextInMs());
    clock.advance(pauses.at(-1)!);
  }
  t.same(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
  t.equal(new Set(reasons).size, 1);
  t.match(reasons[0], /ECONNREFUSED/);

  const shy = await RawPeer.start(t, ...PUB);
  const other = connect(t, shy.address);
  await other.until(() => other.minor() === 1);
  other.clock.advance(3000);
  shy.hangUp();
  await other.until(() => other.reasons.length === 1);
  t.match(other.reasons[0], /closed the connection|ECONNRESET/);
  t.equal(other.clock.nextInMs(), 100, 'one that has held is no failure');
});

t.test('a peer of 3.1 is asked for its topic by a command, one of 3.0 by a message', async t => {
  const young = await RawPeer.start(t, ...PUB);
  connect(t, young.address);
  await young.hears('\x04\x0c\x09SUBSCRIBEkv');
  t.ok(young.heard.includes('\x0bSocket-Type\0\0\0\x03SUB'));
  const old = await RawPeer.start(t, greetingOf(0), readyOf('XPUB'));
  const { clock, reasons, until, minor, messages } = connect(t, old.address);
  await old.hears('\0\x03\x01kv');
  t.equal(minor(), 0);
  clock.advance(60_000);
  old.say(frames('kv', 'a'));
  await until(() => messages.length > 0);
  t.same(reasons, [], 'it knows no PING and is not asked');
  t.notOk(old.heard.includes('PING'));
});

t.test('an idle peer is asked for a sign of life, and a silent one is left', async t => {
  const peer = await RawPeer.start(t, ...PUB);
  const { clock, reasons, until, messages } = connect(t, peer.address);
  await peer.hears('SUBSCRIBE');
  clock.advance(10_000);
  t.notOk(peer.heard.includes('PING'), 'what came in the time before counts');
  clock.advance(10_000);
  await peer.hears('\x04\x07\x04PING\0\0');
  peer.say(Buffer.concat([command('PONG'), frames('kv')]));
  await until(() => messages.length === 1);
  peer.forget();
  clock.advance(20_000);
  await peer.hears('PING');
  t.same(reasons, []);
  clock.advance(10_000);
  await until(() => reasons.length === 1);
  t.match(reasons[0], /has not answered for 10000 ms/);
});

t.test('a PING is answered with its context; a peer that asks and reads nothing is left', async t => {
  const peer = await RawPeer.start(t, ...PUB);
  const { messages, until } = connect(t, peer.address);
  peer.forget();
  await peer.hears('SUBSCRIBE');
  // Between two frames of a message too, as libzmq sends it; and what no reader knows.
  const [first, last] = [Buffer.of(1, 1, 0x61), Buffer.of(0, 1, 0x62)];
  peer.say(Buffer.concat([first, command('PING', '\0\x64context'), command('JOIN', 'x'), last]));
  await peer.hears('\x04\x0c\x04PONGcontext');
  await until(() => messages.length === 1);
  t.same(messages, [['a', 'b']]);
  peer.forget();
  peer.say(command('PING', `\0\0${'c'.repeat(40)}`));
  await peer.hears(`\x04\x15\x04PONG${'c'.repeat(16)}`);
  t.notOk(peer.heard.includes('c'.repeat(17)), 'at most 16 bytes');

  const deaf = await RawPeer.start(t, ...PUB);
  const left = connect(t, deaf.address);
  await deaf.hears('SUBSCRIBE');
  deaf.stopReading();
  const asks = Buffer.concat(new Array(10_000).fill(command('PING', `\0\0${'c'.repeat(16)}`)));
  while (left.reasons.length === 0) {
    deaf.say(asks);
    await new Promise(setImmediate);
  }
  t.match(left.reasons[0], /asks and does not read our answers/);
});

t.test('a turn of the event loop takes a bounded share of what comes', async t => {
  const peer = await RawPeer.start(t, ...PUB);
  const { messages, until } = connect(t, peer.address);
  await peer.hears('SUBSCRIBE');
  const perTurn: number[] = [];
  let isOver = false;
  const count = (before: number): void => {
    perTurn.push(messages.length - before);
    if (!isOver) setImmediate(count, messages.length);
  };
  const many = Buffer.concat(new Array(4000).fill(frames('x'.repeat(1000))));
  peer.say(many);
  count(0);
  await until(() => messages.length === 4000);
  isOver = true;
  t.ok(Math.max(...perTurn) <= 140, `${Math.max(...perTurn)} KB`);
});

t.test('it closes at once while it connects, shakes hands, waits and reads', async t => {
  const peer = await RawPeer.start(t);
  const early = connect(t, peer.address);
  await early.connector.close();
  const shaking = connect(t, peer.address);
  await peer.hears('NULL');
  await shaking.connector.close();
  const busy = await RawPeer.start(t, ...PUB, Buffer.concat(new Array(1000).fill(frames('kv', 'a'))));
  const reading = connect(t, busy.address);
  await reading.until(() => reading.messages.length > 0);
  const closed = reading.connector.close();
  const heard = reading.messages.length;
  await closed;
  await new Promise(setImmediate);
  t.equal(reading.messages.length, heard);
  for (const { reasons, clock } of [early, shaking, reading]) {
    t.same(reasons, []);
    t.equal(clock.nextInMs(), null, 'no timer is left');
  }
});
