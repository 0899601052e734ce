// Promise: a request reaches the handler whole however its bytes are cut, and a response leaves whole, on both servers.
import { createServer, request as httpRequest } from 'node:http';
import type { AddressInfo } from 'node:net';
import t from 'tap';
import type { HttpExchange } from '#millrace/frontend/http/http-exchange.js';
import { exchangeFromNode } from '#millrace/frontend/http/node.js';
import { createHttpServer } from '#millrace/frontend/http/server.js';
import { RawClient, serve } from '../frontend/http/raw-client.js';

const HEAD = 'host: x\r\n';

/** Answers with what it saw, so that one comparison checks all fields. */
function echo(exchange: HttpExchange, bytesMax = 1000): void {
  exchange.readBody(
    bytesMax,
    5000,
    (chunks, bytes) => {
      const body = Buffer.concat(chunks).toString('latin1');
      const { method, path, query } = exchange;
      const tag = exchange.header('x-tag') ?? null;
      exchange.respond(200, [['x-echo', 'yes']], JSON.stringify({ method, path, query, tag, body, bytes }));
    },
    fault => exchange.respond(400, [], fault, true),
  );
}

async function ask(port: number, pieces: Iterable<string>): Promise<string> {
  const client = await RawClient.connect(port);
  for (const piece of pieces) await client.send(piece);
  const [response] = await client.responses();
  client.destroy();
  return `${response?.status} ${response?.body}`;
}

