// Promise: under an injected clock, tokens are handed out exactly when their pass ends, and lateness does not add up.

import t from 'tap';
import { ManualClock } from '#millrace/runtime/clock.js';
import { EngineCore } from '#millrace/simulate/engine-core.js';
import { resolveEngineSettings } from '#millrace/simulate/engine-settings.js';
import { LiveEngine, type SequenceOwner } from '#millrace/simulate/live-engine.js';
import { decodeMs, prefillMs } from '#millrace/simulate/timing.js';
import { digestPrompt } from '#millrace/simulate/token-source.js';

const drawable = { ids: Uint32Array.from({ length: 100 }, (_, at) => at), eosId: 100 };

const worker = (clock: ManualClock) => {
  const settings = resolveEngineSettings({ numGpuBlocks: 64 });
  const core = new EngineCore<SequenceOwner>(settings, drawable);
  const engine = new LiveEngine(core, { clock, defer: fn => void clock.after(0, fn) });
  const atMs: number[] = [];
  let flushes = 0;
  const owner: SequenceOwner = {
    onTokens: () => void atMs.push(clock.nowMs()),
    onLoadFailed: () => {},
    flush: () => void flushes++,
  };
  const submit = (maxTokens: number) =>
    engine.submit({
      prompt: digestPrompt([1, 2, 3, 4], settings.blockSize),
      maxTokens,
      minTokens: 0,
      ignoreEos: true,
      stopTokenIds: [],
      choice: 0,
      owner,
    });
  return { engine, core, atMs, submit, flushes: () => flushes };
};

/** Moves to the next timer, each of which comes `lateMs` late. */
const turn = (clock: ManualClock, lateMs = 0): void => clock.advance((clock.nextInMs() ?? 0) + lateMs);

t.test('tokens come at the end of their pass', async t => {
  const clock = new ManualClock();
  const { submit, atMs, engine } = worker(clock);
  submit(3);
  t.same(atMs, [], 'nothing happens in the turn of the request');
  while (clock.nextInMs() !== null) turn(clock);
  const load = (tokens: number) => decodeMs(tokens / (64 * 64));
  const first = prefillMs(4) + load(4);
  const expected = [first, first + load(5), first + load(5) + load(6)];
  atMs.forEach((at, index) => {
    t.ok(Math.abs(at - expected[index]!) < 1e-6, `token ${index} at ${at}`);
  });
  t.equal(atMs.length, 3);
  submit(1);
  while (clock.nextInMs() !== null) turn(clock);
  t.equal(atMs.length, 4, 'it starts again after a pause');
  engine.close();
});

t.test('late timers delay a token, and not all that follow', async t => {
  const clock = new ManualClock();
  const { submit, atMs } = worker(clock);
  submit(100);
  while (clock.nextInMs() !== null) turn(clock, 2);
  const exact = new ManualClock();
  const ideal = worker(exact);
  ideal.submit(100);
  while (exact.nextInMs() !== null) turn(exact);
  t.equal(atMs.length, 100);
  t.ok(atMs[99]! - ideal.atMs[99]! <= 4, `${atMs[99]} against ${ideal.atMs[99]}`);
});

t.test('an aborted sequence of a pass under way hears nothing', async t => {
  const clock = new ManualClock();
  const { submit, atMs, engine, core } = worker(clock);
  const sequence = submit(3);
  turn(clock);
  engine.abort(sequence);
  while (clock.nextInMs() !== null) turn(clock);
  t.same(atMs, []);
  t.same([core.running, core.pool.active], [0, 0]);
});

t.test('two hundred live engines on one virtual clock', async t => {
  const clock = new ManualClock();
  const workers = Array.from({ length: 200 }, () => worker(clock));
  for (const one of workers) for (let at = 0; at < 4; at++) one.submit(10);
  while (clock.nextInMs() !== null) turn(clock);
  t.ok(workers.every(one => one.atMs.length === 40 && one.flushes() === 40));
  t.equal(new Set(workers.map(one => one.atMs.at(-1)!.toFixed(6))).size, 1, 'in step');
});
