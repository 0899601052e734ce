// Promise: however a stream of ZMTP is cut into reads, the decoder says what a naive reader of the whole stream says, and
// a fault ends it; memory grows only with bytes that have come.
import t from 'tap';
import { ZmtpDecoder } from '#millrace/router/events/zmtp/decoder.js';
import {
  encodeGreeting,
  encodeMessage,
  readCommand,
  readProperties,
} from '#millrace/router/events/zmtp/wire.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { readNaively } from './naive-decoder.js';

const FRAME_BYTES_MAX = 150_000;
const CASES = process.env.MILLRACE_TEST_LONG === '1' ? 100_000 : 1500;
const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);

function record() {
  const said: string[] = [];
  const decoder = new ZmtpDecoder({
    frameBytesMax: FRAME_BYTES_MAX,
    onGreeting: (minor, mechanism) => said.push(`greeting ${minor} ${mechanism}`),
    onCommand: (bytes, start, end) =>
      said.push(`command ${Buffer.from(bytes.subarray(start, end)).toString('hex')}`),
    onMessage: ({ bytes, frames, starts, ends }) =>
      said.push(
        `message ${Array.from({ length: frames }, (_, i) =>
          Buffer.from(bytes.subarray(starts[i], ends[i])).toString('hex'),
        ).join(',')}`,
      ),
  });
  return { said, decoder };
}

/** A frame of random bytes; now and then with a long size that a short one would do for, or broken. */
function frame(random: Random, flags: number, bytes: number): Buffer {
  const isBroken = random() < 0.003;
  const isLong = bytes > 255 || random() < 0.1;
  const head = Buffer.alloc(isLong ? 9 : 2);
  head[0] = (isBroken && random() < 0.5 ? 1 << randomInteger(random, 8) : flags) | (isLong ? 2 : 0);
  if (isLong) head.writeBigUInt64BE(isBroken ? 2n ** BigInt(randomInteger(random, 64)) : BigInt(bytes), 1);
  else head[1] = bytes;
  return Buffer.concat([head, Buffer.alloc(bytes, randomInteger(random, 256))]);
}

function sizeOf(random: Random): number {
  const kind = random();
  if (kind < 0.6) return randomInteger(random, 12);
  if (kind < 0.97) return randomInteger(random, 600);
  return randomInteger(random, kind < 0.995 ? 90_000 : FRAME_BYTES_MAX + 20);
}

function streamOf(random: Random): Buffer {
  const parts = [encodeGreeting()];
  for (let items = randomInteger(random, 12); items > 0; items -= 1) {
    const frames = random() < 0.01 ? 9 : randomInteger(random, 9);
    for (let n = frames; n > 0; n -= 1) {
      if (random() < 0.1) parts.push(frame(random, 4, randomInteger(random, 300)));
      parts.push(frame(random, n > 1 ? 1 : 0, sizeOf(random)));
    }
    if (random() < 0.2) parts.push(frame(random, 4, random() < 0.02 ? 4097 : randomInteger(random, 300)));
  }
  const whole = Buffer.concat(parts);
  return random() < 0.3 ? whole.subarray(0, randomInteger(random, whole.length)) : whole;
}

/** Pieces of a stream: a few bytes each, or up to what a socket reads at once. */
function* cuts(random: Random, stream: Buffer): Generator<Buffer> {
  const most = [1, 3, 40, 700, 70_000, 1_000_000][randomInteger(random, stream.length > 20_000 ? 4 : 6)]!;
  for (let at = 0; at < stream.length; ) {
    const bytes = 1 + randomInteger(random, stream.length > 20_000 ? 70_000 : most);
    yield stream.subarray(at, at + bytes);
    at += bytes;
  }
}

