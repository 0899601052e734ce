// One of many threads that have an agent: makes transfers, says so, and ends by itself, at work or with transfers in
// flight, as its index says.
import { parentPort, workerData } from 'node:worker_threads';
import { createAgent, type TransportName } from '#millrace/transfer/index.js';

const { index, transports } = workerData as { index: number; transports: TransportName[] };
const layout = { kind: 'opaque', blockBytes: 256 * 1024 } as const;
const agent = createAgent({ transports });
const other = createAgent({ transports });
const pool = agent.createPool({ layout, blocks: 4 });
const target = other.createPool({ layout, blocks: 4, blockTable: true });
const set = target.table!.reserve(4);
if (set === 'full') throw new Error('a new table is full');
const plan = agent.connect(other.metadata()).plan({
  direction: 'write',
  local: { pool, blocks: [0, 1, 2, 3] },
  remote: { pool: target.id, ...set },
});
await plan.post();
parentPort!.postMessage('at work');
const kind = Math.floor(index / 3) % 3;
if (kind === 1) for (;;) await plan.post();
else if (kind === 2) await Promise.all(Array.from({ length: 200 }, () => plan.post()));
