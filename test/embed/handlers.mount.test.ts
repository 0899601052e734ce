// Promise: the handlers serve the API in node:http, express, fastify and fetch hosts, wherever they are mounted, and take no other route.
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import express, { type Express } from 'express';
import fastify from 'fastify';
import { Hono } from 'hono';
import t, { type Test } from 'tap';
import type { ChatCompletion, ModelListBody } from '#millrace/index.js';
import { CHAT, chatBody, MODEL, planeOverMock, until } from './embedded.js';

const { plane, engine } = await planeOverMock(t, { limits: { bodyBytesMax: 4096 } });

/** Serves with node:http until the test ends. */
async function serve(t: Test, listener: RequestListener): Promise<string> {
  const server = createServer(listener);
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

type Call = (path: string, init?: RequestInit) => Promise<Response>;
const post = (body: unknown): RequestInit => ({
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: typeof body === 'string' ? body : JSON.stringify(body),
});
const text = async (response: Response): Promise<string> =>
  ((await response.json()) as ChatCompletion).choices[0]!.message.content!;
const answer = await text(await plane.fetchHandler()(new Request(`http://host${CHAT}`, post(chatBody()))));
t.ok(answer.length > 20);

/** What every host must do under `prefix`. */
async function servesTheApi(t: Test, call: Call, prefix = ''): Promise<void> {
  const whole = await call(`${prefix}${CHAT}`, post(chatBody()));
  t.equal(whole.headers.get('x-millrace-worker'), engine.url, 'it names its worker');
  t.equal(whole.headers.get('x-millrace-expected-cached-tokens'), '0');
  t.equal(await text(whole), answer, 'a whole answer');
  const streamed = await call(`${prefix}${CHAT}?a=b`, post(chatBody({ stream: true })));
  t.match(streamed.headers.get('content-type'), /^text\/event-stream/);
  t.equal(streamed.headers.get('x-millrace-worker'), engine.url);
  const frames = (await streamed.text()).split('\n\n').filter(frame => frame.startsWith('data: {'));
  const pieces = frames.map(frame => JSON.parse(frame.slice(6)).choices[0]?.delta.content ?? '');
  t.equal(pieces.join(''), answer, 'the same as a stream');
  const models = (await (await call(`${prefix}/v1/models`)).json()) as ModelListBody;
  t.match(models.data, [{ id: MODEL, object: 'model' }]);
  t.equal((await call(`${prefix}/v1/models/${MODEL}`)).status, 200);
  const bad = await call(`${prefix}${CHAT}`, post('{"model":'));
  t.equal(bad.status, 400);
  t.match(await bad.json(), { error: { code: 'MILLRACE_INVALID_JSON' } });
  const large = await call(`${prefix}${CHAT}`, post(chatBody({ user: 'u'.repeat(5000) })));
  t.equal(large.status, 413, 'the limit of the body holds');
  t.equal((await call(`${prefix}/debug/decisions`)).status, 404, 'hosts have it as a method');
  const left = new AbortController();
  const long = await call(`${prefix}${CHAT}`, {
    ...post(chatBody({ stream: true, max_tokens: 20_000 })),
    signal: left.signal,
  });
  await long.body!.getReader().read();
  left.abort();
  await until(() => engine.core.running === 0, 'a client that left has stopped the engine');
}

const over =
  (url: string): Call =>
  (path, init) =>
    fetch(url + path, init);

t.test('node:http', async t => {
  const call = over(await serve(t, plane.nodeHandler()));
  await servesTheApi(t, call);
  t.equal((await call('/health')).status, 404, 'routes about the process are not served');
  t.equal((await call(CHAT)).status, 405);
});

t.test('express: at the root, below a prefix, at /v1, with a body that express has parsed', async t => {
  const mounts: [string, (app: Express) => unknown, string][] = [
    ['root', app => app.use(plane.nodeHandler()), ''],
    ['prefix', app => app.use('/llm', plane.nodeHandler()), '/llm'],
    ['part of the path', app => app.use('/v1', plane.nodeHandler()), ''],
    ['whole path', app => app.post(CHAT, plane.nodeHandler()).use(plane.nodeHandler()), ''],
  ];
  for (const [name, mount, prefix] of mounts) {
    await t.test(name, async t => {
      const app = express();
      mount(app);
      app.get('/health', (_req, res) => void res.send('of the host'));
      const call = over(await serve(t, app));
      await servesTheApi(t, call, prefix);
      t.equal(await (await call('/health')).text(), 'of the host', 'other routes are the host’s');
    });
  }
});

t.test('a body that the host has read: parsed, text and bytes are taken, a lost one is named', async t => {
  const parsers = {
    json: express.json(),
    text: express.text({ type: '*/*' }),
    raw: express.raw({ type: '*/*' }),
  };
  for (const [name, parser] of Object.entries(parsers)) {
    const call = over(await serve(t, express().use(parser, plane.nodeHandler())));
    t.equal(await text(await call(CHAT, post(chatBody()))), answer, name);
    t.equal((await call(CHAT, post(chatBody({ user: 'u'.repeat(5000) })))).status, 413, `${name}: too large`);
  }
  const lost = over(
    await serve(t, (req, res) => {
      req.resume();
      req.on('end', () => plane.nodeHandler()(req, res));
    }),
  );
  const response = await lost(CHAT, post(chatBody()));
  t.equal(response.status, 500);
  t.match(await response.json(), {
    error: { code: 'MILLRACE_INTERNAL', message: /the host read the request body before Millrace/ },
  });
});

t.test('fastify: a plugin with a prefix, beside the host’s own parser, with its headers', async t => {
  const app = fastify();
  app.addHook('onRequest', async (_request, reply) => void reply.header('x-of-the-host', 'yes'));
  app.post('/own', async request => ({ got: request.body }));
  await app.register(plane.fastify);
  await app.register(plane.fastify, { prefix: '/llm/:tenant' });
  const call = over(await app.listen({ port: 0, host: '127.0.0.1' }));
  t.teardown(() => app.close());
  await servesTheApi(t, call);
  await servesTheApi(t, call, '/llm/someone');
  t.equal((await call(CHAT, post(chatBody()))).headers.get('x-of-the-host'), 'yes');
  t.same(
    await (await call('/own', post({ a: 1 }))).json(),
    { got: { a: 1 } },
    'the parser of the host is its own',
  );
});

t.test('fetch: alone, with a prefix, in Hono', async t => {
  const bare = plane.fetchHandler();
  await servesTheApi(t, (path, init) => bare(new Request(`http://host${path}`, init)));
  const prefixed = plane.fetchHandler({ prefix: '/api' });
  await servesTheApi(t, (path, init) => prefixed(new Request(`http://host${path}`, init)), '/api');
  const app = new Hono()
    .mount('/llm', plane.fetchHandler())
    .all('/v1/*', c => plane.fetchHandler()(c.req.raw));
  await servesTheApi(t, async (path, init) => app.request(path, init));
  await servesTheApi(t, async (path, init) => app.request(path, init), '/llm');
  const request = new Request(`http://host${CHAT}`, post(chatBody()));
  await request.text();
  t.match(await (await bare(request)).json(), { error: { message: /host read the request body/ } });
  t.equal((await bare(new Request('http://host/else'))).status, 404);
});

t.test('fetch: a response that nobody reads pauses the engine, and is cut', async t => {
  const { plane, engine } = await planeOverMock(t, {
    limits: { streamBufferBytesMax: 4096, slowClientDeadlineMs: 300 },
  });
  const body = chatBody({ stream: true, max_tokens: 20_000 });
  const response = await plane.fetchHandler()(new Request(`http://host${CHAT}`, post(body)));
  await until(() => plane.health().requestsInFlight === 0, 'it is cut');
  await until(() => engine.core.running === 0, 'the engine is let go');
  await t.rejects(response.text(), /the answer was cut/);
});
