// Promise: a call over a worker link tells its sink what the same call over HTTP would have told, whatever comes between.
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { EngineClient } from '#millrace/engines/client.js';
import type { AnswerClient } from '#millrace/engines/link/contract.js';
import { LINK_LIMITS } from '#millrace/engines/link/link-protocol.js';
import { LinkedClient } from '#millrace/engines/link/linked-client.js';
import { systemClock } from '#millrace/runtime/clock.js';
import {
  ask,
  DONE,
  idsFrame,
  Recorded,
  SSE,
  signal,
  startEngine,
  startPlane,
  startWorker,
  WORKER,
} from './link-fixture.js';

t.test('rows: ids, choices and finish reasons; what is no plain row comes as its frame', async t => {
  const usage = 'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n';
  const origin = await startEngine(t, (request, response, body) => {
    t.equal(request.headers['content-type'], 'application/json');
    t.equal(body.toString(), '{"prompt":[1,2,3]}');
    response.writeHead(200, { ...SSE, 'x-engine': 'yes' });
    response.write(idsFrame([7]) + idsFrame([8, 9], 1));
    response.end(idsFrame([10], 0, 'length') + idsFrame([], 1, 'stop') + usage + DONE);
  });
  const plane = await startPlane(t);
  startWorker(t, plane.address, origin);
  const link = await plane.linked;
  t.same(link.worker, WORKER);
  const recorded = new Recorded();
  link.send(ask('/v1/completions', '{"prompt":[1,2,3]}'), recorded);
  await recorded.over;
  t.match(recorded, { status: 200, contentType: 'text/event-stream', ends: 1, fault: null });
  t.same(recorded.ids, [
    [7, 10],
    [8, 9],
  ]);
  t.same(recorded.finish, ['length', 'stop']);
  t.equal(recorded.linkIds, 4, 'every id came as a row');
  t.equal(recorded.text, usage + DONE, 'and only the rest as bytes');
  t.equal(link.streams, 0);
});

t.test('bytes: a relayed answer, an error answer and a large body arrive as they were', async t => {
  const origin = await startEngine(t, (request, response, body) => {
    if (request.url === '/error') response.writeHead(400).end('{"error":{"message":"no"}}');
    else response.writeHead(200, { 'content-type': 'application/json' }).end(body);
  });
  const plane = await startPlane(t);
  startWorker(t, plane.address, origin);
  const link = await plane.linked;
  const error = new Recorded();
  link.send(ask('/error'), error);
  const large = new Recorded();
  const body = JSON.stringify({ prompt: 'x'.repeat(3_000_000) });
  link.send(ask('/echo', body, false), large);
  const empty = new Recorded();
  link.send({ ...ask('/echo'), method: 'GET', body: new Uint8Array(0) }, empty);
  await Promise.all([error.over, large.over, empty.over]);
  t.match(error, { status: 400, text: '{"error":{"message":"no"}}', fault: null });
  t.match(large, { status: 200, contentType: 'application/json', fault: null });
  t.ok(large.text === body, 'the body went there and back, far beyond the windows of both sides');
  t.match(empty, { status: 200, text: '', fault: null });
});

t.test('1,000 streams at a time are complete and in order', async t => {
  const seed = Number(process.env.SEED ?? 7);
  t.comment(`SEED=${seed}`);
  const count = 1_000;
  const idOf = (stream: number, step: number): number => ((stream + 1) * 7919 + step * 104_729 + seed) >>> 0;
  const steps = 12;
  const waiting: [number, import('node:http').ServerResponse][] = [];
  const all = signal<void>();
  const origin = await startEngine(t, (request, response) => {
    response.writeHead(200, SSE);
    waiting.push([Number(request.url!.slice(1)), response]);
    if (waiting.length === count) all.set();
  });
  const plane = await startPlane(t);
  startWorker(t, plane.address, origin);
  const link = await plane.linked;
  const recorded = Array.from({ length: count }, (_, index) => {
    const one = new Recorded();
    link.send(ask(`/${index}`), one);
    return one;
  });
  await all.done;
  t.equal(link.streams, count);
  for (let step = 0; step < steps; step++) {
    for (const [stream, response] of waiting) {
      const ids = Array.from({ length: 1 + ((stream + step) % 3) }, (_, at) => idOf(stream, step * 3 + at));
      response.write(idsFrame(ids, 0, step === steps - 1 ? 'stop' : null));
    }
    await new Promise(resolve => setImmediate(resolve));
  }
  for (const [, response] of waiting) response.end(DONE);
  await Promise.all(recorded.map(one => one.over));
  const reference = Array.from({ length: count }, (_, stream) =>
    Array.from({ length: steps }, (_, step) =>
      Array.from({ length: 1 + ((stream + step) % 3) }, (_, at) => idOf(stream, step * 3 + at)),
    ).flat(),
  );
  t.same(
    recorded.map(one => one.ids[0]),
    reference,
  );
  t.ok(recorded.every(one => one.ends === 1 && one.fault === null && one.finish[0] === 'stop'));
  t.ok(recorded.every(one => one.linkIds === one.ids[0]!.length && one.text === DONE));
});

