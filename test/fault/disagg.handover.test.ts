// Promise: whatever a prefill worker does, the client gets a perfect answer or the refusal that the request earned; an engine
// whose KV may be on its way is not cut, unless too many are waited for.
import t, { type Test } from 'tap';
import { DONE, type FakeCall, type FakeEngine, textFrame, usageFrame } from '../fake-engine.js';
import {
  COMPLETIONS,
  errorOf,
  FAKE_MODEL,
  type FixtureOptions,
  type PlaneFixture,
  startPlane,
  streamedText,
  until,
} from '../plane-fixture.js';

const ask = { model: FAKE_MODEL, prompt: 'tell me of rivers', max_tokens: 2, stream: true };
const PARAMS = '{"remote_block_ids":[[1,2]],"remote_request_id":"p-1", "odd":"}"}';
const ANSWER = `{"choices":[{"index":0,"text":"x","finish_reason":"length"}],"kv_transfer_params":${PARAMS},"usage":{"prompt_tokens":4,"prompt_tokens_details":{"cached_tokens":3}}}`;
const JSON_TYPE = 'application/json';

const finish = (call: FakeCall): void =>
  call
    .stream()
    .send(textFrame('riv', [1]))
    .send(textFrame('ers', [2], 'length'))
    .send(usageFrame(4, 2) + DONE)
    .end();
const prefilled = (call: FakeCall): void => call.respond(200, JSON_TYPE, ANSWER);
const waiting = (): void => {};

interface Split {
  readonly plane: PlaneFixture;
  readonly prefill: readonly FakeEngine[];
  readonly decode: FakeEngine;
}

/** Prefill workers and one decode worker, of which nobody answers before the test says how. */
async function startSplit(
  t: Test,
  prefills = 1,
  rules: object = {},
  more: FixtureOptions = {},
): Promise<Split> {
  const plane = await startPlane(t, {
    fakes: new Array(prefills + 1).fill({ version: '0.10.0', script: waiting }),
    roles: [...new Array<'prefill'>(prefills).fill('prefill'), 'decode'],
    models: { [FAKE_MODEL]: { disaggregation: { policy: 'always', ...rules } } },
    ...more,
  });
  return { plane, prefill: plane.fakes.slice(0, -1), decode: plane.fakes.at(-1)! };
}

async function expectWhole(t: Test, plane: PlaneFixture): Promise<void> {
  const reply = await plane.post(COMPLETIONS, ask);
  t.equal(reply.status, 200, reply.text);
  t.equal(streamedText(reply), 'rivers');
}

t.test('the prefill answer completes the decode body; both calls have one request id', async t => {
  const { plane, prefill, decode } = await startSplit(t);
  prefill[0]!.script = prefilled;
  decode.script = finish;
  await expectWhole(t, plane);
  const [first, second] = [prefill[0]!.calls[0]!, decode.calls[0]!];
  t.match(first.json, { max_tokens: 1, stream: false, kv_transfer_params: { do_remote_decode: true } });
  t.ok(second.body.startsWith(`{"kv_transfer_params":${PARAMS},`), 'as it was said, byte for byte');
  t.match(second.json, { max_tokens: 2, stream: true, prompt: ask.prompt });
  const id = (call: FakeCall): string => /x-request-id: (.*)/i.exec(call.head)![1]!;
  t.equal(id(first), id(second));
  await plane.expectIdle(t);
});

/** Scripts by name, with the cause that the metrics tell. */
const TROUBLE: Readonly<Record<string, readonly [(call: FakeCall) => void, string]>> = {
  'status 408': [call => call.respond(408, JSON_TYPE, '{}'), 'protocol'],
  'status 429': [call => call.respond(429, JSON_TYPE, '{}', 'retry-after: 1\r\n'), 'busy'],
  'status 500': [call => call.respond(500, JSON_TYPE, '{}'), 'protocol'],
  'status 302': [call => call.respond(302, 'text/plain', ''), 'protocol'],
  'no parameters': [
    call => call.respond(200, JSON_TYPE, '{"choices":[],"kv_transfer_params":null}'),
    'nothing_kept',
  ],
  'no JSON': [call => call.respond(200, 'text/html', '<html>'), 'malformed'],
  'half an answer': [
    call => call.socket.end(`HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n${ANSWER}`),
    'reset',
  ],
  'a broken connection': [call => call.socket.destroy(), 'reset'],
  'too long an answer': [call => call.respond(200, JSON_TYPE, `${' '.repeat(70_000)}${ANSWER}`), 'protocol'],
};
const fallbacks = (cause: string): string => `millrace_prefill_fallbacks_total{cause="${cause}"}`;
const handovers = (outcome: string, protocol = 'nixl'): string =>
  `millrace_handovers_total{protocol="${protocol}",outcome="${outcome}"}`;

