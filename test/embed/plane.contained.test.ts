// Promise: an embedded plane touches nothing of its host, tells wrong options apart, and a fault inside it ends the plane, never the host.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import {
  ConfigError,
  createDataPlane,
  type DataPlane,
  type DataPlaneOptions,
  mockWorker,
} from '#millrace/index.js';
import { type Clock, systemClock } from '#millrace/runtime/clock.js';
import { CHAT, chatBody, collect, MODEL, planeOverMock, textOf } from './embedded.js';

const quiet = { poolThreads: 1, logLevel: 'silent' } as const;
const rejections: unknown[] = [];
process.on('unhandledRejection', reason => rejections.push(reason));

t.test('wrong options are ConfigErrors that say what is wrong', async t => {
  const cases: [object, RegExp][] = [
    [{}, /no workers: .*mockWorker/],
    [{ workers: [] }, /no workers/],
    [{ workers: 'http://127.0.0.1:1' }, /workers must be a list/],
    [{ workers: ['http://127.0.0.1:1/v1'] }, /without a path/],
    [{ workers: [mockWorker()], tokenizr: 'x' }, /no setting "tokenizr"; did you mean "tokenizer"/],
    [{ workers: [mockWorker()], mockSpeed: 2 }, /mockSpeed belongs to millrace serve/],
    [{ workers: [mockWorker()], limits: { bodyBytesMax: 1 } }, /bodyBytesMax.*1024/],
    [{ workers: [mockWorker()], policy: 'best' }, /policy/],
  ];
  for (const [options, message] of cases) {
    const error = await createDataPlane(options as DataPlaneOptions).catch((reason: unknown) => reason);
    t.ok(error instanceof ConfigError && message.test(error.message), `${message}`);
  }
  t.throws(() => mockWorker({ sped: 3 } as object), {
    code: 'MILLRACE_CONFIG',
    message: /did you mean "speed"/,
  });
  t.throws(() => mockWorker({ speed: -1 }), { code: 'MILLRACE_CONFIG', param: 'speed' });
});

t.test(
  'two planes over mock workers in one process: no signals, no environment, no globals, one port for one',
  async t => {
    const before = {
      signals: ['SIGTERM', 'SIGINT', 'exit', 'uncaughtException'].map(name => process.listenerCount(name)),
      env: { ...process.env },
      globals: Reflect.ownKeys(globalThis),
    };
    const planes = await Promise.all(
      ['one', 'two'].map(model =>
        createDataPlane({
          ...quiet,
          workers: [mockWorker({ model, speed: 'unlimited' }), mockWorker({ model })],
        }),
      ),
    );
    const [one, two] = planes as [DataPlane, DataPlane];
    t.match(one.health(), { status: 'ok', workers: { ready: 2, total: 2 } });
    const { port } = await one.listen({ port: 0 });
    await t.rejects(two.listen({ port }), ConfigError);
    await t.rejects(one.listen({ port: 0 }), /listens already/);
    t.equal(
      (await fetch(`http://127.0.0.1:${port}/health`)).status,
      200,
      'its own server has the routes of serve',
    );
    t.match(await one.metrics(), /dynamo_frontend_requests_total/);
    await t.rejects(collect(one.generate({ model: 'two', prompt: 'a' })), { code: 'MILLRACE_UNKNOWN_MODEL' });
    t.equal((await collect(two.generate({ model: 'two', prompt: 'a', maxTokens: 3 }))).length > 0, true);
    await one.close();
    t.ok((await two.listen({ port: 0 })).port > 0, 'a refused address does not spoil the next');
    t.ok(
      textOf(await collect(two.generate({ model: 'two', prompt: 'a', maxTokens: 3 }))),
      'the other one goes on',
    );
    t.same(Reflect.ownKeys(globalThis), before.globals);
    t.same({ ...process.env }, before.env);
    t.same(
      ['SIGTERM', 'SIGINT', 'exit', 'uncaughtException'].map(name => process.listenerCount(name)),
      before.signals,
    );
    await two.close();
  },
);

