// A process whose agent, its own peer, moves blocks from a host pool to one on a device and back; prints the transports that
// were taken. Run by device.double.test.ts with the driver double.
import assert from 'node:assert/strict';
import { createAgent, TransferError } from '#millrace/transfer/index.js';

const BLOCK_BYTES = 8192;
const BLOCKS = 32;
const HALF = BLOCKS / 2;
const layout = { kind: 'opaque', blockBytes: BLOCK_BYTES } as const;

const agent = createAgent();
const host = agent.createPool({ layout, blocks: BLOCKS });
const device = agent.createPool({ layout, blocks: BLOCKS, device: 1 });
assert.throws(() => device.buffer, TransferError);
for (const wrong of [-1, 2000, 9])
  assert.throws(() => agent.createPool({ layout, blocks: 1, device: wrong }), TransferError);
for (const address of [0, -1, 4096, 2n ** 64n])
  assert.throws(
    () => agent.registerPool({ layout, blocks: 1, device: 0, bytes: BLOCK_BYTES, address }),
    TransferError,
  );

const bytes = new Uint8Array(host.buffer);
for (let i = 0; i < bytes.length / 2; i++) bytes[i] = (i * 31) % 251;
const self = agent.connect(agent.metadata());
const upper = Uint32Array.from({ length: HALF }, (_, i) => HALF + i);
const lower = Uint32Array.from({ length: HALF }, (_, i) => HALF - 1 - i);
const deadlineMs = 30_000;
const there = self.plan({
  direction: 'write',
  local: { pool: host, blocks: lower },
  remote: { pool: device.id, blocks: upper },
});
const out = await there.post({ deadlineMs, integrity: 'full' });
const back = self.plan({
  direction: 'read',
  local: { pool: host, blocks: upper },
  remote: { pool: device.id, blocks: upper },
});
const home = await back.post({ deadlineMs });
for (let i = 0; i < HALF; i++) {
  const sent = bytes.subarray(lower[i]! * BLOCK_BYTES, (lower[i]! + 1) * BLOCK_BYTES);
  assert.deepEqual(bytes.subarray(upper[i]! * BLOCK_BYTES, (upper[i]! + 1) * BLOCK_BYTES), sent);
}
await agent.close();
process.stdout.write(`${out.transport} ${home.transport}\n`);
