// Promise: blocks arrive where the plan says, whole, by every transport of one host; notifications come with them; layouts
// that differ in order or in heads are turned into each other; every wrong input is refused by the name of its field.
import { once } from 'node:events';
import t from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import {
  createAgent,
  type Layout,
  type PagedKvLayout,
  type PlanOptions,
  type PostOptions,
  type TransportName,
} from '#millrace/transfer/index.js';
import { codeOf, needs, needsAddon, twoAgents } from './two-agents.js';

const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const BLOCK_BYTES = 4096;
const BLOCKS = 64;
const OPAQUE: Layout = { kind: 'opaque', blockBytes: BLOCK_BYTES };

/** `count` different numbers below `end`. */
function sample(random: () => number, count: number, end: number): number[] {
  const numbers = Array.from({ length: end }, (_, i) => i);
  for (let i = 0; i < count; i++) {
    const other = i + randomInteger(random, end - i);
    [numbers[i], numbers[other]] = [numbers[other]!, numbers[i]!];
  }
  return numbers.slice(0, count);
}

/** Bytes that differ from place to place and from start to start. */
function fill(bytes: Uint8Array, start: number): void {
  for (let i = 0; i < bytes.length; i++) bytes[i] = (i * 31 + (i >> 8) * 17 + start) & 0xff;
}

for (const transport of ['memory', 'shm', 'tcp'] as TransportName[]) {
  t.test(`random lists of blocks by ${transport}`, needs(transport), async t => {
    t.comment(`SEED=${seed}`);
    const random = seededRandom(seed);
    const agents = twoAgents(transport, OPAQUE, BLOCKS);
    t.teardown(() => agents.close());
    const { nearBytes, farBytes } = agents;
    for (let round = 0; round < 20; round++) {
      fill(nearBytes, round * 7);
      fill(farBytes, round * 7 + 101);
      const isRead = round % 2 === 0;
      const [source, target] = isRead ? [farBytes, nearBytes] : [nearBytes, farBytes];
      const count = 1 + randomInteger(random, BLOCKS - 1);
      const [local, remote] = [sample(random, count, BLOCKS), sample(random, count, BLOCKS)];
      const expected = target.slice();
      local.forEach((block, i) => {
        const [from, to] = isRead ? [remote[i]!, block] : [block, remote[i]!];
        expected.set(source.subarray(from * BLOCK_BYTES, (from + 1) * BLOCK_BYTES), to * BLOCK_BYTES);
      });
      const plan = agents.peer.plan({
        direction: isRead ? 'read' : 'write',
        local: { pool: agents.nearPool, blocks: local },
        remote: { pool: agents.farPool.id, blocks: Uint32Array.from(remote) },
      });
      const integrity = (['off', 'sample', 'full'] as const)[round % 3]!;
      const result = await plan.post({ integrity, deadlineMs: 30_000, reader: 'soon' });
      if (!Buffer.from(target).equals(expected)) t.fail(`round ${round}: other bytes than planned`);
      t.equal(result.bytes, count * BLOCK_BYTES);
      t.equal(result.transport, transport);
      t.ok(result.postedNs <= result.begunNs && result.begunNs <= result.doneNs);
    }
    t.equal(agents.near.inFlight, 0);
  });

  t.test(`a notification by ${transport} comes with its blocks, and alone`, needs(transport), async t => {
    const agents = twoAgents(transport, OPAQUE, BLOCKS);
    t.teardown(() => agents.close());
    agents.nearBytes.fill(9);
    const told = once(agents.far, 'notification');
    const plan = agents.peer.plan({
      direction: 'write',
      local: { pool: agents.nearPool, blocks: [5] },
      remote: { pool: agents.farPool.id, blocks: [6] },
    });
    const done = plan.post({ notification: Buffer.from('block 6 is there') });
    const [{ peer, bytes }] = await told;
    t.equal(peer, agents.peerOfFar);
    t.equal(Buffer.from(bytes).toString(), 'block 6 is there');
    t.equal(agents.farBytes[6 * BLOCK_BYTES], 9, 'the bytes were there first');
    await done;
    const answered = once(agents.near, 'notification');
    agents.peerOfFar.notify(Buffer.from('thanks'));
    const [answer] = await answered;
    t.equal(Buffer.from(answer.bytes).toString(), 'thanks');
  });
}

