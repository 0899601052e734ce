// Promise: a decision that is asked why tells its best candidates by their cost, with the chosen one among them, and changes nothing.
import t from 'tap';
import type { WorkerView } from '#millrace/messages/records.js';
import { createDecider, type Decider } from '#millrace/router/decide.js';
import { explain } from '#millrace/router/explain.js';
import type { PrefixIndexReader } from '#millrace/router/index/contract.js';
import { createLedgerMemory, Ledger } from '#millrace/router/ledger.js';
import { SLOT_STATE } from '#millrace/router/load-descriptor.js';
import { createLoadMemory, LoadTable } from '#millrace/router/load-table.js';
import { createSelector, POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { candidateColumns } from './candidate-rows.js';

const request = { model: 'm', promptTokens: 320, excludedSlots: [] };
const NONE_HELD: PrefixIndexReader = {
  lookup: (_hashes, _blocks, _holders, count, depths) => {
    depths.fill(0, 0, 2 * count);
    return 0;
  },
};

t.test('sixteen at most, best first', async t => {
  const rows = candidateColumns(
    Array.from({ length: 40 }, (_, slot) => ({ slot, requests: (slot * 7) % 40 })),
  );
  const selector = createSelector('least-requests');
  const told = explain(selector, request, rows, 0);
  t.same(
    told.map(({ cost }) => cost),
    Array.from({ length: 16 }, (_, cost) => cost),
  );
  t.same(told[0], { ...told[0], slot: 0, requests: 0, cachedTokens: 0 });
  const last = explain(selector, request, rows, 37);
  t.equal(last.length, 16);
  t.same(last.at(-1)?.slot, 37, 'the chosen one in the place of the last');
});

t.test('which policies have a cost', async t => {
  const rows = candidateColumns([{ slot: 1 }, { slot: 2, requests: 3 }]);
  for (const policy of POLICY_NAMES) {
    const costs = explain(createSelector(policy), request, rows, 0).map(({ cost }) => cost);
    const hasNone = ['two-tier', 'round-robin', 'random'].includes(policy);
    t.ok(
      costs.every(cost => (cost === null) === hasNone),
      policy,
    );
  }
});

const worker = (slot: number): WorkerView => ({
  slot,
  generation: 1,
  url: `http://w${slot}`,
  engine: 'vllm',
  models: [{ id: 'm', contextLength: null }],
  blockSize: 16,
  totalBlocks: 1000,
  returnsTokenIds: true,
  foreignIds: [],
});

function deciderOver(workers: readonly WorkerView[], prefixes: PrefixIndexReader | null): Decider {
  const loadTable = new LoadTable(createLoadMemory(16));
  for (const { slot, generation } of workers) loadTable.install(slot, generation, SLOT_STATE.ready);
  const ledger = new Ledger({
    memory: createLedgerMemory(64),
    loadTable,
    partition: { index: 0, count: 1 },
    addon: null,
  });
  const random = seededRandom(1);
  return createDecider({ loadTable, ledger, random, nowMs: () => 0, ownerEpoch: 1, prefixes, routed: null });
}

t.test('only for a request that asks', async t => {
  const workers = [worker(0), worker(1)];
  const decider = deciderOver(workers, null);
  const asked = { ...request, outputTokens: null };
  const silent = decider.decide(asked, 'least-requests', workers);
  t.match(silent, { candidates: null });
  const telling = decider.decide({ ...asked, explains: true }, 'least-requests', workers);
  t.match(telling, { candidates: [{ cost: 0 }, { cost: 1 }] }, 'figures of the moment before it was placed');
});

t.test('blocks are wanted by a policy that looks at prefixes, where there is an index', async t => {
  const uses = (prefixes: PrefixIndexReader | null): string[] =>
    POLICY_NAMES.filter(policy => deciderOver([], prefixes).usesBlocks(policy));
  t.same(uses(null), []);
  t.same(uses(NONE_HELD), ['ttft', 'kv', 'two-tier']);
});
