// Promise: a client that leaves, in any phase, or that does not read, costs bounded memory and frees all that it held.

import t, { type Test } from 'tap';
import { DONE, type FakeCall, textFrame } from '../fake-engine.js';
import { RawClient } from '../frontend/http/raw-client.js';
import {
  COMPLETIONS,
  FAKE_MODEL,
  type PlaneFixture,
  SERVERS,
  startPlane,
  TOKENIZER,
  until,
} from '../plane-fixture.js';

const HELLO = 9906;
const PAUSED_SAMPLES = 40;

const requestText = (fields: object): string => {
  const body = JSON.stringify({ model: FAKE_MODEL, prompt: 'x', max_tokens: 8, ...fields });
  return `POST ${COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
};

async function begin(fixture: PlaneFixture, fields: object): Promise<{ client: RawClient; call: FakeCall }> {
  const before = fixture.fakes[0]!.calls.length;
  const client = await RawClient.connect(fixture.port);
  await client.send(requestText(fields));
  await until(() => fixture.fakes[0]!.calls.length > before, 'the engine is asked');
  return { client, call: fixture.fakes[0]!.calls.at(-1)! };
}

async function leaveEverywhere(t: Test, fixture: PlaneFixture): Promise<void> {
  const fake = fixture.fakes[0]!;
  const { socket } = fixture.plane;
  const gone = 'millrace_requests_ended_total{cause="client_gone"}';

  await fixture.step(t, 'during the body', async t => {
    const before = await fixture.metric(gone);
    const client = await RawClient.connect(fixture.port);
    await client.send(requestText({}).slice(0, -5));
    await until(() => socket.requestsInFlight === 1, 'the request has begun');
    client.destroy();
    await until(() => socket.requestsInFlight === 0, 'it has ended');
    t.equal(await fixture.metric(gone), before + 1);
  });

  await fixture.step(t, 'while asked', async t => {
    const before = await fixture.metric(gone);
    const calls = fake.calls.length;
    // The one planning thread is busy with a long prompt while the second request waits for it.
    const busy = await RawClient.connect(fixture.port);
    await busy.send(requestText({ prompt: 'many words '.repeat(100_000) }));
    const client = await RawClient.connect(fixture.port);
    await client.send(requestText({}));
    await until(() => socket.requestsInFlight === 2, 'both are in flight');
    t.equal(fake.calls.length, calls, 'nothing is planned yet');
    client.destroy();
    busy.destroy();
    await until(() => socket.requestsInFlight === 0, 'both have ended');
    await fixture.expectIdle(t);
    t.equal(fake.calls.length, calls, 'no engine was asked');
    t.equal(await fixture.metric(gone), before + 2);
  });

  for (const stream of [true, false]) {
    const kind = stream ? 'stream' : 'unary';
    await fixture.step(t, `before the first token, ${kind}`, async t => {
      fake.script = () => {};
      const { client, call } = await begin(fixture, { stream });
      client.destroy();
      await until(() => call.closed, 'the engine hears of it');
      t.equal(socket.requestsInFlight, 0);
    });
    await fixture.step(t, `in the middle of the answer, ${kind}`, async t => {
      fake.script = call => call.stream().send(textFrame('Hello', [HELLO]));
      if (!stream && fixture.plane.models[0]!.tokenizer === null)
        fake.script = call =>
          void call.raw('HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"a"');
      const { client, call } = await begin(fixture, { stream });
      if (stream) await client.until(() => client.text.includes('Hello'));
      client.destroy();
      await until(() => call.closed, 'the engine hears of it');
      t.equal(socket.requestsInFlight, 0);
    });
  }
}

/** Sends numbered frames for as long as anyone takes them. */
function sendForever(call: FakeCall, state: { frames: number; stop: boolean }): void {
  const more = (): void => {
    let room = true;
    while (room && !call.closed && !state.stop) {
      const frame = textFrame(`n${state.frames++} ${'.'.repeat(200)}`, [HELLO]);
      room = call.raw(`${Buffer.byteLength(frame).toString(16)}\r\n${frame}\r\n`);
    }
    if (state.stop && !call.closed) call.send(textFrame('', [], 'length') + DONE).end();
    else if (!call.closed) call.socket.once('drain', more);
  };
  call.stream();
  more();
}

async function untilPaused(call: FakeCall): Promise<void> {
  let last = -1;
  let same = 0;
  await until(() => {
    const taken = call.socket.bytesWritten - call.socket.writableLength;
    same = taken === last ? same + 1 : 0;
    last = taken;
    return same > PAUSED_SAMPLES && call.socket.writableNeedDrain;
  }, 'the engine is not read any more');
}

async function slowReaders(t: Test, fixture: PlaneFixture): Promise<void> {
  const fake = fixture.fakes[0]!;

  await fixture.step(t, 'a client that never reads is cut at its deadline', async t => {
    const before = await fixture.metric('millrace_slow_clients_total');
    fake.script = call => sendForever(call, { frames: 0, stop: false });
    const { client, call } = await begin(fixture, { stream: true });
    client.socket.pause();
    await untilPaused(call);
    const heapBefore = process.memoryUsage.rss();
    t.equal(fixture.plane.socket.requestsInFlight, 1);
    fixture.tick(1900);
    t.notOk(call.closed, 'not before its deadline');
    await untilPaused(call);
    t.ok(process.memoryUsage.rss() - heapBefore < 64 << 20, 'nothing grows while it waits');
    fixture.tick(200);
    t.equal(fixture.plane.socket.requestsInFlight, 0);
    await until(() => call.closed, 'the engine hears of it');
    t.equal(await fixture.metric('millrace_slow_clients_total'), before + 1);
    client.socket.resume();
    await client.until(() => client.closed);
    t.notMatch(client.tail, /\r\n0\r\n\r\n$/, 'the response does not look whole');
  });

  await fixture.step(t, 'a client that pauses and reads on loses nothing', async t => {
    const state = { frames: 0, stop: false };
    fake.script = call => sendForever(call, state);
    const { client, call } = await begin(fixture, { stream: true });
    for (let round = 0; round < 3; round++) {
      client.socket.pause();
      await untilPaused(call);
      const { bytesRead } = client.socket;
      fixture.tick(1000);
      client.socket.resume();
      await client.until(() => client.socket.bytesRead > bytesRead + (6 << 20));
    }
    state.stop = true;
    await client.until(() => client.tail.endsWith('0\r\n\r\n'));
    // The chunk lines of the response lie between and inside the frames.
    const body = client.text.slice(client.text.indexOf('\r\n\r\n') + 4).replace(/\r\n[0-9a-f]+\r\n/g, '');
    if (fixture.plane.models[0]!.tokenizer === null) {
      const numbers = [...body.matchAll(/"text":"n(\d+) /g)].map(match => Number(match[1]));
      t.equal(numbers.length, state.frames);
      t.ok(
        numbers.every((number, at) => number === at),
        'every frame in order',
      );
    } else t.equal(body.match(/Hello/g)?.length, state.frames, 'every token');
    t.match(body, /\[DONE\]/);
    client.destroy();
  });

  await fixture.step(t, 'a worker that dies while the client does not read', async t => {
    fake.script = call => sendForever(call, { frames: 0, stop: false });
    const { client, call } = await begin(fixture, { stream: true });
    client.socket.pause();
    await untilPaused(call);
    call.socket.resetAndDestroy();
    await until(() => {
      fixture.tick(100);
      return fixture.plane.socket.requestsInFlight === 0;
    }, 'the request ends');
    client.socket.resume();
    await client.until(() => client.closed);
    t.notMatch(client.tail, /\r\n0\r\n\r\n$/, 'a response with a hole does not look whole');
  });
}

for (const server of SERVERS) {
  for (const tokenizer of [null, TOKENIZER]) {
    t.test(`${server}, ${tokenizer === null ? 'relay' : 'token'}`, async t => {
      const limits = { slowClientDeadlineMs: 2000 };
      const fixture = await startPlane(t, {
        server,
        tokenizer,
        limits,
        fakes: [{ contextLength: 1_000_000 }],
      });
      await leaveEverywhere(t, fixture);
      await slowReaders(t, fixture);
    });
  }
}
