// Promise: whatever a lossy network and restarts do to it, a RankStream delivers contiguous runs of one publisher process,
// clears only between runs, never waits for ever, and loses nothing that a sound replay can bring.
import t from 'tap';
import { SOURCE_COUNTERS, type SourceCounts } from '#millrace/router/events/contract.js';
import { RankStream } from '#millrace/router/events/rank-stream.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const WORLDS = process.env.MILLRACE_TEST_LONG === '1' ? 5000 : 300;
const STEPS = 600;

interface Settings {
  readonly hasReplay: boolean;
  readonly ring: number;
  readonly restarts: boolean;
  /** Chance that a replayed batch is lost, and that a replay is refused or fails. */
  readonly replayLoss: number;
  readonly waitingBatchesMax: number;
}

interface Batch {
  readonly process: number;
  readonly sequence: number;
  readonly payload: Uint8Array;
}

interface Job {
  readonly id: number;
  readonly from: number;
  /** What is still to be sent; null: the request has not been read yet. */
  answers: Batch[] | null;
}

const zeroCounts = (): SourceCounts =>
  Object.fromEntries(SOURCE_COUNTERS.map(kind => [kind, 0])) as SourceCounts;

/** Hands bytes over for one call, as a socket does: after it they are others. */
function lend(payload: Uint8Array, take: (bytes: Uint8Array) => void): void {
  const lent = Buffer.from(payload);
  take(lent);
  lent.fill(0xff);
}

/** A publisher, the network between and the checks on what the stream makes of it. */
class World {
  readonly counts = zeroCounts();
  readonly faults: string[] = [];
  delivered = 0;
  clears = 0;
  restarts = 0;
  readonly #random: Random;
  readonly #settings: Settings;
  readonly #stream: RankStream;
  #process = 0;
  #published: Batch[] = [];
  #ring: Batch[] = [];
  #network: Batch[] = [];
  #job: Job | null = null;
  #clockS = 1000;
  #last: Batch | null = null;
  #lossy = true;

  constructor(seed: number, settings: Settings) {
    this.#random = seededRandom(seed);
    this.#settings = settings;
    this.#stream = new RankStream({
      hasReplay: settings.hasReplay,
      waitingBatchesMax: settings.waitingBatchesMax,
      waitingBytesMax: 1_000_000,
      counts: this.counts,
      deliver: payload => this.#check(payload),
      clear: () => {
        this.clears += 1;
        if (this.#last === null) this.faults.push('cleared what was empty');
        this.#last = null;
      },
      askReplay: (from, id) => this.#ask(from, id),
      dropReplay: () => {
        if (this.#job === null) this.faults.push('dropped a replay that does not run');
        this.#job = null;
      },
    });
  }

