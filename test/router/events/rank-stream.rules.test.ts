// Promise: a RankStream joins what follows, asks for what is missing, and gives up one rank's state only where nothing
// else is left; a batch is dated by its own first field in every form that engines send.

import { Packr } from 'msgpackr';
import t from 'tap';
import { SOURCE_COUNTERS, type SourceCounts } from '#millrace/router/events/contract.js';
import { RankStream, readTimestamp } from '#millrace/router/events/rank-stream.js';

const packr = new Packr({ useRecords: false, variableMapSize: true });
const batch = (timestampS: number): Uint8Array => packr.pack([timestampS, [], 0]);

/** A stream and a log of what it told, `12.5` for a batch by its time. */
function startStream({
  hasReplay = true,
  isReady = true,
  waitingBatchesMax = 100,
  waitingBytesMax = 10_000,
} = {}) {
  const log: string[] = [];
  const counts = Object.fromEntries(SOURCE_COUNTERS.map(kind => [kind, 0])) as SourceCounts;
  const stream = new RankStream({
    hasReplay,
    waitingBatchesMax,
    waitingBytesMax,
    counts,
    deliver: (_payload, timestampS, isLive) => log.push(`${isLive ? '' : 'old '}${timestampS}`),
    clear: () => log.push('clear'),
    askReplay: (from, id) => {
      if (isReady) log.push(`ask ${from} #${id}`);
      return isReady;
    },
    dropReplay: () => log.push('drop'),
  });
  const live = (...sequences: number[]): void => {
    for (const sequence of sequences) stream.live(sequence, batch(sequence + 0.5));
  };
  const replayed = (id: number, ...sequences: number[]): void => {
    for (const sequence of sequences) stream.replayed(id, sequence, batch(sequence + 0.5));
  };
  const told = (): string => log.splice(0).join(', ');
  return { stream, counts, live, replayed, told };
}

t.test('a gap that the replay fills does not clear, and what came meanwhile follows in order', async t => {
  const { stream, counts, live, replayed, told } = startStream();
  live(0, 1, 2, 6, 8, 7, 6);
  t.equal(told(), '0.5, 1.5, 2.5, ask 2 #1');
  replayed(1, 2, 3, 4, 5, 6);
  stream.replayEnded(1);
  live(7, 9);
  t.equal(told(), 'old 3.5, old 4.5, old 5.5, old 6.5, 7.5, 8.5, 9.5');
  t.match(counts, {
    gaps: 1,
    lostBatches: 0,
    replays: 1,
    replayedBatches: 5,
    duplicates: 3,
    clearedRanks: 0,
  });
});

