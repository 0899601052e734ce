// A thread with two agents that know each other and a port of one: says how to open it and what to post, and lives on.
import { parentPort } from 'node:worker_threads';
import { createAgent } from '#millrace/transfer/index.js';

const layout = { kind: 'opaque', blockBytes: 4 * 1024 * 1024 } as const;
const near = createAgent({ transports: ['memory'] });
const far = createAgent({ transports: ['memory'] });
const pool = near.createPool({ layout, blocks: 1 });
const target = far.createPool({ layout, blocks: 1 });
far.connect(near.metadata());
const peer = near.connect(far.metadata());
parentPort!.postMessage({
  description: near.createPort({ entries: 16 }).description,
  plan: {
    peer: peer.id,
    direction: 'write',
    local: { pool: pool.id, blocks: [0] },
    remote: { pool: target.id, blocks: [0] },
  },
});
setInterval(() => undefined, 60_000);