for (const kind of ['uws', 'node'] as const) {
  t.test(`${kind}: request fields`, { timeout: 20_000 }, async t => {
    const { port, server } = await serve(t, kind, exchange => echo(exchange));
    t.equal(server.kind, kind);
    t.equal(server.notice, null);
    const post = await ask(port, [
      `POST /v1/a%2Fb/../c?x=1&y=%20?z HTTP/1.1\r\n${HEAD}X-Tag: one\r\nx-tag: two\r\ncontent-length: 2\r\n\r\n{}`,
    ]);
    t.equal(
      post,
      '200 {"method":"POST","path":"/v1/a%2Fb/../c","query":"x=1&y=%20?z","tag":"one","body":"{}","bytes":2}',
    );
    const get = await ask(port, [`GET / HTTP/1.1\r\n${HEAD}\r\n`]);
    t.equal(get, '200 {"method":"GET","path":"/","query":"","tag":null,"body":"","bytes":0}');
  });

  t.test(`${kind}: a request cut at each offset, and in single bytes`, { timeout: 20_000 }, async t => {
    const { port } = await serve(t, kind, exchange => echo(exchange));
    const fixed = `POST /c HTTP/1.1\r\n${HEAD}x-tag: t\r\ncontent-length: 5\r\n\r\nhello`;
    const chunked = `POST /c HTTP/1.1\r\n${HEAD}x-tag: t\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n`;
    const expected = '200 {"method":"POST","path":"/c","query":"","tag":"t","body":"hello","bytes":5}';
    // uWebSockets.js answers 505 when a segment ends inside the request line; clients send far more in their first one.
    const firstCut = kind === 'uws' ? fixed.indexOf('\r\n') + 2 : 1;
    for (const whole of [fixed, chunked]) {
      const inLine = Array.from({ length: firstCut - 1 }, (_, i) => i + 1);
      const cuts = Array.from({ length: whole.length - firstCut }, (_, i) => i + firstCut);
      const askCut = (cut: number): Promise<string> => ask(port, [whole.slice(0, cut), whole.slice(cut)]);
      const singleBytes = [whole.slice(0, firstCut), ...whole.slice(firstCut)];
      t.equal(await ask(port, singleBytes), expected, 'single bytes');
      const answers = await Promise.all(cuts.map(askCut));
      t.same(
        answers.filter(answer => answer !== expected),
        [],
      );
      const early = await Promise.all(inLine.map(askCut));
      t.same(
        early.filter(answer => answer !== expected && answer !== '505 '),
        [],
      );
    }
  });

  t.test(
    `${kind}: chunks of a body stay as they are after the next ones came`,
    { timeout: 20_000 },
    async t => {
      const big = Buffer.alloc(3_000_000, 'abcdefghijklmnopqrstuvw');
      const kept = new Promise<Buffer>((resolve, reject) => {
        serve(t, kind, exchange => {
          exchange.readBody(
            4e6,
            5000,
            chunks => {
              exchange.respond(204, [], '');
              resolve(Buffer.concat(chunks));
            },
            reject,
          );
        }).then(async ({ port }) => {
          const client = await RawClient.connect(port);
          await client.send(`POST / HTTP/1.1\r\n${HEAD}content-length: ${big.length}\r\n\r\n`);
          await client.send(big);
          await client.responses();
          client.destroy();
        }, reject);
      });
      t.ok((await kept).equals(big));
    },
  );

  t.test(
    `${kind}: too large by Content-Length, by bytes, and exactly at the limit`,
    { timeout: 20_000 },
    async t => {
      const { port } = await serve(t, kind, exchange => echo(exchange, 10));
      const declared = `POST / HTTP/1.1\r\n${HEAD}content-length: 11\r\n\r\n`;
      t.equal(await ask(port, [declared]), '400 tooLarge', 'told before a byte of the body was sent');
      const chunked = `POST / HTTP/1.1\r\n${HEAD}transfer-encoding: chunked\r\n\r\n`;
      t.equal(
        await ask(port, [chunked, '6\r\nabcdef\r\n', '5\r\nghijk\r\n']),
        '400 tooLarge',
        'told before the end',
      );
      t.match(await ask(port, [`${declared.replace('11', '10')}0123456789`]), '200 {');
    },
  );

  t.test(`${kind}: body deadline`, { timeout: 20_000 }, async t => {
    let reading = (): void => {};
    const started = new Promise<void>(resolve => {
      reading = resolve;
    });
    const { port, clock } = await serve(t, kind, exchange => {
      echo(exchange);
      reading();
    });
    const client = await RawClient.connect(port);
    await client.send(`POST / HTTP/1.1\r\n${HEAD}content-length: 5\r\n\r\nhel`);
    await started;
    clock.advance(4999);
    t.equal(client.text, '');
    clock.advance(1);
    const [response] = await client.responses();
    t.equal(response?.body, 'timeout');
    await client.until(() => client.closed);
    t.equal(clock.nextInMs(), null, 'no timer is left');
  });

  t.test(`${kind}: whole and streamed responses, keep-alive and close`, { timeout: 20_000 }, async t => {
    const { port } = await serve(t, kind, exchange => {
      exchange.onAborted(() => {});
      if (exchange.path === '/whole')
        exchange.respond(529, [['retry-after', '1']], 'größer', exchange.query === 'close');
      else if (exchange.path === '/bytes') exchange.respond(200, [], Buffer.from([0, 255, 128]));
      else
        setImmediate(() => {
          exchange.start(200, [['content-type', 'text/event-stream']]);
          t.equal(exchange.write('data: 1\n\n'), true);
          t.equal(exchange.write(Buffer.from('data: 2\n\n')), true);
          t.equal(exchange.write(''), true);
          t.equal(exchange.bufferedBytes(), 0);
          exchange.end();
          t.equal(exchange.write('late'), true);
          exchange.end();
          exchange.abort();
          exchange.respond(500, [], 'late');
        });
    });
    const client = await RawClient.connect(port);
    for (const path of ['/whole', '/stream', '/bytes']) {
      const before = (await client.responses(0)).length;
      await client.send(`GET ${path} HTTP/1.1\r\n${HEAD}\r\n`);
      await client.responses(before + 1);
    }
    await client.send(`HEAD /whole HTTP/1.1\r\n${HEAD}\r\n`);
    await client.until(() => client.text.split('HTTP/1.1').length === 5 && client.text.endsWith('\r\n\r\n'));
    const [whole, stream, bytes] = await client.responses(3);
    t.equal(whole?.status, 529);
    t.match(client.text, 'HTTP/1.1 529 Overloaded\r\n');
    t.equal(whole?.headers.get('retry-after'), '1');
    t.equal(Buffer.from(whole!.body, 'latin1').toString(), 'größer');
    t.equal(stream?.headers.get('content-type'), 'text/event-stream');
    t.equal(stream?.body, 'data: 1\n\ndata: 2\n\n');
    t.equal(bytes?.body, '\0\xff\x80');
    t.match(
      client.text.slice(client.text.lastIndexOf('HTTP/1.1')),
      /content-length: 8\r\n/i,
      'HEAD: length, no body',
    );
    await client.send(`GET /whole?close HTTP/1.1\r\n${HEAD}\r\n`);
    await client.until(() => client.closed);
    t.match(client.text.slice(client.text.lastIndexOf('HTTP/1.1')), /connection: close\r\n/i);
  });

  t.test(
    `${kind}: a connection stays usable after answers that came before the body`,
    { timeout: 20_000 },
    async t => {
      const { port } = await serve(t, kind, exchange => {
        exchange.onAborted(() => t.fail('aborted'));
        if (exchange.path === '/early') exchange.respond(503, [], 'early');
        else if (exchange.path === '/stream') {
          exchange.start(200, [['x-tag', 't']]);
          exchange.write('x');
          exchange.end();
        } else {
          exchange.readBody(
            1000,
            5000,
            (_, bytes) => exchange.respond(200, [], String(bytes)),
            fault => exchange.respond(413, [], fault),
          );
        }
      });
      const client = await RawClient.connect(port);
      const bodies = async (count: number): Promise<string[]> =>
        (await client.responses(count)).map(({ status, body }) => `${status} ${body}`);
      const expected = ['503 early', '413 tooLarge', '413 tooLarge', '200 5'];
      await client.send(`POST /early HTTP/1.1\r\n${HEAD}content-length: 100000\r\n\r\n`);
      await bodies(1);
      await client.send('y'.repeat(100_000));
      await client.send(`POST /declared HTTP/1.1\r\n${HEAD}content-length: 5000\r\n\r\n`);
      await bodies(2);
      await client.send('y'.repeat(5000));
      await client.send(
        `POST /counted HTTP/1.1\r\n${HEAD}transfer-encoding: chunked\r\n\r\n7d0\r\n${'y'.repeat(2000)}\r\n`,
      );
      await bodies(3);
      await client.send('2\r\nhi\r\n0\r\n\r\n');
      await client.send(`POST /whole HTTP/1.1\r\n${HEAD}content-length: 5\r\n\r\nhello`);
      t.same(await bodies(4), expected);
      await client.send(`HEAD /stream HTTP/1.1\r\n${HEAD}\r\n`);
      await client.until(() => client.text.includes('x-tag: t') && client.tail.endsWith('\r\n\r\n'));
      await client.send(`GET /after HTTP/1.1\r\n${HEAD}\r\n`);
      await client.until(() => client.tail.endsWith('\r\n\r\n0'));
      t.match(client.text, /\r\n\r\n0$/, 'HEAD of a stream has no body');
      client.destroy();
    },
  );

  t.test(`${kind}: Expect: 100-continue, and node's own client`, { timeout: 20_000 }, async t => {
    const { port } = await serve(t, kind, exchange => echo(exchange));
    const answer = await new Promise<string>((resolve, reject) => {
      const request = httpRequest({
        port,
        host: '127.0.0.1',
        method: 'POST',
        headers: { expect: '100-continue' },
      });
      request.on('continue', () => request.end('waited'));
      request.on('error', reject);
      request.on('response', response => {
        let text = '';
        response.on('data', chunk => {
          text += chunk;
        });
        response.on('end', () => resolve(text));
      });
      request.flushHeaders();
    });
    t.match(answer, '"body":"waited"');
  });
}

t.test("an exchange on a host's own node:http server", { timeout: 20_000 }, async t => {
  const host = createServer((req, res) => echo(exchangeFromNode(req, res)));
  t.teardown(() => host.close());
  await new Promise<void>(resolve => host.listen(0, '127.0.0.1', resolve));
  const { port } = host.address() as AddressInfo;
  const answer = await ask(port, [`POST /h?q HTTP/1.1\r\n${HEAD}content-length: 2\r\n\r\n{}`]);
  t.equal(answer, '200 {"method":"POST","path":"/h","query":"q","tag":null,"body":"{}","bytes":2}');
});

t.test('auto takes uWebSockets.js where it loads', async t => {
  const options = { headerBytesMax: 16_384, headerDeadlineMs: 10_000, onExchange: () => {} };
  const server = await createHttpServer('auto', options);
  t.equal(server.kind, 'uws');
  await server.close();
  await t.rejects(
    createHttpServer('uws', { ...options, headerBytesMax: 20_000 }),
    /headerBytesMax: 20000 .* 16384/,
  );
});