t.test('a rank of two and the other order of heads', needsAddon, async t => {
  const far: PagedKvLayout = {
    kind: 'paged-kv',
    layers: 2,
    blockTokens: 4,
    heads: 4,
    headDim: 8,
    elementBytes: 1,
  };
  const near: PagedKvLayout = { ...far, heads: 2, headsTotal: 4, tpSize: 2, tpRank: 1, innerOrder: 'hnd' };
  const agents = twoAgents('memory', near, 2, far);
  t.teardown(() => agents.close());
  fill(agents.farBytes, 5);
  const plan = agents.peer.plan({
    direction: 'read',
    local: { pool: agents.nearPool, blocks: [1] },
    remote: { pool: agents.farPool.id, blocks: [0] },
    layers: { first: 1, count: 1 },
  });
  const planeBytes = 4 * 2 * 8;
  t.equal((await plan.post()).bytes, 2 * planeBytes);
  const expected = new Uint8Array(agents.nearBytes.length);
  for (let part = 0; part < 2; part++)
    for (let head = 0; head < 2; head++)
      for (let token = 0; token < 4; token++)
        for (let dim = 0; dim < 8; dim++) {
          // [layer][K|V][block] planes of both; far [token][head][dim], near [head][token][dim].
          const from = ((2 + part) * 2 + 0) * 2 * planeBytes + (token * 4 + 2 + head) * 8 + dim;
          const to = ((2 + part) * 2 + 1) * planeBytes + (head * 4 + token) * 8 + dim;
          expected[to] = agents.farBytes[from]!;
        }
  t.ok(Buffer.from(agents.nearBytes).equals(expected));
});

t.test('memory of the caller', needsAddon, async t => {
  const agents = twoAgents('memory', OPAQUE, 4);
  t.teardown(() => agents.close());
  const mine = new ArrayBuffer(4 * BLOCK_BYTES);
  const pool = agents.near.registerPool({ buffer: mine, layout: OPAQUE, blocks: 4 });
  agents.farBytes.fill(3);
  const plan = agents.peer.plan({
    direction: 'read',
    local: { pool, blocks: [2] },
    remote: { pool: agents.farPool.id, blocks: [0] },
  });
  await plan.post();
  t.equal(new Uint8Array(mine).filter(byte => byte === 3).length, BLOCK_BYTES);
  t.throws(() => pool.buffer, { code: 'UNSUPPORTED' });
  try {
    structuredClone(mine, { transfer: [mine] });
  } catch (error) {
    // Later versions of Node say so; this one copies.
    t.match(error, { name: 'DataCloneError' });
  }
  t.equal(mine.byteLength, 4 * BLOCK_BYTES, 'it cannot be taken away by a transfer list');
  pool.close();
  t.equal(await codeOf(plan.post()), 'NOT_FOUND', 'a pool that was closed');
  const view = agents.nearBytes;
  agents.nearPool.close();
  t.equal(view.length, 0, 'views of a closed pool are detached');
  const Resizable = ArrayBuffer as new (bytes: number, options: object) => ArrayBuffer;
  const resizable = new Resizable(8, { maxByteLength: 16 });
  t.throws(() => agents.near.registerPool({ buffer: resizable, layout: OPAQUE, blocks: 1 }), {
    code: 'INVALID',
    message: /^buffer /,
  });
});

const bothOfHost = { skip: needs('shm').skip ?? needs('cma').skip ?? false };
t.test('each pool of one peer goes the way that reaches it', bothOfHost, async t => {
  const near = createAgent({ transports: ['shm', 'cma'] });
  const far = createAgent({ transports: ['shm', 'cma'] });
  t.teardown(() => Promise.all([near.close(), far.close()]));
  const pool = near.createPool({ layout: OPAQUE, blocks: 1 });
  const made = far.createPool({ layout: OPAQUE, blocks: 1 });
  const memory = new Uint8Array(BLOCK_BYTES);
  const registered = far.registerPool({ buffer: memory, layout: OPAQUE, blocks: 1 });
  const peer = near.connect(far.metadata());
  for (const [remote, expected] of [
    [made, 'shm'],
    [registered, 'cma'],
  ] as const) {
    const plan = { local: { pool, blocks: [0] }, remote: { pool: remote.id, blocks: [0] } };
    const { transport } = await peer.plan({ direction: 'write', ...plan }).post();
    t.equal(transport, expected);
  }
  new Uint8Array(pool.buffer).fill(7);
  const again = { local: { pool, blocks: [0] }, remote: { pool: registered.id, blocks: [0] } };
  await peer.plan({ direction: 'write', ...again }).post();
  t.ok(memory.every(byte => byte === 7));
  t.equal(await codeOf(peer.plan({ direction: 'write', ...again, transport: 'shm' }).post()), 'UNSUPPORTED');
});