t.test('trouble of the prefill worker: decode does it all', async t => {
  const limits = { prefillAnswerBytesMax: 65_536, breakerFailuresMax: 1000 };
  const { plane, prefill, decode } = await startSplit(t, 1, {}, { limits });
  decode.script = finish;
  for (const [name, [script, cause]] of Object.entries(TROUBLE)) {
    await plane.step(t, name, async t => {
      const counted = await plane.metric(fallbacks(cause));
      prefill[0]!.script = script;
      // A worker that broke a connection is only ready again after a probe.
      await until(() => {
        plane.tick(500);
        return plane.plane.workers.every(({ state }) => state === 'ready');
      }, 'the workers are ready');
      const before = prefill[0]!.calls.length;
      await expectWhole(t, plane);
      t.equal(prefill[0]!.calls.length, before + 1, 'it was asked');
      t.notOk('kv_transfer_params' in decode.calls.at(-1)!.json, 'the body is the client’s');
      t.equal(await plane.metric(fallbacks(cause)), counted + 1, cause);
    });
  }
  await plane.step(t, 'no answer at all', async t => {
    prefill[0]!.script = waiting;
    const before = prefill[0]!.calls.length;
    const reply = plane.post(COMPLETIONS, ask);
    await until(() => prefill[0]!.calls.length > before, 'it is asked');
    plane.tick(60_000);
    t.equal(streamedText(await reply), 'rivers');
    await until(() => prefill[0]!.calls.at(-1)!.closed, 'its connection is closed');
    t.equal(await plane.metric(fallbacks('stalled')), 1);
    t.equal(await plane.metric(handovers('local')), Object.keys(TROUBLE).length + 1);
  });
});

t.test('a request that is wrong is refused by the prefill worker, and decode is not asked', async t => {
  const { plane, prefill, decode } = await startSplit(t);
  const error = '{"error":{"message":"top_p must be positive","param":"top_p","code":400}}';
  prefill[0]!.script = call => call.respond(400, JSON_TYPE, error);
  t.match(errorOf(await plane.post(COMPLETIONS, ask)), { status: 400, param: 'top_p' });
  t.equal(decode.calls.length, 0);
  t.equal(await plane.metric(handovers('refused')), 1);
  await plane.expectIdle(t);
});

/** A client whose connection the test closes. */
function openAndLeave(plane: PlaneFixture): () => Promise<void> {
  const abort = new AbortController();
  const headers = { 'content-type': JSON_TYPE };
  const options = { method: 'POST', headers, body: JSON.stringify(ask), signal: abort.signal };
  const open = fetch(plane.url + COMPLETIONS, options).catch(() => null);
  return async () => {
    abort.abort();
    await open;
  };
}

