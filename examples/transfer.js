// Moves KV blocks from one process to another, without the plane: a prefill process writes four blocks of a paged KV cache in
// the order [token][head][dim], a decode process reads them into a cache that has [head][token][dim], under a lease.
//   node examples/transfer.js            # over shared memory
//   node examples/transfer.js tcp
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { createAgent } from 'millrace/transfer';

const BLOCKS = [3, 1, 4, 15];
const shape = { kind: 'paged-kv', layers: 2, blockTokens: 16, heads: 8, headDim: 64, elementBytes: 2 };
// Bytes of one plane (a layer's K or V) of one block, and where block b of plane 0 lies in the layer-major order.
const PLANE_BYTES = shape.blockTokens * shape.heads * shape.headDim * shape.elementBytes;
const ROW_BYTES = shape.headDim * shape.elementBytes;

if (process.argv[2] === 'prefill') {
  const agent = createAgent({ transports: [process.argv[3]] });
  const pool = agent.createPool({ layout: { ...shape, innerOrder: 'nhd' }, blocks: 64, blockTable: true });
  const { blocks, generations } = pool.table.reserve(BLOCKS.length);
  const memory = new Uint8Array(pool.buffer);
  // Each row of head h of token t of block b says so, in its first bytes.
  blocks.forEach((block, b) => {
    for (let t = 0; t < shape.blockTokens; t++) {
      for (let h = 0; h < shape.heads; h++)
        memory.set([b, t, h], block * PLANE_BYTES + (t * shape.heads + h) * ROW_BYTES);
    }
  });
  pool.table.fill(blocks);
  pool.table.commit([...blocks].map((block, b) => ({ block, hashLow: b + 1, hashHigh: 0 })));
  const lease = pool.lease(blocks, { ttlMs: 5000 });
  process.send({ metadata: agent.metadata(), pool: pool.id, blocks, generations, lease: lease.id });
  // Both sides know each other, so that a lease can be renewed and its end be told. An idle agent does not hold the process:
  // this listener does.
  process.on('message', ({ metadata }) => agent.connect(metadata));
  const [, why] = await once(agent, 'leaseExpired');
  console.log(`prefill: the lease ended (${why ?? 'the reader is done'})`);
  await agent.close();
  process.disconnect();
} else {
  const transport = process.argv[2] ?? 'shm';
  const child = fork(fileURLToPath(import.meta.url), ['prefill', transport], { serialization: 'advanced' });
  const [offer] = await once(child, 'message');
  const agent = createAgent({ transports: [transport] });
  const pool = agent.createPool({ layout: { ...shape, innerOrder: 'hnd' }, blocks: 64 });
  const peer = agent.connect(offer.metadata);
  child.send({ metadata: agent.metadata() });
  const plan = peer.plan({
    direction: 'read',
    local: { pool, blocks: BLOCKS },
    remote: { pool: offer.pool, blocks: offer.blocks, generations: offer.generations },
  });
  const done = await plan.post({ lease: offer.lease, integrity: 'full', deadlineMs: 5000 });
  const memory = new Uint8Array(pool.buffer);
  const [b, t, h] = [2, 5, 7];
  const row = BLOCKS[b] * PLANE_BYTES + (h * shape.blockTokens + t) * ROW_BYTES;
  console.log(
    `decode: ${done.bytes} bytes over ${done.transport} in ${(done.doneNs - done.postedNs) / 1000} µs`,
  );
  console.log(
    `decode: block ${b}, token ${t}, head ${h} says ${[...memory.subarray(row, row + 3)].join(', ')}`,
  );
  await once(child, 'exit');
  await agent.close();
}
