// Promise: every wrong request gets the right status, a stable code and the name of what is wrong, on both servers.

import t, { type Test } from 'tap';
import { RawClient } from '../frontend/http/raw-client.js';
import {
  CHAT,
  COMPLETIONS,
  errorOf,
  jsonOf,
  MOCK_MODEL,
  type PlaneFixture,
  SERVERS,
  startPlane,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const messages = [{ role: 'user', content: 'hello' }];
const chat = { model: MOCK_MODEL, messages, max_tokens: 2 };
const completion = { model: MOCK_MODEL, prompt: 'hello', max_tokens: 2 };

/** Fields that are wrong in a chat request: the field, the value, and what the message must say. */
const WRONG_FIELDS: readonly [string, unknown, RegExp][] = [
  ['temperature', 2.5, /0 to 2/],
  ['temperature', '1', /a string/],
  ['top_p', 0, /above 0/],
  ['n', 0, /1 to 128/],
  ['n', 1.5, /integer/],
  ['max_tokens', 0, /1 to/],
  ['max_tokens', -1, /1 to/],
  ['max_tokens', '5', /integer/],
  ['max_completion_tokens', Number.POSITIVE_INFINITY, /integer/],
  ['min_tokens', 3, /0 to 2/],
  ['seed', 0.5, /integer/],
  ['stop', { a: 1 }, /string/],
  ['stop', Array(17).fill('x'), /16/],
  ['stop_token_ids', 'x', /array/],
  ['stream', 'yes', /true or false/],
  ['stream_options', { include_usage: true }, /stream is true/],
  ['presence_penalty', 3, /-2 to 2/],
  ['logit_bias', { x: 1 }, /token ids/],
  ['cache_salt', 'ü', /ASCII/],
  ['top_k', 1.5, /integer/],
  ['model', 7, /string/],
  ['model', 'm'.repeat(300), /256/],
  ['messages', [], /at least|non-empty|1 to|empty/],
  ['messages', 'hello', /array/],
];

const BODIES: readonly [string, string | Uint8Array, string][] = [
  ['no JSON', 'hello', 'MILLRACE_INVALID_JSON'],
  ['an empty body', '', 'MILLRACE_INVALID_JSON'],
  ['cut JSON', '{"model":"mock-model","messages":[{"role":"us', 'MILLRACE_INVALID_JSON'],
  ['an array', '[]', 'MILLRACE_INVALID_JSON'],
  ['null', 'null', 'MILLRACE_INVALID_JSON'],
  ['deep nesting', `{"model":"mock-model","messages":${'['.repeat(50_000)}`, 'MILLRACE_INVALID_JSON'],
  ['deep objects', `{"a":${'{"a":'.repeat(1000)}1${'}'.repeat(1001)}`, 'MILLRACE_INVALID_JSON'],
  ['bad UTF-8', Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x3a, 0x31, 0x7d]), 'MILLRACE_INVALID_JSON'],
  [
    'a key too many',
    `{${Array.from({ length: 2000 }, (_, i) => `"k${i}":1`).join()}}`,
    'MILLRACE_INVALID_JSON',
  ],
];

async function wrongBodies(t: Test, fixture: PlaneFixture): Promise<void> {
  await fixture.step(t, 'wrong fields', async t => {
    for (const [field, value, says] of WRONG_FIELDS) {
      // JSON.stringify would make null of what JSON.parse reads as infinity.
      const body = JSON.stringify({
        ...chat,
        [field]: value === Number.POSITIVE_INFINITY ? '@' : value,
      }).replace('"@"', '1e400');
      const error = errorOf(await fixture.post(CHAT, body));
      t.match(
        error,
        { status: 400, code: 'MILLRACE_INVALID_REQUEST', message: says },
        `${field}: ${error.message}`,
      );
      t.ok(error.param?.startsWith(field), `param of ${field}`);
      t.ok(error.message.startsWith(field), `message of ${field}`);
    }
    for (const field of ['model', 'messages'])
      t.match(errorOf(await fixture.post(CHAT, { ...chat, [field]: undefined })), {
        status: 400,
        param: field,
      });
    for (const prompt of ['', [], [-1], [1e9], ['a', 'b'], {}, 5])
      t.match(
        errorOf(await fixture.post(COMPLETIONS, { ...completion, prompt })),
        { status: 400, param: /^prompt/ },
        JSON.stringify(prompt),
      );
    t.match(errorOf(await fixture.post(CHAT, { ...chat, messages: [{ role: 'user' }] })), {
      status: 400,
      param: /^messages/,
    });
  });
  await fixture.step(t, 'wrong bodies', async t => {
    for (const [name, body, code] of BODIES) {
      const response = await fetch(fixture.url + CHAT, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body,
      });
      t.match([response.status, await response.json()], [400, { error: { code } }], name);
    }
  });
  await fixture.step(t, 'models and context', async t => {
    t.match(errorOf(await fixture.post(CHAT, { ...chat, model: 'nobody' })), {
      status: 404,
      code: 'model_not_found',
      param: 'model',
    });
    const long = { ...chat, stream: true, messages: [{ role: 'user', content: 'word '.repeat(5000) }] };
    t.match(errorOf(await fixture.post(CHAT, long)), {
      status: 400,
      code: 'context_length_exceeded',
      param: 'messages',
    });
    t.match(errorOf(await fixture.post(CHAT, { ...chat, max_tokens: 5000 })), {
      status: 400,
      code: 'context_length_exceeded',
      param: 'max_tokens',
    });
  });
}

