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

/** Runs the steps against the naive model; returns every answer, to compare one side with the other. */
function drive(name: string, addon: Addon | null): number[] {
  const random = seededRandom(SEED);
  const pick = (bound: number): number => randomInteger(random, bound);
  const { table, ledgers } = makeSides(addon);
  const socket = ledgers[0] as Ledger;
  const held = new Map<number, Held>();
  const gone: number[] = [];
  const generations = Array.from({ length: SLOTS }, () => 1);
  const partitionUsed = [0, 0];
  const answers: number[] = [];
  const wrong: string[] = [];
  const check = (what: string, got: unknown, wanted: unknown): void => {
    if (got !== wanted && wrong.length < 5) wrong.push(`${what}: ${got}, wanted ${wanted}`);
    answers.push(Number(got));
  };
  const anyId = (): number => {
    const ids = pick(8) === 0 && gone.length > 0 ? gone : [...held.keys()];
    return ids.length === 0 ? 0 : (ids[pick(ids.length)] as number);
  };
  const partitionOf = (id: number): number => Math.floor((id & 0xfffff) / (ENTRIES / 2));
  const forget = (id: number): void => {
    held.delete(id);
    partitionUsed[partitionOf(id)]! -= 1;
    gone.push(id);
    if (gone.length > 200) gone.shift();
  };

  const reserve = (): void => {
    const pool = pick(2);
    const slot = pick(SLOTS);
    const living = generations[slot] as number;
    const stale = pick(10) === 0;
    const entry: Held = {
      slot,
      generation: stale ? living + 1 : living,
      tokens: pick(5000),
      blocks: pick(300),
      owner: EPOCHS[pool] as number,
      prefill: true,
    };
    const id = ledgers[pool]!.reserve(slot, entry.generation, entry.tokens, entry.blocks, entry.owner);
    answers.push(id);
    if (stale) check('stale', id, RESERVE_STALE);
    else if (partitionUsed[pool] === ENTRIES / 2) check('full', id, RESERVE_FULL);
    else {
      check('fresh id', id > 0 && !held.has(id) && partitionOf(id) === pool, true);
      held.set(id, entry);
      partitionUsed[pool]! += 1;
    }
  };
  const operations: (() => void)[] = [
    reserve,
    reserve,
    () => {
      const id = anyId();
      const entry = held.get(id);
      const from = EPOCHS[pick(2)] as number;
      check('adopt', socket.adopt(id, from, SOCKET_EPOCH), entry?.owner === from);
      if (entry?.owner === from) entry.owner = SOCKET_EPOCH;
    },
    () => {
      const id = anyId();
      const entry = held.get(id);
      check('firstToken', socket.firstToken(id), entry?.prefill === true);
      if (entry) entry.prefill = false;
    },
    () => {
      const id = anyId();
      check('release', socket.release(id), held.has(id));
      if (held.has(id)) forget(id);
    },
    () => {
      if (pick(40) !== 0) return;
      const slot = pick(SLOTS);
      generations[slot]! += 1;
      table.install(slot, generations[slot] as number, SLOT_STATE.ready);
    },
    () => {
      if (pick(40) !== 0) return;
      const dead = EPOCHS[pick(2)] as number;
      const lost = [...held].filter(([, { owner }]) => owner === dead).map(([id]) => id);
      check('reap', socket.reap(dead), lost.length);
      for (const id of lost) forget(id);
    },
  ];

  for (let step = 0; step < STEPS && wrong.length === 0; step += 1) {
    operations[pick(operations.length)]!();
    if (step % 16 !== 0) continue;
    const slot = pick(SLOTS);
    const generation = generations[slot] as number;
    const own = [...held.values()].filter(e => e.slot === slot && e.generation % 2 === generation % 2);
    const tokens = own.reduce((sum, e) => sum + (e.prefill ? e.tokens : 0), 0);
    const blocks = own.reduce((sum, e) => sum + e.blocks, 0);
    const load = table.snapshot(slot);
    check('line tokens', load?.activePrefillTokens, tokens);
    check('line blocks', load?.decodeBlocks, blocks);
    check('line requests', load?.requests, own.length);
    const sum = socket.sum(slot, generation);
    check('sum', sum.activePrefillTokens + sum.decodeBlocks + sum.requests, tokens + blocks + own.length);
    check('held', socket.held(), held.size);
  }
  t.same(wrong, [], `${name}: seed ${SEED}, ${STEPS} steps, ${answers.length} answers checked`);
  return answers;
}

const twin = drive('twin', null);
const addon = loadAddon();
if (addon === null) t.comment('no addon: the native side is not compared');
else t.same(drive('native', addon), twin, 'native and twin answer alike');
