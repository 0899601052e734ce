/** Promise: every call of EngineClient ends exactly once, and its fault says whether the worker may have begun. */
import { once } from 'node:events';
import net from 'node:net';
import t from 'tap';
import { EngineClient } from '#millrace/engines/client.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { CRLF, post, recorder, STREAM_HEAD, serve, startClient } from './raw-server.js';

t.test('a whole answer', async t => {
  const origin = await serve(t, (socket, head) => {
    t.match(head, /^POST \/v1\/completions HTTP\/1.1\r\n/);
    t.match(head, /content-length: 15\r\n/);
    socket.write(`HTTP/1.1 103 Early Hints${CRLF}${CRLF}`);
    socket.write(`${STREAM_HEAD}5${CRLF}hello${CRLF}`);
    socket.write(`0${CRLF}${CRLF}`);
  });
  const { sink, recorded } = recorder();
  startClient(t).send(post(origin), sink);
  await recorded.done;
  t.match(recorded, {
    status: 200,
    contentType: 'text/event-stream',
    text: 'hello',
    ends: 1,
    fault: null,
  });
});

t.test('a refused connection is unreachable: the worker saw nothing', async t => {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, 'close');
  const { sink, recorded } = recorder();
  startClient(t).send(post(`http://127.0.0.1:${port}`), sink);
  await recorded.done;
  t.equal(recorded.fault?.kind, 'unreachable');
  t.match(recorded.fault?.message, /ECONNREFUSED/);
  t.notMatch(recorded.fault?.message, /127\.0\.0\.1/, 'the message names no address');
});

const FAULTS: readonly [string, string, string, (socket: net.Socket) => void][] = [
  ['reset before the head', 'reset', '', socket => socket.resetAndDestroy()],
  ['end before the head', 'reset', '', socket => socket.end()],
  ['end inside the head', 'reset', '', socket => socket.end('HTTP/1.1 200 OK\r\ncontent-')],
  [
    'reset inside the body',
    'reset',
    'hello',
    socket => socket.write(`${STREAM_HEAD}5${CRLF}hello${CRLF}`, () => socket.resetAndDestroy()),
  ],
  ['end inside a chunk', 'reset', 'he', socket => socket.end(`${STREAM_HEAD}5${CRLF}he`)],
  [
    'end short of content-length',
    'reset',
    'he',
    socket => socket.end(`HTTP/1.1 200 OK${CRLF}content-length: 5${CRLF}${CRLF}he`),
  ],
  [
    'end short of content-length, connection: close',
    'reset',
    'he',
    socket => socket.end(`HTTP/1.1 200 OK${CRLF}connection: close${CRLF}content-length: 5${CRLF}${CRLF}he`),
  ],
  [
    'end inside a chunk, connection: close',
    'reset',
    'he',
    socket => socket.end(`${STREAM_HEAD.replace(CRLF, `${CRLF}connection: close${CRLF}`)}5${CRLF}he`),
  ],
  ['an answer that is not HTTP', 'protocol', '', socket => socket.end('SSH-2.0-OpenSSH_9.2\r\n\r\n')],
  ['a wrong chunk length', 'protocol', '', socket => socket.write(`${STREAM_HEAD}zz${CRLF}hello${CRLF}`)],
  [
    'a head that is too long',
    'protocol',
    '',
    socket => socket.write(`HTTP/1.1 200 OK${CRLF}x: ${'x'.repeat(70_000)}${CRLF}${CRLF}`),
  ],
];

for (const [name, kind, text, answer] of FAULTS) {
  t.test(name, async t => {
    const origin = await serve(t, socket => answer(socket));
    const made = startClient(t);
    const { sink, recorded } = recorder();
    made.send(post(origin), sink);
    await recorded.done;
    t.match(recorded, { ends: 1, text, fault: { kind } }, String(recorded.fault?.cause));
  });
}

t.test('a header that HTTP cannot carry is a protocol fault', t => {
  const { sink, recorded } = recorder();
  startClient(t).send({ ...post('http://127.0.0.1:1'), head: [['x-request-id', 'a\r\nb']] }, sink);
  t.match(recorded, { ends: 1, fault: { kind: 'protocol' } });
  t.end();
});

t.test('an exception of the sink ends its own call only', async t => {
  const origin = await serve(t, socket => socket.write(`${STREAM_HEAD}5${CRLF}hello${CRLF}`));
  const { sink, recorded } = recorder(() => {
    throw new Error('bug');
  });
  startClient(t).send(post(origin), sink);
  await recorded.done;
  t.match(recorded, { ends: 1, fault: { kind: 'aborted', cause: { message: 'bug' } } });
});

t.test('get: answer, deadline, size limit, unreachable', async t => {
  const origin = await serve(t, (socket, head) => {
    if (head.startsWith('GET /health'))
      socket.write(`HTTP/1.1 503 X${CRLF}content-length: 4${CRLF}${CRLF}dead`);
    else if (head.startsWith('GET /long'))
      socket.write(`HTTP/1.1 200 OK${CRLF}content-length: 999${CRLF}${CRLF}${'x'.repeat(101)}`);
    else socket.emit('asked');
  });
  const clock = new ManualClock();
  const made = new EngineClient({ clock, connectDeadlineMs: 1_000 });
  t.teardown(() => made.close());
  t.same(await made.get(origin, '/health', 50, 100), { status: 503, body: 'dead' });
  await t.rejects(made.get(origin, '/long', 50, 100), {
    code: 'MILLRACE_WORKER_PROTOCOL',
    message: /longer than 100 bytes/,
  });
  const silent = made.get(origin, '/silent', 50, 100);
  clock.advance(50);
  await t.rejects(silent, { code: 'MILLRACE_WORKER_STALLED', message: /50 ms/ });
  await made.close();
  await t.rejects(made.get(origin, '/health', 50, 100), { code: 'MILLRACE_WORKER_UNREACHABLE' });
  t.equal(clock.nextInMs(), null, 'no timer is left');
});