  run(): void {
    if (this.#chance(0.5)) this.#stream.start();
    for (let step = 0; step < STEPS; step += 1) this.#step();
    this.#lossy = false;
    // The end of the world is sound: what is published now arrives, and replays that were asked for end.
    for (let n = 0; n < 3; n += 1) {
      this.#publish();
      while (this.#network.length > 0) this.#arrive();
      for (let turns = 0; this.#job !== null; turns += 1) {
        this.#serve();
        if (turns > 100_000) throw new Error('replays without end');
      }
    }
    const newest = this.#published.at(-1)!;
    if (this.#last?.payload !== newest.payload) this.faults.push('did not converge to the newest batch');
  }

  get publishedCount(): number {
    return this.#published.length;
  }

  #step(): void {
    const pick = this.#random();
    if (pick < 0.4) this.#publish();
    else if (pick < 0.75) this.#arrive();
    else if (pick < 0.99 || !this.#settings.restarts) this.#serve();
    // A process that was hardly heard of cannot be told from the one after it.
    else if (this.#ring.length > 0 && this.#ring.at(-1)!.sequence >= 20) this.#restart();
  }

  #chance(share: number): boolean {
    return this.#lossy && this.#random() < share;
  }

  #publish(): void {
    const sequence = (this.#ring.at(-1)?.sequence ?? -1) + 1;
    this.#clockS += 0.25;
    const payload = Buffer.alloc(18);
    payload[0] = 0x93;
    payload[1] = 0xcb;
    payload.writeDoubleBE(this.#clockS, 2);
    payload.writeUInt32BE(this.#process, 10);
    payload.writeUInt32BE(sequence, 14);
    const batch = { process: this.#process, sequence, payload };
    this.#published.push(batch);
    this.#ring.push(batch);
    if (this.#ring.length > this.#settings.ring) this.#ring.shift();
    if (this.#chance(0.1)) return;
    this.#network.push(batch);
    if (this.#chance(0.05)) this.#network.push(batch);
    const [before] = this.#network.slice(-2);
    if (before?.process !== this.#process || before === batch || !this.#chance(0.05)) return;
    this.#network.splice(-2, 2, batch, before);
  }

  #arrive(): void {
    const batch = this.#network.shift();
    if (batch !== undefined) lend(batch.payload, bytes => this.#stream.live(batch.sequence, bytes));
  }

  #restart(): void {
    this.restarts += 1;
    this.#process += 1;
    this.#ring = [];
    const job = this.#job;
    if (job?.answers == null) return;
    this.#job = null;
    this.#stream.replayFailed(job.id);
  }

  #ask(from: number, id: number): boolean {
    if (!this.#settings.hasReplay) this.faults.push('asked for a replay that there is not');
    if (this.#job !== null) this.faults.push('asked for two replays at a time');
    if (this.#chance(this.#settings.replayLoss)) return false;
    this.#job = { id, from, answers: null };
    return true;
  }

  #serve(): void {
    const job = this.#job;
    if (job === null) return;
    job.answers ??= this.#ring.filter(
      ({ sequence }) => sequence >= job.from && !this.#chance(this.#settings.replayLoss),
    );
    const count = Math.min(job.answers.length, 1 + randomInteger(this.#random, 5));
    for (const batch of job.answers.splice(0, count))
      lend(batch.payload, bytes => this.#stream.replayed(job.id, batch.sequence, bytes));
    if (this.#job !== job) return;
    const fails = this.#chance(this.#settings.replayLoss / 2);
    if (!fails && job.answers.length > 0) return;
    this.#job = null;
    if (fails) this.#stream.replayFailed(job.id);
    else this.#stream.replayEnded(job.id);
    // An answer that comes too late must change nothing.
    this.#stream.replayed(job.id, 0, Buffer.of(0x90));
  }

  #check(payload: Uint8Array): void {
    const bytes = Buffer.from(payload);
    const [process, sequence] = [bytes.readUInt32BE(10), bytes.readUInt32BE(14)];
    const batch = this.#published.find(known => known.process === process && known.sequence === sequence)!;
    this.delivered += 1;
    const last = this.#last;
    if (last !== null && (batch.process !== last.process || batch.sequence !== last.sequence + 1))
      this.faults.push(`${last.process}/${last.sequence} was followed by ${batch.process}/${batch.sequence}`);
    this.#last = batch;
  }
}

/** Runs many worlds; the first one that breaks `faultOf` or a check of its own is told with its seed. */
function firstFault(settings: Settings, faultOf: (world: World) => string | null): string | null {
  for (let n = 0; n < WORLDS; n += 1) {
    const world = new World(SEED + n, settings);
    world.run();
    const fault = world.faults[0] ?? faultOf(world);
    if (fault !== null) return `SEED=${SEED + n}: ${fault}; ${JSON.stringify(world.counts)}`;
  }
  return null;
}

t.before(() => t.comment(`SEED=${SEED}`));

t.test('a sound replay brings everything, and nothing is cleared', async t => {
  const settings = {
    hasReplay: true,
    ring: 10_000,
    restarts: false,
    replayLoss: 0,
    waitingBatchesMax: 10_000,
  };
  let gaps = 0;
  const fault = firstFault(settings, world => {
    gaps += world.counts.gaps;
    const { clearedRanks, lostBatches, restarts } = world.counts;
    if (world.clears + clearedRanks + lostBatches + restarts > 0) return 'something was lost';
    return world.delivered === world.publishedCount ? null : 'not everything was delivered';
  });
  t.equal(fault, null);
  t.ok(gaps > WORLDS, 'there were gaps');
});

t.test(
  'with small rings, replays that lose and full buffers: what is not delivered is counted as lost',
  async t => {
    const seen = zeroCounts();
    for (const [hasReplay, ring, waitingBatchesMax] of [
      [true, 8, 1000],
      [true, 1000, 1000],
      [true, 1000, 6],
      [false, 8, 8],
    ] as const) {
      const settings = { hasReplay, ring, restarts: false, replayLoss: 0.1, waitingBatchesMax };
      const fault = firstFault(settings, ({ counts, clears, delivered, publishedCount }) => {
        for (const kind of SOURCE_COUNTERS) seen[kind] += counts[kind];
        if (counts.restarts > 0) return 'a restart that there was not';
        if (clears !== counts.clearedRanks) return 'clears are not counted';
        return delivered + counts.lostBatches === publishedCount ? null : 'lost batches are not counted';
      });
      t.equal(fault, null, JSON.stringify(settings));
    }
    for (const kind of [
      'lostBatches',
      'duplicates',
      'replays',
      'replayFailures',
      'clearedRanks',
      'overflows',
    ] as const)
      t.ok(seen[kind] > 0, kind);
  },
);

t.test('across restarts no run joins two processes', async t => {
  let restarts = 0;
  let noticed = 0;
  for (const [hasReplay, ring, replayLoss] of [
    [true, 1000, 0],
    [true, 1000, 0.1],
    [true, 8, 0.1],
    [false, 8, 0],
  ] as const) {
    const settings = { hasReplay, ring, restarts: true, replayLoss, waitingBatchesMax: 200 };
    const fault = firstFault(settings, world => {
      restarts += world.restarts;
      noticed += world.counts.restarts;
      // A replay may show the new process before what the old one sent has all arrived: it is then noticed twice.
      const most = hasReplay ? 2 * world.restarts : world.restarts;
      return world.counts.restarts > most ? 'a restart that there was not' : null;
    });
    t.equal(fault, null, JSON.stringify(settings));
  }
  t.ok(noticed > restarts / 2, `noticed ${noticed} of ${restarts}`);
});