t.test('wrong inputs', needsAddon, async t => {
  const agents = twoAgents('memory', OPAQUE, 4);
  t.teardown(() => agents.close());
  const refused = (message: RegExp, call: () => unknown): void => {
    t.throws(call, { name: 'TransferError', code: 'INVALID', message }, String(message));
  };
  const kv: Layout = { kind: 'paged-kv', layers: 1, blockTokens: 1, heads: 1, headDim: 1, elementBytes: 1 };
  refused(/^operationsMax is 0,/, () => createAgent({ operationsMax: 0 }));
  refused(/^transports\[0\] is 'udp'/, () => createAgent({ transports: ['udp' as TransportName] }));
  refused(/^agent\.nmae /, () => createAgent({ nmae: '' } as object));
  refused(/^name /, () => createAgent({ name: 'n'.repeat(129) }));
  refused(/^blocks is 0,/, () => agents.near.createPool({ layout: OPAQUE, blocks: 0 }));
  refused(/^layout\.layers is 1025,/, () =>
    agents.near.createPool({ layout: { ...kv, layers: 1025 }, blocks: 1 }),
  );
  refused(/^layout\.kvSplit /, () =>
    agents.near.createPool({ layout: { ...kv, kvSplit: 'both' as 'joined' }, blocks: 1 }),
  );
  refused(/bytes/, () => agents.near.createPool({ layout: OPAQUE, blocks: 4, bytes: BLOCK_BYTES }));
  refused(/^metadata\.length /, () => agents.near.connect(new Uint8Array(0)));
  refused(/./, () => agents.near.connect(new Uint8Array(100)));
  const plan = (other: object): PlanOptions => ({
    direction: 'read',
    local: { pool: agents.nearPool, blocks: [0, 1] },
    remote: { pool: agents.farPool.id, blocks: [2, 3] },
    ...other,
  });
  refused(/^direction /, () => agents.peer.plan(plan({ direction: 'up' })));
  refused(/^remote\.blocks\.length is 1,/, () =>
    agents.peer.plan(plan({ remote: { pool: 1, blocks: [1] } })),
  );
  refused(/^local\.blocks\[1\] is -1,/, () =>
    agents.peer.plan(plan({ local: { pool: agents.nearPool, blocks: [0, -1] } })),
  );
  refused(/^layers\.count is 0,/, () => agents.peer.plan(plan({ layers: { first: 0, count: 0 } })));
  refused(/^notification\.length is 65521,/, () => agents.peer.notify(new Uint8Array(65_521)));
  const post = (other: PostOptions, more: object = {}): Promise<string> =>
    codeOf(agents.peer.plan(plan(more)).post(other));
  t.equal(await post({ priority: 256 }), 'INVALID');
  t.equal(await post({ deadlineMs: 0 }), 'INVALID');
  t.equal(await post({ integrity: 'some' as 'full' }), 'INVALID');
  t.equal(await post({ retries: 1 } as object), 'INVALID');
  t.equal(
    await post({}, { local: { pool: agents.nearPool, blocks: [0, 4] } }),
    'INVALID',
    'a block outside its pool',
  );
  t.equal(await post({}, { local: { pool: agents.nearPool, blocks: [1, 1] } }), 'INVALID', 'a target twice');
  t.equal(await post({}, { remote: { pool: 99, blocks: [2, 3] } }), 'NOT_FOUND');
  t.equal(await post({}, { transport: 'ucx' }), 'UNSUPPORTED');
  t.equal(await post({}), 'OK', 'and what is right still goes');
});