t.test(`every split of a stream says the same (SEED=${seed})`, async t => {
  const random = seededRandom(seed);
  for (let n = 0; n < CASES; n += 1) {
    const stream = streamOf(random);
    const { said, decoder } = record();
    const isCopied = random() < 0.5;
    let fault: string | null = null;
    for (const piece of cuts(random, stream)) {
      if (isCopied) fault = decoder.push(piece);
      for (let at = 0; !isCopied && at < piece.length && fault === null; ) {
        const room = decoder.room();
        const part = piece.subarray(at, at + room.length);
        room.set(part);
        at += part.length;
        fault = decoder.advance(part.length);
        // What was told of must not be needed again.
        room.fill(0xee, part.length);
      }
    }
    if (fault !== null) said.push('fault');
    const expected = readNaively(stream, FRAME_BYTES_MAX);
    const at = Array.from({ length: Math.max(said.length, expected.length) }, (_, i) => i).find(
      i => said[i] !== expected[i],
    );
    if (at === undefined) continue;
    t.fail(`case ${n}, entry ${at}: said ${said[at]?.slice(0, 80)}, not ${expected[at]?.slice(0, 80)}`);
    return;
  }
  t.pass(`${CASES} streams`);
});

t.test('a size alone takes no memory, and a long message leaves little behind', async t => {
  const { decoder } = record();
  const frameBytesMax = FRAME_BYTES_MAX;
  decoder.push(Buffer.concat([encodeGreeting(), Buffer.of(2, 0, 0, 0, 0, 0, 2, 0, 0)]));
  t.ok(decoder.room().length < 70_000, 'after a head that names 128 KiB');
  decoder.push(Buffer.alloc(0x20000));
  t.ok(decoder.room().length <= frameBytesMax);

  let messages = 0;
  const large = new ZmtpDecoder({
    frameBytesMax: 8 << 20,
    onGreeting: () => {},
    onCommand: () => {},
    onMessage: () => {
      messages += 1;
    },
  });
  large.push(encodeGreeting());
  const message = encodeMessage([Buffer.alloc(5 << 20)]);
  large.push(message.subarray(0, -1));
  t.ok(large.room().length < 3 << 20);
  large.push(message.subarray(-1));
  t.equal(messages, 1);
  t.equal(large.room().length, 64 * 1024);
});

t.test('a decoder that is stopped, or has failed, says nothing more', async t => {
  const { decoder, said } = record();
  const message = encodeMessage([Buffer.of(1)]);
  let heard = 0;
  const stopped: ZmtpDecoder = new ZmtpDecoder({
    frameBytesMax: FRAME_BYTES_MAX,
    onGreeting: () => {},
    onCommand: () => {},
    onMessage: () => {
      heard += 1;
      stopped.stop();
    },
  });
  t.equal(stopped.push(Buffer.concat([encodeGreeting(), message, message])), null);
  t.equal(heard, 1);
  t.equal(stopped.advance(0), null);
  t.match(decoder.push(Buffer.concat([encodeGreeting(), Buffer.of(8, 0), message])), /reserved flags 8/);
  t.match(decoder.push(message), /reserved flags 8/, 'the same fault');
  t.same(said, ['greeting 1 NULL']);
});

t.test('commands and their properties are taken only whole', async t => {
  const read = (text: string) => readCommand(Buffer.from(text, 'latin1'), 0, text.length);
  t.match(read('\x04PING\0\0abc'), { name: 'PING' });
  t.equal(read('\x04PING')?.data.length, 0);
  for (const wrong of ['', '\0', '\0READY', '\x05PING']) t.equal(read(wrong), null, JSON.stringify(wrong));
  const properties = (text: string) => readProperties(Buffer.from(text, 'latin1'));
  t.equal(properties('\x0bSocket-Type\0\0\0\x03PUB')?.get('socket-type'), 'PUB');
  t.equal(properties('')?.size, 0);
  for (const wrong of [
    '\0\0\0\0\0',
    '\x01',
    '\x01a',
    '\x01a\0\0\0',
    '\x01a\0\0\0\x01',
    '\x01a\xff\xff\xff\xff',
    '\xff',
  ])
    t.equal(properties(wrong), null, JSON.stringify(wrong));
});
