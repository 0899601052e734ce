// Promise: a port that is full says so and has room again; each transfer of it settles once, however the port ends; whatever is
// written into its memory harms nobody but who wrote it; a port is opened once and by nothing but its description.
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import t, { type Test } from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import {
  type AgentPort,
  type Layout,
  openTransferPort,
  type PortPlan,
  type TransferPort,
} from '#millrace/transfer/index.js';
import { PORT_ENTRIES_MIN } from '#millrace/transfer/port-descriptor.js';
import { codeOf, needsAddon, type TwoAgents, twoAgents } from './two-agents.js';

const isLong = process.env.MILLRACE_TEST_LONG === '1';
const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const BLOCK_BYTES = 4 * 1024 * 1024;
const LARGE: Layout = { kind: 'opaque', blockBytes: BLOCK_BYTES };
const SMALL: Layout = { kind: 'opaque', blockBytes: 64 };
const ENTRIES = PORT_ENTRIES_MIN;
const WAIT_MS = 60_000;

interface Opened extends TwoAgents {
  readonly agentPort: AgentPort;
  readonly port: TransferPort;
  readonly plan: PortPlan;
}

/** Two agents, a port of the near one and a plan that writes its first `count` blocks. */
function opened(
  t: { teardown(end: () => Promise<void>): void },
  layout: Layout,
  blocks: number,
  count = 1,
  blocksMax = 64,
): Opened {
  const agents = twoAgents('memory', layout, blocks);
  t.teardown(() => agents.close());
  const agentPort = agents.near.createPort({ entries: ENTRIES, blocksMax });
  const port = openTransferPort(agentPort.description);
  const list = Array.from({ length: count }, (_, i) => i);
  const plan = port.plan({
    peer: agents.peer.id,
    direction: 'write',
    local: { pool: agents.nearPool.id, blocks: list },
    remote: { pool: agents.farPool.id, blocks: list },
  });
  return { ...agents, agentPort, port, plan };
}

t.test('a port that is full', needsAddon, async t => {
  const { port, plan, nearBytes, farBytes } = opened(t, LARGE, 1);
  nearBytes.fill(5);
  const ids = new Set<number>();
  for (let id = port.submit(plan); id !== 0; id = port.submit(plan)) ids.add(id);
  t.equal(ids.size, ENTRIES);
  t.equal(await codeOf(port.post(plan)), 'FULL');
  for (let ended = 0; ended < ENTRIES; ended++) {
    const completion = port.wait(WAIT_MS)!;
    t.equal(completion.error, null);
    t.ok(ids.delete(completion.id), 'each once');
  }
  t.equal(port.wait(WAIT_MS), null, 'nothing to wait for');
  t.equal(farBytes[BLOCK_BYTES - 1], 5);
  t.equal(await codeOf(port.post(plan)), 'OK', 'there is room again');
});

t.test('lists that find no room', needsAddon, async t => {
  const blocks = 8192;
  // Two such lists with their notifications fill the arena.
  const { port, plan } = opened(t, SMALL, blocks, blocks, blocks);
  const notification = new Uint8Array(65_520).fill(1);
  let refused = 0;
  for (let posted = 0; posted < 50; ) {
    if (port.submit(plan, { notification }) !== 0) posted++;
    else {
      refused++;
      t.equal(port.wait(WAIT_MS)!.error, null);
    }
  }
  t.comment(`${refused} were refused`);
  while (port.inFlight > 0) t.equal(port.wait(WAIT_MS)!.error, null);
});

t.test('what a port refuses', needsAddon, async t => {
  const { near, port, plan, peer, nearPool, farPool, agentPort } = opened(t, SMALL, 4);
  const { description } = agentPort;
  t.throws(() => openTransferPort(description), { code: 'BUSY' });
  t.throws(() => openTransferPort({ ...description, port: 2 ** 31 }), { code: 'NOT_FOUND' });
  const other = near.createPort({ entries: ENTRIES, blocksMax: 64 });
  const { memory } = other.description;
  t.throws(() => openTransferPort({ ...description, memory }), { code: 'NOT_ALLOWED' });
  t.throws(() => openTransferPort({ ...description, entries: 32 }), { code: 'INVALID' });
  t.throws(() => openTransferPort({ ...other.description, blocksMax: 63 }), { code: 'NOT_ALLOWED' });
  t.throws(() => near.createPort({ entries: 20 }), { code: 'INVALID', message: /entries is 20/ });
  t.throws(() => near.createPort({ blocksMax: 0 }), { code: 'INVALID', message: /blocksMax/ });
  const wrong = (local: number, remote: number, pool = nearPool.id, to = peer.id) =>
    codeOf(
      port.post(
        port.plan({
          peer: to,
          direction: 'read',
          local: { pool, blocks: [local] },
          remote: { pool: farPool.id, blocks: [remote] },
        }),
      ),
    );
  t.equal(await wrong(4, 0), 'INVALID');
  t.equal(await wrong(0, 4), 'INVALID');
  t.equal(await wrong(0, 0, 99), 'NOT_FOUND');
  t.equal(await wrong(0, 0, nearPool.id, 99), 'NOT_FOUND');
  t.equal(await wrong(0, 0), 'OK');
  const error = port.post(
    port.plan({ ...planOf(peer.id, nearPool.id, farPool.id), local: { pool: 99, blocks: [0] } }),
  );
  await t.rejects(error, { message: 'transfer: local_pool: no pool 99 here' });
  const reason = new Error('the client left');
  await t.rejects(port.post(plan, { signal: AbortSignal.abort(reason) }), {
    code: 'CANCELLED',
    cause: reason,
  });
  t.throws(() => port.openPool(99), { code: 'NOT_FOUND' });
  const mine = near.registerPool({ buffer: new ArrayBuffer(256), layout: SMALL, blocks: 4 });
  t.throws(() => port.openPool(mine.id), { code: 'UNSUPPORTED' });
});