t.test('the engine dies: its streams fail, the link stays', async t => {
  const origin = await startEngine(t, (request, response) => {
    response.writeHead(200, SSE);
    response.write(idsFrame([1]), () => {
      if (request.url === '/dies') setImmediate(() => request.socket.resetAndDestroy());
      else response.end(DONE);
    });
  });
  const plane = await startPlane(t);
  const worker = startWorker(t, plane.address, origin);
  const link = await plane.linked;
  const dead = new Recorded();
  link.send(ask('/dies'), dead);
  await dead.over;
  t.match(dead.fault, { kind: 'reset' });
  t.match(worker.engineFaults, [{ kind: 'reset' }]);
  const next = new Recorded();
  link.send(ask('/lives'), next);
  await next.over;
  t.match(next, { fault: null, ids: [[1]] });
});

t.test('abort: nothing more is told, and the engine sees its connection close', async t => {
  const closed = signal<void>();
  const origin = await startEngine(t, (_request, response) => {
    response.on('close', () => closed.set());
    response.writeHead(200, SSE);
    response.write(idsFrame([1]) + idsFrame([2]));
  });
  const plane = await startPlane(t);
  const { link: workerLink } = startWorker(t, plane.address, origin);
  const link = await plane.linked;
  const recorded = new Recorded(() => call.abort());
  const call = link.send(ask(), recorded);
  await recorded.over;
  t.match(recorded, { ends: 1, fault: { kind: 'aborted' }, ids: [[1, 2]] });
  await closed.done;
  t.equal(link.streams, 0);
  call.abort();
  call.pause();
  call.resume();
  t.equal(recorded.ends, 1);
  const early = new Recorded();
  link.send(ask(), early).abort();
  t.match(early, { ends: 1, fault: { kind: 'aborted' }, status: 0 });
  t.ok(link.isAccepting && workerLink.isUp);
});

t.test('a link that is gone: running streams are reset, the next calls go over HTTP', async t => {
  const folder = mkdtempSync(`${tmpdir()}/link-`);
  t.teardown(() => rmSync(folder, { recursive: true }));
  const begun = signal<void>();
  const origin = await startEngine(t, (request, response) => {
    response.writeHead(200, SSE);
    response.write(idsFrame([1]));
    if (request.url === '/http') response.end(DONE);
  });
  const address = { path: `${folder}/plane.sock`, host: null, port: 0, isTls: false } as const;
  const plane = await startPlane(t, { address, secret: null });
  const { link: workerLink } = startWorker(t, address, origin, { secret: null });
  await plane.linked;
  const http = new EngineClient({ clock: systemClock, connectDeadlineMs: 1_000 });
  t.teardown(() => http.close());
  const client: AnswerClient = new LinkedClient(plane.server, http);
  t.equal(statSync(address.path).mode & 0o777, 0o600, 'without a secret only this user may connect');
  const recorded = new Recorded(() => begun.set());
  client.send(ask(), recorded);
  await begun.done;
  t.equal(await workerLink.drain(0), 1, 'one stream is cut off');
  await recorded.over;
  t.match(recorded.fault, { kind: 'reset' });
  t.match(await plane.unlinked, { kind: 'closed' });
  t.equal(plane.server.linkTo(WORKER.url), null);
  const next = new Recorded();
  client.send({ ...ask('/http'), origin }, next);
  await next.over;
  t.match(next, { fault: null, ids: [[1]], linkIds: 0 });
  t.match(client, { counts: { overLink: 1, overHttp: 1 } });
});

t.test('a body that would hold up the other streams goes over HTTP while the link is up', async t => {
  const origin = await startEngine(t, (_request, response) => response.writeHead(200, SSE).end(DONE));
  const plane = await startPlane(t);
  startWorker(t, plane.address, origin);
  const link = await plane.linked;
  const http = new EngineClient({ clock: systemClock, connectDeadlineMs: 30_000 });
  t.teardown(() => http.close());
  const client = new LinkedClient({ linkTo: () => link }, http);
  for (const bytes of [LINK_LIMITS.bodyBytesMax, LINK_LIMITS.bodyBytesMax + 1]) {
    const recorded = new Recorded();
    client.send({ ...ask('/', 'x'.repeat(bytes)), origin }, recorded);
    await recorded.over;
    t.match(recorded, { status: 200, text: DONE, fault: null });
  }
  t.same(client.counts, { overLink: 1, overHttp: 1 });
});
