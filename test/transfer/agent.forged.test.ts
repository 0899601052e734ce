// Promise: forged, foreign and stale descriptors are refused by name, on each transport, and touch no byte: metadata that
// is cut off, changed by a bit or of an earlier life; blocks outside a pool, pools that are not there or that do not fit,
// generations that moved on; leases of somebody else.
import t from 'tap';
import { createAgent, type Layout, type PlanOptions, type TransportName } from '#millrace/transfer/index.js';
import { codeOf, needs, needsAddon, twoAgents } from './two-agents.js';

const LAYOUT: Layout = { kind: 'opaque', blockBytes: 4096 };
const BLOCKS = 8;
const EPOCH_AT = 24;

/** By its definition, bit by bit. */
function crc32c(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ ((crc & 1) !== 0 ? 0x82f6_3b78 : 0);
  }
  return ~crc >>> 0;
}

/** How `connect` ends with these bytes. */
function refusal(connect: () => unknown): string {
  try {
    connect();
  } catch (error) {
    const { name, code, message } = error as Error & { code: string };
    return name === 'TransferError' && message.length > 0 ? code : `${name}: ${message}`;
  }
  return 'OK';
}

/** The same bytes with another epoch, and the checksum that goes with it. */
function withEpoch(metadata: Uint8Array, change: bigint): Uint8Array {
  const forged = metadata.slice();
  const view = new DataView(forged.buffer);
  view.setBigUint64(EPOCH_AT, view.getBigUint64(EPOCH_AT, true) + change, true);
  const body = forged.length - 4;
  view.setUint32(body, crc32c(forged.subarray(0, body)), true);
  return forged;
}

t.test('metadata', needsAddon, async t => {
  const agents = twoAgents('memory', LAYOUT, BLOCKS);
  t.teardown(() => agents.close());
  const metadata = agents.far.metadata();
  const connect = (bytes: Uint8Array): string => refusal(() => agents.near.connect(bytes));
  const codes = new Set<string>();
  for (let length = 0; length < metadata.length; length++) codes.add(connect(metadata.subarray(0, length)));
  for (let bit = 0; bit < metadata.length * 8; bit++) {
    const changed = metadata.slice();
    changed[bit >> 3]! ^= 1 << (bit & 7);
    codes.add(connect(changed));
  }
  codes.add(connect(Buffer.concat([metadata, Buffer.alloc(1)])));
  t.same([...codes].sort(), ['INVALID', 'MISMATCH']);
  t.equal(connect(withEpoch(metadata, 0n)), 'OK', 'the checksum is as the engine makes it');
  t.equal(connect(withEpoch(metadata, -1n)), 'STALE', 'an earlier life');
  t.equal(
    refusal(() => agents.far.connect(withEpoch(metadata, 1n))),
    'INVALID',
    'another life of the agent itself',
  );
  t.equal(connect(metadata), 'OK', 'and the true one still');
});

for (const transport of ['memory', 'shm', 'cma', 'tcp'] as TransportName[]) {
  t.test(`blocks, pools, generations and leases by ${transport}`, needs(transport), async t => {
    const agents = twoAgents(transport, LAYOUT, BLOCKS, LAYOUT, true);
    const third = createAgent({ name: 'third', transports: [transport] });
    t.teardown(() => Promise.all([agents.close(), third.close()]));
    const { far, farPool, nearPool, nearBytes, farBytes } = agents;
    const kv = {
      kind: 'paged-kv',
      layers: 1,
      blockTokens: 1,
      heads: 1,
      headDim: 2048,
      elementBytes: 1,
    } as const;
    const otherPool = far.createPool({ layout: kv, blocks: BLOCKS });
    const peer = agents.near.connect(far.metadata());
    const set = farPool.table!.reserve(BLOCKS);
    if (set === 'full') throw new Error('a new table is full');
    nearBytes.fill(1);
    farBytes.fill(2);
    const plan = (remote: object, local: object = {}): PlanOptions => ({
      direction: 'write',
      local: { pool: nearPool, blocks: [0], ...local },
      remote: { pool: farPool.id, blocks: [set.blocks[0]!], generations: [set.generations[0]!], ...remote },
    });
    const post = (remote: object, local?: object): Promise<string> =>
      codeOf(peer.plan(plan(remote, local)).post());
    for (const block of [BLOCKS, 0x7fff_ffff, 0xffff_ffff])
      t.equal(await post({ blocks: [block] }), 'INVALID', `block ${block} of the peer`);
    t.equal(await post({}, { blocks: [BLOCKS] }), 'INVALID', 'a block outside the pool here');
    t.equal(await post({ pool: 99 }), 'NOT_FOUND', 'a pool that is not there');
    t.equal(await post({ pool: otherPool.id, generations: undefined }), 'MISMATCH', 'a pool of another kind');
    for (const change of [1, -1, 1 << 16])
      t.equal(
        await post({ generations: [(set.generations[0]! + change) >>> 0] }),
        'STALE',
        `generation ${change}`,
      );
    t.equal(
      await codeOf(peer.plan({ ...plan({}), direction: 'read' }).post()),
      'NOT_ALLOWED',
      'nothing to read yet',
    );
    farPool.table!.fill([set.blocks[1]!]);
    farPool.table!.commit([{ block: set.blocks[1]!, hashLow: 1, hashHigh: 1 }]);
    const ready = { blocks: [set.blocks[1]!], generations: [set.generations[1]!] };
    t.equal(await post(ready), 'NOT_ALLOWED', 'a block that others read');

    const thirdPool = third.createPool({ layout: LAYOUT, blocks: BLOCKS });
    const farOfThird = third.connect(far.metadata());
    far.connect(third.metadata());
    const lease = farPool.lease([set.blocks[0]!], { ttlMs: 60_000, peer: agents.peerOfFar });
    const stolen = farOfThird.plan(plan({}, { pool: thirdPool }));
    t.equal(await codeOf(stolen.post({ lease: lease.id })), 'NOT_ALLOWED', 'the lease of somebody else');
    t.equal(
      await codeOf(stolen.post({ lease: lease.id + 1000 })),
      'NOT_ALLOWED',
      'a lease that was never given',
    );
    t.ok(farBytes.every(byte => byte === 2) && nearBytes.every(byte => byte === 1), 'no byte was touched');
    t.equal(await codeOf(peer.plan(plan({})).post({ lease: lease.id })), 'OK', 'its own');
    t.equal(farBytes[set.blocks[0]! * 4096], 1);
    far.connect(third.metadata()).disconnect();
    t.equal(agents.near.inFlight + third.inFlight, 0);
  });
}