t.test('a first number above 0 is a gap; without a replay socket the rank goes on from there', async t => {
  const late = startStream({ hasReplay: false });
  late.stream.start();
  late.live(57, 58);
  t.equal(late.told(), '57.5, 58.5', 'an empty rank needs no clear');
  t.match(late.counts, { gaps: 1, lostBatches: 57, clearedRanks: 0 });
  late.live(60);
  t.equal(late.told(), 'clear, 60.5');
  t.match(late.counts, { gaps: 2, lostBatches: 58, clearedRanks: 1, replays: 0 });
  const asking = startStream();
  asking.live(57);
  asking.replayed(1, ...Array.from({ length: 58 }, (_, n) => n));
  asking.stream.replayEnded(1);
  t.match(asking.told(), /^ask 0 #1, old 0\.5, .*, old 57\.5$/);
  t.equal(asking.counts.lostBatches, 0);
});

t.test('a cold start asks once, for everything', async t => {
  const { stream, live, replayed, told } = startStream();
  stream.start();
  stream.start();
  live(3);
  replayed(1, 0, 1, 2);
  stream.replayEnded(1);
  stream.start();
  t.equal(told(), 'ask 0 #1, old 0.5, old 1.5, old 2.5, 3.5');
});

t.test('a ring that has moved on clears first and applies what there is', async t => {
  const { stream, counts, live, replayed, told } = startStream();
  live(0, 1, 20);
  replayed(1, 15, 16, 17, 18, 19, 20);
  stream.replayEnded(1);
  t.equal(told(), '0.5, 1.5, ask 1 #1, clear, old 15.5, old 16.5, old 17.5, old 18.5, old 19.5, old 20.5');
  t.match(counts, { lostBatches: 13, clearedRanks: 1 });
});

t.test(
  'a hole inside a replay is asked for again, and given up when the next one brings nothing',
  async t => {
    const { stream, counts, live, replayed, told } = startStream();
    live(0, 9);
    replayed(1, 0, 1, 4, 5);
    stream.replayEnded(1);
    t.equal(told(), '0.5, ask 0 #1, old 1.5, ask 1 #2');
    replayed(2, 1);
    stream.replayEnded(2);
    t.equal(told(), 'clear, old 4.5, old 5.5, clear, 9.5');
    t.match(counts, { lostBatches: 5, clearedRanks: 2 });
  },
);

t.test('a replay that fails or is refused costs that rank its state and nothing more', async t => {
  const failing = startStream();
  failing.live(0, 3, 4);
  failing.stream.replayFailed(1);
  failing.stream.replayFailed(1);
  failing.replayed(1, 0, 1);
  failing.live(5);
  t.equal(failing.told(), '0.5, ask 0 #1, clear, 3.5, 4.5, 5.5');
  t.match(failing.counts, { replayFailures: 1, lostBatches: 2, clearedRanks: 1 });
  const refused = startStream({ isReady: false });
  refused.live(0, 3, 4);
  t.equal(refused.told(), '0.5, clear, 3.5, 4.5');
});

t.test('what waits is bounded in batches and in bytes; beyond it the newest goes on', async t => {
  for (const bounds of [{ waitingBatchesMax: 2 }, { waitingBytesMax: 2 * batch(0.5).length }]) {
    const { counts, live, told } = startStream(bounds);
    live(0, 5, 6, 7, 8);
    t.equal(told(), '0.5, ask 0 #1, drop, clear, 7.5, 8.5', JSON.stringify(bounds));
    t.match(counts, { overflows: 2, lostBatches: 6 });
  }
});

t.test('a lower number with a later time is a restart, with an earlier or equal one a duplicate', async t => {
  const { stream, counts, live, replayed, told } = startStream();
  live(0, 1, 2, 1, 2);
  t.equal(counts.duplicates, 2);
  stream.live(0, batch(100));
  stream.live(1, batch(101));
  t.equal(told(), '0.5, 1.5, 2.5, clear, 100, 101');
  stream.live(7, batch(107));
  t.equal(told(), 'ask 1 #1');
  stream.live(0, batch(200));
  replayed(1, 1, 2);
  stream.replayEnded(1);
  t.equal(told(), 'drop, clear, 200', 'what the old process replays is not taken');
  t.match(counts, { restarts: 2, duplicates: 2, clearedRanks: 0 });
});

t.test('numbers that fit but belong to another process are not joined', async t => {
  const { stream, counts, live, told } = startStream();
  live(0, 1, 2);
  stream.live(8, batch(108));
  stream.replayed(1, 2, batch(102));
  t.equal(told(), '0.5, 1.5, 2.5, ask 2 #1, drop, clear, ask 0 #2');
  for (let n = 0; n <= 8; n += 1) stream.replayed(2, n, batch(100 + n));
  stream.live(9, batch(2.5));
  stream.replayEnded(2);
  t.equal(told(), 'old 100, old 101, old 102, old 103, old 104, old 105, old 106, old 107, old 108');
  t.match(counts, { restarts: 1, duplicates: 1 });
});

t.test('a replay that cannot show the batch before the gap does not join', async t => {
  const unproven = startStream();
  unproven.live(0, 1, 2, 5);
  unproven.replayed(1, 3, 4, 5);
  t.equal(unproven.told(), '0.5, 1.5, 2.5, ask 2 #1, clear, old 3.5, old 4.5, old 5.5');
  t.match(unproven.counts, { lostBatches: 0, clearedRanks: 1 });
  const anew = startStream();
  anew.live(0, 1, 2, 20);
  anew.stream.replayed(1, 12, batch(112));
  t.equal(anew.told(), '0.5, 1.5, 2.5, ask 2 #1, drop, clear, ask 0 #2');
  t.equal(anew.counts.restarts, 1);
});

t.test('a replay that failed on its way is not asked for again', async t => {
  const { stream, counts, live, replayed, told } = startStream();
  live(0, 5);
  replayed(1, 0, 1);
  stream.replayFailed(1);
  t.equal(told(), '0.5, ask 0 #1, old 1.5, clear, 5.5');
  t.match(counts, { replays: 1, replayFailures: 1, lostBatches: 3 });
});

t.test('a clock that was set back costs a replay, not the state', async t => {
  const { stream, counts, live, told } = startStream();
  live(0, 1, 2);
  stream.live(3, batch(1));
  stream.replayed(1, 2, batch(2.5));
  stream.replayed(1, 3, batch(1));
  stream.replayEnded(1);
  stream.live(4, batch(1.25));
  t.equal(told(), '0.5, 1.5, 2.5, ask 2 #1, old 1, 1.25');
  t.match(counts, { gaps: 0, restarts: 0, lostBatches: 0 });
});

t.test('the time of a batch is read from every form, and nothing is read past the end', async t => {
  const forms: [string, unknown][] = [
    ['array', [1718.25, [], 0]],
    ['long array', [1718.25, ...Array(20).fill(null)]],
    ['map', { ts: 1718.25, events: [] }],
    ['map, tag first', { type: 'EventBatch', rank: null, ts: 1718.25 }],
  ];
  for (const [name, value] of forms) {
    const payload = packr.pack(value);
    t.equal(readTimestamp(payload), 1718.25, name);
    for (let bytes = 0; bytes < 10; bytes += 1)
      t.ok(Number.isNaN(readTimestamp(payload.subarray(0, bytes))), name);
  }
  for (const whole of [7, 200, 60_000, 1_700_000_000, 2 ** 40])
    t.equal(readTimestamp(packr.pack([whole, []])), whole, `${whole}`);
  t.equal(readTimestamp(Uint8Array.of(0x91, 0xca, 0x3f, 0xc0, 0, 0)), 1.5, 'float32');
  for (const wrong of [
    null,
    'text',
    [],
    ['1'],
    [[1.5]],
    {},
    { a: [], ts: 1.5 },
    { a: 1, b: 2, c: 3, d: 4, ts: 1.5 },
  ])
    t.ok(Number.isNaN(readTimestamp(packr.pack(wrong))), JSON.stringify(wrong));
});

t.test('a publisher that was away and goes on at just the next number is checked by a replay', async t => {
  const same = startStream();
  same.live(0, 1);
  same.stream.suspect();
  same.live(2, 3);
  same.replayed(1, 1, 2, 3);
  same.stream.replayEnded(1);
  same.live(4);
  t.equal(same.told(), '0.5, 1.5, ask 1 #1, old 2.5, old 3.5, 4.5');
  t.match(same.counts, { restarts: 0, gaps: 0, clearedRanks: 0 });

  const other = startStream();
  other.live(0, 1);
  other.stream.suspect();
  other.stream.live(2, batch(102));
  other.stream.replayed(1, 1, batch(101));
  other.stream.replayed(2, 0, batch(100));
  other.stream.replayed(2, 1, batch(101));
  other.stream.replayed(2, 2, batch(102));
  other.stream.replayEnded(2);
  t.equal(other.told(), '0.5, 1.5, ask 1 #1, drop, clear, ask 0 #2, old 100, old 101, old 102');
  t.match(other.counts, { restarts: 1 });

  const silent = startStream({ hasReplay: false });
  silent.live(0, 1);
  silent.stream.suspect();
  silent.live(2);
  t.equal(silent.told(), '0.5, 1.5, 2.5', 'without a replay socket only the numbers tell');
});
