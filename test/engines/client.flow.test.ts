/** Promise: `pause` stops the reading, `abort` closes the connection, and many calls share a client without mixing. */
import { once } from 'node:events';
import type net from 'node:net';
import t from 'tap';
import { CRLF, post, recorder, STREAM_HEAD, serve, startClient } from './raw-server.js';

const chunk = (text: string): string => `${text.length.toString(16)}${CRLF}${text}${CRLF}`;
const END = `0${CRLF}${CRLF}`;

t.test('pause: the engine can write no more; resume: every byte arrives', async t => {
  const block = 'x'.repeat(1 << 20);
  const blocks = 48;
  let written = 0;
  const origin = await serve(t, (socket, head) => {
    if (head.startsWith('GET')) {
      socket.write(`HTTP/1.1 200 OK${CRLF}content-length: 0${CRLF}${CRLF}`);
      return;
    }
    socket.write(STREAM_HEAD);
    const more = (): void => {
      while (written < blocks) {
        written++;
        if (!socket.write(chunk(block))) {
          socket.once('drain', more);
          return;
        }
      }
      socket.end(END);
    };
    more();
  });
  let seen = 0;
  let began = (): void => {};
  const first = new Promise<void>(resolve => {
    began = resolve;
  });
  const { sink, recorded } = recorder(() => {
    if (seen > 0) return;
    seen = recorded.text.length;
    call.pause();
    began();
  });
  const client = startClient(t);
  const call = client.send(post(origin), sink);
  await first;
  // Real round trips on another connection: a reader that had not stopped would have taken far more by then.
  for (let trip = 0; trip < 30; trip++) await client.get(origin, '/ping', 10_000, 10);
  t.equal(recorded.text.length, seen, 'nothing was read meanwhile');
  t.ok(written < blocks, `the server is stuck after ${written} of ${blocks} MiB`);
  call.resume();
  call.pause();
  call.resume();
  await recorded.done;
  t.equal(recorded.text.length, blocks << 20);
  t.equal(recorded.fault, null);
});

t.test('pause before the head holds the body back', async t => {
  const origin = await serve(t, socket => socket.end(STREAM_HEAD + chunk('late') + END));
  const { sink, recorded } = recorder();
  const head = new Promise<void>(resolve => {
    const onHead = sink.onHead;
    sink.onHead = (...args) => {
      onHead(...args);
      resolve();
    };
  });
  const call = startClient(t).send(post(origin), sink);
  call.pause();
  await head;
  await new Promise(resolve => setImmediate(resolve));
  t.equal(recorded.text, '');
  call.resume();
  await recorded.done;
  t.match(recorded, { text: 'late', ends: 1, fault: null });
});

t.test('abort in mid stream: the server sees the connection close', async t => {
  let gone = (): void => {};
  const closed = new Promise<void>(resolve => {
    gone = resolve;
  });
  const origin = await serve(t, socket => {
    socket.on('close', gone);
    socket.write(STREAM_HEAD + chunk('one') + chunk('two'));
  });
  const client = startClient(t);
  const { sink, recorded } = recorder(() => call.abort());
  const call = client.send(post(origin), sink);
  await closed;
  t.match(recorded, { ends: 1, fault: { kind: 'aborted' } });
  t.equal(recorded.text, 'one', 'no data after abort, though the second chunk was in the same packet');
  call.abort();
  call.pause();
  call.resume();
  t.equal(recorded.ends, 1);
});

t.test('abort while the head is awaited closes the connection too', async t => {
  let gone = (): void => {};
  const closed = new Promise<void>(resolve => {
    gone = resolve;
  });
  const { sink, recorded } = recorder();
  const origin = await serve(t, socket => {
    socket.on('close', gone);
    call.abort();
  });
  const call = startClient(t).send(post(origin), sink);
  await closed;
  t.match(recorded, { status: 0, ends: 1, fault: { kind: 'aborted' } });
});

t.test('abort before the connection exists: nothing is ever sent', async t => {
  let asked = 0;
  const origin = await serve(t, socket => {
    asked++;
    socket.write(`HTTP/1.1 200 OK${CRLF}content-length: 0${CRLF}${CRLF}`);
  });
  const client = startClient(t);
  const first = recorder();
  client.send(post(origin), first.sink).abort();
  t.match(first.recorded, { ends: 1, fault: { kind: 'aborted' } });
  const second = recorder();
  client.send(post(origin), second.sink);
  await second.recorded.done;
  t.equal(second.recorded.status, 200);
  t.equal(asked, 1);
});

t.test('200 calls at a time on one origin, interleaved, each get their own answer', async t => {
  const waiting: [net.Socket, string][] = [];
  const origin = await serve(t, (socket, head) => {
    const path = /^POST (\S+)/.exec(head)?.[1] ?? '';
    socket.write(STREAM_HEAD + chunk(`${path}:`));
    waiting.push([socket, path]);
    if (waiting.length % 200 !== 0) return;
    for (let round = 0; round < 5; round++)
      for (const [stream] of waiting) stream.write(chunk(String(round)));
    for (const [stream] of waiting.splice(0)) stream.write(END);
  });
  const client = startClient(t);
  for (const wave of [0, 1]) {
    const all = Array.from({ length: 200 }, (_, index) => {
      const { sink, recorded } = recorder();
      client.send(post(origin, `/${wave}/${index}`), sink);
      return recorded;
    });
    await Promise.all(all.map(recorded => recorded.done));
    t.same(
      all.map(recorded => recorded.text),
      all.map((_, index) => `/${wave}/${index}:01234`),
    );
    t.ok(all.every(recorded => recorded.ends === 1 && recorded.fault === null));
  }
});

t.test('closeOrigin lets running calls finish; close aborts them', async t => {
  const sockets: net.Socket[] = [];
  const origin = await serve(t, socket => {
    sockets.push(socket);
    socket.write(STREAM_HEAD + chunk('a'));
  });
  const client = startClient(t);
  const open = async () => {
    let got = (): void => {};
    const data = new Promise<void>(resolve => {
      got = resolve;
    });
    const made = recorder(() => got());
    client.send(post(origin), made.sink);
    await data;
    return made.recorded;
  };
  const first = await open();
  client.closeOrigin(origin);
  const second = await open();
  t.equal(sockets.length, 2, 'a later call connects anew');
  sockets[0]?.write(chunk('b') + END);
  await first.done;
  t.match(first, { text: 'ab', fault: null });
  client.closeOrigin(origin);
  const third = await open();
  const closed = Promise.all(sockets.slice(1).map(socket => once(socket, 'close')));
  await client.close();
  await closed;
  t.match(
    [second, third],
    [
      { ends: 1, fault: { kind: 'aborted' } },
      { ends: 1, fault: { kind: 'aborted' } },
    ],
  );
  const late = recorder();
  client.send(post(origin), late.sink);
  t.match(late.recorded, { ends: 1, fault: { kind: 'aborted' } });
});
