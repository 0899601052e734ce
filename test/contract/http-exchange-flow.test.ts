// Promise: pressure from a slow client is told and nothing is lost; a client that leaves is told exactly once, in every
// phase; servers start, stop and close as asked, on both servers.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import t from 'tap';
import type { HttpExchange } from '#millrace/frontend/http/http-exchange.js';
import { exchangeFromNode } from '#millrace/frontend/http/node.js';
import { createHttpServer } from '#millrace/frontend/http/server.js';
import { parseResponses, RawClient, serve } from '../frontend/http/raw-client.js';

const GET = 'GET /s HTTP/1.1\r\nhost: x\r\n\r\n';
const FRAME_BYTES = 4000;

/** An event that may be waited for, with the number of times it happened. */
class Event {
  count = 0;
  #resolve: () => void = () => {};
  readonly happened = new Promise<void>(resolve => {
    this.#resolve = resolve;
  });
  readonly fire = (): void => {
    this.count++;
    this.#resolve();
  };
}

const frame = (i: number): string => `${String(i).padStart(8, '0')}${'x'.repeat(FRAME_BYTES - 8)}`;

/** Writes numbered frames until the socket refuses, and `extra` more that should not have been written. */
function fill(exchange: HttpExchange, from: number, extra: number): number {
  let i = from;
  while (exchange.write(frame(i++)));
  for (const end = i + extra; i < end; i++) exchange.write(frame(i));
  return i;
}