t.test('the client leaves', async t => {
  const { plane, prefill, decode } = await startSplit(t);
  const inFlight = (count: number) => (): boolean => plane.plane.socket.requestsInFlight === count;
  await plane.step(t, 'during prefill: the hand-over is finished for nobody', async t => {
    prefill[0]!.script = waiting;
    const stays = plane.post(COMPLETIONS, ask);
    const leave = openAndLeave(plane);
    await until(() => prefill[0]!.calls.length === 2, 'both are asked');
    await leave();
    await until(inFlight(1), 'the request has ended');
    const isCut = prefill[0]!.calls.some(call => call.closed);
    t.notOk(isCut, 'prefill goes on');
    for (const call of prefill[0]!.calls) prefilled(call);
    await until(() => decode.calls.length === 2, 'decode is asked for the other and for nobody');
    for (const call of decode.calls) finish(call);
    t.equal(streamedText(await stays), 'rivers');
  });
  await plane.step(t, 'before the first token: decode is let go with it', async t => {
    prefill[0]!.script = prefilled;
    decode.script = waiting;
    const before = decode.calls.length;
    const leave = openAndLeave(plane);
    await until(() => decode.calls.length > before, 'decode is asked');
    await leave();
    await until(inFlight(0), 'the request has ended');
    const call = decode.calls.at(-1)!;
    t.notOk(call.closed, 'its KV may be on its way');
    call.stream().send(textFrame('riv', [1]));
    await until(() => call.closed, 'it has all that it needs');
    t.equal(await plane.metric('millrace_deferred_aborts_total{outcome="deferred"}'), 2);
    t.equal(await plane.metric(handovers('dropped')), 2);
  });
});

t.test('too many that nobody waits for are cut', async t => {
  const { plane, decode, prefill } = await startSplit(t, 1, {}, { limits: { deferredAbortsMax: 1 } });
  prefill[0]!.script = prefilled;
  const leaves = [openAndLeave(plane), openAndLeave(plane)];
  await until(() => decode.calls.length === 2, 'decode is asked');
  for (const leave of leaves) await leave();
  await until(() => decode.calls.some(call => call.closed), 'one is closed');
  const open = decode.calls.find(call => !call.closed);
  t.ok(open, 'the other one is not');
  t.equal(await plane.metric('millrace_deferred_aborts'), 1);
  t.equal(await plane.metric('millrace_deferred_aborts_total{outcome="cut"}'), 1);
  finish(open!);
  await plane.expectIdle(t);
});

t.test(
  'decode fails to take the KV: the prompt is computed anew elsewhere, at last by decode itself',
  async t => {
    const { plane, prefill, decode } = await startSplit(t, 2);
    for (const one of prefill) one.script = prefilled;
    decode.script = call => {
      if ('kv_transfer_params' in call.json)
        call.respond(500, JSON_TYPE, '{"error":{"message":"KV load failed"}}');
      else finish(call);
    };
    await expectWhole(t, plane);
    t.strictSame(
      prefill.map(one => one.calls.length),
      [1, 1],
    );
    t.equal(decode.calls.length, 3);
    t.equal(await plane.metric(handovers('decode_failed')), 2);
    await plane.expectIdle(t);
  },
);

/** Decode workers that take no hand-over, each in its own way; what has none of it they answer. */
const REFUSALS: Readonly<Record<string, (call: FakeCall) => void>> = {
  'an error': call => call.respond(500, JSON_TYPE, '{"error":{"message":"KV load failed"}}'),
  'a broken connection': call => call.socket.destroy(),
};
const refusing =
  (refuse: (call: FakeCall) => void) =>
  (call: FakeCall): void => {
    if ('kv_transfer_params' in call.json) refuse(call);
    else finish(call);
  };

t.test('hand-overs that always fail: the last attempt does without, and all are answered', async t => {
  for (const [name, refuse] of Object.entries(REFUSALS)) {
    for (const prefills of [1, 4]) {
      const limits = { breakerFailuresMax: 1000 };
      const { plane, prefill, decode } = await startSplit(t, prefills, {}, { limits });
      for (const one of prefill) one.script = prefilled;
      decode.script = refusing(refuse);
      await plane.step(t, `${name}, ${prefills} prefill workers`, async t => {
        const replies = await Promise.all(Array.from({ length: 8 }, () => plane.post(COMPLETIONS, ask)));
        t.same(
          replies.map(reply => streamedText(reply)),
          new Array(8).fill('rivers'),
        );
        const handed = decode.calls.filter(call => 'kv_transfer_params' in call.json);
        t.equal(decode.calls.length - handed.length, 8, 'each at last by decode itself');
        const ids = decode.calls.map(call => /x-request-id: (.*)/i.exec(call.head)![1]!);
        t.equal(new Set(ids).size, ids.length, 'each attempt under an id of its own');
      });
    }
  }
});