t.test(
  'close() lets open answers finish, refuses new ones, and a second call waits for the first',
  async t => {
    const { plane } = await planeOverMock(t);
    const answer = plane.generate({ model: MODEL, prompt: 'a', maxTokens: 50 });
    await answer.next();
    const closing = [plane.close(), plane.close()];
    const refused = plane.generate({ model: MODEL, prompt: 'a', maxTokens: 50 }).next();
    await t.rejects(refused, { code: 'MILLRACE_DRAINING' });
    t.match((await collect(answer)).at(-1), { usage: { completionTokens: 50 } });
    await Promise.all(closing);
  },
);

/** A plane with two streams open, one of generate() and one of HTTP, and what has become of it after `harm`. */
async function afterFault(
  t: Test,
  options: DataPlaneOptions,
  harm: () => Promise<void> | void,
): Promise<void> {
  const { plane, engine } = await planeOverMock(t, options, { speed: 1 });
  const server = createServer(plane.nodeHandler()).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}${CHAT}`;
  const ask = (): Promise<Response> =>
    fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(chatBody({ stream: true, max_tokens: 10_000 })),
    });
  const answer = plane.generate({ model: MODEL, prompt: 'a', maxTokens: 10_000 });
  await answer.next();
  const open = await ask();
  await harm();
  await t.rejects(
    (async () => {
      for (;;) if ((await answer.next()).done === true) return;
    })(),
    { code: 'MILLRACE_PLANE_FAILED' },
  );
  t.match(await open.text().catch(() => 'cut'), /MILLRACE_PLANE_FAILED|^cut$/, 'the open stream has ended');
  t.equal(plane.health().status, 'failed');
  const refused = await ask();
  t.equal(refused.status, 503);
  t.match(await refused.json(), { error: { code: 'MILLRACE_PLANE_FAILED' } });
  await t.rejects(plane.pick({ model: MODEL, prompt: 'a' }), { code: 'MILLRACE_PLANE_FAILED' });
  await plane.close();
  t.equal(engine.core.running, 0, 'the engine was let go');
  t.same(rejections, [], 'the host saw nothing');
}

t.test('a clock that begins to throw', async t => {
  let isBroken = false;
  const now = (): number => {
    if (isBroken) throw new Error('the clock broke');
    return systemClock.nowMs();
  };
  const clock: Clock = { ...systemClock, nowMs: now };
  await afterFault(t, { clock }, () => {
    isBroken = true;
  });
});

t.test('a logger that throws', async t => {
  const loud = (): never => {
    throw new Error('the disk is full');
  };
  const logger = { debug: loud, info: loud, warn: loud, error: loud };
  const failed = await planeOverMock(t, { logger });
  t.equal(failed.plane.health().status, 'failed', 'already by the first line');
  await failed.plane.close();
  t.same(rejections, []);
});

t.test('damaged memory of a ring', async t => {
  const memories: SharedArrayBuffer[] = [];
  const { PoolLink } = await import('#millrace/plane/pool-link.js');
  const attach = PoolLink.prototype.attach;
  PoolLink.prototype.attach = function (index, memory) {
    memories.push(memory.planRing);
    attach.call(this, index, memory);
  };
  t.teardown(() => {
    PoolLink.prototype.attach = attach;
  });
  await afterFault(t, {}, async () => {
    new Int32Array(memories[0]!).fill(0x7fff_fff8);
  });
});

t.test('a host with a plane ends by itself after close()', async t => {
  const script = `
    import { createDataPlane, mockWorker } from 'millrace';
    const plane = await createDataPlane({ workers: [mockWorker({ speed: 'unlimited' })], poolThreads: 1 });
    for await (const delta of plane.generate({ model: 'mock-model', prompt: 'a', maxTokens: 2 })) void delta;
    await plane.close();
    console.log('closed');`;
  const host: ChildProcess = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  host.stdout!.on('data', chunk => {
    said += chunk;
  });
  const [code] = await once(host, 'exit');
  t.equal(code, 0);
  t.equal(said, 'closed\n');
});