for (const kind of ['uws', 'node'] as const) {
  t.test(`${kind}: a client that does not read, then reads`, { timeout: 20_000 }, async t => {
    const blocked = new Event();
    const ended = new Event();
    let next = 0;
    let rounds = 0;
    let keptBytes = 0;
    const { port } = await serve(t, kind, exchange => {
      exchange.onAborted(() => t.fail('aborted'));
      setImmediate(() => {
        exchange.start(200, []);
        exchange.onWritable(() => {
          rounds++;
          t.equal(exchange.bufferedBytes(), 0, 'nothing is kept when writable');
          if (rounds < 5) next = fill(exchange, next, rounds % 3);
          else {
            next = fill(exchange, next, 2);
            exchange.end();
            ended.fire();
          }
        });
        next = fill(exchange, 0, 3);
        keptBytes = exchange.bufferedBytes();
        blocked.fire();
      });
    });
    const client = await RawClient.connect(port);
    client.socket.pause();
    await client.send(GET);
    await blocked.happened;
    t.ok(keptBytes >= 3 * FRAME_BYTES, `${keptBytes} bytes are known to be kept`);
    t.ok(keptBytes <= 5 * FRAME_BYTES + 16_384, 'and no more than was written after the refusal');
    client.socket.resume();
    await ended.happened;
    await client.until(() => client.tail.endsWith('\r\n0\r\n\r\n'));
    const [response] = await client.responses();
    const expected = createHash('sha256');
    for (let i = 0; i < next; i++) expected.update(frame(i));
    t.equal(
      createHash('sha256').update(response!.body).digest('hex'),
      expected.digest('hex'),
      `${next} frames`,
    );
    client.destroy();
  });

  t.test(`${kind}: what a stopped reader leaves behind is sent after end`, { timeout: 20_000 }, async t => {
    const ended = new Event();
    let frames = 0;
    const { port } = await serve(t, kind, exchange => {
      exchange.start(200, []);
      frames = fill(exchange, 0, 10);
      exchange.end();
      t.equal(exchange.bufferedBytes(), 0);
      ended.fire();
    });
    const client = await RawClient.connect(port);
    client.socket.pause();
    await client.send(GET);
    await ended.happened;
    client.socket.resume();
    await client.until(() => client.tail.endsWith('\r\n0\r\n\r\n'));
    const [response] = await client.responses();
    t.equal(response?.body.length, frames * FRAME_BYTES);
    client.destroy();
  });

  t.test(`${kind}: the client leaves before its body is whole`, { timeout: 20_000 }, async t => {
    const began = new Event();
    const gone = new Event();
    const faults: string[] = [];
    const { port, clock } = await serve(t, kind, exchange => {
      exchange.onAborted(gone.fire);
      exchange.readBody(
        100,
        5000,
        () => faults.push('body'),
        fault => faults.push(fault),
      );
      began.fire();
    });
    const client = await RawClient.connect(port);
    await client.send('POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhel');
    await began.happened;
    client.destroy();
    await gone.happened;
    t.same(faults, ['aborted']);
    t.equal(clock.nextInMs(), null, 'the deadline is gone too');
  });

  for (const [phase, leave] of [
    ['before the response, by reset', 'reset'],
    ['before the response, by half-close', 'half-close'],
    ['during the stream, by reset', 'stream-reset'],
    ['during the stream, not reading', 'stream-stuck'],
  ] as const) {
    t.test(`${kind}: the client leaves ${phase}`, { timeout: 20_000 }, async t => {
      const began = new Event();
      const gone = new Event();
      let held: HttpExchange | undefined;
      const { port, server } = await serve(t, kind, exchange => {
        held = exchange;
        exchange.onAborted(gone.fire);
        exchange.readBody(
          100,
          5000,
          () => {},
          fault => t.fail(fault),
        );
        if (leave.startsWith('stream')) {
          exchange.start(200, []);
          if (leave === 'stream-stuck') fill(exchange, 0, 5);
          else exchange.write('data: 1\n\n');
        }
        began.fire();
      });
      const client = await RawClient.connect(port);
      if (leave === 'stream-stuck') client.socket.pause();
      await client.send(GET);
      await began.happened;
      if (leave === 'half-close') client.socket.end();
      else client.socket.resetAndDestroy();
      await gone.happened;
      t.equal(held!.write('late'), true);
      t.equal(held!.bufferedBytes(), 0);
      held!.start(200, []);
      held!.end();
      held!.respond(200, [], 'late');
      held!.abort();
      held!.readBody(
        1,
        1,
        () => t.fail('body'),
        () => t.fail('fault'),
      );
      await server.close();
      t.equal(gone.count, 1);
    });
  }

  t.test(
    `${kind}: abort breaks the response and is not told as a client that left`,
    { timeout: 20_000 },
    async t => {
      const { port, server } = await serve(t, kind, exchange => {
        exchange.onAborted(() => t.fail('told'));
        setImmediate(() => {
          exchange.start(200, []);
          exchange.write('data: 1\n\n');
          setImmediate(() => exchange.abort());
        });
      });
      const client = await RawClient.connect(port);
      await client.send(GET);
      await client.until(() => client.closed);
      t.equal(parseResponses(client.text).responses.length, 0, 'no proper end');
      await server.close();
    },
  );

  t.test(`${kind}: port taken, stop listening, close with open streams`, { timeout: 20_000 }, async t => {
    const streams: HttpExchange[] = [];
    const gone = new Event();
    const { port, server } = await serve(t, kind, exchange => {
      exchange.onAborted(gone.fire);
      exchange.start(200, []);
      exchange.write('data: 1\n\n');
      streams.push(exchange);
    });
    const options = { headerBytesMax: 16_384, headerDeadlineMs: 10_000, onExchange: () => {} };
    const second = await createHttpServer(kind, options);
    await t.rejects(
      second.listen('127.0.0.1', port),
      new RegExp(`cannot listen on 127\\.0\\.0\\.1:${port}: .+`),
    );
    await second.close();

    const open = await RawClient.connect(port);
    await open.send(GET);
    await open.until(() => open.text.includes('data: 1'));
    server.stopListening();
    const refused = await new Promise<string>(resolve => {
      connect(port, '127.0.0.1').on('error', (error: NodeJS.ErrnoException) => resolve(error.code!));
    });
    t.equal(refused, 'ECONNREFUSED');
    streams[0]!.write('data: 2\n\n');
    await open.until(() => open.text.includes('data: 2'));
    t.ok(open.text.includes('data: 2'), 'an open stream goes on');
    await server.close();
    await gone.happened;
    await open.until(() => open.closed);
    await server.close();
    t.equal(gone.count, 1);
  });
}

t.test('node: a client that never takes the end of its response loses its connection', async t => {
  const limits: (number | undefined)[] = [];
  const server = createServer((req, res) => {
    const exchange = exchangeFromNode(req, res);
    const body = 'x'.repeat(32 << 20);
    if (req.url === '/stream') {
      exchange.start(200, []);
      exchange.end(body);
    } else exchange.respond(200, [], body);
    limits.push(req.socket.timeout);
  });
  t.teardown(() => server.close());
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  for (const path of ['/stream', '/whole']) {
    const client = connect({ port, host: '127.0.0.1' });
    client.pause();
    client.write(`GET ${path} HTTP/1.1\r\nhost: x\r\n\r\n`);
    await once(server, 'request');
    client.destroy();
  }
  t.same(limits, [15_000, 15_000], 'in 15 s without progress');
});
