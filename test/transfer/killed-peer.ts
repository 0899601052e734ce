// The process that is killed: an agent with one pool, half of it ready blocks that say whose they are, half reserved for
// writes. It says what it has, meets whoever asks it to, does what its phase wants without end, and waits for its death.
import { once } from 'node:events';
import { createAgent, type Peer, type TransportName } from '#millrace/transfer/index.js';
import { BLOCK_WORDS, BLOCKS, type Blow, LAYOUT, type Offer, peerTag } from './kill-words.js';

const agent = createAgent({ name: 'killed', transports: [process.argv[2] as TransportName] });
const pool = agent.createPool({ layout: LAYOUT, blocks: BLOCKS, blockTable: true });
const words = new Uint32Array(pool.buffer);
const taken = pool.table!.reserve(BLOCKS);
if (taken === 'full') throw new Error('a new table is full');
const set = taken;
for (const block of set.blocks) words.fill(peerTag(block), block * BLOCK_WORDS, (block + 1) * BLOCK_WORDS);
const ready = set.blocks.slice(0, BLOCKS / 2);
pool.table!.fill(ready);
pool.table!.commit([...ready].map(block => ({ block, hashLow: block + 1, hashHigh: 1 })));
let survivor: Peer | undefined;
let isClosing = false;
setInterval(() => undefined, 60_000);

/** Moves blocks to and from the survivor, over and over. */
async function work({ pool: remote, blocks, generations }: Offer, peer: Peer): Promise<never> {
  const half = blocks.length / 2;
  const plans = (['write', 'read'] as const).map((direction, i) =>
    peer.plan({
      direction,
      local: {
        pool,
        blocks: i === 0 ? ready.subarray(0, half) : set.blocks.subarray(BLOCKS / 2, BLOCKS / 2 + half),
      },
      remote: {
        pool: remote,
        blocks: blocks.slice(i * half, (i + 1) * half),
        generations: generations.slice(i * half, (i + 1) * half),
      },
    }),
  );
  const notification = new Uint8Array(1);
  for (;;) await Promise.all(plans.flatMap(plan => [plan.post({ notification }), plan.post()]));
}

process.send!({ metadata: Buffer.from(agent.metadata()).toString('base64') });
process.on('message', ({ metadata, offer, lease, closes }: Blow) => {
  if (metadata !== undefined) {
    survivor = agent.connect(Buffer.from(metadata, 'base64'));
    const own = pool.lease(ready, { ttlMs: 60_000, peer: survivor });
    process.send!({
      pool: pool.id,
      blocks: [...set.blocks],
      generations: [...set.generations],
      lease: own.id,
    });
  }
  if (lease !== undefined) survivor!.holdLease(lease);
  if (offer !== undefined)
    work(offer, survivor!).catch((error: unknown) => {
      if (!isClosing) throw error;
    });
  if (closes) {
    isClosing = true;
    void agent.close();
  }
});
await once(process, 'disconnect');
process.exit(0);