t.test('decode workers that may not compute prompts: the error says so', async t => {
  for (const prefills of [1, 4]) {
    const limits = { breakerFailuresMax: 1000 };
    const { plane, prefill, decode } = await startSplit(t, prefills, { whenNoPrefill: 'refuse' }, { limits });
    for (const one of prefill) one.script = prefilled;
    decode.script = refusing(REFUSALS['an error']!);
    await plane.step(t, `${prefills} prefill workers`, async t => {
      const { status, message } = errorOf(await plane.post(COMPLETIONS, ask));
      t.equal(status, 502);
      t.match(message, /the worker failed with status 500.*decode worker/);
      t.match(message, /may not compute prompts \(whenNoPrefill is refuse\)|let no decode worker compute/);
      t.ok(decode.calls.every(call => 'kv_transfer_params' in call.json));
    });
  }
});

t.test('in parallel: a prefill that fails lets decode go, and another one gets a new transfer', async t => {
  const { plane, prefill, decode } = await startSplit(t, 2, { protocol: 'mooncake' });
  let asked = 0;
  for (const one of prefill) {
    one.script = call => {
      asked += 1;
      if (asked === 1)
        void until(() => decode.calls.length === 1, 'decode is asked').then(() =>
          call.respond(500, JSON_TYPE, '{}'),
        );
      else call.respond(200, JSON_TYPE, `{"filler":"${'x'.repeat(100_000)}"}`);
    };
  }
  decode.script = call => {
    if (decode.calls.length > 1) finish(call);
  };
  await expectWhole(t, plane);
  t.strictSame(
    prefill.map(one => one.calls.length),
    [1, 1],
  );
  const transfers = decode.calls.map(call => call.json.kv_transfer_params.transfer_id);
  t.equal(new Set(transfers).size, 2);
  t.ok(decode.calls[0]!.closed);
  t.equal(await plane.metric(handovers('prefill_failed', 'mooncake')), 1);
  t.equal(await plane.metric(handovers('handed_over', 'mooncake')), 1);
  await plane.expectIdle(t);
});

t.test('rules for too much and for none', async t => {
  const refused = (reason: string): string =>
    `millrace_disagg_decisions_total{decision="refused",reason="${reason}"}`;
  const shed = await startSplit(t, 1, { prefillQueueTokensMax: 1, whenPrefillFull: 'shed' });
  const open = shed.plane.post(COMPLETIONS, ask);
  await until(() => shed.prefill[0]!.calls.length === 1, 'the first one is asked');
  t.match(errorOf(await shed.plane.post(COMPLETIONS, ask)), { status: 529, code: 'MILLRACE_OVERLOADED' });
  t.equal(await shed.plane.metric(refused('prefill_full')), 1);
  t.ok((await shed.plane.metric(`millrace_prefill_queue_tokens{worker="${shed.prefill[0]!.url}"}`)) > 0);
  prefilled(shed.prefill[0]!.calls[0]!);
  await until(() => shed.decode.calls.length === 1, 'decode is asked');
  finish(shed.decode.calls[0]!);
  t.equal((await open).status, 200);
  await shed.plane.expectIdle(t);

  const local = await startSplit(t, 1, { prefillQueueTokensMax: 1 });
  local.decode.script = finish;
  const first = local.plane.post(COMPLETIONS, ask);
  await until(() => local.prefill[0]!.calls.length === 1, 'the first one is asked');
  await expectWhole(t, local.plane);
  prefilled(local.prefill[0]!.calls[0]!);
  t.equal((await first).status, 200);

  const refuse = await startSplit(t, 1, { whenNoPrefill: 'refuse' });
  await refuse.prefill[0]!.close();
  await until(() => {
    refuse.plane.tick(1000);
    return refuse.plane.plane.workers.some(({ state }) => state === 'unavailable');
  }, 'it is seen to be gone');
  t.match(errorOf(await refuse.plane.post(COMPLETIONS, ask)), { status: 503, code: 'MILLRACE_NO_WORKER' });
  t.equal(await refuse.plane.metric(refused('no_prefill')), 1);
});
