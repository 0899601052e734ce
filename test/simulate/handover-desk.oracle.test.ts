// Promise: every block is free, cached, in use or pinned, as a naive model says; none is handed out while pinned or being read.
import t from 'tap';
import { ManualClock } from '#millrace/runtime/clock.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { BlockPool } from '#millrace/simulate/block-pool.js';
import { HandoverDesk } from '#millrace/simulate/disagg/handover-desk.js';
import type { KvRead } from '#millrace/simulate/disagg/kv-carrier.js';

const seed = Number(process.env.SEED ?? 20_261_125);
t.comment(`SEED=${seed}`);
const LEASE_MS = 100;
const STEPS = 10_000;
const CAPACITY = 14;

interface NaiveOffer {
  readonly key: string;
  readonly blocks: readonly number[];
  expiresMs: number;
  reads: number;
  end: 'released' | 'expired' | 'withdrawn' | null;
}

interface Held {
  readonly blocks: number[];
  readonly keys: readonly number[];
  published: number;
}

const never = new AbortController().signal;
const random = seededRandom(seed);
const pick = <One>(list: readonly One[]): One => list[randomInteger(random, list.length)]!;

/** The engine under test beside the model: lists of what holds which block. */
class Trial {
  readonly clock = new ManualClock();
  readonly pool = new BlockPool(CAPACITY);
  readonly desk = new HandoverDesk({
    engineId: 'e',
    pool: this.pool,
    blockSize: 4,
    blockBytes: 64,
    leaseMs: LEASE_MS,
    waitMs: 0,
    clock: this.clock,
    onRoom: () => void this.rooms++,
  });
  readonly held: Held[] = [];
  readonly offers: NaiveOffer[] = [];
  readonly reads: { read: KvRead; offer: NaiveOffer }[] = [];
  readonly ended = { released: 0, expired: 0, withdrawn: 0 };
  readonly told: string[] = [];
  rooms = 0;
  offered = 0;
  refusals = 0;

  reserve(): string | null {
    const family = randomInteger(random, 4);
    const keys = Array.from({ length: 1 + randomInteger(random, 6) }, (_, at) => family * 100 + at);
    const hits: number[] = [];
    this.pool.match(keys, hits);
    const blocks: number[] = [];
    if (!this.pool.reserve(hits, keys.length - hits.length, blocks)) {
      this.refusals++;
      return null;
    }
    const pinned = new Set(this.offers.flatMap(offer => offer.blocks));
    const used = new Set(this.held.flatMap(one => one.blocks));
    const stolen = blocks.slice(hits.length).find(block => pinned.has(block) || used.has(block));
    this.held.push({ blocks, keys, published: hits.length });
    return stolen === undefined ? null : `block ${stolen} was handed out twice`;
  }

  publish(): void {
    const one = pick(this.held);
    if (one.published === one.keys.length) return;
    this.pool.publish(one.blocks[one.published]!, one.keys[one.published]!);
    one.published++;
  }

  takeHeld(): Held {
    return this.held.splice(randomInteger(random, this.held.length), 1)[0]!;
  }

  offer(): void {
    const { blocks } = this.takeHeld();
    const key = `k${this.offered++}`;
    this.offers.push({
      key,
      blocks: [...blocks],
      expiresMs: this.clock.nowMs() + LEASE_MS,
      reads: 0,
      end: null,
    });
    this.pool.pin(blocks);
    this.desk.offer(key, blocks, null, end => this.told.push(`${key} ${end}`));
  }

  async read(): Promise<string | null> {
    const offer = pick(this.offers);
    const count = randomInteger(random, offer.blocks.length + 1);
    const ask = {
      engineId: 'e',
      key: offer.key,
      blockIds: null,
      from: 0,
      count,
      blockSize: 4,
      blockBytes: 64,
    };
    const read = await this.desk.read(ask, never).catch(() => null);
    if ((read === null) !== (offer.end !== null)) return `reading ${offer.key}, which is ${offer.end}`;
    if (read === null) return null;
    offer.reads++;
    this.reads.push({ read, offer });
    return read.blocks.join() === offer.blocks.slice(0, count).join() ? null : 'other blocks were read';
  }

