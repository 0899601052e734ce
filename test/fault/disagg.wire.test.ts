// Promise: on the wire of real hand-overs: KV whose lease has run out is computed anew, and a hand-over that nobody waits for
// any more is ended at both workers, or finished where an engine must not be cut.
import t from 'tap';
import { ManualClock } from '#millrace/runtime/clock.js';
import { LocalEngines } from '#millrace/simulate/disagg/local-carrier.js';
import {
  COMPLETIONS,
  MOCK_MODEL,
  type PlaneFixture,
  startPlane,
  streamedText,
  TOKENIZER,
  until,
} from '../plane-fixture.js';
import { leakOf } from '../simulate/disagg-probe.js';

const TINY = { tiny: true, numGpuBlocks: 128, blockSize: 16 } as const;
const MODELS = { [MOCK_MODEL]: { disaggregation: { policy: 'always' } } };
const ask = { model: MOCK_MODEL, prompt: 'river '.repeat(60), max_tokens: 8, stream: true };
const LEASE_MS = 30_000;

async function expectNothingLeft(t: Parameters<typeof startPlane>[0], plane: PlaneFixture): Promise<void> {
  await plane.expectIdle(t);
  await until(() => plane.mocks.every(mock => leakOf(mock) === null), 'every block is free');
}

/** A request whose client can leave before there is an answer. */
function openAndLeave(plane: PlaneFixture): () => Promise<void> {
  const gone = new AbortController();
  const headers = { 'content-type': 'application/json' };
  const options = { method: 'POST', headers, body: JSON.stringify(ask), signal: gone.signal };
  const open: Promise<unknown> = fetch(plane.url + COMPLETIONS, options).catch(() => null);
  return async () => {
    gone.abort();
    await open;
  };
}

t.test('vLLM: the lease has run out before decode fetches', async t => {
  const engines = new LocalEngines();
  const clock = new ManualClock();
  const plane = await startPlane(t, {
    mocks: [
      { ...TINY, disagg: { engines, leaseMs: LEASE_MS }, clock },
      { ...TINY, disagg: { engines } },
      { ...TINY, disagg: { engines } },
    ],
    roles: ['prefill', 'prefill', 'decode'],
    models: MODELS,
    tokenizer: TOKENIZER,
    limits: { breakerFailuresMax: 1000 },
    clock: 'real',
  });
  const [late, good, decode] = plane.mocks.map(mock => mock.connector!);
  const { desk } = late!;
  const offer = desk.offer.bind(desk);
  desk.offer = (...args) => {
    offer(...args);
    clock.advance(LEASE_MS); // the answer to the prefill has not left yet
  };
  const texts: string[] = [];
  for (let round = 0; round < 4; round += 1) {
    const reply = await plane.post(COMPLETIONS, ask);
    t.ok(reply.status === 200 && reply.done && !reply.text.includes('"error"'), reply.text);
    texts.push(streamedText(reply));
  }
  t.equal(new Set(texts).size, 1);
  t.ok(desk.counters.expired > 0, 'leases have run out');
  t.equal(desk.counters.released, 0, 'and nothing came out of them');
  t.equal(decode!.pulls.failed, desk.counters.expired, 'decode found each of them gone');
  t.ok(good!.desk.counters.released > 0, 'the other prefill worker computed the prompt anew');
  const failed = 'millrace_handovers_total{protocol="nixl",outcome="decode_failed"}';
  t.equal(await plane.metric(failed), desk.counters.expired);
  await expectNothingLeft(t, plane);
});

t.test('SGLang: the client leaves, and both workers are told', async t => {
  const plane = await startPlane(t, {
    mocks: (['prefill', 'decode'] as const).map(role => ({ ...TINY, engine: 'sglang', disagg: { role } })),
    models: MODELS,
    tokenizer: TOKENIZER,
    asked: true,
    clock: 'real',
  });
  const [prefill, decode] = plane.mocks as [(typeof plane.mocks)[0], (typeof plane.mocks)[0]];
  const sent: { origin: string; path: string; body: string }[] = [];
  const { client } = plane.plane.socket;
  const send = client.send.bind(client);
  client.send = (request, sink) => {
    const { origin, path, body } = request;
    sent.push({ origin, path, body: Buffer.from(body).toString('utf8') });
    return send(request, sink);
  };
  decode.faults.next('handoverStall');
  const leave = openAndLeave(plane);
  await until(() => decode.connector!.pulls.pulling === 1 && prefill.connector!.desk.open === 1, 'KV moves');
  await leave();
  await expectNothingLeft(t, plane);
  const generated = sent.filter(({ path }) => path !== '/abort_request');
  t.same(new Set(generated.map(({ origin }) => origin)), new Set([prefill.url, decode.url]));
  const rids = generated.map(({ body }) => JSON.parse(body).rid as string);
  const aborted = sent.filter(({ path }) => path === '/abort_request');
  t.same(aborted.map(({ origin }) => origin).sort(), [prefill.url, decode.url].sort());
  t.same(
    aborted.map(({ body }) => JSON.parse(body).rid as string),
    rids,
    'by the name that both know the request by',
  );
  t.same(prefill.connector!.desk.counters.expired, 0, 'the prefill worker did not wait for its time-out');

  sent.length = 0;
  const reply = await plane.post(COMPLETIONS, ask);
  t.equal(reply.status, 200, reply.text);
  t.same(
    sent.filter(({ path }) => path === '/abort_request'),
    [],
    'a hand-over that went well is not aborted',
  );
});

t.test('vLLM: the client leaves, and the hand-over is finished for nobody', async t => {
  const engines = new LocalEngines();
  const clock = new ManualClock();
  const plane = await startPlane(t, {
    mocks: [
      { ...TINY, disagg: { engines } },
      { ...TINY, disagg: { engines, kvBytesPerToken: 1000, kvBytesPerSecond: 60_000 }, clock, speed: 1 },
    ],
    roles: ['prefill', 'decode'],
    models: MODELS,
    tokenizer: TOKENIZER,
    clock: 'real',
  });
  const [prefill, decode] = plane.mocks as [(typeof plane.mocks)[0], (typeof plane.mocks)[0]];
  const leave = openAndLeave(plane);
  await until(() => decode.connector!.pulls.pulling === 1, 'KV moves');
  await leave();
  await until(() => plane.plane.socket.requestsInFlight === 0, 'the request has ended');
  t.equal(await plane.metric('millrace_deferred_aborts'), 1);
  t.same([decode.counters.running, decode.connector!.pulls.cancelled], [1, 0], 'decode is not cut');
  await until(() => {
    clock.advance(100);
    return decode.counters.running === 0;
  }, 'decode has had its first token, and is let go');
  t.same([decode.connector!.pulls.pulled, decode.connector!.pulls.cancelled], [1, 0]);
  t.equal(
    prefill.connector!.desk.counters.released,
    1,
    'the prefill worker has its blocks back, by no time-out',
  );
  t.equal(await plane.metric('millrace_deferred_aborts'), 0);
  t.equal(await plane.metric('millrace_deferred_aborts_total{outcome="deferred"}'), 1);
  await expectNothingLeft(t, plane);
});
