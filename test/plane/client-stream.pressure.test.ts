// Promise: one write per loop turn, nothing lost or reordered under back-pressure, and a bound on what is kept.

import t from 'tap';
import type { HttpExchange } from '#millrace/frontend/http/http-exchange.js';
import { ClientStream } from '#millrace/plane/client-stream.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

function fixture(bufferBytesMax = 1000) {
  const state = {
    nowMs: 0,
    writes: [] as string[],
    takes: true,
    ended: 0,
    aborted: 0,
    dirty: 0,
    pressure: 0,
    relief: 0,
    finished: 0,
    writable: () => {},
  };
  const exchange = {
    start: () => {},
    write(data: string | Uint8Array) {
      state.writes.push(typeof data === 'string' ? data : Buffer.from(data).toString());
      return state.takes;
    },
    onWritable: (fn: () => void) => {
      state.writable = fn;
    },
    end(data?: string | Uint8Array) {
      if (data !== undefined) state.writes.push(Buffer.from(data).toString());
      state.ended++;
    },
    abort: () => state.aborted++,
  } as unknown as HttpExchange;
  const stream = new ClientStream(exchange, bufferBytesMax, {
    nowMs: () => state.nowMs,
    onDirty: () => state.dirty++,
    onPressure: () => state.pressure++,
    onRelief: () => state.relief++,
    onFinished: () => state.finished++,
  });
  return { state, stream };
}

t.test('what one turn produces leaves as one write', async t => {
  const { state, stream } = fixture();
  stream.pushText('a');
  stream.pushBytes(Buffer.from('b'));
  stream.pushText('c');
  t.equal(state.dirty, 1, 'marked once');
  stream.flush();
  t.same(state.writes, ['abc']);
  stream.flush();
  t.equal(state.writes.length, 1, 'nothing to write, no write');
});

t.test('a client that does not read pauses the engine, and is relieved when it reads', async t => {
  const { state, stream } = fixture();
  state.takes = false;
  state.nowMs = 5;
  stream.pushText('x'.repeat(10));
  stream.flush();
  t.equal(stream.blockedSinceMs, 5);
  stream.pushText('y'.repeat(240));
  t.equal(state.pressure, 0);
  stream.pushText('z'.repeat(20));
  t.equal(state.pressure, 1, 'a quarter of the bound is kept');
  stream.pushText('z');
  t.equal(state.pressure, 1, 'told once');
  stream.flush();
  t.equal(state.writes.length, 1, 'no write while blocked');
  state.takes = true;
  state.writable();
  t.equal(state.relief, 1);
  t.equal(state.writes.join(''), `${'x'.repeat(10)}${'y'.repeat(240)}${'z'.repeat(21)}`);
  t.equal(stream.blockedSinceMs, null);
  t.notOk(stream.isOverfull);
});

t.test('more than the bound is overfull', async t => {
  const { state, stream } = fixture(100);
  state.takes = false;
  stream.pushText('x');
  stream.flush();
  stream.pushBytes(Buffer.alloc(101));
  t.ok(stream.isOverfull);
  stream.abort();
  t.equal(state.aborted, 1);
  stream.pushText('late');
  state.writable();
  t.equal(state.writes.length, 1, 'nothing after the cut');
});

t.test('the end waits for the reader', async t => {
  const { state, stream } = fixture();
  state.takes = false;
  stream.pushText('x');
  stream.flush();
  stream.pushText('y');
  stream.end();
  stream.flush();
  t.equal(state.ended, 0);
  state.takes = true;
  state.writable();
  t.same([state.writes.join(''), state.ended, state.finished], ['xy', 1, 1]);
});

t.test('random pushes, flushes and stalls keep the bytes in order', async t => {
  const seed = Number(process.env.SEED ?? Date.now() % 1e6);
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  for (let round = 0; round < 300; round++) {
    const { state, stream } = fixture(1e6);
    let sent = '';
    for (let step = 0; step < 60; step++) {
      const piece = String.fromCharCode(97 + (step % 26)).repeat(1 + randomInteger(random, 9));
      const choice = random();
      if (choice < 0.4) {
        stream.pushText(piece);
        sent += piece;
      } else if (choice < 0.6) {
        stream.pushBytes(Buffer.from(piece));
        sent += piece;
      } else if (choice < 0.8) stream.flush();
      else {
        state.takes = random() < 0.5;
        if (stream.blockedSinceMs !== null && state.takes) state.writable();
      }
    }
    state.takes = true;
    if (stream.blockedSinceMs !== null) state.writable();
    stream.end();
    stream.flush();
    if (state.writes.join('') !== sent || state.finished !== 1) t.fail(`round ${round} differs`);
  }
  t.pass('300 rounds');
});
