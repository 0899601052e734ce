/**
 * A child process of bench/route.js that publishes recorded batches as fast as the reader takes them: a PUB socket of ZMTP
 * 3.1 written for this bench, whose bytes are made before any clock runs. The JavaScript binding of libzmq sends slower
 * than the reader under test reads, and would be what is measured. Batches keep the time stamps that they were recorded with.
 */
import { once } from 'node:events';
import { createServer } from 'node:net';
import { encodeGreeting, encodeMessage, GREETING_BYTES } from '#millrace/router/events/zmtp/wire.js';

/** Bytes of one write. */
const WRITE_BYTES = 256 * 1024;
/** A READY command that says PUB. */
const READY = Buffer.concat([
  Buffer.of(4, 0x1a, 5),
  Buffer.from('READY'),
  Buffer.of(11),
  Buffer.from('Socket-Type'),
  Buffer.of(0, 0, 0, 3),
  Buffer.from('PUB'),
]);
READY[1] = READY.length - 2;
const SUBSCRIBE = 'SUBSCRIBE';

function sequenceBytes(n) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(n));
  return bytes;
}

/** All messages in pieces of about WRITE_BYTES, that end where they end. */
function piecesOf(payloads) {
  const pieces = [];
  let parts = [];
  let bytes = 0;
  for (const [n, payload] of payloads.entries()) {
    const message = encodeMessage([Buffer.alloc(0), sequenceBytes(n), payload]);
    parts.push(message);
    bytes += message.length;
    if (bytes < WRITE_BYTES && n < payloads.length - 1) continue;
    pieces.push(Buffer.concat(parts));
    parts = [];
    bytes = 0;
  }
  return pieces;
}

/** Greets and waits for a subscription. */
async function shakeHands(socket) {
  socket.setNoDelay(true);
  socket.write(encodeGreeting());
  let heard = Buffer.alloc(0);
  let isReady = false;
  while (!heard.includes(SUBSCRIBE)) {
    if (!isReady && heard.length >= GREETING_BYTES) {
      isReady = true;
      socket.write(READY);
    }
    const [chunk] = await once(socket, 'data');
    heard = Buffer.concat([heard, chunk]);
  }
}

const [payloads] = await once(process, 'message');
const pieces = piecesOf(payloads);
const server = createServer().listen(0, '127.0.0.1');
await once(server, 'listening');
process.send(`tcp://127.0.0.1:${server.address().port}`);
const [socket] = await once(server, 'connection');
await shakeHands(socket);
process.send('subscribed');
await once(process, 'message');
for (const piece of pieces) if (!socket.write(piece)) await once(socket, 'drain');
await once(process, 'message');
socket.destroy();
server.close();
process.disconnect();
