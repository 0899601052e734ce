// Promise: over any sequence of calls the ledger answers, counts and sums as a plain list of reservations would, with
// the addon and without it, and both give the same ids.
import t from 'tap';
import { createLedgerMemory, Ledger, RESERVE_FULL, RESERVE_STALE } from '#millrace/router/ledger.js';
import { SLOT_STATE } from '#millrace/router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '#millrace/router/load-table.js';
import { type Addon, loadAddon } from '#millrace/runtime/addon.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const STEPS = process.env.MILLRACE_TEST_LONG === '1' ? 3_000_000 : 120_000;
const ENTRIES = 48;
const SLOTS = 5;
const EPOCHS = [11, 12];
const SOCKET_EPOCH = 1;

interface Held {
  slot: number;
  generation: number;
  tokens: number;
  blocks: number;
  owner: number;
  prefill: boolean;
}

interface Sides {
  table: LoadTable;
  /** One per pool thread; the first also plays the socket thread. */
  ledgers: Ledger[];
}

function makeSides(addon: Addon | null): Sides {
  const table = new LoadTable(createLoadMemory(SLOTS));
  const memory = createLedgerMemory(ENTRIES);
  const ledgers = EPOCHS.map(
    (_, index) => new Ledger({ memory, loadTable: table, partition: { index, count: EPOCHS.length }, addon }),
  );
  for (let slot = 0; slot < SLOTS; slot += 1) table.install(slot, 1, SLOT_STATE.ready);
  return { table, ledgers };
}

/** One side under random calls, beside the naive model: a list of what is reserved. */
class Trial {
  readonly answers: number[] = [];
  readonly wrong: string[] = [];
  readonly #random = seededRandom(SEED);
  readonly #sides: Sides;
  readonly #socket: Ledger;
  readonly #held = new Map<number, Held>();
  readonly #gone: number[] = [];
  readonly #generations = Array.from({ length: SLOTS }, () => 1);
  readonly #used = [0, 0];

  constructor(addon: Addon | null) {
    this.#sides = makeSides(addon);
    this.#socket = this.#sides.ledgers[0] as Ledger;
  }

  step(): void {
    const operations = [this.#reserve, this.#reserve, this.#adopt, this.#firstToken, this.#release];
    if (this.#pick(80) === 0) operations.push(this.#replace, this.#reap, this.#replace, this.#reap);
    operations[this.#pick(operations.length)]!.call(this);
  }

  checkSums(): void {
    const slot = this.#pick(SLOTS);
    const generation = this.#generations[slot] as number;
    const own = [...this.#held.values()].filter(e => e.slot === slot && e.generation % 2 === generation % 2);
    const tokens = own.reduce((sum, e) => sum + (e.prefill ? e.tokens : 0), 0);
    const blocks = own.reduce((sum, e) => sum + e.blocks, 0);
    const load = this.#sides.table.snapshot(slot);
    this.#check('line tokens', load?.activePrefillTokens, tokens);
    this.#check('line blocks', load?.decodeBlocks, blocks);
    this.#check('line requests', load?.requests, own.length);
    const sum = this.#socket.sum(slot, generation);
    this.#check(
      'sum',
      sum.activePrefillTokens + sum.decodeBlocks + sum.requests,
      tokens + blocks + own.length,
    );
    this.#check('held', this.#socket.held(), this.#held.size);
  }

  #reserve(): void {
    const pool = this.#pick(2);
    const slot = this.#pick(SLOTS);
    const stale = this.#pick(10) === 0;
    const entry: Held = {
      slot,
      generation: (this.#generations[slot] as number) + (stale ? 1 : 0),
      tokens: this.#pick(5000),
      blocks: this.#pick(300),
      owner: EPOCHS[pool] as number,
      prefill: true,
    };
    const ledger = this.#sides.ledgers[pool] as Ledger;
    const id = ledger.reserve(slot, entry.generation, entry.tokens, entry.blocks, entry.owner);
    this.answers.push(id);
    if (stale) this.#check('stale', id, RESERVE_STALE);
    else if (this.#used[pool] === ENTRIES / 2) this.#check('full', id, RESERVE_FULL);
    else {
      this.#check('fresh id', id > 0 && !this.#held.has(id) && partitionOf(id) === pool, true);
      this.#held.set(id, entry);
      this.#used[pool]! += 1;
    }
  }

  #adopt(): void {
    const id = this.#anyId();
    const entry = this.#held.get(id);
    const from = EPOCHS[this.#pick(2)] as number;
    this.#check('adopt', this.#socket.adopt(id, from, SOCKET_EPOCH), entry?.owner === from);
    if (entry?.owner === from) entry.owner = SOCKET_EPOCH;
  }

  #firstToken(): void {
    const id = this.#anyId();
    const entry = this.#held.get(id);
    this.#check('firstToken', this.#socket.firstToken(id), entry?.prefill === true);
    if (entry) entry.prefill = false;
  }

  #release(): void {
    const id = this.#anyId();
    this.#check('release', this.#socket.release(id), this.#held.has(id));
    if (this.#held.has(id)) this.#forget(id);
  }

  #replace(): void {
    const slot = this.#pick(SLOTS);
    this.#generations[slot]! += 1;
    this.#sides.table.install(slot, this.#generations[slot] as number, SLOT_STATE.ready);
  }

  #reap(): void {
    const dead = EPOCHS[this.#pick(2)] as number;
    const lost = [...this.#held].filter(([, { owner }]) => owner === dead).map(([id]) => id);
    this.#check('reap', this.#socket.reap(dead), lost.length);
    for (const id of lost) this.#forget(id);
  }

  #forget(id: number): void {
    this.#held.delete(id);
    this.#used[partitionOf(id)]! -= 1;
    this.#gone.push(id);
    if (this.#gone.length > 200) this.#gone.shift();
  }

  /** A living id, or now and then one that is gone. */
  #anyId(): number {
    const ids = this.#pick(8) === 0 && this.#gone.length > 0 ? this.#gone : [...this.#held.keys()];
    return ids.length === 0 ? 0 : (ids[this.#pick(ids.length)] as number);
  }

  #pick(bound: number): number {
    return randomInteger(this.#random, bound);
  }

  #check(what: string, got: unknown, wanted: unknown): void {
    if (got !== wanted) this.wrong.push(`${what}: ${got}, wanted ${wanted}`);
    this.answers.push(Number(got));
  }
}

const partitionOf = (id: number): number => Math.floor((id & 0xfffff) / (ENTRIES / 2));

/** Runs the steps up to the first wrong answer; returns every answer, to compare one side with the other. */
function drive(name: string, addon: Addon | null): number[] {
  const trial = new Trial(addon);
  for (let step = 0; step < STEPS && trial.wrong.length === 0; step += 1) {
    trial.step();
    if (step % 16 === 0) trial.checkSums();
  }
  t.same(trial.wrong, [], `${name}: seed ${SEED}, ${STEPS} steps, ${trial.answers.length} answers checked`);
  return trial.answers;
}

const twin = drive('twin', null);
const addon = loadAddon();
if (addon === null) t.comment('no addon: the native side is not compared');
else t.same(drive('native', addon), twin, 'native and twin answer alike');