async function wrongRoutes(t: Test, fixture: PlaneFixture): Promise<void> {
  await fixture.step(t, 'routes, methods, types', async t => {
    t.match(errorOf(await fixture.get('/v1/nothing')), { status: 404, code: 'MILLRACE_NOT_FOUND' });
    t.match(errorOf(await fixture.get('/__proto__')), { status: 404 });
    t.match(errorOf(await fixture.get('/v1/models/nobody')), { status: 404, code: 'model_not_found' });
    t.match(errorOf(await fixture.get('/v1/models/%ff')), { status: 404 });
    t.equal(jsonOf(await fixture.get(`/v1/models/${MOCK_MODEL}`)).id, MOCK_MODEL);
    for (const [path, method, allow] of [
      [CHAT, 'GET', 'POST'],
      [COMPLETIONS, 'DELETE', 'POST'],
      ['/v1/models', 'POST', 'GET'],
      [`/v1/models/${MOCK_MODEL}`, 'DELETE', 'GET'],
      ['/health', 'PUT', 'GET'],
    ] as const) {
      const reply = await fixture.get(path, method);
      t.equal(reply.status, 405, `${method} ${path}`);
      t.equal(reply.headers.get('allow'), allow);
      if (reply.text !== '') t.equal(errorOf(reply).code, 'MILLRACE_METHOD_NOT_ALLOWED');
    }
    for (const type of [
      'text/plain',
      'application/x-www-form-urlencoded',
      'multipart/form-data; boundary=x',
      'application/jsonx',
    ])
      t.match(
        errorOf(await fixture.post(CHAT, chat, { 'content-type': type })),
        { status: 415, code: 'MILLRACE_UNSUPPORTED_MEDIA_TYPE' },
        type,
      );
    for (const type of ['application/json; charset=utf-8', 'APPLICATION/JSON', 'application/vnd.api+json'])
      t.equal((await fixture.post(CHAT, chat, { 'content-type': type })).status, 200, type);
  });
}

async function wrongSizes(t: Test, fixture: PlaneFixture): Promise<void> {
  const head = (extra: string): string =>
    `POST ${CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${extra}\r\n`;
  const { port } = fixture;
  await fixture.step(t, 'bodies over the limit', async t => {
    const declared = await RawClient.connect(port);
    await declared.send(head('content-length: 70000\r\n'));
    t.match(JSON.parse((await declared.responses())[0]!.body), {
      error: { code: 'MILLRACE_BODY_TOO_LARGE' },
    });
    const chunked = await RawClient.connect(port);
    await chunked.send(head('transfer-encoding: chunked\r\n'));
    await chunked.send(`8000\r\n${'a'.repeat(0x8000)}\r\n`);
    await chunked.send(`8001\r\n${'a'.repeat(0x8001)}\r\n`);
    const [answer] = await chunked.responses();
    t.equal(answer!.status, 413);
    t.match(JSON.parse(answer!.body), { error: { code: 'MILLRACE_BODY_TOO_LARGE', message: /65536/ } });
    declared.destroy();
    chunked.destroy();
  });
  await fixture.step(t, 'a body that does not arrive in time', async t => {
    const client = await RawClient.connect(port);
    await client.send(`${head('content-length: 100\r\n')}{"model"`);
    await until(() => fixture.plane.socket.requestsInFlight === 1, 'the request has begun');
    fixture.tick(2000);
    const [answer] = await client.responses();
    t.equal(answer!.status, 408);
    t.match(JSON.parse(answer!.body), { error: { code: 'MILLRACE_BODY_TIMEOUT' } });
    client.destroy();
  });
}

for (const server of SERVERS) {
  t.test(server, async t => {
    const limits = { bodyBytesMax: 65_536, bodyDeadlineMs: 2000 };
    // The context is smaller than the body limit, or no prompt could be beyond it.
    const fixture = await startPlane(t, {
      server,
      tokenizer: TOKENIZER,
      limits,
      mocks: [{ maxModelLen: 4096 }],
    });
    await wrongBodies(t, fixture);
    await wrongRoutes(t, fixture);
    await wrongSizes(t, fixture);
    await fixture.step(t, 'a request id that no HTTP header can hold costs nothing', async t => {
      const client = await RawClient.connect(fixture.port);
      const body = JSON.stringify(completion);
      const id = Buffer.from('x-request-id: \u2028é\t"\r\n', 'utf8').toString('latin1');
      await client.send(
        `POST ${COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${id}content-length: ${body.length}\r\n\r\n${body}`,
      );
      t.equal((await client.responses())[0]!.status, 200);
      client.destroy();
    });
    t.equal(fixture.mocks[0]!.counters.refused, 0, 'no engine saw any of it');
  });
}