const planOf = (peer: number, near: number, far: number) =>
  ({
    peer,
    direction: 'write',
    local: { pool: near, blocks: [0] },
    remote: { pool: far, blocks: [0] },
  }) as const;

t.test('a mapped pool is the pool, and outlives it', needsAddon, async t => {
  const { near, port, agentPort, nearPool, nearBytes } = opened(t, SMALL, 4);
  const mapped = new Uint8Array(port.openPool(nearPool.id));
  t.equal(mapped.length, nearBytes.length);
  mapped[70] = 9;
  t.equal(nearBytes[70], 9);
  nearPool.close();
  t.equal(mapped[70], 9);
  const ended = once(near, 'portEnded');
  await port.close();
  t.equal((await ended)[0], agentPort);
  t.equal(mapped[70], 9);
});

const ENDS: Record<string, (opened: Opened) => unknown> = {
  'by its thread': ({ port }) => port.close(),
  'by the thread of the agent': ({ agentPort }) => agentPort.close(),
  'with the agent': ({ near }) => near.close(),
};
/** The engine may be done with all of them before the end, where this process waits for its processor. */
const ROUNDS = 20;
for (const [name, end] of Object.entries(ENDS)) {
  /** True when a transfer was in flight. */
  const endOnce = async (t: Test): Promise<boolean> => {
    const it = opened(t, LARGE, 1);
    const ended = once(it.near, 'portEnded');
    const submitted = it.port.submit(it.plan);
    const codes = Array.from({ length: ENTRIES - 1 }, () => codeOf(it.port.post(it.plan)));
    const closing = end(it);
    const settled = await Promise.all(codes);
    await closing;
    t.ok(
      settled.every(code => ['OK', 'CANCELLED', 'CLOSED'].includes(code)),
      String(settled),
    );
    t.equal(it.port.poll()?.id, submitted, 'the one that nobody awaited is told too');
    t.equal((await ended)[0], it.agentPort);
    t.ok(it.agentPort.hasEnded);
    t.notOk(it.port.isOpen);
    t.equal(it.port.inFlight, 0);
    t.equal(await codeOf(it.port.post(it.plan)), 'CLOSED');
    t.throws(() => it.port.submit(it.plan), { code: 'CLOSED' });
    it.agentPort.close();
    await it.port.close();
    return settled.some(code => code !== 'OK');
  };
  t.test(`the end of a port with transfers in flight, ${name}`, needsAddon, async t => {
    let rounds = 1;
    while (!(await endOnce(t)) && rounds < ROUNDS) rounds++;
    t.ok(rounds < ROUNDS, `in flight in round ${rounds}`);
  });
}

t.test('a thread is terminated while it blocks', needsAddon, async t => {
  const { near, peer, nearPool, farPool } = opened(t, LARGE, 1);
  const agentPort = near.createPort({ entries: ENTRIES });
  const thread = new Worker(new URL('./port-waiter.js', import.meta.url), {
    workerData: { description: agentPort.description, plan: planOf(peer.id, nearPool.id, farPool.id) },
  });
  const ended = once(near, 'portEnded');
  await once(thread, 'message');
  await thread.terminate();
  t.equal((await ended)[0], agentPort);
  t.equal(near.stats().transfersActive, 0);
});

t.test('the thread of the agent is terminated', needsAddon, async t => {
  const owner = new Worker(new URL('./port-owner.js', import.meta.url));
  const [{ description, plan }] = await once(owner, 'message');
  const port = openTransferPort(description);
  const words = port.plan(plan);
  const codes = Array.from({ length: ENTRIES }, () => codeOf(port.post(words)));
  await owner.terminate();
  const settled = await Promise.all(codes);
  t.ok(
    settled.every(code => code === 'OK' || code === 'CLOSED'),
    String(settled),
  );
  t.notOk(port.isOpen);
  t.equal(await codeOf(port.post(words)), 'CLOSED');
  t.throws(() => port.openPool(1), { code: 'CLOSED' });
  await port.close();
  t.throws(() => openTransferPort(description), { code: 'NOT_FOUND' });
});

t.test('nonsense in the memory of a port', needsAddon, async t => {
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  const { near, port: honest, plan } = opened(t, SMALL, 4);
  for (let round = 0; round < (isLong ? 2000 : 40); round++) {
    const agentPort = near.createPort({ entries: ENTRIES, blocksMax: 4 });
    const ended = once(near, 'portEnded');
    const port = openTransferPort(agentPort.description);
    const words = new Uint32Array(agentPort.description.memory);
    // What the thread itself makes of the nonsense is its own affair; it must not hang or die of it.
    for (let i = 0; i < 100; i++) {
      if (port.isOpen && random() < 0.5) port.submit(plan);
      const near = random() < 0.7 ? 64 + ENTRIES * 17 : words.length;
      words[randomInteger(random, near)] = random() < 0.5 ? randomInteger(random, 300) : random() * 2 ** 32;
    }
    t.equal(await codeOf(honest.post(plan)), 'OK');
    agentPort.close();
    await Promise.race([ended, once(near, 'portEnded')]);
  }
  t.equal(near.stats().transfersActive, 0);
});