  endRead(): void {
    const [{ read, offer }] = this.reads.splice(randomInteger(random, this.reads.length), 1) as [
      { read: KvRead; offer: NaiveOffer },
    ];
    read.end();
    read.end();
    offer.reads--;
    this.settle();
  }

  /** `done` or `heartbeat` by a peer, or the end by the engine itself. */
  speak(what: number): void {
    const offer = pick(this.offers);
    if (what === 0) {
      this.desk.notice('e', offer.key, 'done');
      offer.end ??= 'released';
    } else if (what === 1) {
      this.desk.withdraw(offer.key);
      offer.end ??= 'withdrawn';
    } else {
      this.desk.notice(null, offer.key, 'heartbeat');
      offer.expiresMs = this.clock.nowMs() + LEASE_MS;
    }
    this.settle();
  }

  pass(): void {
    this.clock.advance(randomInteger(random, 30));
    for (const offer of this.offers) if (offer.expiresMs <= this.clock.nowMs()) offer.end ??= 'expired';
    this.settle();
  }

  settle(): void {
    for (const offer of this.offers.filter(one => one.end !== null && one.reads === 0)) {
      this.offers.splice(this.offers.indexOf(offer), 1);
      this.ended[offer.end!]++;
    }
  }

  difference(): string | null {
    const { blocks, inactive, free } = this.pool.snapshot();
    const pins = new Map<number, number>();
    for (const offer of this.offers) for (const at of offer.blocks) pins.set(at, (pins.get(at) ?? 0) + 1);
    const refs = new Map(pins);
    for (const one of this.held) for (const at of one.blocks) refs.set(at, (refs.get(at) ?? 0) + 1);
    for (const [at, state] of blocks) {
      if (state.refs !== (refs.get(at) ?? 0)) return `block ${at} has ${state.refs} references`;
      if (state.pins !== (pins.get(at) ?? 0)) return `block ${at} has ${state.pins} pins`;
    }
    for (const at of refs.keys()) if (!blocks.has(at)) return `block ${at} is free and held`;
    if (this.pool.pinned !== pins.size) return `${this.pool.pinned} pinned, ${pins.size} expected`;
    if (free + inactive.length + this.pool.active !== CAPACITY) return 'the states do not add up';
    const { released, expired, withdrawn } = this.desk.counters;
    const ended = this.ended;
    if (released !== ended.released || expired !== ended.expired || withdrawn !== ended.withdrawn)
      return `ended ${released} ${expired} ${withdrawn}, expected ${Object.values(ended).join(' ')}`;
    if (this.told.length !== released + expired + withdrawn) return 'an end was not told once';
    return this.desk.open === this.offers.length ? null : `${this.desk.open} offers are open`;
  }

  async step(): Promise<string | null> {
    const what = random();
    if (what < 0.3 || this.held.length + this.offers.length === 0) return this.reserve();
    if (what < 0.45 && this.held.length > 0) this.publish();
    else if (what < 0.55 && this.held.length > 0) this.pool.release(this.takeHeld().blocks);
    else if (what < 0.68 && this.held.length > 0) this.offer();
    else if (what < 0.78 && this.offers.length > 0) return this.read();
    else if (what < 0.87 && this.reads.length > 0) this.endRead();
    else if (what < 0.94 && this.offers.length > 0) this.speak(randomInteger(random, 4));
    else this.pass();
    return null;
  }
}

t.test(`${STEPS} random steps against the model`, async t => {
  const trial = new Trial();
  for (let step = 0; step < STEPS; step++) {
    const problem = (await trial.step()) ?? trial.difference();
    if (problem === null) continue;
    t.fail(`step ${step}: ${problem}`);
    return;
  }
  const { counters } = trial.desk;
  t.ok(Math.min(counters.released, counters.expired, counters.withdrawn, counters.heartbeats) > 30);
  t.ok(counters.reads > 300 && counters.refused > 10 && trial.refusals > 300, JSON.stringify(counters));
  for (const { read } of trial.reads) read.end();
  for (const one of trial.held) trial.pool.release(one.blocks);
  trial.clock.advance(LEASE_MS);
  t.same([trial.pool.pinned, trial.pool.active, trial.desk.open], [0, 0, 0], 'nothing is left');
  t.equal(trial.rooms, trial.told.length);
});
